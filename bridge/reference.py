"""The referee: LSTM, GRU and RNN of the ONNX text in float64 numpy, with every attribute.

Written to be read beside the text, not to be fast: one step function per operator, in ONNX's own letters. It tells an
honest rounding error of a float32 runtime from a wrong formula.

Where the text and onnxruntime differ, or the text is silent, `spec` chooses. "onnxruntime" is the default, because
onnxruntime is where the models run; every case is a row of schemas/deviations.toml, with the test that shows it:

=====================================  ========================  =================================
case                                   spec="onnxruntime"        spec="text"
=====================================  ========================  =================================
LSTM with `clip`                       h(C)                      h(clip(C))
ThresholdedRelu, alpha not given       alpha = 0                 alpha = 1
ThresholdedRelu at x = alpha           0                         alpha
Y_h, Y_c of a sequence of length 0     zeros                     initial state (the text is silent)
Y past the length (the text: silent)   zeros                     zeros
=====================================  ========================  =================================

Softplus here is right for every input; onnxruntime's log(1 + exp(x)) overflows above 88.

Source: onnx/defs/rnn/defs.cc, LSTM-22, GRU-22, RNN-22 (onnx 1.23.2); onnxruntime 1.31.1, CPU provider.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from bridge.cell import Activation, Cell, Op, Spec, settled
from bridge.errors import BadInput, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import ArrayLike

Array: TypeAlias = np.ndarray
State: TypeAlias = tuple[Array, ...]
"""(h, c) of an LSTM, (h,) of GRU and RNN, each [N, H]."""


def evaluate(
    cell: Cell,
    x: ArrayLike,
    *,
    lengths: ArrayLike | None = None,
    initial_h: ArrayLike | None = None,
    initial_c: ArrayLike | None = None,
    spec: Spec = "onnxruntime",
) -> tuple[Array, Array, Array | None]:
    """Run `cell` over `x` in float64.

    Args:
        cell: the node; its constant initial states serve where none are given.
        x: [T, N, I], no axis of 0.
        lengths: integers [N], 0 to T; all of T where absent.
        initial_h: [D, N or 1, H]; zeros where neither this nor the cell's own is given.
        initial_c: the same, LSTM only.
        spec: whose rule holds where the ONNX text and onnxruntime differ.

    Returns:
        Y [T, D, N, H], Y_h [D, N, H] and Y_c [D, N, H] (None for GRU and RNN), float64.

    Raises:
        BadInput: shapes that disagree with the cell, an axis of 0, a length outside 0 to T.

    >>> cell = Cell("RNN", W=[[[1.0]]], R=[[[1.0]]], activations=("Affine",), activation_alpha=(1.0,))
    >>> Y, Y_h, Y_c = evaluate(cell, [[[1.0]], [[2.0]], [[3.0]]])
    >>> Y.ravel().tolist(), Y_h.item(), Y_c
    ([1.0, 3.0, 6.0], 6.0, None)
    """
    if spec not in ("onnxruntime", "text"):
        raise UsageError("unknown spec", where="reference", got=repr(spec), expected="'onnxruntime' or 'text'")
    if initial_c is not None and cell.op != "LSTM":
        raise BadInput("initial_c belongs to LSTM", where=f"reference {cell.op}")
    x = _checked_input(cell, x)
    time, batch, _ = x.shape
    steps = _checked_lengths(cell, lengths, time, batch)
    initial = [_checked_state(cell, "initial_h", initial_h, batch)]
    if cell.op == "LSTM":
        initial.append(_checked_state(cell, "initial_c", initial_c, batch))
    sides = zip(_sides(cell, spec), *initial, strict=True)
    outputs, finals = zip(*(_run(side, x, steps, tuple(state), spec) for side, *state in sides), strict=True)
    Y_h, *Y_c = (np.stack(final) for final in zip(*finals, strict=True))
    return np.stack(outputs, axis=1), Y_h, Y_c[0] if Y_c else None


def lstm(
    X: ArrayLike,
    W: ArrayLike,
    R: ArrayLike,
    B: ArrayLike | None = None,
    sequence_lens: ArrayLike | None = None,
    initial_h: ArrayLike | None = None,
    initial_c: ArrayLike | None = None,
    P: ArrayLike | None = None,
    *,
    hidden_size: int | None = None,
    layout: int = 0,
    spec: Spec = "onnxruntime",
    **attributes: Any,
) -> tuple[Array, Array, Array]:
    """ONNX LSTM in float64: the schema's inputs and attributes, (Y, Y_h, Y_c). Raises as `evaluate` and `Cell` do."""
    cell = _cell("LSTM", hidden_size, {"W": W, "R": R, "B": B, "P": P}, attributes)
    Y, Y_h, Y_c = _evaluate_in(layout, cell, X, sequence_lens, {"initial_h": initial_h, "initial_c": initial_c}, spec)
    return Y, Y_h, Y_c


