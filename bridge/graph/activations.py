"""The eleven activations of the recurrent operators, written out as ONNX nodes.

Only operators that onnxruntime 1.31.1 computes in float64 on the CPU appear: its LeakyRelu, Elu, Softplus, Softsign,
HardSigmoid and ThresholdedRelu are float32 only. Where ONNX's text and onnxruntime differ, onnxruntime decides
(ThresholdedRelu compares with >).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    import onnx_ir as ir

    from bridge.cell import Activation
    from bridge.graph.writer import Writer


def write_activation(w: Writer, activation: Activation, x: ir.Value) -> ir.Value:
    """`activation(x)`, elementwise, in x's dtype."""
    if activation.name in ("Relu", "Tanh", "Sigmoid"):
        return w.op(activation.name, x)
    return _WRITERS[activation.name](w, x, activation.alpha or 0.0, activation.beta or 0.0)


def write_clip(w: Writer, x: ir.Value, bound: float | None) -> ir.Value:
    """`x` within [-bound, bound]; `x` itself where there is no bound."""
    return x if bound is None else w.op("Clip", x, _number(w, x, -bound), _number(w, x, bound))


def _number(w: Writer, x: ir.Value, value: float) -> ir.Value:
    return w.constant(np.asarray(value, "float32" if x.dtype is None else x.dtype.numpy()))


def _below_zero(w: Writer, x: ir.Value, negative: ir.Value) -> ir.Value:
    return w.op("Where", w.op("Less", x, _number(w, x, 0.0)), negative, x)


def _softsign(w: Writer, x: ir.Value, _alpha: float, _beta: float) -> ir.Value:
    return w.op("Div", x, w.op("Add", w.op("Abs", x), _number(w, x, 1.0)))


def _softplus(w: Writer, x: ir.Value, _alpha: float, _beta: float) -> ir.Value:
    # max(x, 0) + log(1 + exp(-|x|)): no overflow, where onnxruntime's float32 kernels give inf above 88.
    tail = w.op("Log", w.op("Add", w.op("Exp", w.op("Neg", w.op("Abs", x))), _number(w, x, 1.0)))
    return w.op("Add", w.op("Relu", x), tail)


def _leaky_relu(w: Writer, x: ir.Value, alpha: float, _beta: float) -> ir.Value:
    return _below_zero(w, x, w.op("Mul", x, _number(w, x, alpha)))


def _thresholded_relu(w: Writer, x: ir.Value, alpha: float, _beta: float) -> ir.Value:
    return w.op("Where", w.op("Greater", x, _number(w, x, alpha)), x, _number(w, x, 0.0))


def _elu(w: Writer, x: ir.Value, alpha: float, _beta: float) -> ir.Value:
    # exp only of the negative side: Where computes both, and an overflow there would raise floating-point flags.
    growth = w.op("Sub", w.op("Exp", w.op("Min", x, _number(w, x, 0.0))), _number(w, x, 1.0))
    return _below_zero(w, x, w.op("Mul", growth, _number(w, x, alpha)))


def _affine(w: Writer, x: ir.Value, alpha: float, beta: float) -> ir.Value:
    return w.op("Add", w.op("Mul", x, _number(w, x, alpha)), _number(w, x, beta))


def _scaled_tanh(w: Writer, x: ir.Value, alpha: float, beta: float) -> ir.Value:
    return w.op("Mul", w.op("Tanh", w.op("Mul", x, _number(w, x, beta))), _number(w, x, alpha))


def _hard_sigmoid(w: Writer, x: ir.Value, alpha: float, beta: float) -> ir.Value:
    return w.op("Clip", _affine(w, x, alpha, beta), _number(w, x, 0.0), _number(w, x, 1.0))


_WRITERS: Final[Mapping[str, Callable[[Writer, ir.Value, float, float], ir.Value]]] = MappingProxyType({
    "Softsign": _softsign, "Softplus": _softplus, "LeakyRelu": _leaky_relu, "ThresholdedRelu": _thresholded_relu,
    "Elu": _elu, "Affine": _affine, "ScaledTanh": _scaled_tanh, "HardSigmoid": _hard_sigmoid,
})  # fmt: skip
