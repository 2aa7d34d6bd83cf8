"""Keras activations: which one a function is, and the ONNX expression of those that the recurrent operators lack.

Source: keras 3.15.1, keras/src/activations/activations.py and keras/src/backend/tensorflow/nn.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from bridge.cell import Activation
from bridge.errors import Unsupported

if TYPE_CHECKING:
    import onnx_ir as ir

    from bridge.graph import Writer

LEGACY: Final = MappingProxyType({"keras2_hard_sigmoid": Activation("HardSigmoid", 0.2, 0.5)})
"""Functions of bridge that mean what Keras 2 meant: see keras_legacy.functions."""

Expression: TypeAlias = "Callable[[Writer, ir.Value, int], ir.Value]"


def name_of(function: Any, where: str) -> str:
    """The Keras name of an activation function, by identity: a function of the caller's called `tanh` is not tanh.

    Raises:
        Unsupported: a function or a layer that Keras does not ship as an activation.
    """
    import keras

    name = getattr(function, "__name__", "")
    shipped = getattr(keras.activations, name, None)
    same_in_ops = name in ("tanh", "sigmoid", "relu") and function is getattr(keras.ops, name)
    if function is not None and (function is shipped or same_in_ops or function is _legacy(name)):
        return str(name)
    raise Unsupported("this activation is none that Keras ships, so its formula is unknown", where=where,
                      got=repr(function), do="use one of keras.activations by name")  # fmt: skip


def _legacy(name: str) -> Any:
    from bridge.frameworks.keras_legacy import functions

    return getattr(functions, name) if name in LEGACY else None


def function_of(name: str) -> Any:
    """What a Keras layer takes as the activation `name`: the name itself, or bridge's function of Keras 2."""
    return _legacy(name) or name


def legacy_name(activation: Activation) -> str | None:
    """Bridge's name of an activation that Keras 2 had and Keras 3 has not; None for any other."""
    from bridge.layout.options import same

    return next((name for name, one in LEGACY.items() if same(one, activation)), None)


def onnx_activation(name: str) -> Activation | None:
    """The activation of the recurrent operators that `name` (as `name_of` gives it) is; None where they lack it."""
    from bridge import layout

    found = LEGACY.get(name) or layout.activation("keras", name)
    return found if isinstance(found, Activation) else None


def write_activation(w: Writer, name: str, x: ir.Value, units_axis: int, where: str) -> ir.Value:
    """`name` of `x`; `units_axis` is where softmax sums.

    Raises:
        Unsupported: no exact expression in ONNX operators is known, or onnxruntime lacks it in this dtype.
    """
    from bridge.graph import activations

    known = onnx_activation(name)
    if known is not None:
        return x if name == "linear" else activations.write_activation(w, known, x)
    if name not in EXPRESSIONS:
        raise Unsupported(f"activation {name!r} has no ONNX expression here", where=where,
                          expected=", ".join(EXPRESSIONS))  # fmt: skip
    if name == "gelu" and _dtype(x) == np.float64:
        raise Unsupported("gelu in float64: onnxruntime's Erf computes float32 only", where=where)
    return EXPRESSIONS[name](w, x, units_axis)


def _dtype(x: ir.Value) -> np.dtype[Any]:
    return np.dtype(np.float32) if x.dtype is None else x.dtype.numpy()


def _number(w: Writer, x: ir.Value, value: float) -> ir.Value:
    return w.constant(np.asarray(value, _dtype(x)))


def _known(w: Writer, name: str, x: ir.Value, alpha: float | None = None) -> ir.Value:
    from bridge.graph import activations

    return activations.write_activation(w, Activation(name, alpha), x)


def _clip(w: Writer, x: ir.Value, low: float, high: float) -> ir.Value:
    return w.op("Clip", x, _number(w, x, low), _number(w, x, high))


def _linear(w: Writer, x: ir.Value, scale: float, offset: float) -> ir.Value:
    return w.op("Add", w.op("Mul", x, _number(w, x, scale)), _number(w, x, offset))


def _hard_silu(w: Writer, x: ir.Value, _: int) -> ir.Value:
    gate = _clip(w, w.op("Add", x, _number(w, x, 3.0)), 0.0, 6.0)
    return w.op("Mul", x, w.op("Div", gate, _number(w, x, 6.0)))


def _gelu(w: Writer, x: ir.Value, _: int) -> ir.Value:
    erf = w.op("Erf", w.op("Mul", x, _number(w, x, math.sqrt(0.5))))
    return w.op("Mul", w.op("Mul", x, _number(w, x, 0.5)), w.op("Add", erf, _number(w, x, 1.0)))


def _selu(w: Writer, x: ir.Value, _: int) -> ir.Value:
    scale, alpha = 1.0507009873554805, 1.6732632423543772  # Klambauer et al. 2017, as in every backend of Keras
    return w.op("Mul", _known(w, "Elu", x, alpha), _number(w, x, scale))


def _squareplus(w: Writer, x: ir.Value, _: int) -> ir.Value:
    root = w.op("Sqrt", w.op("Add", w.op("Mul", x, x), _number(w, x, 4.0)))
    return w.op("Div", w.op("Add", x, root), _number(w, x, 2.0))


def _sparse_plus(w: Writer, x: ir.Value, _: int) -> ir.Value:
    # (x + 1)**2 / 4 on [-1, 1], 0 below and x above: the clipped argument makes the parabola 0 and 1 at the ends.
    bounded = _linear(w, _clip(w, x, -1.0, 1.0), 0.5, 0.5)
    above = w.op("Relu", w.op("Sub", x, _number(w, x, 1.0)))
    return w.op("Add", w.op("Mul", bounded, bounded), above)


def _log_sigmoid(w: Writer, x: ir.Value, _: int) -> ir.Value:
    return w.op("Neg", _known(w, "Softplus", w.op("Neg", x)))


EXPRESSIONS: Final[Mapping[str, Expression]] = MappingProxyType(
    {
        "exponential": lambda w, x, _: w.op("Exp", x),
        "celu": lambda w, x, _: _known(w, "Elu", x, 1.0),
        "selu": _selu,
        "relu6": lambda w, x, _: _clip(w, x, 0.0, 6.0),
        "hard_tanh": lambda w, x, _: _clip(w, x, -1.0, 1.0),
        "hard_silu": _hard_silu,
        "sparse_sigmoid": lambda w, x, _: _clip(w, _linear(w, x, 0.5, 0.5), 0.0, 1.0),
        "sparse_plus": _sparse_plus,
        "squareplus": _squareplus,
        "silu": lambda w, x, _: w.op("Mul", x, w.op("Sigmoid", x)),
        "gelu": _gelu,
        "mish": lambda w, x, _: w.op("Mul", x, w.op("Tanh", _known(w, "Softplus", x))),
        "log_sigmoid": _log_sigmoid,
        "tanh_shrink": lambda w, x, _: w.op("Sub", x, w.op("Tanh", x)),
        "soft_shrink": lambda w, x, _: w.op("Sub", x, _clip(w, x, -0.5, 0.5)),
        "softmax": lambda w, x, axis: w.op("Softmax", x, axis=axis),
        "log_softmax": lambda w, x, axis: w.op("LogSoftmax", x, axis=axis),
    }
)
"""Keras activations that the recurrent operators lack, with Keras' default arguments; all but gelu run in float64."""
