"""LSTM, GRU and RNN on a Backend, with every attribute, as onnxruntime computes them.

The product of the whole input with W is hoisted out of the time loop; one product with R remains per step. Lengths
become a mask over time, forward and reverse alike: a masked step leaves the state alone and yields 0, so a reverse
run starts at the last valid step. A sequence of length 0 ends in a zero state, as in onnxruntime.

Differentiable in every floating input. float16 is computed in float32 and rounded once.
Source: onnx/defs/rnn/defs.cc, LSTM-22, GRU-22, RNN-22 (onnx 1.23.2); onnxruntime 1.31.1, CPU provider.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from bridge.cell import GATES, Cell, Direction, Op
from bridge.errors import BadInput
from bridge.ops.backend import Array, Backend
from bridge.ops.recurrent_activations import Function, bind

State: TypeAlias = tuple[Array, ...]
"""(h, c) of an LSTM, (h,) of GRU and RNN, each [N, H]."""


@dataclass(frozen=True, slots=True)
class Side:
    """One direction: transposed weights, bound activations, and the biases where they enter."""

    backend: Backend
    cell: Cell
    W: Array  # [I, n*H]
    R: Array  # [H, n*H]
    Wb: Array | None  # [n*H]
    Rb: Array | None
    P: Array | None  # [3*H]
    activations: tuple[Function, ...]
    hidden: int

    def gate(self, z: Array, first: int, count: int = 1) -> Array:
        """Columns of `count` gates of z [N, n*H], from gate `first` on."""
        return z[:, first * self.hidden : (first + count) * self.hidden]


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
    _check(cell, X, W, R, B, P, hidden_size)
    states = (initial_h, initial_c)
    Y, (Y_h, Y_c) = _run(backend, cell, lstm_step, (W, R, B, P), X, sequence_lens, states, layout)
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
    _check(cell, X, W, R, B, None, hidden_size)
    Y, (Y_h,) = _run(backend, cell, gru_step, (W, R, B, None), X, sequence_lens, (initial_h,), layout)
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
    _check(cell, X, W, R, B, None, hidden_size)
    Y, (Y_h,) = _run(backend, cell, rnn_step, (W, R, B, None), X, sequence_lens, (initial_h,), layout)
    return Y, Y_h


def lstm_step(side: Side, xW: Array, state: State) -> State:
    """One step of an LSTM: the hoisted input product xW [N, 4*H] and (h, c) to the new (h, c)."""
    h, c = state
    f, g, h_of = side.activations
    z = xW + side.backend.matmul(h, side.R)
    candidate = g(side.gate(z, 3))
    if side.P is None:
        gates = f(side.gate(z, 0, 3))
        i, o, forget = (side.gate(gates, at) for at in range(3))
    else:
        Pi, Po, Pf = (side.P[at * side.hidden : (at + 1) * side.hidden] for at in range(3))
        i, forget = f(side.gate(z, 0) + Pi * c), f(side.gate(z, 2) + Pf * c)
    if side.cell.input_forget:
        forget = 1 - i
    c = forget * c + i * candidate
    if side.P is not None:
        o = f(side.gate(z, 1) + Po * c)
    return o * h_of(c), c


def gru_step(side: Side, xW: Array, state: State) -> State:
    """One step of a GRU: the hoisted input product xW [N, 3*H] and (h,) to the new (h,)."""
    (h,) = state
    f, g = side.activations
    matmul, bias = side.backend.matmul, None if side.Rb is None else side.Rb[2 * side.hidden :]
    if side.cell.linear_before_reset:
        hR = matmul(h, side.R)
        zr = f(side.gate(xW, 0, 2) + side.gate(hR, 0, 2))
        recurrent = side.gate(hR, 2) if bias is None else side.gate(hR, 2) + bias
        candidate = g(side.gate(xW, 2) + side.gate(zr, 1) * recurrent)
    else:
        zr = f(side.gate(xW, 0, 2) + matmul(h, side.gate(side.R, 0, 2)))
        candidate = g(side.gate(xW, 2) + matmul(side.gate(zr, 1) * h, side.gate(side.R, 2)))
    z = side.gate(zr, 0)
    return ((1 - z) * candidate + z * h,)


def rnn_step(side: Side, xW: Array, state: State) -> State:
    """One step of an RNN: the hoisted input product xW [N, H] and (h,) to the new (h,)."""
    (f,) = side.activations
    return (f(xW + side.backend.matmul(state[0], side.R)),)


def _run(
    backend: Backend,
    cell: Cell,
    step: Callable[[Side, Array, State], State],
    weights: tuple[Array, Array, Array | None, Array | None],
    X: Array,
    lengths: Array | None,
    states: tuple[Array | None, ...],
    layout: int,
) -> tuple[Array, State]:
    dtype = backend.dtype(X)
    W, R, B, P, X, *states_ = (_widened(backend, value) for value in (*weights, X, *states))
    if layout:
        X = _swapped(backend, X)
        states_ = [_swapped(backend, state) for state in states_]
    mask = _mask(backend, lengths, X)
    if mask is not None:  # padding may hold anything; NaN there must not reach a gradient
        X = backend.xp.where(mask, X, backend.xp.zeros_like(X))
    runs = []
    for at, reverse in enumerate({"forward": (False,), "reverse": (True,)}.get(cell.direction, (False, True))):
        side = side_of(backend, cell, at, W, R, B, P)
        start = tuple(_state(backend, state, at, X, side.hidden) for state in states_)
        runs.append(_run_side(side, step, X, mask, start, reverse))
    stack = backend.xp.stack
    Y = stack([ys for ys, _ in runs], axis=1)
    finals = tuple(stack([final[at] for _, final in runs], axis=0) for at in range(len(states)))
    if layout:
        Y, finals = backend.xp.permute_dims(Y, (2, 0, 1, 3)), tuple(_swapped(backend, final) for final in finals)
    return backend.astype(Y, dtype), tuple(backend.astype(final, dtype) for final in finals)


def _run_side(
    side: Side,
    step: Callable[[Side, Array, State], State],
    X: Array,
    mask: Array | None,
    start: State,
    reverse: bool,
) -> tuple[Array, State]:
    backend, where, zeros = side.backend, side.backend.xp.where, side.backend.xp.zeros_like
    xW = backend.matmul(X, side.W)
    bias = hoisted_bias(side)
    xW = xW if bias is None else xW + bias
    if mask is None:
        final, ys = backend.scan(lambda state, x: _unmasked(step(side, x[0], state)), start, (xW,), reverse)
        return ys[0], final

    def masked(state: State, x: tuple[Array, ...]) -> tuple[State, State]:
        new = step(side, x[0], state)
        return tuple(where(x[1], n, old) for n, old in zip(new, state, strict=True)), (
            where(x[1], new[0], zeros(new[0])),
        )

    final, ys = backend.scan(masked, start, (xW, mask), reverse)
    alive = mask[0]  # [N, 1]: a sequence of length 0 has no first step
    return ys[0], tuple(where(alive, state, zeros(state)) for state in final)


def _unmasked(state: State) -> tuple[State, State]:
    return state, (state[0],)


def hoisted_bias(side: Side) -> Array | None:
    """Both biases where they only enter as a sum; of the GRU's h under linear_before_reset, Wb alone."""
    if side.Wb is None or side.Rb is None:
        return None
    if not side.cell.linear_before_reset:
        return side.Wb + side.Rb
    inner = 2 * side.hidden
    return side.backend.xp.concat([side.Wb[:inner] + side.Rb[:inner], side.Wb[inner:]], axis=0)


