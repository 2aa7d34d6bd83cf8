"""The eleven activations of the recurrent operators, on any backend."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

from bridge.cell import Activation
from bridge.ops.backend import Array, Backend

Function = Callable[[Array], Array]


def relu(xp: Any, x: Array) -> Array:
    """max(x, 0)."""
    return xp.maximum(x, xp.zeros_like(x))


def softplus(xp: Any, x: Array) -> Array:
    """log(1 + exp(x)) without overflow."""
    return relu(xp, x) + xp.log1p(xp.exp(-xp.abs(x)))


def elu(xp: Any, x: Array, alpha: float) -> Array:
    """X where positive, alpha * (exp(x) - 1) elsewhere; exp never sees a positive argument."""
    return relu(xp, x) + alpha * xp.expm1(xp.minimum(x, xp.zeros_like(x)))


_FORMULAS: Final[Mapping[str, Callable[[Backend, Array, float, float], Array]]] = MappingProxyType({
    "Relu": lambda backend, x, _a, _b: relu(backend.xp, x),
    "Tanh": lambda backend, x, _a, _b: backend.xp.tanh(x),
    "Sigmoid": lambda backend, x, _a, _b: backend.sigmoid(x),
    "Softsign": lambda backend, x, _a, _b: x / (1 + backend.xp.abs(x)),
    "Softplus": lambda backend, x, _a, _b: softplus(backend.xp, x),
    "LeakyRelu": lambda backend, x, a, _b: backend.xp.where(x >= 0, x, a * x),
    "ThresholdedRelu": lambda backend, x, a, _b: backend.xp.where(x > a, x, backend.xp.zeros_like(x)),
    "Elu": lambda backend, x, a, _b: elu(backend.xp, x, a),
    "Affine": lambda _backend, x, a, b: a * x + b,
    "ScaledTanh": lambda backend, x, a, b: a * backend.xp.tanh(b * x),
    "HardSigmoid": lambda backend, x, a, b: backend.xp.clip(a * x + b, 0, 1),
})  # fmt: skip


def bind(backend: Backend, activation: Activation, clip: float | None) -> Function:
    """`activation` as a function of its pre-activation, which `clip` bounds first."""
    formula = _FORMULAS[activation.name]
    alpha, beta = activation.alpha or 0.0, activation.beta or 0.0
    if clip is None:
        return lambda x: formula(backend, x, alpha, beta)
    return lambda x: formula(backend, backend.xp.clip(x, -clip, clip), alpha, beta)
