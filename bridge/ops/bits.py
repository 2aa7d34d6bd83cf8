"""Bits of integers; no gradient passes."""

from __future__ import annotations

from bridge.ops.backend import Array
from bridge.ops.node import Node
from bridge.ops.registry import handles


@handles("BitShift", versions={11}, differentiable=False)
def bit_shift(node: Node, X: Array, Y: Array, *, direction: str) -> Array:
    """X shifted by Y bits to the LEFT or the RIGHT; nothing is left, or the sign, after its width or more."""
    if direction not in ("LEFT", "RIGHT"):
        node.reject("unknown direction", got=direction, expected="LEFT or RIGHT")
    dtype = node.backend.dtype(X)
    width = 8 * dtype.itemsize
    within = width > Y
    by = node.xp.where(within, Y, node.xp.zeros_like(Y))
    shift = node.xp.bitwise_left_shift if direction == "LEFT" else node.xp.bitwise_right_shift
    beyond = node.xp.zeros_like(X)
    if direction == "RIGHT" and dtype.kind == "i":
        beyond = node.xp.where(X < 0, beyond - 1, beyond)
    return node.xp.where(within, node.backend.astype(shift(X, by), dtype), beyond)


@handles("BitwiseAnd", versions={18}, differentiable=False)
def bitwise_and(node: Node, A: Array, B: Array) -> Array:
    """Bits that both have."""
    return node.xp.bitwise_and(A, B)


@handles("BitwiseOr", versions={18}, differentiable=False)
def bitwise_or(node: Node, A: Array, B: Array) -> Array:
    """Bits that either has."""
    return node.xp.bitwise_or(A, B)


@handles("BitwiseXor", versions={18}, differentiable=False)
def bitwise_xor(node: Node, A: Array, B: Array) -> Array:
    """Bits that one has and not the other."""
    return node.xp.bitwise_xor(A, B)


@handles("BitwiseNot", versions={18}, differentiable=False)
def bitwise_not(node: Node, X: Array) -> Array:
    """Every bit turned over."""
    return node.xp.bitwise_invert(X)
