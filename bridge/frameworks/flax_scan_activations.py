"""Flax cells whose activations no ONNX recurrent operator has (gelu, silu, …): an exact Scan around them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from bridge.cell import Cell, Op
from bridge.frameworks.flax_activations import function_name

if TYPE_CHECKING:
    import onnx_ir as ir

    from bridge.frameworks.flax_lengths import Lengths
    from bridge.graph.writer import Writer

    Expression = Callable[[Writer, ir.Value], ir.Value]


def _number(w: Writer, value: float, like: ir.Value) -> ir.Value:
    return w.constant(np.asarray(value, np.float32 if like.dtype is None else like.dtype.numpy()))


def _times(w: Writer, x: ir.Value, value: float) -> ir.Value:
    return w.op("Mul", x, _number(w, value, x))


def _plus(w: Writer, x: ir.Value, value: float) -> ir.Value:
    return w.op("Add", x, _number(w, value, x))


def _between(w: Writer, x: ir.Value, low: float, high: float) -> ir.Value:
    return w.op("Clip", x, _number(w, low, x), _number(w, high, x))


def _gelu_tanh(w: Writer, x: ir.Value) -> ir.Value:
    cube = w.op("Mul", w.op("Mul", x, x), x)
    inner = _times(w, w.op("Add", x, _times(w, cube, 0.044715)), math.sqrt(2 / math.pi))
    return w.op("Mul", x, _times(w, _plus(w, w.op("Tanh", inner), 1.0), 0.5))


def _gelu_erf(w: Writer, x: ir.Value) -> ir.Value:
    return w.op("Mul", _times(w, x, 0.5), _plus(w, w.op("Erf", _times(w, x, math.sqrt(0.5))), 1.0))


def _softplus(w: Writer, x: ir.Value) -> ir.Value:
    """max(x, 0) + log(1 + exp(-|x|)): onnxruntime's own Softplus overflows above 88."""
    tail = w.op("Log", _plus(w, w.op("Exp", w.op("Neg", w.op("Abs", x))), 1.0))
    return w.op("Add", w.op("Relu", x), tail)


EXPRESSIONS: Final[Mapping[str, Expression]] = MappingProxyType(
    {
        "sigmoid": lambda w, x: w.op("Sigmoid", x),
        "tanh": lambda w, x: w.op("Tanh", x),
        "relu": lambda w, x: w.op("Relu", x),
        "soft_sign": lambda w, x: w.op("Softsign", x),
        "softplus": _softplus,
        "elu": lambda w, x: w.op("Elu", x, alpha=1.0),
        "leaky_relu": lambda w, x: w.op("LeakyRelu", x, alpha=0.01),
        "identity": lambda w, x: w.op("Identity", x),
        "hard_sigmoid": lambda w, x: _times(w, _between(w, _plus(w, x, 3.0), 0.0, 6.0), 1 / 6),
        "gelu": _gelu_tanh,
        "silu": lambda w, x: w.op("Mul", x, w.op("Sigmoid", x)),
        "swish": lambda w, x: w.op("Mul", x, w.op("Sigmoid", x)),
        "relu6": lambda w, x: _between(w, x, 0.0, 6.0),
        "selu": lambda w, x: w.op("Selu", x, alpha=1.6732632423543772, gamma=1.0507009873554805),
        "celu": lambda w, x: w.op("Elu", x, alpha=1.0),
        "mish": lambda w, x: w.op("Mul", x, w.op("Tanh", _softplus(w, x))),
        "hard_tanh": lambda w, x: _between(w, x, -1.0, 1.0),
        "hard_silu": lambda w, x: _times(w, w.op("Mul", x, _between(w, _plus(w, x, 3.0), 0.0, 6.0)), 1 / 6),
        "hard_swish": lambda w, x: _times(w, w.op("Mul", x, _between(w, _plus(w, x, 3.0), 0.0, 6.0)), 1 / 6),
        "log_sigmoid": lambda w, x: w.op("Neg", _softplus(w, w.op("Neg", x))),
    }
)
"""Functions of jax.nn with their defaults as ONNX operators. Source: jax 0.10.2 jax/_src/nn/functions.py."""


