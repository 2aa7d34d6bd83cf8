"""Activations as operators, and softmax."""

# ruff: noqa: A002  (a handler's signature is the ONNX schema)
from __future__ import annotations

import math
from collections.abc import Callable

from bridge.ops import recurrent_activations as formulas
from bridge.ops.backend import Array
from bridge.ops.node import Node
from bridge.ops.registry import handles
from bridge.ops.sizes import as_sizes, elements, positions


@handles("Sigmoid", versions={6, 13})
def sigmoid(node: Node, X: Array) -> Array:
    """1 / (1 + exp(-X))."""
    return node.backend.sigmoid(X)


@handles("Tanh", versions={6, 13})
def tanh(node: Node, input: Array) -> Array:
    """The hyperbolic tangent."""
    return node.xp.tanh(input)


@handles("Relu", versions={6, 13, 14})
def relu(node: Node, X: Array) -> Array:
    """max(X, 0)."""
    return formulas.relu(node.xp, X)


@handles("LeakyRelu", versions={6, 16})
def leaky_relu(node: Node, X: Array, *, alpha: float = 0.009999999776482582) -> Array:
    """X, or alpha * X below 0."""
    return node.xp.where(X >= 0, X, alpha * X)


@handles("PRelu", versions={7, 9, 16})
def p_relu(node: Node, X: Array, slope: Array) -> Array:
    """X, or slope * X below 0."""
    return node.xp.where(X >= 0, X, slope * X)


@handles("ThresholdedRelu", versions={10, 22})
def thresholded_relu(node: Node, X: Array, *, alpha: float = 1.0) -> Array:
    """X above alpha, 0 elsewhere."""
    return node.xp.where(alpha < X, X, node.xp.zeros_like(X))


@handles("Elu", versions={6, 22})
def elu(node: Node, X: Array, *, alpha: float = 1.0) -> Array:
    """X, or alpha * (exp(X) - 1) below 0."""
    return formulas.elu(node.xp, X, alpha)


@handles("Celu", versions={12})
def celu(node: Node, X: Array, *, alpha: float = 1.0) -> Array:
    """max(X, 0) + min(0, alpha * (exp(X / alpha) - 1))."""
    return formulas.relu(node.xp, X) + alpha * node.xp.expm1(node.xp.minimum(X, node.xp.zeros_like(X)) / alpha)


@handles("Selu", versions={6, 22})
def selu(node: Node, X: Array, *, alpha: float = 1.6732631921768188, gamma: float = 1.0507010221481323) -> Array:
    """Gamma * X, or gamma * alpha * (exp(X) - 1) below 0."""
    return gamma * formulas.elu(node.xp, X, alpha)


@handles("HardSigmoid", versions={6, 22})
def hard_sigmoid(node: Node, X: Array, *, alpha: float = 0.20000000298023224, beta: float = 0.5) -> Array:
    """Alpha * X + beta between 0 and 1."""
    return node.xp.clip(alpha * X + beta, 0, 1)


@handles("HardSwish", versions={14, 22})
def hard_swish(node: Node, X: Array) -> Array:
    """X * HardSigmoid(X) with alpha 1/6 and beta 1/2."""
    return X * node.xp.clip(X / 6 + 0.5, 0, 1)


@handles("Softsign", versions={1, 22})
def softsign(node: Node, input: Array) -> Array:
    """X / (1 + |X|)."""
    return input / (1 + node.xp.abs(input))


@handles("Softplus", versions={1, 22})
def softplus(node: Node, X: Array) -> Array:
    """log(1 + exp(X))."""
    return formulas.softplus(node.xp, X)


@handles("Mish", versions={18, 22})
def mish(node: Node, X: Array) -> Array:
    """X * tanh(softplus(X))."""
    return X * node.xp.tanh(formulas.softplus(node.xp, X))


@handles("Swish", versions={24})
def swish(node: Node, X: Array, *, alpha: float = 1.0) -> Array:
    """X * sigmoid(alpha * X)."""
    return X * node.backend.sigmoid(alpha * X)


@handles("Gelu", versions={20})
def gelu(node: Node, X: Array, *, approximate: str = "none") -> Array:
    """X times the normal distribution function, exact or by tanh."""
    if approximate == "none":
        return 0.5 * X * (1 + node.backend.erf(X * math.sqrt(0.5)))
    if approximate == "tanh":
        return 0.5 * X * (1 + node.xp.tanh(math.sqrt(2 / math.pi) * (X + 0.044715 * X * X * X)))
    return node.reject("unknown approximation", got=approximate, expected="none or tanh")


@handles("Softmax", versions={1, 11})
def softmax_flattened(node: Node, input: Array, *, axis: int = 1) -> Array:
    """Softmax over all axes from `axis` on."""
    return _flattened(node, input, axis, softmax)


@handles("Softmax", versions={13})
def softmax(node: Node, input: Array, *, axis: int = -1) -> Array:
    """Softmax along one axis."""
    powers = node.xp.exp(input - node.xp.max(input, axis=axis, keepdims=True))
    return powers / node.xp.sum(powers, axis=axis, keepdims=True)


@handles("LogSoftmax", versions={1, 11})
def log_softmax_flattened(node: Node, input: Array, *, axis: int = 1) -> Array:
    """The logarithm of softmax over all axes from `axis` on."""
    return _flattened(node, input, axis, log_softmax)


@handles("LogSoftmax", versions={13})
def log_softmax(node: Node, input: Array, *, axis: int = -1) -> Array:
    """The logarithm of softmax along one axis."""
    shifted = input - node.xp.max(input, axis=axis, keepdims=True)
    return shifted - node.xp.log(node.xp.sum(node.xp.exp(shifted), axis=axis, keepdims=True))


@handles("Hardmax", versions={1, 11}, differentiable=False)
def hardmax_flattened(node: Node, input: Array, *, axis: int = 1) -> Array:
    """1 at the first largest element over all axes from `axis` on, 0 elsewhere."""
    return _flattened(node, input, axis, hardmax)


@handles("Hardmax", versions={13}, differentiable=False)
def hardmax(node: Node, input: Array, *, axis: int = -1) -> Array:
    """1 at the first largest element along `axis`, 0 elsewhere."""
    axis, largest = axis % len(input.shape), node.xp.argmax(input, axis=axis, keepdims=True)
    places = node.backend.astype(positions(node.backend, input.shape[axis], input), node.backend.dtype(largest))
    places = node.xp.reshape(places, (-1, *[1] * (len(input.shape) - axis - 1)))
    return node.backend.astype(places == largest, node.backend.dtype(input))


@handles("Shrink", versions={9})
def shrink(node: Node, input: Array, *, bias: float = 0.0, lambd: float = 0.5) -> Array:
    """The input moved by `bias` towards 0 beyond +-lambd, 0 between."""
    zero = node.xp.zeros_like(input)
    moved = node.xp.where(input > lambd, input - bias, node.xp.where(input < -lambd, input + bias, zero))
    return node.backend.astype(moved, node.backend.dtype(input))


def _flattened(node: Node, data: Array, axis: int, function: Callable[..., Array]) -> Array:
    sizes = as_sizes(data.shape)
    at = axis % max(len(data.shape), 1)
    flat = node.xp.reshape(data, (elements(sizes[:at]), elements(sizes[at:])))
    return node.xp.reshape(function(node, flat, axis=-1), sizes)
