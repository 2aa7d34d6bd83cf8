"""Keras recurrences that no ONNX operator has, as one exact Scan each: other activations, and ConvLSTM.

Every Scan carries "bridge.layer", from which bridge's Keras importer makes the native layer again. A dense Scan keeps
its weights in bridge's own layouts (gates in ONNX order), a convolutional one in Keras' gate order with the axes of
ONNX's Conv.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from bridge.cell import Cell
from bridge.errors import Unsupported
from bridge.frameworks.keras_activations import write_activation
from bridge.frameworks.keras_read import NATIVE, Direction, weights_of

if TYPE_CHECKING:
    import onnx_ir as ir

    from bridge.graph import Writer

LAYER: Final = "bridge.layer"
"""Node metadata: the native layer that this Scan is, with its options and the initialisers of its weights, as JSON."""

OWN_LAYOUTS: Final = {"LSTM": "bridge.LSTMCell", "GRU": "bridge.GRUCell", "RNN": "bridge.RNNCell"}
"""Where the weights of a dense Scan lie."""

CONVOLUTION_GATES: Final = "ifco"
"""Gate order of ConvLSTM's kernels. Source: keras 3.15.1 keras/src/layers/rnn/conv_lstm.py ConvLSTMCell.call."""


def write_direction(
    w: Writer,
    direction: Direction,
    x: ir.Value,
    steps: ir.Value | None,
    initial: Sequence[ir.Value] | None,
    name: str,
    *,
    hold: bool = False,
) -> tuple[ir.Value, list[ir.Value]]:
    """One direction as a Scan.

    Args:
        w: the Writer.
        direction: what to write.
        x: [T, N, I]; [T, N, C, *S] for a ConvLSTM.
        steps: bool [T, N], which steps are valid; None for all.
        initial: states [N, H] or [N, F, *S]; zeros where None.
        name: of the node.
        hold: whether a step that is not valid outputs h, which it keeps, and not zero. No native layer is described
            by such a Scan.

    Returns:
        The outputs [T, N, ...] in the order of time, zero where a step is not valid, and the final states [N, ...]:
        those of the last valid step, and the initial ones where there is none.
    """
    convolutional = direction.cell is None
    arrays = convolution_arrays(direction, name) if convolutional else _dense_arrays(direction)
    weights = {key: w.constant(array, f"{name}.{key}") for key, array in arrays.items()}
    make = _convolution_step if convolutional else _dense_step
    step, state_shape = make(direction, weights, name)
    if initial is None:
        zeros = w.zeros(w.dim(x, 1), *(w.constant([size]) for size in state_shape), dtype=_numpy_dtype(x).name)
        initial = [zeros] * direction.num_states
    shape = (None if x.shape is None else x.shape[1], *state_shape)

    def body(b: Writer, carry: tuple[ir.Value, ...], xs: tuple[ir.Value, ...]
             ) -> tuple[list[ir.Value], list[ir.Value]]:  # fmt: skip
        new = [b.typed(value, shape) for value in step(b, xs[0], carry)]
        if len(xs) == 1:
            return new, [new[0]]
        valid = b.unsqueeze(xs[1], *range(1, len(shape)))
        kept = [b.typed(b.op("Where", valid, value, old), shape) for value, old in zip(new, carry, strict=True)]
        if hold:
            return kept, [kept[0]]
        zero = b.constant(np.asarray(0, _numpy_dtype(x)))
        return kept, [b.typed(b.op("Where", valid, new[0], zero), shape)]

    names = {key: str(value.name) for key, value in weights.items()}
    metadata = {"bridge.path": name} if hold and steps is not None else _metadata(direction, names, name)
    final, (y,) = w.scan(
        body, [w.typed(state, shape) for state in initial], [x] if steps is None else [x, steps],
        reverse=direction.backwards, name=name, metadata=metadata)  # fmt: skip
    return y, list(final)


def _numpy_dtype(x: ir.Value) -> np.dtype[Any]:
    return np.dtype(np.float32) if x.dtype is None else x.dtype.numpy()


