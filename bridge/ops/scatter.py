"""Writing elements by index; negative indices count from the end."""

from __future__ import annotations

import numpy as np

from bridge.ops.backend import Array
from bridge.ops.gather import from_start, linear_rows, placed
from bridge.ops.node import Node
from bridge.ops.registry import handles

REDUCTIONS = ("none", "add", "mul", "max", "min")


@handles("ScatterND", versions={11, 13})
def scatter_nd_11(node: Node, data: Array, indices: Array, updates: Array) -> Array:
    """Data with slices replaced at the coordinates in the last axis of `indices`."""
    return scatter_nd(node, data, indices, updates)


@handles("ScatterND", versions={16, 18})
def scatter_nd(node: Node, data: Array, indices: Array, updates: Array, *, reduction: str = "none") -> Array:
    """Data with slices replaced, or joined with what was there, at the coordinates in the last axis of `indices`."""
    sizes, depth = tuple(int(n) for n in data.shape), int(indices.shape[-1])
    rows, rest = linear_rows(node, indices, sizes[:depth]), sizes[depth:]
    flat = node.xp.reshape(data, (int(np.prod(sizes[:depth])), *rest))
    count = int(np.prod(tuple(int(n) for n in indices.shape[:-1])))
    return _scattered(node, flat, rows, node.xp.reshape(updates, (count, *rest)), reduction, sizes)


@handles("ScatterElements", versions={11, 13})
def scatter_elements_11(node: Node, data: Array, indices: Array, updates: Array, *, axis: int = 0) -> Array:
    """data[indices[i][j]][j] = updates[i][j] for axis 0, and likewise for others."""
    return scatter_elements(node, data, indices, updates, axis=axis)


@handles("ScatterElements", versions={16, 18})
def scatter_elements(
    node: Node, data: Array, indices: Array, updates: Array, *, axis: int = 0, reduction: str = "none"
) -> Array:
    """data[indices[i][j]][j] = updates[i][j] for axis 0, likewise for others, or joined with what was there."""
    sizes, axis = tuple(int(n) for n in data.shape), axis % len(data.shape)
    shape = tuple(int(n) for n in indices.shape)
    strides = [int(np.prod(sizes[at + 1 :])) for at in range(len(sizes))]
    places = np.zeros(shape, np.int64)
    for at, count in enumerate(shape):
        if at != axis:
            places = places + np.arange(count).reshape(-1, *[1] * (len(shape) - at - 1)) * strides[at]
    along = from_start(node.xp, indices, sizes[axis])
    places = node.backend.astype(node.backend.asarray(places, like=data), node.backend.dtype(indices))
    rows = placed(node.xp, along, sizes[axis], along * strides[axis] + places, int(np.prod(sizes)))
    rows = node.xp.reshape(rows, (-1,))
    flat, new = node.xp.reshape(data, (-1,)), node.xp.reshape(updates, (-1,))
    return _scattered(node, flat, rows, new, reduction, sizes)


@handles("Scatter", versions={9, 11})
def scatter(node: Node, data: Array, indices: Array, updates: Array, *, axis: int = 0) -> Array:
    """ScatterElements under its first name."""
    return scatter_elements(node, data, indices, updates, axis=axis)


@handles("TensorScatter", versions={24})
def tensor_scatter(
    node: Node, past_cache: Array, update: Array, write_indices: Array | None = None, *, axis: int = -2,
    mode: str = "linear",
) -> Array:  # fmt: skip
    """A cache [batch, ..., time, ...] with `update` written from `write_indices[n]` on, around the end if circular."""
    if mode not in ("linear", "circular"):
        node.reject("unknown mode", got=mode, expected="linear or circular")
    sizes, axis = tuple(int(n) for n in past_cache.shape), axis % len(past_cache.shape)
    batch, steps, room = sizes[0], int(update.shape[axis]), sizes[axis]
    time = node.backend.asarray(np.arange(steps, dtype=np.int64)[None, :], like=past_cache)
    if write_indices is not None:
        time = time + node.xp.reshape(node.backend.astype(write_indices, node.backend.dtype(time)), (batch, 1))
    time = node.xp.broadcast_to(time % room if mode == "circular" else time, (batch, steps))
    first = node.backend.asarray(np.arange(batch, dtype=np.int64)[:, None] * room, like=past_cache)
    order = (0, axis, *(at for at in range(1, len(sizes)) if at != axis))
    cache, new = (node.xp.permute_dims(value, order) for value in (past_cache, update))
    rest = tuple(int(n) for n in cache.shape[2:])
    flat, new = node.xp.reshape(cache, (batch * room, *rest)), node.xp.reshape(new, (batch * steps, *rest))
    written = node.backend.scatter(flat, node.xp.reshape(time + first, (-1,)), new, "none")
    back = tuple(int(at) for at in np.argsort(order))
    return node.xp.permute_dims(node.xp.reshape(written, (batch, room, *rest)), back)


def _scattered(node: Node, flat: Array, rows: Array, updates: Array, reduction: str, sizes: tuple[int, ...]) -> Array:
    if reduction not in REDUCTIONS:
        node.reject("unknown reduction", got=reduction, expected=" ".join(REDUCTIONS))
    return node.xp.reshape(node.backend.scatter(flat, rows, updates, reduction), sizes)
