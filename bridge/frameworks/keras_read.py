"""What a Keras recurrent layer computes, read once into plain facts: weights, activations, directions, options.

Everything that follows (export, cells, assign) works on these facts and not on the layer's attributes.
Source: keras 3.15.1, keras/src/layers/rnn/*.py.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Final, Literal

import numpy as np

from bridge.cell import Cell, Op
from bridge.errors import BadInput, NotRepresentable, Unsupported
from bridge.frameworks.keras_activations import name_of, onnx_activation

NATIVE: Final[Mapping[str, str]] = MappingProxyType({"LSTM": "LSTM", "GRU": "GRU", "RNN": "SimpleRNN"})
"""The Keras layer of each ONNX operator."""

OPERATORS: Final[Mapping[str, str]] = MappingProxyType({f"{layer}Cell": op for op, layer in NATIVE.items()})
"""ONNX operator of each native Keras cell."""

LAYOUTS: Final[Mapping[str, str]] = MappingProxyType({op: f"keras.{layer}" for op, layer in NATIVE.items()})
"""Where Keras keeps each operator's gates: the names of the layouts."""

LAYER_METHODS: Final = ("call", "inner_loop", "build", "get_initial_state")
CELL_METHODS: Final = ("call", "build", "get_initial_state")
"""What makes a layer compute what it computes: a subclass that overrides none of these is still native."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Direction:
    """One direction of a Keras recurrent layer."""

    layer: Any
    """The native layer, or the native cell where it stands alone."""
    keras_cell: Any
    """The native cell, which holds the weights."""
    cell: Cell | None
    """Weights and activations as an ONNX cell; None for a convolutional one."""
    activations: tuple[str, ...]
    """Keras names: recurrent_activation (where there is one), activation."""
    fits_operator: bool
    """Whether the ONNX operator has these activations (`cell` has its defaults where not)."""
    backwards: bool = False
    zero_output: bool = False
    unroll: bool = False

    @property
    def node(self) -> Cell | None:
        """The cell of the ONNX node; None where the direction needs a Scan."""
        return self.cell if self.fits_operator else None

    @property
    def convolutional(self) -> bool:
        """Whether this is a ConvLSTM."""
        return self.cell is None

    @property
    def num_states(self) -> int:
        """2 for LSTM and ConvLSTM (h, c), else 1."""
        return 2 if self.cell is None or self.cell.op == "LSTM" else 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One Keras recurrent layer: a name, one or two directions, and how they are joined."""

    name: str
    """Its path in the model; the layer's own name where it is bare."""
    directions: tuple[Direction, ...]
    sequences: bool
    return_state: bool
    stateful: bool
    merge: Literal["concat", "sum", "ave", "mul"] | None = None
    """How two directions become one output; None keeps them apart. Meaningless for one direction."""
    notes: tuple[str, ...] = ()
    joined: Cell | None = field(init=False)
    """Both directions as one bidirectional Cell; None where there is one, or where they cannot be joined."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "joined", self._join())  # once: a node and a Scan of one cell share its arrays

    def _join(self) -> Cell | None:
        if len(self.directions) != 2:
            return None
        forward, backward = (d.node for d in self.directions)
        if forward is None or backward is None or forward.direction != "forward":
            return None
        try:
            return Cell.join(forward, backward)
        except NotRepresentable:
            return None

    @property
    def nodes(self) -> dict[str, Cell]:
        """The ONNX cells of this layer by node name; a direction that needs a Scan has none."""
        joined = self.joined
        if joined is not None:
            return {self.name: joined}
        return {name: d.node for name, d in zip(self.node_names, self.directions, strict=True) if d.node is not None}

    @property
    def node_names(self) -> tuple[str, ...]:
        """One name per direction where they are written apart."""
        return (self.name,) if len(self.directions) == 1 else (f"{self.name}.forward", f"{self.name}.backward")

    @property
    def state_names(self) -> tuple[str, ...]:
        """The states of every direction, in Keras' order: "h", "c" or "h_forward", "c_forward", "h_backward", …."""
        suffixes = ("",) if len(self.directions) == 1 else ("_forward", "_backward")
        return tuple(f"{state}{suffix}" for suffix, direction in zip(suffixes, self.directions, strict=True)
                     for state in "hc"[: direction.num_states])  # fmt: skip


