"""A Cell as an exact Scan, one per direction: onnxruntime's own meaning of every attribute, in any float dtype.

The input product W x + b is taken once for the whole sequence, outside the loop. float16 computes in float32 and rounds
once at the end, as onnxruntime does with the operator.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from bridge.graph.activations import write_activation, write_clip
from bridge.graph.sequences import time_steps

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import onnx_ir as ir

    from bridge.cell import Activation, Cell
    from bridge.graph.writer import Writer

    Step = Callable[[Writer, ir.Value, tuple[ir.Value, ...]], tuple[ir.Value, ...]]


class Blocks(NamedTuple):
    """The constants of one direction as values of the outer graph; gates in ONNX order."""

    Rt: tuple[ir.Value, ...]
    """R transposed, [H, n*H]; apart as z and r [H, 2*H], then h [H, H], where GRU resets before the product."""
    Rb: ir.Value | None
    """[n*H], kept apart from Wb only for GRU under linear_before_reset."""
    P: tuple[ir.Value, ...]
    """LSTM peepholes i, o, f, each [H], or nothing."""


def write_cell_scan(
    w: Writer,
    cell: Cell,
    x: ir.Value,
    arrays: Mapping[str, ir.Value],
    lengths: ir.Value | None,
    initial_h: ir.Value | None,
    initial_c: ir.Value | None,
    name: str,
    metadata: Mapping[str, str],
    valid: ir.Value | None = None,
) -> tuple[ir.Value, ir.Value, ir.Value | None]:
    """Write the Scans and join their directions: Y [T, D, N, H], Y_h and Y_c [D, N, H].

    With `valid`, bool [T, N] in the place of `lengths`, a step that is not valid keeps the state and outputs its h.
    """
    from bridge.graph.recurrent import CELL, describe

    metadata = {**metadata, CELL: describe(cell, {block: str(value.name) for block, value in arrays.items()})}
    compute = "float64" if cell.dtype == np.float64 else "float32"
    weights = {block: w.cast(value, compute) for block, value in arrays.items() if not block.startswith("initial")}
    x = w.cast(x, compute)
    carried = (initial_h, initial_c) if cell.op == "LSTM" else (initial_h,)
    started = [_start(w, cell, x, None if state is None else w.cast(state, compute), lengths) for state in carried]
    parts: list[list[ir.Value]] = []
    for direction in range(cell.num_directions):
        reverse = cell.direction == "reverse" or direction == 1
        own = name if cell.num_directions == 1 else f"{name}.{'reverse' if reverse else 'forward'}"
        states = [state[direction] for state in started]
        parts.append(_write_direction(w, cell, direction, x, weights, lengths, states, reverse, own, metadata, valid))
    joined = [w.concat(values, 1 if at == 0 else 0) for at, values in enumerate(zip(*parts, strict=True))]
    results = [w.cast(value, cell.dtype.name) for value in joined]
    return results[0], results[1], results[2] if cell.op == "LSTM" else None


def _start(w: Writer, cell: Cell, x: ir.Value, state: ir.Value | None, lengths: ir.Value | None) -> list[ir.Value]:
    # One [N, H] per direction. A row of length 0 ends in zeros and not in its initial state: onnxruntime decides.
    batch = None if x.shape is None else x.shape[1]
    shape = (batch, cell.hidden_size)
    dtype = "float32" if x.dtype is None else x.dtype.numpy().name
    if state is None:
        zeros = w.zeros(w.dim(x, 1), w.constant([cell.hidden_size]), dtype=dtype)
        return [w.typed(zeros, shape)] * cell.num_directions
    rows = [w.typed(w.take(state, direction, 0), shape) for direction in range(cell.num_directions)]
    if lengths is None:
        return rows
    present = w.unsqueeze(w.op("Greater", lengths, w.constant(np.asarray(0, np.int32))), 1)
    zero = w.constant(np.asarray(0, dtype))
    return [w.typed(w.op("Where", present, row, zero), shape) for row in rows]


def _write_direction(
    w: Writer,
    cell: Cell,
    direction: int,
    x: ir.Value,
    arrays: Mapping[str, ir.Value],
    lengths: ir.Value | None,
    states: list[ir.Value],
    reverse: bool,
    name: str,
    metadata: Mapping[str, str],
    valid: ir.Value | None,
) -> list[ir.Value]:
    products, blocks = _hoist(w, cell, direction, x, arrays)
    step = _STEPS[cell.op](cell, cell.activation_table()[direction], blocks)
    shape = (states[0].shape or (None, None))[0], cell.hidden_size

    def body(b: Writer, carry: tuple[ir.Value, ...], steps: tuple[ir.Value, ...]
             ) -> tuple[list[ir.Value], list[ir.Value]]:  # fmt: skip
        new = [b.typed(value, shape) for value in step(b, steps[0], carry)]
        if len(steps) == 1:
            return new, [new[0]]
        now = b.unsqueeze(steps[1] if lengths is None else b.op("Less", steps[1], lengths), 1)
        kept = [b.typed(b.op("Where", now, value, old), shape) for value, old in zip(new, carry, strict=True)]
        if lengths is None:
            return kept, [kept[0]]
        zero = b.constant(np.asarray(0, new[0].dtype.numpy() if new[0].dtype else "float32"))
        return kept, [b.typed(b.op("Where", now, new[0], zero), shape)]

    xs = [products]
    if valid is not None or lengths is not None:
        xs.append(w.unsqueeze(time_steps(w, x), 1) if valid is None else valid)
    final, (y,) = w.scan(body, states, xs, reverse=reverse, name=name, metadata=metadata)
    return [w.unsqueeze(y, 1), *(w.unsqueeze(value, 0) for value in final)]


def _hoist(
    w: Writer, cell: Cell, direction: int, x: ir.Value, arrays: Mapping[str, ir.Value]
) -> tuple[ir.Value, Blocks]:
    # W x + Wb for all steps at once [T, N, n*H], with every part of Rb that enters the equations only as a sum.
    rows, hidden = len(cell.gates) * cell.hidden_size, cell.hidden_size
    products = w.op("MatMul", x, w.transpose(w.take(arrays["W"], direction, 0), (1, 0)))
    recurrent_bias = None
    if "B" in arrays:
        bias = w.take(arrays["B"], direction, 0)
        input_bias, other = w.slice(bias, 0, 0, rows), w.slice(bias, 0, rows, 2 * rows)
        if cell.linear_before_reset:
            recurrent_bias = other
        else:
            input_bias = w.op("Add", input_bias, other)
        products = w.op("Add", products, input_bias)
    peepholes: tuple[ir.Value, ...] = ()
    if "P" in arrays:
        P = w.take(arrays["P"], direction, 0)
        peepholes = tuple(w.slice(P, 0, at * hidden, (at + 1) * hidden) for at in range(3))
    Rt = w.transpose(w.take(arrays["R"], direction, 0), (1, 0))
    parts: tuple[ir.Value, ...] = (Rt,)
    if cell.op == "GRU" and not cell.linear_before_reset:
        parts = (w.slice(Rt, 1, 0, 2 * hidden), w.slice(Rt, 1, 2 * hidden, rows))
    return products, Blocks(parts, recurrent_bias, peepholes)


def _split(w: Writer, gates: ir.Value, hidden: int, count: int) -> tuple[ir.Value, ...]:
    return w.op("Split", gates, w.constant([hidden] * count), axis=-1, outputs=count)


def _lstm(cell: Cell, table: tuple[Activation, ...], blocks: Blocks) -> Step:
    f, g, h = table

    def step(w: Writer, x: ir.Value, carry: tuple[ir.Value, ...]) -> tuple[ir.Value, ...]:
        H, C = carry
        i, o, forget, c = _split(w, w.op("Add", x, w.op("MatMul", H, blocks.Rt[0])), cell.hidden_size, 4)
        if blocks.P:
            i = w.op("Add", i, w.op("Mul", blocks.P[0], C))
            forget = w.op("Add", forget, w.op("Mul", blocks.P[2], C))
        i = write_activation(w, f, write_clip(w, i, cell.clip))
        c = write_activation(w, g, write_clip(w, c, cell.clip))
        if cell.input_forget:
            forget = w.op("Sub", _one(w, i), i)
        else:
            forget = write_activation(w, f, write_clip(w, forget, cell.clip))
        C = w.op("Add", w.op("Mul", forget, C), w.op("Mul", i, c))
        if blocks.P:
            o = w.op("Add", o, w.op("Mul", blocks.P[1], C))
        o = write_activation(w, f, write_clip(w, o, cell.clip))
        return w.op("Mul", o, write_activation(w, h, C)), C  # the input of h is not clipped: onnxruntime decides

    return step


def _gru(cell: Cell, table: tuple[Activation, ...], blocks: Blocks) -> Step:
    f, g = table
    hidden = cell.hidden_size

    def step(w: Writer, x: ir.Value, carry: tuple[ir.Value, ...]) -> tuple[ir.Value, ...]:
        (H,) = carry
        xz, xr, xh = _split(w, x, hidden, 3)
        product = w.op("MatMul", H, blocks.Rt[0])
        product = product if blocks.Rb is None else w.op("Add", product, blocks.Rb)
        hz, hr, *hh = _split(w, product, hidden, 3 if cell.linear_before_reset else 2)
        z = write_activation(w, f, write_clip(w, w.op("Add", xz, hz), cell.clip))
        r = write_activation(w, f, write_clip(w, w.op("Add", xr, hr), cell.clip))
        inner = w.op("Mul", r, hh[0]) if hh else w.op("MatMul", w.op("Mul", r, H), blocks.Rt[1])
        candidate = write_activation(w, g, write_clip(w, w.op("Add", xh, inner), cell.clip))
        return (w.op("Add", w.op("Mul", w.op("Sub", _one(w, z), z), candidate), w.op("Mul", z, H)),)

    return step


def _rnn(cell: Cell, table: tuple[Activation, ...], blocks: Blocks) -> Step:
    def step(w: Writer, x: ir.Value, carry: tuple[ir.Value, ...]) -> tuple[ir.Value, ...]:
        gate = w.op("Add", x, w.op("MatMul", carry[0], blocks.Rt[0]))
        return (write_activation(w, table[0], write_clip(w, gate, cell.clip)),)

    return step


def _one(w: Writer, like: ir.Value) -> ir.Value:
    return w.constant(np.asarray(1, "float32" if like.dtype is None else like.dtype.numpy()))


_STEPS: Mapping[str, Callable[[Cell, tuple[Activation, ...], Blocks], Step]] = {"LSTM": _lstm, "GRU": _gru, "RNN": _rnn}
