"""ONNX models as Keras models: native recurrent layers hold the weights of their nodes, bridge.ops runs the rest."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.cell import Cell
from bridge.errors import BadInput, Unsupported
from bridge.frameworks import keras_build
from bridge.frameworks.keras_activations import function_of
from bridge.frameworks.keras_read import NATIVE, OPERATORS
from bridge.frameworks.keras_scan import LAYER, OWN_LAYOUTS, from_convolution

if TYPE_CHECKING:
    import onnx_ir as ir

    from bridge.frameworks.keras_functional import Layers

NATIVE_SCANS = (*NATIVE.values(), "ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D")
"""Keras layers that bridge writes as a Scan."""


def import_model(model: ir.Model, static: Mapping[str, object] | None) -> Any:
    """A keras.Model that computes what `model` computes. See `bridge.frameworks.keras.import_model`.

    Raises:
        Unsupported: operators that are not carried, or an input in float64.
    """
    from bridge import graph
    from bridge.frameworks.keras_functional import NotFunctional, Tensors
    from bridge.frameworks.keras_modules import ImportedGraph, ImportedModel
    from bridge.frameworks.keras_operator import keras_name

    model = graph.fold(graph.as_model(model), static)
    left = {name: value for name, value in (static or {}).items() if name in [one.name for one in model.graph.inputs]}
    _check_inputs(model, left)
    title = keras_name(model.graph.name or "") or "model"
    typed = graph.with_types(model)
    names = Names()
    layers, adapters = _layers(typed, names)
    try:
        natives = _native_layers(typed, layers, names)
        program = _program(typed, adapters | natives, left)
        tensors = Tensors(program, layers, names.free)
        imported = ImportedGraph(program, tensors, _origin(typed, program, layers), name=title)
    except NotFunctional:
        layers.native.clear()
        layers.merged.clear()
        program = _program(typed, adapters, left)
        return ImportedModel(program, _origin(typed, program, layers), dtype=_dtype(typed), name=title)
    for holder in (*tensors.operators.values(), *tensors.shared.values()):
        imported.origin.plain.update(holder.own)
    return imported


def _check_inputs(model: ir.Model, static: Mapping[str, object]) -> None:
    # Refused before the first call, which could only fail: see KerasBackend.
    for value in model.graph.inputs:
        double = value.dtype is not None and value.dtype.name == "DOUBLE"
        if double and value.name not in static and value.name not in model.graph.initializers:
            raise Unsupported("keras.ops narrows float64 silently on some of its backends", where="to_keras",
                              got=f"input {value.name!r} in float64",
                              do="export the model in float32, or import it with to_torch")  # fmt: skip


def _program(model: ir.Model, layers: Mapping[str, Any], static: Mapping[str, object]) -> Any:
    from bridge.ops.backend_keras import KerasBackend
    from bridge.ops.program import Program

    return Program(model, KerasBackend(), layers=layers, static=static)


def _origin(model: ir.Model, program: Any, layers: Layers) -> Any:
    from bridge.frameworks.keras_origin import Origin

    recurrent = {name: one.layer for name, one in layers.recurrent.items()}
    return Origin(model, program, recurrent, dict(layers.scans), native=dict(layers.native))


def _layers(model: ir.Model, names: Names) -> tuple[Layers, dict[str, Callable[..., Any]]]:
    """The recurrent layers, and what runs each in the place of its node."""
    from bridge.frameworks.keras_functional import Layers, Recurrent

    layers, adapters = Layers(), {}
    tied: dict[object, Any] = {}
    for name, node, cell in _recurrent_nodes(model):
        key = _identity(node, cell)
        if key not in tied:
            tied[key] = _layer_of_cell(cell, names.free(name, node.op_type))
        layout = node.attributes.get("layout")
        time_major = (layout is None or not layout.value) and node.graph is model.graph
        layers.recurrent[name] = Recurrent(tied[key], cell.num_directions, cell.input_size, time_major)
        adapters[name] = _adapter(tied[key], cell.num_directions)
    for name, node in _described_scans(model):
        layer, convolutional = _layer_of_scan(model, node, names.free(name, node.op_type))
        layers.scans[name] = layer
        adapters[name] = _scan_adapter(layer, convolutional)
    return layers, adapters


def _native_layers(model: ir.Model, layers: Layers, names: Names) -> dict[str, Any]:
    """Fill `layers` with the native layers of nodes that own weights, and give what the Program needs of them."""
    from bridge.frameworks.keras_native import Native, native_layer
    from bridge.ops.layers import Takeover
    from bridge.ops.native import native_modules, running_nodes
    from bridge.ops.steps import node_name

    scans = [node for node in model.graph if node_name(node) in layers.scans]
    nodes = list(running_nodes(model.graph, scans))
    count = Counter(map(node_name, nodes))
    copied = {name for node in scans for name in json.loads(node.metadata_props[LAYER])["weights"].values()}
    found: dict[str, Any] = {}
    made: dict[object, Native] = {}
    for taken in native_modules(nodes, lambda node: node.graph is model.graph and count[node_name(node)] == 1, copied):
        value: Any = taken.node.inputs[taken.inputs[0]]
        if value.shape is None or value.dtype is None:
            continue
        if taken.module not in made:
            shape = tuple(dim if isinstance(dim, int) else None for dim in value.shape)
            native = native_layer(taken, names.free(node_name(taken.node), taken.node.op_type), shape)
            if native is None:
                continue
            made[taken.module] = native
        layers.native[node_name(taken.node)] = made[taken.module]
        found[node_name(taken.node)] = Takeover(made[taken.module].call, taken.inputs)
        if taken.bias_node is not None:
            at = 0 if taken.bias_node.inputs[0] is taken.node.outputs[0] else 1
            layers.merged.add(node_name(taken.bias_node))
            found[node_name(taken.bias_node)] = Takeover(lambda value: value, (at,))
    return found


class Names:
    """Free names of layers: the graph's own, without the operator at the end where that leaves them apart."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def free(self, name: str, op_type: str) -> str:
        """A name that no other layer has, as Keras allows it."""
        from bridge.frameworks.keras_operator import keras_name

        short = name.removesuffix(f".{op_type}").removesuffix(f"/{op_type}")
        for wanted in (keras_name(short), keras_name(name)):
            if wanted and wanted not in self._taken:
                self._taken.add(wanted)
                return wanted
        base, count = keras_name(name) or "layer", 1
        while f"{base}_{count}" in self._taken:
            count += 1
        self._taken.add(f"{base}_{count}")
        return f"{base}_{count}"