def side_of(backend: Backend, cell: Cell, at: int, W: Array, R: Array, B: Array | None, P: Array | None) -> Side:
    """Direction `at` of the ONNX blocks, its weights transposed once and its activations bound."""
    rows = int(R.shape[1])
    table = cell.activation_table()[at]
    clips = [cell.clip, cell.clip, None][: len(table)]  # onnxruntime does not clip the input of the LSTM's h
    return Side(
        backend=backend,
        cell=cell,
        W=backend.xp.permute_dims(W[at], (1, 0)),
        R=backend.xp.permute_dims(R[at], (1, 0)),
        Wb=None if B is None else B[at][:rows],
        Rb=None if B is None else B[at][rows:],
        P=None if P is None else P[at],
        activations=tuple(bind(backend, name, clip) for name, clip in zip(table, clips, strict=True)),
        hidden=int(R.shape[2]),
    )


def _state(backend: Backend, state: Array | None, at: int, X: Array, hidden: int) -> Array:
    shape = (int(X.shape[1]), hidden)
    if state is None:
        return backend.asarray(np.zeros(shape, backend.dtype(X)), like=X)
    return backend.xp.broadcast_to(state[at], shape)


def _mask(backend: Backend, lengths: Array | None, X: Array) -> Array | None:
    """[T, N, 1], true where the step belongs to the sequence; None where every step of every sequence does."""
    if lengths is None:
        return None
    steps, batch = int(X.shape[0]), int(X.shape[1])
    if tuple(lengths.shape) != (batch,):
        raise BadInput("wrong shape", where="sequence_lens", got=tuple(lengths.shape), expected=f"[{batch}]")
    known = backend.concrete(lengths)
    if known is not None:
        if known.min() < 0 or known.max() > steps:
            raise BadInput("a length outside the sequence", where="sequence_lens", got=known.tolist(),
                           expected=f"0 to {steps}")  # fmt: skip
        if (known == steps).all():
            return None
    time = backend.asarray(np.arange(steps, dtype=np.int32).reshape(-1, 1, 1), like=X)
    return time < backend.xp.reshape(backend.astype(lengths, np.dtype(np.int32)), (1, batch, 1))


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
    if op == "RNN" and activations is not None:
        activations = activations[:directions]  # the schema's default lists two; one direction uses the first
    one_direction: Direction | Literal["?"] = direction  # type: ignore[assignment]
    return Cell(
        op,
        W=np.ones((directions, rows, 1), np.float32),
        R=np.ones((directions, rows, 1), np.float32),
        direction=one_direction,  # type: ignore[arg-type]
        activations=None if activations is None else tuple(activations),
        activation_alpha=None if alpha is None else tuple(alpha),
        activation_beta=None if beta is None else tuple(beta),
        clip=clip,
        input_forget=bool(input_forget),
        linear_before_reset=bool(linear_before_reset),
    )