def gru(
    X: ArrayLike,
    W: ArrayLike,
    R: ArrayLike,
    B: ArrayLike | None = None,
    sequence_lens: ArrayLike | None = None,
    initial_h: ArrayLike | None = None,
    *,
    hidden_size: int | None = None,
    layout: int = 0,
    spec: Spec = "onnxruntime",
    **attributes: Any,
) -> tuple[Array, Array]:
    """ONNX GRU in float64: the schema's inputs and attributes, (Y, Y_h). Raises as `evaluate` and `Cell` do."""
    cell = _cell("GRU", hidden_size, {"W": W, "R": R, "B": B}, attributes)
    Y, Y_h = _evaluate_in(layout, cell, X, sequence_lens, {"initial_h": initial_h}, spec)
    return Y, Y_h


def rnn(
    X: ArrayLike,
    W: ArrayLike,
    R: ArrayLike,
    B: ArrayLike | None = None,
    sequence_lens: ArrayLike | None = None,
    initial_h: ArrayLike | None = None,
    *,
    hidden_size: int | None = None,
    layout: int = 0,
    spec: Spec = "onnxruntime",
    **attributes: Any,
) -> tuple[Array, Array]:
    """ONNX RNN in float64: the schema's inputs and attributes, (Y, Y_h). Raises as `evaluate` and `Cell` do."""
    cell = _cell("RNN", hidden_size, {"W": W, "R": R, "B": B}, attributes)
    Y, Y_h = _evaluate_in(layout, cell, X, sequence_lens, {"initial_h": initial_h}, spec)
    return Y, Y_h


@dataclass(frozen=True, slots=True)
class _Side:
    """One direction of a cell: float64 weights, activations with clip, alpha and beta bound."""

    cell: Cell
    reverse: bool
    activations: tuple[Callable[[Array], Array], ...]
    W: Array
    R: Array
    Wb: Array
    Rb: Array
    P: Array


def _lstm_step(side: _Side, xW: Array, state: State) -> State:
    """One step; xW [N, 4H] is Xt W + Wb."""
    f, g, h = side.activations
    Ht, Ct = state
    Pi, Po, Pf = np.split(side.P, 3)
    it, ot, ft, ct = np.split(xW + Ht @ side.R.T + side.Rb, 4, axis=1)
    it = f(it + Pi * Ct)
    ft = 1.0 - it if side.cell.input_forget else f(ft + Pf * Ct)
    Ct = ft * Ct + it * g(ct)
    ot = f(ot + Po * Ct)
    return ot * h(Ct), Ct


def _gru_step(side: _Side, xW: Array, state: State) -> State:
    """One step; xW [N, 3H] is Xt W + Wb."""
    f, g = side.activations
    (Ht,) = state
    Wz, Wr, Wh = np.split(xW, 3, axis=1)
    Rz, Rr, Rh = np.split(side.R, 3)
    Rbz, Rbr, Rbh = np.split(side.Rb, 3)
    zt = f(Wz + Ht @ Rz.T + Rbz)
    rt = f(Wr + Ht @ Rr.T + Rbr)
    ht = g(Wh + (rt * (Ht @ Rh.T + Rbh) if side.cell.linear_before_reset else (rt * Ht) @ Rh.T + Rbh))
    return ((1.0 - zt) * ht + zt * Ht,)