def is_recurrent(layer: object) -> bool:
    """Whether `layer` is a Keras recurrent layer of any kind, native or not (cells alone are not layers)."""
    import keras

    return isinstance(layer, (keras.layers.RNN, keras.layers.Bidirectional))


def is_cell(layer: object) -> bool:
    """Whether `layer` is a native cell standing alone: one step."""
    import keras

    return isinstance(layer, (keras.layers.LSTMCell, keras.layers.GRUCell, keras.layers.SimpleRNNCell))


def read_layer(layer: Any, name: str = "") -> Layer:
    """The facts of a recurrent layer, a Bidirectional or a bare cell; `name` is its path.

    Raises:
        Unsupported: a class, an override or a dtype policy that is not carried.
        BadInput: the layer has no weights yet.
    """
    import keras

    name = name or layer.name
    if isinstance(layer, keras.layers.Bidirectional):
        return _read_bidirectional(layer, name)
    if is_cell(layer):
        direction = _read_cell(layer, layer, name)
        return Layer(name=name, directions=(direction,), sequences=False, return_state=True, stateful=False,
                     notes=_notes(layer, name))  # fmt: skip
    direction = _read_direction(layer, name)
    return Layer(name=name, directions=(direction,), sequences=bool(layer.return_sequences),
                 return_state=bool(layer.return_state), stateful=bool(layer.stateful),
                 notes=_notes(direction.keras_cell, name))  # fmt: skip


def read_layers(layer: Any, name: str = "") -> tuple[Layer, ...]:
    """The same as `read_layer`, one after another for an RNN of several cells, which are called `name.0`, `name.1`, ….

    Raises:
        Unsupported, BadInput: as `read_layer`.
    """
    import keras

    stacked = getattr(layer, "cell", None)
    if not isinstance(stacked, keras.layers.StackedRNNCells):
        return (read_layer(layer, name),)
    name, found = name or layer.name, []
    _check_native(layer, (keras.layers.RNN,), LAYER_METHODS, name)
    _check_native(stacked, (keras.layers.StackedRNNCells,), CELL_METHODS, name)
    for at, cell in enumerate(stacked.cells):
        path, last = f"{name}.{at}", at == len(stacked.cells) - 1
        direction = _directed(_read_cell(layer, cell, path), layer)
        direction = replace(
            direction, zero_output=direction.zero_output or not last
        )  # an inner masked step is not read
        found.append(Layer(
            name=path, directions=(direction,), sequences=not last or bool(layer.return_sequences),
            return_state=bool(layer.return_state), stateful=bool(layer.stateful), notes=_notes(cell, path),
        ))  # fmt: skip
    return tuple(found)


def _read_bidirectional(layer: Any, name: str) -> Layer:
    import keras

    _check_native(layer, (keras.layers.Bidirectional,), ("call", "build"), name)
    parts = [_read_direction(half, f"{name}.{half.name}") for half in (layer.forward_layer, layer.backward_layer)]
    return Layer(
        name=name,
        directions=tuple(parts),
        sequences=bool(layer.return_sequences),
        return_state=bool(layer.return_state),
        stateful=bool(layer.stateful),
        merge=layer.merge_mode,
        notes=tuple(note for part in parts for note in _notes(part.keras_cell, name)),
    )


def _read_direction(layer: Any, name: str) -> Direction:
    import keras

    kinds = keras.layers
    native = (kinds.LSTM, kinds.GRU, kinds.SimpleRNN, kinds.ConvLSTM1D, kinds.ConvLSTM2D, kinds.ConvLSTM3D, kinds.RNN)
    _check_native(layer, native, LAYER_METHODS, name)
    read = _read_convolution if type(layer.cell).__name__ == "ConvLSTMCell" else _read_cell
    return _directed(read(layer, layer.cell, name), layer)


