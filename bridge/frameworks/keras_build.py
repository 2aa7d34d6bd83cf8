"""Keras layers out of cells, and cells into the layers of the caller's own model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from bridge.cell import Activation, Cell
from bridge.errors import NotRepresentable, UsageError
from bridge.frameworks import keras_graph
from bridge.frameworks.keras_activations import function_of, legacy_name, name_of, onnx_activation
from bridge.frameworks.keras_read import LAYOUTS, NATIVE, Direction, is_cell, is_recurrent, read_layers

if TYPE_CHECKING:
    from bridge.layout.writing import Fit

KEYS: Final = ("kernel", "recurrent_kernel", "bias")
"""Parameters of a native cell in the order of its weights."""


# ---------------------------------------------------------------------- build


def build(cells: Sequence[Cell], own_cells: bool) -> Any:
    """See `bridge.frameworks.keras.build`."""
    import keras

    if not cells:
        raise UsageError("no cells", where="build")
    layers = [layer_of(cell, own_cells=own_cells) for cell in cells]
    if len(layers) == 1:
        return layers[0]
    for before, after in pairwise(cells):
        width = before.num_directions * before.hidden_size
        if width != after.input_size:
            raise NotRepresentable("the cells do not chain into one stack", where="build",
                                   got=f"{width} features go into a cell of {after.input_size} inputs")  # fmt: skip
    stack = keras.Sequential([keras.Input((None, cells[0].input_size), dtype=cells[0].dtype.name), *layers])
    for layer, cell in zip(layers, cells, strict=True):
        fill(layer, cell)  # Sequential calls its layers, which does not touch weights that are there
    return stack


def layer_of(cell: Cell, *, own_cells: bool, merge: str | None = "concat", **options: Any) -> Any:
    """A built layer that holds `cell`: native where it fits, else with bridge's own cell where `own_cells` allows it.

    `options` are Keras' own (name, return_state, zero_output_for_mask); return_sequences is always True.

    Raises:
        NotRepresentable: the native layer has no place for something in the cell, and `own_cells` is False.
    """
    import keras

    from bridge import layout

    halves = cell.split()
    options = {"return_sequences": True, "dtype": cell.dtype.name, **options}
    name = options.pop("name", None)
    if not own_cells:  # functions of Keras 2 are bridge's own as well
        for half in halves:
            layout.fit(LAYOUTS[half.op], half)
    own = own_cells and not all(_fits(half) for half in halves)
    make = _own_layer if own else _native_layer
    if len(halves) == 1:
        layer = make(halves[0], options | ({"name": name} if name else {}))
    else:
        kind = "rnn" if own else NATIVE[cell.op].lower()
        forward, backward = (make(half, {**options, "name": f"{side}_{kind}"})
                             for side, half in zip(("forward", "backward"), halves, strict=True))  # fmt: skip
        layer = keras.layers.Bidirectional(forward, backward_layer=backward, merge_mode=merge, dtype=cell.dtype.name,
                                           **({"name": name} if name else {}))  # fmt: skip
    layer.build((None, None, cell.input_size))
    layer.built = True
    fill(layer, cell)
    return layer


def _fits(cell: Cell) -> bool:
    try:
        _fit(cell)
    except NotRepresentable:
        return False
    return True


def _fit(cell: Cell) -> Fit:
    """The native layer's parameters and options; activations of Keras 2 stand in the options as what they are."""
    from bridge import layout

    roles = (("activation", 0),) if cell.op == "RNN" else (("recurrent_activation", 0), ("activation", 1))
    table = cell.activation_table()[0]
    given = {option: table[at] for option, at in roles if legacy_name(table[at]) is not None}
    return layout.fit(LAYOUTS[cell.op], cell, **given)


def _native_layer(cell: Cell, options: Mapping[str, Any]) -> Any:
    import keras

    fitted = {name: function_of(legacy_name(value) or "") if isinstance(value, Activation) else value
              for name, value in _fit(cell).options.items()}  # fmt: skip
    cls = getattr(keras.layers, NATIVE[cell.op])
    return cls(cell.hidden_size, **fitted, go_backwards=cell.direction == "reverse", **options)


def _own_layer(cell: Cell, options: Mapping[str, Any]) -> Any:
    import keras

    from bridge.frameworks.keras_cells import RecurrentCell, attributes_of

    rows = tuple(0 if state is None else int(state.shape[1]) for state in (cell.initial_h, cell.initial_c))
    inner = RecurrentCell(cell.op, cell.hidden_size, attributes_of(cell), use_bias=cell.B is not None,
                          use_peepholes=cell.P is not None, initial_rows=rows, dtype=cell.dtype.name,
                          name="recurrent_cell")  # fmt: skip
    options = {name: value for name, value in options.items() if not name.endswith("_initializer")}
    return keras.layers.RNN(inner, go_backwards=cell.direction == "reverse", **options)


