"""Trigonometric and hyperbolic functions and their inverses; Sin, Cos and Tanh stand with the arithmetic."""

# ruff: noqa: A002  (a handler's signature is the ONNX schema)
from __future__ import annotations

from bridge.ops.backend import Array
from bridge.ops.node import Node
from bridge.ops.registry import handles


@handles("Tan", versions={7, 22})
def tan(node: Node, input: Array) -> Array:
    """The tangent."""
    return node.xp.tan(input)


@handles("Asin", versions={7, 22})
def asin(node: Node, input: Array) -> Array:
    """The arcsine."""
    return node.xp.asin(input)


@handles("Acos", versions={7, 22})
def acos(node: Node, input: Array) -> Array:
    """The arccosine."""
    return node.xp.acos(input)


@handles("Atan", versions={7, 22})
def atan(node: Node, input: Array) -> Array:
    """The arctangent."""
    return node.xp.atan(input)


@handles("Sinh", versions={9, 22})
def sinh(node: Node, input: Array) -> Array:
    """The hyperbolic sine."""
    return node.xp.sinh(input)


@handles("Cosh", versions={9, 22})
def cosh(node: Node, input: Array) -> Array:
    """The hyperbolic cosine."""
    return node.xp.cosh(input)


@handles("Asinh", versions={9, 22})
def asinh(node: Node, input: Array) -> Array:
    """The inverse hyperbolic sine."""
    return node.xp.asinh(input)


@handles("Acosh", versions={9, 22})
def acosh(node: Node, input: Array) -> Array:
    """The inverse hyperbolic cosine."""
    return node.xp.acosh(input)


@handles("Atanh", versions={9, 22})
def atanh(node: Node, input: Array) -> Array:
    """The inverse hyperbolic tangent."""
    return node.xp.atanh(input)