def _dtype(model: ir.Model) -> str:
    floats = [value.dtype.numpy().name for value in (*model.graph.inputs, *model.graph.initializers.values())
              if value.dtype is not None and value.dtype.is_floating_point()]  # fmt: skip
    return next((name for name in ("float64", "float32", "float16") if name in floats), "float32")


def _recurrent_nodes(model: ir.Model) -> Iterator[tuple[str, ir.Node, Cell]]:
    from bridge import graph
    from bridge.ops.steps import node_name

    for _, node, cell, _ in graph.recurrent_nodes(model):
        if cell is not None and node.op_type in OWN_LAYOUTS and cell.dtype != np.float64:
            yield node_name(node), node, replace(cell, initial_h=None, initial_c=None)


def _identity(node: ir.Node, cell: Cell) -> object:
    # Two nodes on the same initialisers are one layer called twice: their weights stay tied.
    weights = tuple(None if value is None else id(value) for value in (*node.inputs[1:4], *node.inputs[7:8]))
    return weights, cell.direction, cell.activations, cell.activation_alpha, cell.activation_beta, cell.clip


def _layer_of_cell(cell: Cell, name: str) -> Any:
    # Zeros, since the weights come next: JAX compiles a program for every shape of random numbers.
    return keras_build.layer_of(cell, own_cells=True, merge=None, name=name, return_state=True,
                                zero_output_for_mask=True, kernel_initializer="zeros",
                                recurrent_initializer="zeros")  # fmt: skip


