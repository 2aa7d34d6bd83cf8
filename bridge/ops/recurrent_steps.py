"""One step of LSTM, GRU and RNN on a Backend, and what a direction of a node brings to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from bridge.cell import Cell
from bridge.layout import Columns
from bridge.ops.backend import Array, Backend
from bridge.ops.recurrent_activations import Function, bind

State: TypeAlias = tuple[Array, ...]
"""(h, c) of an LSTM, (h,) of GRU and RNN, each [N, H]."""
Gates: TypeAlias = "Array | Mapping[str, Array]"
"""One array [..., n*H] of all gates side by side, or each gate's own [..., H] by its letter."""
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
    by_gate: bool = False
    """Whether one gate of W or R is an array that the layer has, and both together are a copy."""
    product: Callable[[Array, slice], Gates] | None = None
    """Takes the place of the product with columns of R in a step; gate by gate where it is that with all of them."""

    def recurrent(self, left: Array, columns: slice = slice(None)) -> Gates:
        """The product of one step with R, or with some columns of it."""
        if self.product is not None:
            return self.product(left, columns)
        return self.backend.matmul(left, self.R if columns == slice(None) else self.R[:, columns])

    def apart(self, z: Gates) -> Mapping[str, Array]:
        """Each gate's own array, by its letter."""
        if isinstance(z, Mapping):
            return z
        return dict(zip(self.gates, self.backend.split(z, len(self.gates)), strict=True))

    def joined(self, xW: Gates, hR: Array) -> Mapping[str, Array]:
        """The sum of both products, gate by gate."""
        if not isinstance(xW, Mapping):
            return self.apart(xW + hR)
        inner = self.apart(hR)
        return {letter: x + inner[letter] for letter, x in xW.items()}


def lstm_step(side: Side, xW: Gates, state: State, h: Array | None = None) -> State:
    """One step of an LSTM: the input product xW and (h, c) to the new (h, c)."""
    hR = side.recurrent(state[0] if h is None else h)
    return lstm_state(side, side.joined(xW, hR), state[1])


def lstm_state(side: Side, z: Mapping[str, Array], c: Array) -> State:
    """The new (h, c) of an LSTM from its pre-activations and the old c."""
    f, g, _ = side.activations
    candidate = g(z["c"])
    if side.P is None:
        return lstm_update(side, {**{letter: f(z[letter]) for letter in "iof"}, "c": candidate}, c)
    Pi, Po, Pf = (side.P[at * side.hidden : (at + 1) * side.hidden] for at in range(3))
    i, forget = f(z["i"] + Pi * c), f(z["f"] + Pf * c)
    c = _lstm_cell(side, i, forget, candidate, c)
    return f(z["o"] + Po * c) * side.activations[2](c), c


def lstm_update(side: Side, gates: Mapping[str, Array], c: Array) -> State:
    """The new (h, c) of an LSTM without peepholes from what its gates came to, and the old c."""
    c = _lstm_cell(side, gates["i"], gates["f"], gates["c"], c)
    return gates["o"] * side.activations[2](c), c


def _lstm_cell(side: Side, i: Array, forget: Array, candidate: Array, c: Array) -> Array:
    return (1 - i if side.cell.input_forget else forget) * c + i * candidate


def gru_step(side: Side, xW: Gates, state: State, h: Array | None = None) -> State:
    """One step of a GRU: the input product xW and (h,) to the new (h,).

    With the reset gate before the product every unit of the candidate hangs on every unit of it: no `h` apart then.
    """
    f, g = side.activations
    x, gates = side.apart(xW), 2 * side.hidden
    bias = None if side.Rb is None else side.Rb[gates:]
    if side.cell.linear_before_reset:
        inner = side.apart(side.recurrent(state[0] if h is None else h))
        z, r = (f(x[letter] + inner[letter]) for letter in "zr")
        candidate = g(x["h"] + r * (inner["h"] if bias is None else inner["h"] + bias))
    else:
        halves = side.backend.split(side.recurrent(state[0], slice(0, gates)), 2)
        inner = dict(zip(side.gates, halves, strict=False))
        z, r = (f(x[letter] + inner[letter]) for letter in "zr")
        candidate = g(x["h"] + side.recurrent(r * state[0], slice(gates, None)))
    return ((1 - z) * candidate + z * state[0],)


def rnn_step(side: Side, xW: Gates, state: State, h: Array | None = None) -> State:
    """One step of an RNN: the input product xW and (h,) to the new (h,)."""
    (f,) = side.activations
    return (f(side.joined(xW, side.recurrent(state[0] if h is None else h))["i"]),)


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
        by_gate=columns.by_gate,
    )


def _bound(backend: Backend, cell: Cell, at: int) -> tuple[Function, ...]:
    table = cell.activation_table()[at]
    clips = [cell.clip, cell.clip, None][: len(table)]  # onnxruntime does not clip the input of the LSTM's h
    return tuple(bind(backend, name, clip) for name, clip in zip(table, clips, strict=True))