def expression_of(function: Any) -> Expression | None:
    """The ONNX expression of a function of jax.nn, None where there is none."""
    if isinstance(function, functools.partial) and function_name(function.func) == "gelu":
        exact = function.keywords == {"approximate": False} and not function.args
        return _gelu_erf if exact else None
    return EXPRESSIONS.get(function_name(function) or "")


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivatedCell:
    """A cell of one direction, its weights those of `cell`, with other activations."""

    cell: Cell
    """Weights, biases and initial states; its own activations are not used."""
    gate: Expression
    """The operator's f (for RNN the only activation)."""
    candidate: Expression
    """The operator's g, and h of LSTM."""

    @property
    def op(self) -> Op:
        """The operator whose equations these are."""
        return self.cell.op

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the parameters and of the computation."""
        return self.cell.dtype

    @property
    def filters(self) -> int:
        """H."""
        return self.cell.hidden_size

    @property
    def input_shape(self) -> tuple[int | str, ...]:
        """The features of the input."""
        return (self.cell.input_size,)

    @property
    def state_shape(self) -> tuple[int | str, ...]:
        """The units."""
        return (self.cell.hidden_size,)

    def write(
        self, w: Writer, x: ir.Value, states: Sequence[ir.Value] | None, path: str, lengths: Lengths | None,
        reverse: bool, keep_order: bool,
    ) -> tuple[ir.Value, list[ir.Value]]:  # fmt: skip
        """Write x [T, N, I] -> output [T, N, H] in the layer's order of time, and the final states."""
        from bridge.graph import sequences

        x = lengths.flip(x) if lengths is not None and reverse else x
        start = list(states) if states is not None else self._initial(w, x)
        step, shape = self._step(w, path), ("batch", self.cell.hidden_size)

        def body(b: Writer, held: tuple[ir.Value, ...], xs: tuple[ir.Value, ...]) -> tuple[Any, Any]:
            new = [b.typed(value, shape) for value in step(b, xs[0], held)]
            return new, new if lengths is not None else new[:1]

        finals, ys = w.scan(body, start, [x], reverse=reverse and lengths is None, name=path,
                            metadata={"bridge.path": path})  # fmt: skip
        if lengths is not None:
            ends = [lengths.gather_last(y) for y in ys]
            return (lengths.flip(ys[0]) if reverse and keep_order else ys[0]), ends
        return (sequences.flip(w, ys[0], 0) if reverse and not keep_order else ys[0]), list(finals)

    def _initial(self, w: Writer, x: ir.Value) -> list[ir.Value]:
        shape = [w.dim(x, 1), w.constant([self.cell.hidden_size])]
        given = (self.cell.initial_h, self.cell.initial_c)[: 2 if self.op == "LSTM" else 1]
        return [w.zeros(*shape) if state is None else w.op("Expand", w.constant(state[0]), w.concat(shape, 0))
                for state in given]  # fmt: skip

    def _step(self, w: Writer, path: str) -> Callable[..., list[ir.Value]]:
        """The equations of one step over W x + Wb and R h + Rb, each split into its gates in ONNX order."""
        cell, count = self.cell, len(self.cell.gates)
        blocks = {"W": cell.W[0].T, "R": cell.R[0].T, "Wb": cell.Wb[0], "Rb": cell.Rb[0]}
        value = {name: w.constant(np.ascontiguousarray(array), f"{path}.{name}") for name, array in blocks.items()}
        sizes = w.constant([cell.hidden_size] * count)

        def product(b: Writer, operand: ir.Value, matrix: str, bias: str) -> list[ir.Value]:
            total = b.op("Add", b.op("MatMul", operand, value[matrix]), value[bias])
            return [total] if count == 1 else list(b.op("Split", total, sizes, axis=-1, outputs=count))

        def step(b: Writer, x: ir.Value, held: tuple[ir.Value, ...]) -> list[ir.Value]:
            of_x, of_h = product(b, x, "W", "Wb"), product(b, held[0], "R", "Rb")
            results: list[ir.Value] = _EQUATIONS[cell.op](self, b, of_x, of_h, held)
            return results

        return step

    def _lstm(self, b: Writer, of_x: list[ir.Value], of_h: list[ir.Value], held: tuple[ir.Value, ...]) -> Any:
        i, o, f, c = (b.op("Add", *pair) for pair in zip(of_x, of_h, strict=True))
        kept = b.op("Mul", self.gate(b, f), held[1])
        memory = b.op("Add", kept, b.op("Mul", self.gate(b, i), self.candidate(b, c)))
        return [b.op("Mul", self.gate(b, o), self.candidate(b, memory)), memory]

    def _gru(self, b: Writer, of_x: list[ir.Value], of_h: list[ir.Value], held: tuple[ir.Value, ...]) -> Any:
        z, r = (self.gate(b, b.op("Add", *pair)) for pair in zip(of_x[:2], of_h[:2], strict=True))
        new = self.candidate(b, b.op("Add", of_x[2], b.op("Mul", r, of_h[2])))
        kept = b.op("Mul", z, held[0])
        return [b.op("Add", b.op("Mul", b.op("Sub", _number(b, 1.0, z), z), new), kept)]

    def _rnn(self, b: Writer, of_x: list[ir.Value], of_h: list[ir.Value], held: tuple[ir.Value, ...]) -> Any:  # noqa: ARG002
        return [self.gate(b, b.op("Add", of_x[0], of_h[0]))]


_EQUATIONS: Final = MappingProxyType(
    {"LSTM": ActivatedCell._lstm, "GRU": ActivatedCell._gru, "RNN": ActivatedCell._rnn}  # noqa: SLF001 (its own)
)