def _directed(direction: Direction, layer: Any) -> Direction:
    """`direction` with the options of the layer around its cell."""
    cell = direction.cell
    backwards = bool(layer.go_backwards)
    return replace(
        direction,
        cell=None if cell is None else replace(cell, direction="reverse" if backwards else "forward"),
        backwards=backwards,
        zero_output=bool(layer.zero_output_for_mask),
        unroll=bool(layer.unroll),
    )


def _check_native(layer: Any, classes: Sequence[type], methods: Sequence[str], where: str) -> None:
    for cls in classes:
        if isinstance(layer, cls):
            changed = [name for name in methods if getattr(type(layer), name) is not getattr(cls, name)]
            if not changed:
                return
            raise Unsupported(
                f"{type(layer).__qualname__} overrides {', '.join(changed)} of keras.layers.{cls.__name__}, "
                "so what it computes is unknown", where=where, do="export the native layer")  # fmt: skip
    raise Unsupported("not a recurrent layer that bridge carries", where=where, got=type(layer).__qualname__,
                      expected=", ".join(cls.__name__ for cls in classes))  # fmt: skip


def _read_cell(layer: Any, cell: Any, where: str) -> Direction:
    import keras

    from bridge import layout

    kinds = keras.layers
    if isinstance(cell, kinds.StackedRNNCells):
        raise Unsupported("a bare layer of StackedRNNCells is not carried", where=where,
                          do="export a keras.Sequential of it")  # fmt: skip
    if is_own_cell(cell):
        return Direction(layer=layer, keras_cell=cell, cell=_read_own_cell(layer, cell, where), activations=(),
                         fits_operator=True)  # fmt: skip
    _check_native(cell, (kinds.LSTMCell, kinds.GRUCell, kinds.SimpleRNNCell), CELL_METHODS, where)
    _check_dtypes(layer, cell, where)
    kind = next(base.__name__ for base in type(cell).__mro__ if base.__name__ in OPERATORS)
    op: Op = OPERATORS[kind]  # type: ignore[assignment]
    names = _activation_names(cell, where)
    options: dict[str, Any] = {"reset_after": bool(cell.reset_after)} if op == "GRU" else {}
    fits = _operator_has(names, cell.variable_dtype)
    if fits:
        options |= dict(zip(_activation_options(op), map(onnx_activation, names), strict=True))
    onnx_cell = layout.read_params(LAYOUTS[op], weights_of(cell, where), **options)
    return Direction(layer=layer, keras_cell=cell, cell=onnx_cell, activations=names, fits_operator=fits)


def is_own_cell(cell: Any) -> bool:
    """Whether `cell` is bridge's own, which holds a whole ONNX node."""
    return type(cell).__module__ == "bridge.frameworks.keras_cells" and type(cell).__name__ == "RecurrentCell"


def _read_own_cell(layer: Any, cell: Any, where: str) -> Cell:
    from bridge import layout

    names = ("kernel", "recurrent_kernel", "input_bias", "recurrent_bias", "peephole")
    if not cell.built:
        raise BadInput("the layer has no weights yet", where=where, do="call it once, or layer.build(input_shape)")
    _check_dtypes(layer, cell, where)
    params = {name: keras_array(getattr(cell, name)) for name in names if getattr(cell, name) is not None}
    states = {name: keras_array(getattr(cell, name))[None] for name in ("initial_h", "initial_c")
              if getattr(cell, name) is not None}  # fmt: skip
    kept = ("linear_before_reset",) if cell.op == "GRU" else ()
    read = layout.read_params(f"bridge.{cell.op}Cell", params,
                              **{name: cell.attributes.get(name, False) for name in kept})  # fmt: skip
    found: dict[str, Any] = {name: tuple(value) if isinstance(value, (list, tuple)) else value
                             for name, value in cell.attributes.items()}  # fmt: skip
    return replace(read, **{**found, **states})