def fill(layer: Any, cell: Cell) -> None:
    """Put the arrays of `cell` into a built layer that was made for it."""
    import keras

    halves = (layer.forward_layer, layer.backward_layer) if isinstance(layer, keras.layers.Bidirectional) else (layer,)
    for half, one in zip(halves, cell.split(), strict=True):
        for variable, array in _arrays(half.cell, one):
            variable.assign(array)


def _arrays(keras_cell: Any, cell: Cell) -> list[tuple[Any, np.ndarray]]:
    from bridge import layout

    if is_cell(keras_cell):
        params = _fit(cell).params
        return [(getattr(keras_cell, key), params[key]) for key in KEYS if key in params]
    stateless = replace(cell, initial_h=None, initial_c=None)
    params = layout.write_params(f"bridge.{cell.op}Cell", stateless)
    found = [(getattr(keras_cell, key), array) for key, array in params.items()]
    states = {"initial_h": cell.initial_h, "initial_c": cell.initial_c}
    return found + [(getattr(keras_cell, key), array[0]) for key, array in states.items() if array is not None]


# ---------------------------------------------------------------------- assign


def assign(model: Any, mapping: Mapping[str, Cell | Sequence[Cell]]) -> Any:
    """See `bridge.frameworks.keras.assign`. Everything is checked before anything changes."""
    planned = []
    for path, value in mapping.items():
        cells = [half for cell in ([value] if isinstance(value, Cell) else value) for half in cell.split()]
        directions = _directions_at(model, path)
        if len(directions) != len(cells):
            raise UsageError("another number of cells than directions", where=path or model.name, got=len(cells),
                             expected=f"{len(directions)}: {', '.join(name for name, _ in directions)}")  # fmt: skip
        planned += [_plan(name, direction, cell) for (name, direction), cell in zip(directions, cells, strict=True)]
    for changes in planned:
        for variable, array in changes:
            variable.assign(array)
    return model


def _directions_at(model: Any, path: str) -> list[tuple[str, Direction]]:
    """The directions of the layers at `path`, or the one whose node has that name (`layer.forward`, `stack.0`)."""
    import keras

    known = keras_graph.recurrent_layers(model) if isinstance(model, keras.Model) else ()
    for outer, layer in known:
        if path.startswith(f"{outer}."):
            for part in read_layers(layer, outer):
                if part.name == path:
                    return [(path, direction) for direction in part.directions]
                named = dict(zip(part.node_names, part.directions, strict=True))
                if path in named:
                    return [(path, named[path])]
    return [(name, direction) for name, layer in _layers_at(model, path)
            for part in read_layers(layer, name) for direction in part.directions]  # fmt: skip


def _layers_at(model: Any, path: str) -> list[tuple[str, Any]]:
    import keras

    if is_recurrent(model) or is_cell(model):
        if path in ("", model.name):
            return [(model.name, model)]
        known = {model.name: model}
    elif isinstance(model, keras.Model):
        known = dict(keras_graph.recurrent_layers(model))
        if path == "" or path == model.name:
            return list(known.items())
        if path in known:
            return [(path, known[path])]
        inside = [(name, layer) for name, layer in known.items() if name.startswith(f"{path}.")]
        if inside:
            return inside
    else:
        raise UsageError("not a Keras recurrent layer or model", where="assign", got=type(model).__qualname__)
    raise UsageError("no recurrent layer at this path", where="assign", got=repr(path), expected=", ".join(known))


def _plan(name: str, direction: Direction, cell: Cell) -> list[tuple[Any, np.ndarray]]:
    from bridge import layout

    if direction.cell is None:
        raise NotRepresentable("a ConvLSTM holds no cell", where=name)
    own = direction.cell
    for attribute in ("op", "input_size", "hidden_size", "dtype"):
        got, expected = getattr(cell, attribute), getattr(own, attribute)
        if got != expected:
            raise NotRepresentable(f"the layer has another {attribute}", where=name, got=got, expected=expected)
    if (cell.direction == "reverse") != direction.backwards:
        raise NotRepresentable("the layer runs the other way", where=name, got=f"a {cell.direction} cell",
                               expected=f"go_backwards={cell.direction == 'reverse'}")  # fmt: skip
    if not direction.fits_operator:
        raise NotRepresentable(
            "the layer's activations are not the cell's", where=name, got=", ".join(cell.activations or ()),
            expected=", ".join(direction.activations))  # fmt: skip
    keras_cell = direction.keras_cell
    options: dict[str, Any] = {"use_bias": bool(keras_cell.use_bias)}
    for option in ("activation", "recurrent_activation"):
        if hasattr(keras_cell, option):
            options[option] = onnx_activation(name_of(getattr(keras_cell, option), name))
    if own.op == "GRU":
        options["reset_after"] = bool(keras_cell.reset_after)
    params = layout.write_params(LAYOUTS[own.op], cell, **options)
    return [(getattr(keras_cell, key), params[key]) for key in KEYS if key in params]
