"""One step of LSTM, GRU and RNN on a Backend, and what a direction of a node brings to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from bridge.cell import Cell
from bridge.layout import Columns
from bridge.ops.backend import Array, Backend
from bridge.ops.recurrent_activations import Function, bind

State: TypeAlias = tuple[Array, ...]
"""(h, c) of an LSTM, (h,) of GRU and RNN, each [N, H]."""
Gates: TypeAlias = "Array | tuple[Array, ...]"
"""Pre-activations: one array [N, n*H], or one array [N, H] for each gate."""
StepFunction: TypeAlias = "Callable[..., State]"
"""(side, xW, state, h=None) to the new state; `h` is the whole previous output where `state` holds some units only."""


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
    gates: str
    """The operator's gate letters in the order of the columns."""

    def gate(self, z: Gates, letter: str) -> Array:
        """One gate of z: its columns, the last axis, or its own array."""
        at = self.gates.index(letter)
        return z[at] if isinstance(z, tuple) else z[..., at * self.hidden : (at + 1) * self.hidden]

    def joined(self, xW: Gates, hR: Array) -> Gates:
        """The sum of both products, in one array or in one for each gate as xW is."""
        if isinstance(xW, tuple):
            return tuple(x + self.gate(hR, letter) for x, letter in zip(xW, self.gates, strict=True))
        return xW + hR


def lstm_step(side: Side, xW: Gates, state: State, h: Array | None = None) -> State:
    """One step of an LSTM: the input product xW and (h, c) to the new (h, c)."""
    hR = side.backend.matmul(state[0] if h is None else h, side.R)
    return lstm_state(side, side.joined(xW, hR), state[1])


def lstm_state(side: Side, z: Gates, c: Array) -> State:
    """The new (h, c) of an LSTM from its pre-activations and the old c."""
    f, g, h_of = side.activations
    candidate = g(side.gate(z, "c"))
    if side.P is None:
        i, o, forget = (f(side.gate(z, letter)) for letter in "iof")
    else:
        Pi, Po, Pf = (side.P[at * side.hidden : (at + 1) * side.hidden] for at in range(3))
        i, forget = f(side.gate(z, "i") + Pi * c), f(side.gate(z, "f") + Pf * c)
    if side.cell.input_forget:
        forget = 1 - i
    c = forget * c + i * candidate
    if side.P is not None:
        o = f(side.gate(z, "o") + Po * c)
    return o * h_of(c), c


def gru_step(side: Side, xW: Gates, state: State, h: Array | None = None) -> State:
    """One step of a GRU: the input product xW and (h,) to the new (h,).

    With the reset gate before the product every unit of the candidate hangs on every unit of it: no `h` apart then.
    """
    f, g = side.activations
    matmul, bias = side.backend.matmul, None if side.Rb is None else side.Rb[2 * side.hidden :]
    if side.cell.linear_before_reset:
        hR = matmul(state[0] if h is None else h, side.R)
        z, r = (f(side.gate(xW, letter) + side.gate(hR, letter)) for letter in "zr")
        recurrent = side.gate(hR, "h") if bias is None else side.gate(hR, "h") + bias
        candidate = g(side.gate(xW, "h") + r * recurrent)
    else:
        hR = matmul(state[0], side.R[:, : 2 * side.hidden])
        z, r = (f(side.gate(xW, letter) + side.gate(hR, letter)) for letter in "zr")
        candidate = g(side.gate(xW, "h") + matmul(r * state[0], side.gate(side.R, "h")))
    return ((1 - z) * candidate + z * state[0],)


def rnn_step(side: Side, xW: Gates, state: State, h: Array | None = None) -> State:
    """One step of an RNN: the input product xW and (h,) to the new (h,)."""
    (f,) = side.activations
    z = side.joined(xW, side.backend.matmul(state[0] if h is None else h, side.R))
    return (f(side.gate(z, "i")),)


def hoisted_bias(side: Side) -> Array | None:
    """Both biases where they only enter as a sum; of the GRU's h under linear_before_reset, Wb alone."""
    Wb, Rb = side.Wb, side.Rb
    if Rb is None:
        return Wb
    if not side.cell.linear_before_reset:
        return Rb if Wb is None else Wb + Rb
    Wb, inner = side.backend.xp.zeros_like(Rb) if Wb is None else Wb, 2 * side.hidden
    return side.backend.xp.concat([Wb[:inner] + Rb[:inner], Wb[inner:]], axis=0)


def side_of(backend: Backend, cell: Cell, at: int, W: Array, R: Array, B: Array | None, P: Array | None) -> Side:
    """Direction `at` of the ONNX blocks, its weights transposed once and its activations bound."""
    rows = int(R.shape[1])
    return Side(
        backend=backend,
        cell=cell,
        W=backend.xp.permute_dims(W[at], (1, 0)),
        R=backend.xp.permute_dims(R[at], (1, 0)),
        Wb=None if B is None else B[at][:rows],
        Rb=None if B is None else B[at][rows:],
        P=None if P is None else P[at],
        activations=_bound(backend, cell, at),
        hidden=int(R.shape[2]),
        gates=cell.gates,
    )


def columns_side(backend: Backend, cell: Cell, columns: Columns) -> Side:
    """The one direction that `columns` hold, nothing moved."""
    return Side(
        backend=backend,
        cell=cell,
        W=columns.W,
        R=columns.R,
        Wb=columns.Wb,
        Rb=columns.Rb,
        P=columns.P,
        activations=_bound(backend, cell, 0),
        hidden=int(columns.R.shape[0]),
        gates=columns.gates,
    )


def _bound(backend: Backend, cell: Cell, at: int) -> tuple[Function, ...]:
    table = cell.activation_table()[at]
    clips = [cell.clip, cell.clip, None][: len(table)]  # onnxruntime does not clip the input of the LSTM's h
    return tuple(bind(backend, name, clip) for name, clip in zip(table, clips, strict=True))