def _read_convolution(layer: Any, cell: Any, where: str) -> Direction:
    weights_of(cell, where)
    _check_dtypes(layer, cell, where)
    if cell.variable_dtype != "float32":
        raise Unsupported(f"a ConvLSTM in {cell.variable_dtype}: onnxruntime's Conv computes float32 only", where=where)
    return Direction(layer=layer, keras_cell=cell, cell=None, activations=_activation_names(cell, where),
                     fits_operator=False)  # fmt: skip


def _activation_options(op: Op) -> tuple[str, ...]:
    return ("activation",) if op == "RNN" else ("recurrent_activation", "activation")


def _activation_names(cell: Any, where: str) -> tuple[str, ...]:
    owners = [name for name in ("recurrent_activation", "activation") if hasattr(cell, name)]
    return tuple(name_of(getattr(cell, name), f"{where}.{name}") for name in owners)


def _operator_has(names: Sequence[str], dtype: str) -> bool:
    found = [onnx_activation(name) for name in names]
    # alpha and beta are float32 attributes: in float64 1/6 and 0.2 would lose half their digits, a Scan keeps them.
    inexact = dtype == "float64" and any(
        name in ("hard_sigmoid", "keras2_hard_sigmoid", "leaky_relu") for name in names
    )
    return all(activation is not None for activation in found) and not inexact


def weights_of(cell: Any, where: str) -> Mapping[str, np.ndarray]:
    """The native cell's variables as numpy arrays: kernel, recurrent_kernel and, where it has one, bias.

    Raises:
        BadInput: the cell is not built.
    """
    names = ("kernel", "recurrent_kernel", *(("bias",) if cell.use_bias else ()))
    if not cell.built or any(getattr(cell, name, None) is None for name in names):
        raise BadInput("the layer has no weights yet", where=where, do="call it once, or layer.build(input_shape)")
    return {name: keras_array(getattr(cell, name)) for name in names}


def keras_array(value: Any) -> np.ndarray:
    """A Keras variable or tensor as numpy."""
    import keras

    with no_copy_warning():
        return np.asarray(keras.ops.convert_to_numpy(value))


@contextmanager
def no_copy_warning() -> Iterator[None]:
    """Without numpy 2's warning that Keras' variables and tensors do not take `copy`, as they need not."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="__array__ implementation doesn't accept a copy keyword")
        yield


def _check_dtypes(layer: Any, cell: Any, where: str) -> None:
    if cell.built and cell.kernel.dtype != keras_array(cell.kernel).dtype.name:
        raise Unsupported(
            f"the layer's dtype is {cell.kernel.dtype}, and its backend holds narrower numbers", where=where,
            do='enable them: jax.config.update("jax_enable_x64", True)')  # fmt: skip
    dtypes = {layer.compute_dtype, layer.variable_dtype, cell.compute_dtype, cell.variable_dtype}
    if "bfloat16" in dtypes:
        raise Unsupported(f"dtype policy {cell.dtype_policy.name!r}: no kernel of onnxruntime computes bfloat16",
                          where=where, do="build the layer with the policy float32 and the same weights")  # fmt: skip
    if len(dtypes) != 1:
        raise Unsupported(
            f"dtype policy {cell.dtype_policy.name!r} mixes dtypes, and rounds where ONNX would not", where=where,
            got=", ".join(sorted(dtypes)), do="use one dtype policy, such as float32")  # fmt: skip
    dtype = dtypes.pop()
    if dtype not in ("float16", "float32", "float64") or getattr(cell, "quantization_mode", None) is not None:
        raise Unsupported(f"dtype policy {cell.dtype_policy.name!r} is not carried", where=where,
                          expected="float16, float32 or float64")  # fmt: skip


def _notes(cell: Any, name: str) -> tuple[str, ...]:
    rates = {kind: getattr(cell, kind, 0.0) for kind in ("dropout", "recurrent_dropout")}
    return tuple(f"{name}: {kind}={rate:g} does nothing in inference" for kind, rate in rates.items() if rate)