def _rnn_step(side: _Side, xW: Array, state: State) -> State:
    """One step; xW [N, H] is Xt W + Wb."""
    (f,) = side.activations
    (Ht,) = state
    return (f(xW + Ht @ side.R.T + side.Rb),)


_STEPS: Final = MappingProxyType({"LSTM": _lstm_step, "GRU": _gru_step, "RNN": _rnn_step})


def _run(side: _Side, x: Array, lengths: Array, state: State, spec: Spec) -> tuple[Array, State]:
    """Y [T, N, H] in the order of time, and the final state; a sequence that has ended keeps its own."""
    step, time = _STEPS[side.cell.op], np.arange(len(x))[:, None]
    alive = time < lengths
    # Reversal turns round the valid steps only, and is its own inverse.
    order = (np.where(alive, lengths - 1 - time, time) if side.reverse else time)[:, :, None]
    xW = np.take_along_axis(x, order, axis=0) @ side.W.T + side.Wb
    Y = np.zeros((*x.shape[:2], side.cell.hidden_size))
    for t, valid in enumerate(alive[:, :, None]):
        state = tuple(np.where(valid, new, old) for new, old in zip(step(side, xW[t], state), state, strict=True))
        Y[t] = np.where(valid, state[0], 0.0)
    if spec == "onnxruntime":
        state = tuple(np.where(lengths[:, None] > 0, final, 0.0) for final in state)
    return np.take_along_axis(Y, order, axis=0), state


def _sides(cell: Cell, spec: Spec) -> list[_Side]:
    """The directions of `cell`, forward first."""
    names = ("W", "R", "Wb", "Rb", "P")
    P = np.zeros((cell.num_directions, 3 * cell.hidden_size)) if cell.P is None else cell.P
    arrays = [np.asarray(array, np.float64) for array in (cell.W, cell.R, cell.Wb, cell.Rb, P)]
    return [
        _Side(
            cell,
            reverse=cell.direction == "reverse" or at == 1,
            activations=_bind(cell, activations, spec),
            **{name: array[at] for name, array in zip(names, arrays, strict=True)},
        )
        for at, activations in enumerate(cell.activation_table(spec))
    ]


def _bind(cell: Cell, activations: Sequence[Activation], spec: Spec) -> tuple[Callable[[Array], Array], ...]:
    """The functions f, g, h of one direction, each with the clip of its input."""
    clips = [np.inf if cell.clip is None else cell.clip] * len(activations)
    if cell.op == "LSTM" and spec == "onnxruntime":
        clips[2] = np.inf

    def bound(activation: Activation, clip: float) -> Callable[[Array], Array]:
        return lambda x: activate(activation, np.clip(x, -clip, clip), spec)

    return tuple(map(bound, activations, clips))


def activate(activation: Activation, x: Array, spec: Spec = "onnxruntime") -> Array:
    """The activation of float64 `x`, elementwise, with its own alpha and beta; no input overflows.

    >>> activate(Activation("HardSigmoid", 0.2, 0.5), np.array([-3.0, 0.0, 1.0])).tolist()
    [0.0, 0.5, 0.7]
    """
    if activation.name == "ThresholdedRelu" and spec == "text":
        return np.where(x >= activation.alpha, x, 0.0)
    return _FUNCTIONS[activation.name](x, activation.alpha, activation.beta)