def _metadata(direction: Direction, weights: dict[str, str], name: str) -> dict[str, str]:
    cell = direction.keras_cell
    kind = next(base.__name__ for base in type(direction.layer).__mro__ if base.__module__.startswith("keras."))
    if direction.cell is not None:
        kind = NATIVE[direction.cell.op]
        options: dict[str, Any] = {"units": cell.units}
        if direction.cell.op == "GRU":
            options["reset_after"] = bool(cell.reset_after)
    else:
        options = {
            key: list(value) if isinstance(value, tuple) else value
            for key in ("filters", "kernel_size", "strides", "padding", "data_format", "dilation_rate")
            for value in (getattr(cell, key),)
        }
        options["input_shape"] = [*cell.spatial_dims, cell.input_dim]
    owners = ("activation",) if len(direction.activations) == 1 else ("recurrent_activation", "activation")
    options |= dict(zip(owners, direction.activations, strict=True))
    options |= {"use_bias": bool(cell.use_bias), "go_backwards": direction.backwards, "dtype": cell.variable_dtype}
    document = {"layer": f"keras.{kind}", "options": options, "weights": weights}
    return {"bridge.path": name, LAYER: json.dumps(document, sort_keys=True)}


# ---------------------------------------------------------------------- dense


def _dense_arrays(direction: Direction) -> dict[str, np.ndarray]:
    from bridge import layout

    cell = _dense(direction)
    return layout.write_params(OWN_LAYOUTS[cell.op], cell)


def _dense(direction: Direction) -> Cell:
    if direction.cell is None:
        raise Unsupported("a convolutional layer has no dense cell", where=direction.layer.name)
    return direction.cell


def _dense_step(
    direction: Direction, weights: dict[str, ir.Value], name: str
) -> tuple[Callable[..., list[ir.Value]], tuple[int, ...]]:
    cell = _dense(direction)
    recurrent, activation = direction.activations[0], direction.activations[-1]

    def product(b: Writer, value: ir.Value, kernel: str, bias: str) -> ir.Value:
        result = b.op("MatMul", value, weights[kernel])
        return b.op("Add", result, weights[bias]) if bias in weights else result

    def act(b: Writer, which: str, value: ir.Value) -> ir.Value:
        return write_activation(b, which, value, -1, name)

    def lstm(b: Writer, value: ir.Value, carry: Sequence[ir.Value]) -> list[ir.Value]:
        gates = b.op("Add", product(b, value, "kernel", "input_bias"),
                     product(b, carry[0], "recurrent_kernel", "recurrent_bias"))  # fmt: skip
        part = _split(b, gates, cell)
        kept = b.op("Mul", act(b, recurrent, part["f"]), carry[1])
        c = b.op("Add", kept, b.op("Mul", act(b, recurrent, part["i"]), act(b, activation, part["c"])))
        return [b.op("Mul", act(b, recurrent, part["o"]), act(b, activation, c)), c]

    def gru(b: Writer, value: ir.Value, carry: Sequence[ir.Value]) -> list[ir.Value]:
        h = carry[0]
        given = _split(b, product(b, value, "kernel", "input_bias"), cell)
        own = _split(b, product(b, h, "recurrent_kernel", "recurrent_bias"), cell)
        z, r = (act(b, recurrent, b.op("Add", given[gate], own[gate])) for gate in "zr")
        if cell.linear_before_reset:
            inner = b.op("Mul", r, own["h"])
        else:
            inner = _split(b, product(b, b.op("Mul", r, h), "recurrent_kernel", "recurrent_bias"), cell)["h"]
        candidate = act(b, activation, b.op("Add", given["h"], inner))
        one = b.constant(np.asarray(1, _numpy_dtype(h)))
        return [b.op("Add", b.op("Mul", z, h), b.op("Mul", b.op("Sub", one, z), candidate))]

    def rnn(b: Writer, value: ir.Value, carry: Sequence[ir.Value]) -> list[ir.Value]:
        gates = b.op("Add", product(b, value, "kernel", "input_bias"),
                     product(b, carry[0], "recurrent_kernel", "recurrent_bias"))  # fmt: skip
        return [act(b, activation, gates)]

    return {"LSTM": lstm, "GRU": gru, "RNN": rnn}[cell.op], (cell.hidden_size,)


