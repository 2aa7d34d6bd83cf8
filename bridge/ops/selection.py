"""Choosing elements by their value: TopK, OneHot, and what has as many results as the values say."""

# ruff: noqa: A002, ARG001  (a handler's signature is the ONNX schema)
from __future__ import annotations

from typing import Any

import numpy as np

from bridge.ops.backend import Array
from bridge.ops.node import Node
from bridge.ops.registry import handles

INT64 = np.dtype(np.int64)


@handles("TopK", versions={1})
def top_k_1(node: Node, X: Array, *, axis: int = -1, k: int) -> Any:
    """The `k` largest along `axis`, largest first, and where they are."""
    return _top(node, X, k, axis, 1)


@handles("TopK", versions={10}, static=["K"])
def top_k_10(node: Node, X: Array, K: np.ndarray, *, axis: int = -1) -> Any:
    """The `K` largest along `axis`, largest first, and where they are."""
    return _top(node, X, int(K.item()), axis, 1)


@handles("TopK", versions={11, 24}, static=["K"])
def top_k(node: Node, X: Array, K: np.ndarray, *, axis: int = -1, largest: int = 1, sorted: int = 1) -> Any:
    """The `K` largest or smallest along `axis`, and where they are; in order even where `sorted` does not ask for it.

    Of equals the one with the lower index comes first.
    """
    return _top(node, X, int(K.item()), axis, largest)


def _top(node: Node, X: Array, k: int, axis: int, largest: int) -> tuple[Array, Array]:
    axis = axis % len(X.shape)
    if not 0 <= k <= int(X.shape[axis]):
        node.reject("K is out of range", got=k, expected=f"0 to {int(X.shape[axis])}")
    order = node.xp.argsort(X, axis=axis, descending=bool(largest), stable=True)
    places = order[(*(slice(None),) * axis, slice(0, k))]
    return node.xp.take_along_axis(X, places, axis=axis), node.backend.astype(places, INT64)


@handles("OneHot", versions={9, 11}, static=["depth"])
def one_hot(node: Node, indices: Array, depth: np.ndarray, values: Array, *, axis: int = -1) -> Array:
    """values[1] where the new axis equals the index, values[0] elsewhere; an index out of range marks nothing."""
    rank = len(indices.shape) + 1
    count, at = int(depth.reshape(()).item()), axis % rank
    if count < 1:
        node.reject("the depth is not positive", got=count)
    sizes = tuple(int(n) for n in indices.shape)
    node.check_size((*sizes, count))
    places = np.arange(count, dtype=np.int64).reshape(-1, *[1] * (rank - 1 - at))
    places = node.backend.astype(node.backend.asarray(places, like=indices), node.backend.dtype(indices))
    wanted = node.xp.where(indices < 0, indices + count, indices)
    return node.xp.where(node.xp.reshape(wanted, (*sizes[:at], 1, *sizes[at:])) == places, values[1], values[0])


VALUES_DECIDE = "how many results there are depends on the values"
"""Why a compiled function, whose shapes are fixed, has no such operator."""


@handles("NonZero", versions={9, 13}, static=["X"], reason=VALUES_DECIDE, differentiable=False)
def non_zero(node: Node, X: np.ndarray) -> np.ndarray:
    """The coordinates [rank, count] of the elements that are not zero."""
    return np.array(np.nonzero(np.atleast_1d(X)), np.int64).reshape(max(X.ndim, 1), -1)


@handles("Compress", versions={9, 11}, static=["condition"], reason=VALUES_DECIDE)
def compress(node: Node, input: Array, condition: np.ndarray, *, axis: int | None = None) -> Array:
    """The slices along `axis`, or the elements in order, for which the condition holds."""
    at = 0 if axis is None else axis % len(input.shape)
    data = node.xp.reshape(input, (-1,)) if axis is None else input
    places = np.flatnonzero(condition[: int(data.shape[at])])
    return node.xp.take(data, node.backend.asarray(places.astype(np.int64), like=input), axis=at)


@handles("Unique", versions={11}, static=["X"], reason=VALUES_DECIDE, differentiable=False)
def unique(node: Node, X: np.ndarray, *, axis: int | None = None, sorted: int = 1) -> Any:
    """Distinct elements, or slices along `axis`: they, their first places, where each element went, their counts."""
    Y, first, inverse, counts = np.unique(
        X, return_index=True, return_inverse=True, return_counts=True, axis=axis, equal_nan=False
    )
    inverse = inverse.reshape(-1)
    if not sorted:  # in the order of their first places
        order = np.argsort(first)
        Y, first, counts = np.take(Y, order, axis=axis or 0), first[order], counts[order]
        inverse = np.argsort(order)[inverse]
    return Y, *(array.astype(np.int64) for array in (first, inverse, counts))
