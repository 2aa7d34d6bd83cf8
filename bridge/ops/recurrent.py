"""LSTM, GRU and RNN on a Backend, with every attribute, as onnxruntime computes them.

The product of the whole input with W is hoisted out of the time loop; on JAX the form of the loop follows the sizes
(backend_jax_recurrent). Lengths become a mask over time, forward and reverse alike: a masked step leaves the state
alone and yields 0, so a reverse run starts at the last valid step. A sequence of length 0 ends in a zero state, as in
onnxruntime.

Differentiable in every floating input. float16 is computed in float32 and rounded once.
Source: onnx/defs/rnn/defs.cc, LSTM-22, GRU-22, RNN-22 (onnx 1.23.2); onnxruntime 1.31.1, CPU provider.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Final, Literal

import numpy as np

from bridge.cell import GATES, Cell, Op, settled
from bridge.errors import BadInput
from bridge.layout import Columns
from bridge.ops import backend_jax_recurrent
from bridge.ops.backend import Array, Backend
from bridge.ops.recurrent_loop import ended, scan_time
from bridge.ops.recurrent_steps import (
    Side,
    State,
    StepFunction,
    columns_side,
    gru_step,
    hoisted_bias,
    lstm_step,
    rnn_step,
    side_of,
)
from bridge.ops.sizes import as_sizes, positions

STEPS: Final[Mapping[str, StepFunction]] = MappingProxyType({"LSTM": lstm_step, "GRU": gru_step, "RNN": rnn_step})
STATES: Final = ("initial_h", "initial_c")
_WAYS: Final = MappingProxyType({"forward": (False,), "reverse": (True,), "bidirectional": (False, True)})
"""Which directions a node runs, true for those in reverse."""


def lstm(
    backend: Backend,
    X: Array,
    W: Array,
    R: Array,
    B: Array | None = None,
    sequence_lens: Array | None = None,
    initial_h: Array | None = None,
    initial_c: Array | None = None,
    P: Array | None = None,
    *,
    activations: Sequence[str] | None = None,
    activation_alpha: Sequence[float] | None = None,
    activation_beta: Sequence[float] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    input_forget: int = 0,
    layout: int = 0,
) -> tuple[Array, Array, Array]:
    """Y [T, D, N, H], Y_h and Y_c [D, N, H] of an LSTM over X [T, N, I]; `layout=1` swaps to batch-major.

    W [D, 4*H, I], R [D, 4*H, H], B [D, 8*H], P [D, 3*H], sequence_lens int32 [N], initial states [D, N or 1, H].

    Raises:
        BadInput: shapes that disagree, a length outside 0..T, an attribute out of range.
    """
    cell = _attributes("LSTM", direction, activations, activation_alpha, activation_beta, clip, input_forget, 0)
    _check_input(cell, X, int(W.shape[-1]))
    sides = _blocks(backend, cell, W, R, B, P, hidden_size)
    Y, (Y_h, Y_c) = _run(backend, sides, X, sequence_lens, (initial_h, initial_c), layout)
    return Y, Y_h, Y_c


def gru(
    backend: Backend,
    X: Array,
    W: Array,
    R: Array,
    B: Array | None = None,
    sequence_lens: Array | None = None,
    initial_h: Array | None = None,
    *,
    activations: Sequence[str] | None = None,
    activation_alpha: Sequence[float] | None = None,
    activation_beta: Sequence[float] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    layout: int = 0,
    linear_before_reset: int = 0,
) -> tuple[Array, Array]:
    """Y [T, D, N, H] and Y_h [D, N, H] of a GRU; W [D, 3*H, I], R [D, 3*H, H], B [D, 6*H]. See `lstm`."""
    cell = _attributes("GRU", direction, activations, activation_alpha, activation_beta, clip, 0, linear_before_reset)
    _check_input(cell, X, int(W.shape[-1]))
    sides = _blocks(backend, cell, W, R, B, None, hidden_size)
    Y, (Y_h,) = _run(backend, sides, X, sequence_lens, (initial_h,), layout)
    return Y, Y_h


def rnn(
    backend: Backend,
    X: Array,
    W: Array,
    R: Array,
    B: Array | None = None,
    sequence_lens: Array | None = None,
    initial_h: Array | None = None,
    *,
    activations: Sequence[str] | None = None,
    activation_alpha: Sequence[float] | None = None,
    activation_beta: Sequence[float] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    layout: int = 0,
) -> tuple[Array, Array]:
    """Y [T, D, N, H] and Y_h [D, N, H] of an RNN; W [D, H, I], R [D, H, H], B [D, 2*H]. See `lstm`."""
    cell = _attributes("RNN", direction, activations, activation_alpha, activation_beta, clip, 0, 0)
    _check_input(cell, X, int(W.shape[-1]))
    sides = _blocks(backend, cell, W, R, B, None, hidden_size)
    Y, (Y_h,) = _run(backend, sides, X, sequence_lens, (initial_h,), layout)
    return Y, Y_h


def run_columns(
    backend: Backend,
    columns: Columns,
    X: Array,
    sequence_lens: Array | None = None,
    initial_h: Array | None = None,
    initial_c: Array | None = None,
    direction: Literal["forward", "reverse"] = "forward",
) -> tuple[Array, ...]:
    """One direction of a framework's own parameters on X [T, N, I]: Y [T, 1, N, H], Y_h and, for LSTM, Y_c [1, N, H].

    Raises:
        BadInput: shapes that disagree, a length outside 0..T.
    """
    cell = _attributes(
        columns.op, direction, columns.activations, columns.alpha, columns.beta, columns.clip,
        int(columns.input_forget), int(columns.linear_before_reset),
    )  # fmt: skip
    _check_input(cell, X, int(columns.W.shape[0]))
    wide: dict[str, Any] = {name: _widened(backend, getattr(columns, name)) for name in ("W", "R", "Wb", "Rb", "P")}
    states = (initial_h, initial_c) if columns.op == "LSTM" else (initial_h,)
    Y, finals = _run(backend, [columns_side(backend, cell, replace(columns, **wide))], X, sequence_lens, states, 0)
    return Y, *finals


def _blocks(
    backend: Backend, cell: Cell, W: Array, R: Array, B: Array | None, P: Array | None, hidden_size: int | None
) -> list[Side]:
    """The directions of a node whose weights are ONNX blocks."""
    _check(cell, W, R, B, P, hidden_size)
    wide = [_widened(backend, value) for value in (W, R, B, P)]
    return [side_of(backend, cell, at, *wide) for at in range(cell.num_directions)]


def _run(
    backend: Backend,
    sides: Sequence[Side],
    X: Array,
    lengths: Array | None,
    states: tuple[Array | None, ...],
    layout: int,
) -> tuple[Array, State]:
    dtype, cell = backend.dtype(X), sides[0].cell
    X, *states_ = (_widened(backend, value) for value in (X, *states))
    if layout:
        X = _swapped(backend, X)
        states_ = [_swapped(backend, state) for state in states_]
    mask = _mask(backend, lengths, X)
    if mask is not None:  # padding may hold anything; NaN there must not reach a gradient
        X = backend.xp.where(mask, X, backend.xp.zeros_like(X))
    runs = []
    for at, (side, reverse) in enumerate(zip(sides, _WAYS[cell.direction], strict=True)):
        start = tuple(_state(side, name, state, at, X) for name, state in zip(STATES, states_, strict=False))
        if mask is not None:  # a sequence of length 0 reads no state: NaN there must not reach a gradient either
            start = tuple(backend.xp.where(mask[0], value, backend.xp.zeros_like(value)) for value in start)
        runs.append(_run_side(side, X, mask, start, reverse))
    stack = backend.xp.stack
    Y = stack([ys for ys, _ in runs], axis=1)
    finals = tuple(stack([final[at] for _, final in runs], axis=0) for at in range(len(states)))
    if layout:
        Y, finals = backend.xp.permute_dims(Y, (2, 0, 1, 3)), tuple(_swapped(backend, final) for final in finals)
    return backend.astype(Y, dtype), tuple(backend.astype(final, dtype) for final in finals)


def _run_side(side: Side, X: Array, mask: Array | None, start: State, reverse: bool) -> tuple[Array, State]:
    """Y [T, N, H] and the final state of one direction."""
    backend, step = side.backend, STEPS[side.cell.op]
    if backend.name == "jax":
        return backend_jax_recurrent.run_side(side, step, X, mask, start, reverse)
    xW, bias = backend.matmul(X, side.W), hoisted_bias(side)

    def advance(state: State, x: State) -> tuple[State, State]:
        new = step(side, x[0], state)
        return new, new[:1]

    (Y,), final = scan_time(backend, advance, (xW if bias is None else xW + bias,), mask, start, reverse)
    return Y, ended(backend, mask, final)


def _state(side: Side, name: str, state: Array | None, at: int, X: Array) -> Array:
    """Direction `at` of an initial state [D, N or 1, H] as [N, H], zeros where there is none."""
    batch, hidden, directions = X.shape[1], side.hidden, side.cell.num_directions
    if state is None:
        return side.backend.xp.broadcast_to(
            side.backend.asarray(np.zeros((1, hidden), side.backend.dtype(X)), like=X), (batch, hidden)
        )
    if tuple(state.shape) not in ((directions, batch, hidden), (directions, 1, hidden)):
        raise BadInput("an initial state of another shape", where=f"{side.cell.op}, {name}", got=tuple(state.shape),
                       expected=f"[{directions}, {batch}, {hidden}]: directions, the batch of X, units")  # fmt: skip
    return side.backend.xp.broadcast_to(state[at], (batch, hidden))


def _mask(backend: Backend, lengths: Array | None, X: Array) -> Array | None:
    """[T, N, 1], true where the step belongs to the sequence; None where every step of every sequence does."""
    if lengths is None:
        return None
    steps, batch = as_sizes(X.shape[:2])
    if tuple(lengths.shape) != (batch,):
        raise BadInput("wrong shape", where="sequence_lens", got=tuple(lengths.shape), expected=f"[{batch}]")
    known = backend.concrete(lengths)
    if known is not None:
        if known.min() < 0 or known.max() > steps:
            raise BadInput("a length outside the sequence", where="sequence_lens", got=known.tolist(),
                           expected=f"0 to {steps}")  # fmt: skip
        if (known == steps).all():
            return None
    time = positions(backend, steps, X, np.int32)
    return backend.xp.reshape(time, (-1, 1, 1)) < backend.xp.reshape(
        backend.astype(lengths, np.dtype(np.int32)), (1, batch, 1)
    )


def check_attributes(op: Op, given: Mapping[str, Any]) -> None:
    """Whether the attributes of a node make sense, all of them in `given` with the schema's defaults.

    Raises:
        BridgeError: of the kind and with the words that a Cell with such attributes ends in.
    """
    settled(op, given)
    _attributes(
        op, given["direction"], given["activations"], given["activation_alpha"], given["activation_beta"],
        given["clip"], given.get("input_forget", 0), given.get("linear_before_reset", 0),
    )  # fmt: skip


def _attributes(
    op: Op,
    direction: str,
    activations: Sequence[str] | None,
    alpha: Sequence[float] | None,
    beta: Sequence[float] | None,
    clip: float | None,
    input_forget: int,
    linear_before_reset: int,
) -> Cell:
    """A Cell of size one: it validates the attributes and resolves the activations as for any cell."""
    directions, rows = 2 if direction == "bidirectional" else 1, len(GATES[op])
    given = {"direction": direction, "activations": activations, "activation_alpha": alpha, "activation_beta": beta}
    return Cell(
        op,
        W=np.ones((directions, rows, 1), np.float32),
        R=np.ones((directions, rows, 1), np.float32),
        input_forget=bool(input_forget),
        linear_before_reset=bool(linear_before_reset),
        **settled(op, {**given, "clip": clip}),
    )


def _check(cell: Cell, W: Array, R: Array, B: Array | None, P: Array | None, hidden_size: int | None) -> None:
    directions, rows, hidden = cell.num_directions, len(cell.gates), int(R.shape[-1])
    if hidden_size is not None and hidden_size != hidden:
        raise BadInput("hidden_size and R disagree", where=cell.op, got=hidden_size, expected=hidden)
    expected = {
        "W": (W, (directions, rows * hidden, int(W.shape[-1]))),
        "R": (R, (directions, rows * hidden, hidden)),
        "B": (B, (directions, 2 * rows * hidden)),
        "P": (P, (directions, 3 * hidden)),
    }
    for name, (array, shape) in expected.items():
        if array is not None and tuple(array.shape) != shape:
            raise BadInput(f"{name} has the wrong shape", where=cell.op, got=tuple(array.shape), expected=shape)


def _check_input(cell: Cell, X: Array, inputs: int) -> None:
    shape = tuple(X.shape)
    if len(shape) != 3 or shape[2] != inputs:
        raise BadInput("X has the wrong shape", where=cell.op, got=shape, expected=f"[time, batch, {inputs}]")
    if 0 in shape:
        raise BadInput("X has a dimension of 0, on which onnxruntime aborts", where=cell.op, got=shape)


def _widened(backend: Backend, value: Array | None) -> Array | None:
    if value is None or backend.dtype(value) != np.float16:
        return value
    return backend.astype(value, np.dtype(np.float32))


def _swapped(backend: Backend, value: Array | None) -> Array | None:
    """Axes 0 and 1 exchanged: batch-major to time-major, or states [N, D, H] to [D, N, H]."""
    return None if value is None else backend.xp.permute_dims(value, (1, 0, *range(2, len(value.shape))))
