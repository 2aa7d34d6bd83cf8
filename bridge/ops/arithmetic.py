"""Elementwise arithmetic with broadcasting; integers divide as in C, towards zero."""

# ruff: noqa: A002, ARG001  (a handler's signature is the ONNX schema)
from __future__ import annotations

import operator
from collections.abc import Callable
from functools import reduce

import numpy as np

from bridge.ops.backend import Array
from bridge.ops.node import Node
from bridge.ops.registry import handles

BROADCAST = frozenset({7, 13, 14})


@handles("Add", versions=BROADCAST)
def add(node: Node, A: Array, B: Array) -> Array:
    """A + B."""
    return A + B


@handles("Sub", versions=BROADCAST)
def sub(node: Node, A: Array, B: Array) -> Array:
    """A - B."""
    return A - B


@handles("Mul", versions=BROADCAST)
def mul(node: Node, A: Array, B: Array) -> Array:
    """A * B."""
    return A * B


@handles("Div", versions=BROADCAST)
def div(node: Node, A: Array, B: Array) -> Array:
    """A / B; integers are cut towards zero."""
    kind = node.backend.dtype(A).kind
    if kind == "f":
        return A / B
    quotient = A // B
    if kind == "u" or (kind == "O" and not ((A < 0) | (B < 0)).any()):
        return quotient
    exact = A - quotient * B == 0
    return quotient + node.backend.astype(~exact & ((A < 0) != (B < 0)), node.backend.dtype(A))


@handles("Mod", versions={10, 13})
def mod(node: Node, A: Array, B: Array, *, fmod: int = 0) -> Array:
    """The remainder: with the sign of B, or with `fmod` that of A as in C."""
    if not fmod:
        return node.xp.remainder(A, B)
    rest = node.xp.remainder(node.xp.abs(A), node.xp.abs(B))
    return node.xp.where(A < 0, -rest, rest)


@handles("Pow", versions={7, 12, 13, 15})
def pow_(node: Node, X: Array, Y: Array) -> Array:
    """X ** Y in the dtype of X."""
    base, exponent = node.backend.dtype(X), node.backend.dtype(Y)
    if base.kind == "f":
        return node.xp.pow(X, node.backend.astype(Y, base))
    if exponent.kind == "f":
        return node.backend.astype(node.xp.pow(node.backend.astype(X, exponent), Y), base)
    return node.xp.pow(X, node.backend.astype(Y, base))


@handles("Neg", versions={6, 13})
def neg(node: Node, X: Array) -> Array:
    """-X."""
    return -X


@handles("Abs", versions={6, 13})
def abs_(node: Node, X: Array) -> Array:
    """|X|."""
    return node.xp.abs(X)


@handles("Sign", versions={9, 13}, differentiable=False)
def sign(node: Node, input: Array) -> Array:
    """-1, 0 or 1."""
    return node.xp.sign(input)


@handles("Floor", versions={6, 13}, differentiable=False)
def floor(node: Node, X: Array) -> Array:
    """The next integer below."""
    return node.xp.floor(X)


@handles("Ceil", versions={6, 13}, differentiable=False)
def ceil(node: Node, X: Array) -> Array:
    """The next integer above."""
    return node.xp.ceil(X)


@handles("Round", versions={11, 22}, differentiable=False)
def round_(node: Node, X: Array) -> Array:
    """The nearest integer, halves to even."""
    return node.xp.round(X)


@handles("Sqrt", versions={6, 13})
def sqrt(node: Node, X: Array) -> Array:
    """The square root."""
    return node.xp.sqrt(X)


@handles("Reciprocal", versions={6, 13})
def reciprocal(node: Node, X: Array) -> Array:
    """1 / X."""
    return 1 / X


@handles("Exp", versions={6, 13})
def exp(node: Node, input: Array) -> Array:
    """E to the power of the input."""
    return node.xp.exp(input)


@handles("Log", versions={6, 13})
def log(node: Node, input: Array) -> Array:
    """The natural logarithm."""
    return node.xp.log(input)


@handles("Sin", versions={7, 22})
def sin(node: Node, input: Array) -> Array:
    """The sine."""
    return node.xp.sin(input)


@handles("Cos", versions={7, 22})
def cos(node: Node, input: Array) -> Array:
    """The cosine."""
    return node.xp.cos(input)


@handles("Erf", versions={9, 13})
def erf(node: Node, input: Array) -> Array:
    """The error function."""
    return node.backend.erf(input)


@handles("Min", versions={8, 12, 13})
def min_(node: Node, *data_0: Array) -> Array:
    """The elementwise minimum of all inputs."""
    return reduce(node.xp.minimum, data_0)


@handles("Max", versions={8, 12, 13})
def max_(node: Node, *data_0: Array) -> Array:
    """The elementwise maximum of all inputs."""
    return reduce(node.xp.maximum, data_0)


@handles("Sum", versions={8, 13})
def sum_(node: Node, *data_0: Array) -> Array:
    """The elementwise sum of all inputs."""
    return reduce(operator.add, data_0)


@handles("Mean", versions={8, 13})
def mean(node: Node, *data_0: Array) -> Array:
    """The elementwise mean of all inputs."""
    return reduce(operator.add, data_0) / len(data_0)


@handles("Clip", versions={6})
def clip_by_attribute(
    node: Node,
    input: Array,
    *,
    max: float = float(np.finfo(np.float32).max),
    min: float = float(np.finfo(np.float32).min),
) -> Array:
    """The input bounded; `max` wins where the bounds cross."""
    return node.xp.clip(input, min, max)


@handles("Clip", versions={11, 12, 13})
def clip(node: Node, input: Array, min: Array | None = None, max: Array | None = None) -> Array:
    """The input bounded; `max` wins where the bounds cross."""
    bounded = input if min is None else node.xp.maximum(input, min)
    return bounded if max is None else node.xp.minimum(bounded, max)


@handles("Where", versions={9, 16})
def where(node: Node, condition: Array, X: Array, Y: Array) -> Array:
    """X where the condition holds, Y elsewhere."""
    return node.xp.where(condition, X, Y)


@handles("CumSum", versions={11, 14}, static=["axis"])
def cum_sum(node: Node, x: Array, axis: np.ndarray, *, exclusive: int = 0, reverse: int = 0) -> Array:
    """Running sums along `axis`; `exclusive` leaves the element itself out."""
    return _running(node, x, axis, exclusive, reverse, node.xp.cumulative_sum, node.xp.zeros_like)


@handles("CumProd", versions={26}, static=["axis"])
def cum_prod(node: Node, x: Array, axis: np.ndarray, *, exclusive: int = 0, reverse: int = 0) -> Array:
    """Running products along `axis`; `exclusive` leaves the element itself out."""
    return _running(node, x, axis, exclusive, reverse, node.xp.cumulative_prod, node.xp.ones_like)


def _running(
    node: Node,
    x: Array,
    axis: np.ndarray,
    exclusive: int,
    reverse: int,
    join: Callable[..., Array],
    neutral: Callable[[Array], Array],
) -> Array:
    at = int(axis.item()) % len(x.shape)
    x = node.xp.flip(x, axis=at) if reverse else x
    joined = node.backend.astype(join(x, axis=at), node.backend.dtype(x))
    if exclusive:
        before = (slice(None),) * at
        joined = node.xp.concat([neutral(x[(*before, slice(0, 1))]), joined[(*before, slice(0, -1))]], axis=at)
    return node.xp.flip(joined, axis=at) if reverse else joined