def _split(b: Writer, gates: ir.Value, cell: Cell) -> dict[str, ir.Value]:
    letters = cell.gates
    parts = b.op("Split", gates, b.constant([cell.hidden_size] * len(letters)), axis=-1, outputs=len(letters))
    return dict(zip(letters, parts, strict=True))


# ---------------------------------------------------------------------- convolutional


def convolution_arrays(direction: Direction, name: str) -> dict[str, np.ndarray]:
    """Keras' kernels [*k, C, 4F] as ONNX's Conv wants them, [4F, C, *k], and the bias [4F]."""
    return {key: to_convolution(array) for key, array in weights_of(direction.keras_cell, name).items()}


def to_convolution(array: np.ndarray) -> np.ndarray:
    """One kernel as ONNX's Conv wants it; a bias as it is."""
    return np.ascontiguousarray(np.moveaxis(array, (-1, -2), (0, 1))) if array.ndim > 1 else array


def from_convolution(array: np.ndarray) -> np.ndarray:
    """The inverse of `to_convolution`."""
    return np.ascontiguousarray(np.moveaxis(array, (0, 1), (-1, -2))) if array.ndim > 1 else array


def _convolution_step(
    direction: Direction, weights: dict[str, ir.Value], name: str
) -> tuple[Callable[..., list[ir.Value]], tuple[int, ...]]:
    cell = direction.keras_cell
    recurrent, activation = direction.activations
    filters, rank = int(cell.filters), int(cell.rank)
    sizes = [int(size) for size in cell.spatial_dims]
    pads = _pads(sizes, cell.kernel_size, cell.strides, cell.dilation_rate, cell.padding)
    given: dict[str, Any] = {"strides": list(cell.strides), "dilations": list(cell.dilation_rate), "pads": pads}
    outputs = _output_sizes(sizes, cell.kernel_size, cell.strides, cell.dilation_rate, pads)
    ones = [1] * rank
    own: dict[str, Any] = {
        "strides": ones,
        "dilations": ones,
        "pads": _pads(outputs, cell.kernel_size, ones, ones, "same"),
    }
    units_axis = 1 if cell.data_format == "channels_last" else -1  # Keras' softmax takes the last axis of its own order
    letters = CONVOLUTION_GATES

    def step(b: Writer, value: ir.Value, carry: Sequence[ir.Value]) -> list[ir.Value]:
        h, c = carry
        gates = b.op("Add", b.op("Conv", value, weights["kernel"], weights.get("bias"), **given),
                     b.op("Conv", h, weights["recurrent_kernel"], **own))  # fmt: skip
        split = b.op("Split", gates, b.constant([filters] * len(letters)), axis=1, outputs=len(letters))
        part = dict(zip(letters, split, strict=True))
        i, f, o = (write_activation(b, recurrent, part[gate], units_axis, name) for gate in "ifo")
        candidate = write_activation(b, activation, part["c"], units_axis, name)
        c = b.op("Add", b.op("Mul", f, c), b.op("Mul", i, candidate))
        return [b.op("Mul", o, write_activation(b, activation, c, units_axis, name)), c]

    return step, (filters, *outputs)


def _pads(
    sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], padding: str
) -> list[int]:
    """ONNX pads (all begins, all ends) of Keras' padding: "same" puts the odd one at the end."""
    if padding == "valid":
        return [0] * (2 * len(sizes))
    total = [max((-(-size // stride) - 1) * stride + (k - 1) * dilation + 1 - size, 0)
             for size, k, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True)]  # fmt: skip
    return [pad // 2 for pad in total] + [pad - pad // 2 for pad in total]


def _output_sizes(
    sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], pads: Sequence[int]
) -> list[int]:
    rank = len(sizes)
    windows = zip(sizes, kernel, strides, dilations, strict=True)
    return [
        (size + pads[at] + pads[rank + at] - (k - 1) * dilation - 1) // stride + 1
        for at, (size, k, stride, dilation) in enumerate(windows)
    ]