# ---------------------------------------------------------------------- recurrent nodes


def _adapter(layer: Any, directions: int) -> Callable[..., Any]:
    """The layer as a node: X [T, N, I], sequence_lens, states [D, N, H] to Y [T, D, N, H] and states [D, N, H].

    Keras ends a sequence of length 0 in its initial state, ONNX in zeros; Keras' go_backwards outputs in processing
    order, ONNX in the order of time. All else is the same.
    """

    def run(X: Any, sequence_lens: Any = None, initial_h: Any = None, initial_c: Any = None) -> tuple[Any, ...]:
        from keras import ops

        x = ops.transpose(ops.convert_to_tensor(X), (1, 0, 2))
        halves = (layer.forward_layer, layer.backward_layer) if directions == 2 else (layer,)
        arguments: dict[str, Any] = {}
        if initial_h is not None or initial_c is not None:
            arguments["initial_state"] = _initial_states(halves, x, initial_h, initial_c)
        if sequence_lens is not None:
            lengths = ops.convert_to_tensor(sequence_lens)
            _check_lengths(lengths, x)
            steps = ops.arange(ops.shape(x)[1], dtype="int32")
            arguments["mask"] = ops.expand_dims(steps, 0) < ops.expand_dims(lengths, 1)
        values = list(layer(x, **arguments))
        outputs, finals = values[:directions], values[directions:]
        if directions == 1 and layer.go_backwards:
            outputs = [ops.flip(outputs[0], 1)]
        Y = ops.stack([ops.transpose(output, (1, 0, 2)) for output in outputs], 1)
        if sequence_lens is not None:
            some = ops.expand_dims(lengths > 0, 1)
            finals = [ops.where(some, final, ops.zeros_like(final)) for final in finals]
        kinds = len(finals) // directions
        return Y, *(ops.stack(finals[at::kinds], 0) for at in range(kinds))

    return run


def _check_lengths(lengths: Any, x: Any) -> None:
    """Refuse lengths that are known and lie outside x [N, T, I], as onnxruntime does: a mask would take any number.

    Raises:
        BadInput: not one length for each sequence, or one outside 0 to T.
    """
    from bridge.ops.backend_keras import KerasBackend

    known = KerasBackend().concrete(lengths)
    if known is None:
        return
    batch, steps = (int(size) for size in x.shape[:2])
    if known.shape != (batch,):
        raise BadInput("one length for each sequence", where="lengths", got=list(known.shape), expected=[batch])
    if known.min() < 0 or known.max() > steps:
        raise BadInput("a length is out of range", where="lengths", got=known.tolist(), expected=f"0 to {steps}")


def _initial_states(halves: tuple[Any, ...], x: Any, initial_h: Any, initial_c: Any) -> list[Any]:
    from keras import ops

    states = []
    for at, half in enumerate(halves):
        zeros = half.cell.get_initial_state(batch_size=ops.shape(x)[0])
        zeros = zeros if isinstance(zeros, list) else [zeros]
        given = (initial_h, initial_c)[: len(zeros)]
        states += [zero if state is None else ops.broadcast_to(ops.convert_to_tensor(state)[at], ops.shape(zero))
                   for state, zero in zip(given, zeros, strict=True)]  # fmt: skip
    return states


# ---------------------------------------------------------------------- layers that were written as a Scan


def _described_scans(model: ir.Model) -> Iterator[tuple[str, ir.Node]]:
    from bridge.ops.steps import node_name

    for node in model.graph:
        text = node.metadata_props.get(LAYER)
        if node.op_type == "Scan" and text and _document(text, node)["layer"] in {f"keras.{k}" for k in NATIVE_SCANS}:
            yield node_name(node), node


