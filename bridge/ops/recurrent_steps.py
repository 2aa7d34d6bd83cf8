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
StepFunction: TypeAlias = "Callable[[Side, Array, State], State]"


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

    def gate(self, z: Array, letter: str) -> Array:
        """The columns of one gate of z [N, n*H]."""
        return self.span(z, self.gates.index(letter))

    def span(self, z: Array, first: int, count: int = 1) -> Array:
        """The columns of `count` gates of z [N, n*H], from the one at place `first` on."""
        return z[:, first * self.hidden : (first + count) * self.hidden]


def lstm_step(side: Side, xW: Array, state: State) -> State:
    """One step of an LSTM: the hoisted input product xW [N, 4*H] and (h, c) to the new (h, c)."""
    h, c = state
    f, g, h_of = side.activations
    z = xW + side.backend.matmul(h, side.R)
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


def gru_step(side: Side, xW: Array, state: State) -> State:
    """One step of a GRU: the hoisted input product xW [N, 3*H] and (h,) to the new (h,)."""
    (h,) = state
    f, g = side.activations
    matmul, bias = side.backend.matmul, None if side.Rb is None else side.Rb[2 * side.hidden :]
    if side.cell.linear_before_reset:
        hR = matmul(h, side.R)
        zr = f(side.span(xW, 0, 2) + side.span(hR, 0, 2))
        recurrent = side.gate(hR, "h") if bias is None else side.gate(hR, "h") + bias
        candidate = g(side.gate(xW, "h") + side.gate(zr, "r") * recurrent)
    else:
        zr = f(side.span(xW, 0, 2) + matmul(h, side.span(side.R, 0, 2)))
        candidate = g(side.gate(xW, "h") + matmul(side.gate(zr, "r") * h, side.gate(side.R, "h")))
    z = side.gate(zr, "z")
    return ((1 - z) * candidate + z * h,)


def rnn_step(side: Side, xW: Array, state: State) -> State:
    """One step of an RNN: the hoisted input product xW [N, H] and (h,) to the new (h,)."""
    (f,) = side.activations
    return (f(xW + side.backend.matmul(state[0], side.R)),)


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
