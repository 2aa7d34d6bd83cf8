"""Comparisons and boolean logic; no gradient passes."""

# ruff: noqa: ARG001  (a handler's signature is the ONNX schema)
from __future__ import annotations

import numpy as np

from bridge.ops.backend import Array
from bridge.ops.node import Node
from bridge.ops.registry import handles

INT64 = np.dtype(np.int64)


@handles("Equal", versions={7, 11, 13, 19}, differentiable=False)
def equal(node: Node, A: Array, B: Array) -> Array:
    """A == B."""
    return A == B


@handles("Less", versions={7, 9, 13}, differentiable=False)
def less(node: Node, A: Array, B: Array) -> Array:
    """A < B."""
    return A < B


@handles("LessOrEqual", versions={12, 16}, differentiable=False)
def less_or_equal(node: Node, A: Array, B: Array) -> Array:
    """A <= B."""
    return A <= B


@handles("Greater", versions={7, 9, 13}, differentiable=False)
def greater(node: Node, A: Array, B: Array) -> Array:
    """A > B."""
    return A > B


@handles("GreaterOrEqual", versions={12, 16}, differentiable=False)
def greater_or_equal(node: Node, A: Array, B: Array) -> Array:
    """A >= B."""
    return A >= B


@handles("And", versions={7}, differentiable=False)
def and_(node: Node, A: Array, B: Array) -> Array:
    """Both."""
    return node.xp.logical_and(A, B)


@handles("Or", versions={7}, differentiable=False)
def or_(node: Node, A: Array, B: Array) -> Array:
    """Either."""
    return node.xp.logical_or(A, B)


@handles("Xor", versions={7}, differentiable=False)
def xor(node: Node, A: Array, B: Array) -> Array:
    """One and not the other."""
    return node.xp.logical_xor(A, B)


@handles("Not", versions={1}, differentiable=False)
def not_(node: Node, X: Array) -> Array:
    """Negation."""
    return node.xp.logical_not(X)


@handles("IsNaN", versions={9, 13, 20}, differentiable=False)
def is_nan(node: Node, X: Array) -> Array:
    """Whether an element is NaN."""
    return node.xp.isnan(X)


@handles("IsInf", versions={10, 20}, differentiable=False)
def is_inf(node: Node, X: Array, *, detect_negative: int = 1, detect_positive: int = 1) -> Array:
    """Whether an element is infinite, with a sign that is asked for."""
    found = node.xp.isinf(X)
    found = found if detect_negative else node.xp.logical_and(found, X > 0)
    return found if detect_positive else node.xp.logical_and(found, X < 0)


@handles("ArgMax", versions={1, 11, 12, 13}, differentiable=False)
def arg_max(node: Node, data: Array, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Array:
    """The index of the largest element along `axis`, the first or the last of equals."""
    return _extreme(node, "argmax", data, axis, keepdims, select_last_index)


@handles("ArgMin", versions={1, 11, 12, 13}, differentiable=False)
def arg_min(node: Node, data: Array, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Array:
    """The index of the smallest element along `axis`, the first or the last of equals."""
    return _extreme(node, "argmin", data, axis, keepdims, select_last_index)


def _extreme(node: Node, name: str, data: Array, axis: int, keepdims: int, last: int) -> Array:
    axis = axis % len(data.shape)
    if last:
        data = node.xp.flip(data, axis=axis)
    indices = node.backend.astype(getattr(node.xp, name)(data, axis=axis, keepdims=bool(keepdims)), INT64)
    return data.shape[axis] - 1 - indices if last else indices