def _check(cell: Cell, X: Array, W: Array, R: Array, B: Array | None, P: Array | None, hidden_size: int | None) -> None:
    directions, rows = cell.num_directions, len(cell.gates)
    hidden, inputs = int(R.shape[-1]), int(X.shape[-1])
    if hidden_size is not None and hidden_size != hidden:
        raise BadInput("hidden_size and R disagree", where=cell.op, got=hidden_size, expected=hidden)
    expected = {
        "X": (X, (*tuple(X.shape)[:2], inputs)),
        "W": (W, (directions, rows * hidden, inputs)),
        "R": (R, (directions, rows * hidden, hidden)),
        "B": (B, (directions, 2 * rows * hidden)),
        "P": (P, (directions, 3 * hidden)),
    }
    for name, (array, shape) in expected.items():
        if array is not None and tuple(array.shape) != shape:
            raise BadInput(f"{name} has the wrong shape", where=cell.op, got=tuple(array.shape), expected=shape)
    if 0 in tuple(X.shape):
        raise BadInput("X has a dimension of 0, on which onnxruntime aborts", where=cell.op, got=tuple(X.shape))


def _widened(backend: Backend, value: Array | None) -> Array | None:
    if value is None or backend.dtype(value) != np.float16:
        return value
    return backend.astype(value, np.dtype(np.float32))


def _swapped(backend: Backend, value: Array | None) -> Array | None:
    """Axes 0 and 1 exchanged: batch-major to time-major, or states [N, D, H] to [D, N, H]."""
    return None if value is None else backend.xp.permute_dims(value, (1, 0, *range(2, len(value.shape))))