def _document(text: str, node: ir.Node) -> dict[str, Any]:
    try:
        document = json.loads(text)
        if isinstance(document["layer"], str) and isinstance(document["options"], dict):
            return dict(document)
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"the metadata {LAYER} is malformed: {error}", where=str(node.name)) from error
    raise BadInput(f"the metadata {LAYER} is malformed", where=str(node.name), got=text)


def _layer_of_scan(model: ir.Model, node: ir.Node, name: str) -> tuple[Any, bool]:
    import keras

    from bridge import layout

    document = _document(node.metadata_props[LAYER], node)
    kind, options = document["layer"].removeprefix("keras."), dict(document["options"])
    arrays = {key: _initializer(model, node, value) for key, value in document["weights"].items()}
    convolutional = kind.startswith("ConvLSTM")
    shape = tuple(options.pop("input_shape", ()))
    options |= {"return_sequences": True, "return_state": True, "zero_output_for_mask": True, "name": name}
    try:
        _check_options(options)
        options |= {key: function_of(options[key]) for key in ("activation", "recurrent_activation") if key in options}
        layer = getattr(keras.layers, kind)(**options)
    except (TypeError, ValueError) as error:
        raise BadInput(f"the metadata {LAYER} describes no {kind}: {error}", where=str(node.name)) from error
    if convolutional:
        channels_last = layer.data_format == "channels_last"
        layer.build((None, None, *(shape if channels_last else (shape[-1], *shape[:-1]))))
        params = {key: from_convolution(array) for key, array in arrays.items()}
    else:
        op = OPERATORS[f"{kind}Cell"]
        extra = {"linear_before_reset": bool(options["reset_after"])} if op == "GRU" else {}
        given = {"use_bias": "input_bias" in arrays, **extra}
        cell = layout.read_params(OWN_LAYOUTS[op], arrays, **given)
        layer.build((None, None, cell.input_size))
        fitting = {key: options[key] for key in ("reset_after", "use_bias") if key in options}
        params = layout.write_params(f"keras.{kind}", cell, **fitting)
    layer.built = True
    for key, array in params.items():
        getattr(layer.cell, key).assign(array)
    return layer, convolutional


def _check_options(options: Mapping[str, Any]) -> None:
    # Keras makes objects out of dictionaries, and a file must not choose which.
    for name, value in options.items():
        items = value if isinstance(value, list) else [value]
        if not all(isinstance(item, (str, int)) for item in items):
            raise ValueError(f"{name}={value!r}")


def _initializer(model: ir.Model, node: ir.Node, name: str) -> np.ndarray:
    value = model.graph.initializers.get(name)
    if value is None or value.const_value is None:
        raise BadInput(f"the metadata {LAYER} names a weight that is not there", where=str(node.name), got=name)
    return np.asarray(value.const_value.numpy())


def _scan_adapter(layer: Any, convolutional: bool) -> Callable[..., Any]:
    """The layer as its Scan: states [N, ...], x [T, N, ...] and perhaps valid [T, N] to final states and outputs."""

    def run(*inputs: Any) -> tuple[Any, ...]:
        from keras import ops

        values = [ops.convert_to_tensor(value) for value in inputs]
        count = len(layer.state_size) if not convolutional else 2
        last = convolutional and layer.data_format == "channels_last"
        states = [ops.moveaxis(state, 1, -1) if last else state for state in values[:count]]
        x = ops.swapaxes(ops.moveaxis(values[count], 2, -1) if last else values[count], 0, 1)
        mask = {"mask": ops.transpose(values[count + 1])} if len(values) > count + 1 else {}
        y, *finals = layer(x, initial_state=states, **mask)
        y = ops.swapaxes(ops.flip(y, 1) if layer.go_backwards else y, 0, 1)
        if last:
            y, finals = ops.moveaxis(y, -1, 2), [ops.moveaxis(final, -1, 1) for final in finals]
        return (*finals, y)

    return run