_FUNCTIONS: Final[MappingProxyType[str, Callable[[Array, Any, Any], Array]]] = MappingProxyType(
    {
        "Relu": lambda x, *_: np.maximum(x, 0.0),
        "Tanh": lambda x, *_: np.tanh(x),
        "Sigmoid": lambda x, *_: 0.5 + 0.5 * np.tanh(0.5 * x),
        "Softsign": lambda x, *_: x / (1.0 + np.abs(x)),
        "Softplus": lambda x, *_: np.logaddexp(0.0, x),
        "LeakyRelu": lambda x, alpha, _: np.where(x >= 0.0, x, alpha * x),
        "ThresholdedRelu": lambda x, alpha, _: np.where(x > alpha, x, 0.0),
        "Elu": lambda x, alpha, _: np.where(x >= 0.0, x, alpha * np.expm1(np.minimum(x, 0.0))),
        "Affine": lambda x, alpha, beta: alpha * x + beta,
        "ScaledTanh": lambda x, alpha, beta: alpha * np.tanh(beta * x),
        "HardSigmoid": lambda x, alpha, beta: np.clip(alpha * x + beta, 0.0, 1.0),
    }
)


def _cell(op: Op, hidden_size: int | None, arrays: dict[str, ArrayLike | None], attributes: dict[str, Any]) -> Cell:
    wide: dict[str, Any] = {
        name: None if array is None else np.asarray(array, np.float64) for name, array in arrays.items()
    }
    cell = Cell(op, **wide, **settled(op, attributes))
    if hidden_size not in (None, cell.hidden_size):
        raise BadInput("hidden_size disagrees with R", where=f"reference {op}", got=hidden_size,
                       expected=cell.hidden_size)  # fmt: skip
    return cell


def _evaluate_in(
    layout: int, cell: Cell, x: ArrayLike, lengths: ArrayLike | None, states: dict[str, ArrayLike | None], spec: Spec
) -> list[Array]:
    """`evaluate` with layout 1, batch before time and direction: X [N, T, I], Y [N, T, D, H], states [N, D, H]."""
    if layout not in (0, 1):
        raise BadInput("unknown layout", where=f"reference {cell.op}", got=layout, expected="0 or 1")
    if layout == 0:
        return [output for output in evaluate(cell, x, lengths=lengths, spec=spec, **states) if output is not None]
    swapped = {name: None if state is None else np.swapaxes(state, 0, 1) for name, state in states.items()}
    outputs = evaluate(cell, np.swapaxes(x, 0, 1), lengths=lengths, spec=spec, **swapped)
    return [np.moveaxis(output, -2, 0) for output in outputs if output is not None]


def _checked_input(cell: Cell, x: ArrayLike) -> Array:
    x = np.asarray(x, np.float64)
    if x.ndim != 3 or x.shape[2] != cell.input_size or 0 in x.shape:
        raise BadInput("X has the wrong shape", where=f"reference {cell.op}", got=list(x.shape),
                       expected=f"[T, N, {cell.input_size}] with T and N above 0")  # fmt: skip
    return x


def _checked_lengths(cell: Cell, lengths: ArrayLike | None, time: int, batch: int) -> Array:
    where = f"reference {cell.op}"
    if lengths is None:
        return np.full(batch, time)
    lengths = np.asarray(lengths)
    if lengths.dtype.kind not in "iu" or lengths.shape != (batch,):
        raise BadInput("sequence_lens has the wrong dtype or shape", where=where,
                       got=f"{lengths.dtype} {list(lengths.shape)}", expected=f"integers [{batch}]")  # fmt: skip
    if lengths.min() < 0 or lengths.max() > time:
        raise BadInput("sequence_lens out of range", where=where, got=lengths.tolist(), expected=f"0 to {time}")
    return lengths.astype(np.int64)


def _checked_state(cell: Cell, name: str, given: ArrayLike | None, batch: int) -> Array:
    """The initial state [D, N, H]: the one given, else the cell's own, else zeros."""
    if given is None:
        given = getattr(cell, name)
    shape = (cell.num_directions, batch, cell.hidden_size)
    if given is None:
        return np.zeros(shape)
    state = np.asarray(given, np.float64)
    if state.shape not in (shape, (shape[0], 1, shape[2])):
        raise BadInput(f"{name} has the wrong shape", where=f"reference {cell.op}", got=list(state.shape),
                       expected=list(shape))  # fmt: skip
    return np.broadcast_to(state, shape)
