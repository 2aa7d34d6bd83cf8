"""Reading elements by index; negative indices count from the end."""

# ruff: noqa: A002  (a handler's signature is the ONNX schema)
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bridge.ops.backend import Array
from bridge.ops.node import Node
from bridge.ops.registry import handles
from bridge.ops.sizes import Size, as_size, as_sizes


@handles("Gather", versions={1, 11, 13})
def gather(node: Node, data: Array, indices: Array, *, axis: int = 0) -> Array:
    """Slices of `data` along `axis`, one for each index."""
    axis = axis % len(data.shape)
    sizes, shape = as_sizes(data.shape), as_sizes(indices.shape)
    flat = node.xp.reshape(from_start(node.xp, indices, sizes[axis]), (-1,))
    return node.xp.reshape(node.xp.take(data, flat, axis=axis), (*sizes[:axis], *shape, *sizes[axis + 1 :]))


@handles("GatherElements", versions={11, 13})
def gather_elements(node: Node, data: Array, indices: Array, *, axis: int = 0) -> Array:
    """out[i][j] = data[indices[i][j]][j] for axis 0, and likewise for others; the other axes may be shorter."""
    axis = axis % len(data.shape)
    size = as_size(data.shape[axis])
    cut = tuple(slice(None) if at == axis else slice(0, as_size(n)) for at, n in enumerate(indices.shape))
    places = node.backend.astype(indices, np.dtype(np.int64))  # torch gathers elements by no other integers
    return node.xp.take_along_axis(data[cut], from_start(node.xp, places, size), axis=axis)


@handles("GatherND", versions={11})
def gather_nd_11(node: Node, data: Array, indices: Array) -> Array:
    """Slices of `data` at the coordinates in the last axis of `indices`."""
    return gather_nd(node, data, indices)


@handles("GatherND", versions={12, 13})
def gather_nd(node: Node, data: Array, indices: Array, *, batch_dims: int = 0) -> Array:
    """Slices of `data` at the coordinates in the last axis of `indices`, the first axes walked together."""
    shape, sizes = tuple(int(n) for n in indices.shape), tuple(int(n) for n in data.shape)
    depth = shape[-1]
    indexed = sizes[batch_dims : batch_dims + depth]
    batch = int(np.prod(sizes[:batch_dims]))
    linear = node.xp.reshape(linear_rows(node, indices, indexed), (batch, -1))
    offsets = np.arange(batch, dtype=np.int64)[:, None] * int(np.prod(indexed))
    offsets = node.backend.astype(node.backend.asarray(offsets, like=indices), node.backend.dtype(indices))
    linear = placed(node.xp, linear, int(np.prod(indexed)), linear + offsets, batch * int(np.prod(indexed)))
    rest = sizes[batch_dims + depth :]
    flat = node.xp.reshape(data, (batch * int(np.prod(indexed)), *rest))
    return node.xp.reshape(node.xp.take(flat, node.xp.reshape(linear, (-1,)), axis=0), (*shape[:-1], *rest))


def linear_rows(node: Node, indices: Array, sizes: Sequence[int]) -> Array:
    """The coordinates in the last axis of `indices` as flat positions [n] in axes of these sizes, past all if out."""
    total, flat = int(np.prod(sizes)), node.xp.zeros_like(indices[..., 0])
    for at, size in enumerate(sizes):
        column = from_start(node.xp, indices[..., at], size)
        further = placed(node.xp, column, size, flat + column * int(np.prod(sizes[at + 1 :])), total)
        flat = placed(node.xp, flat, total, further, total)
    return node.xp.reshape(flat, (-1,))


def placed(xp: Any, place: Array, size: Size, result: Array, outside: Size) -> Array:
    """`result` where `place` is in an axis of this size, `outside` where `from_start` found that it is not."""
    return xp.where(place < size, result, xp.zeros_like(result) + outside)


@handles("ReverseSequence", versions={10})
def reverse_sequence(
    node: Node,
    input: Array,
    sequence_lens: Array,
    *,
    batch_axis: int = 1,
    time_axis: int = 0,
) -> Array:
    """The first `sequence_lens[n]` steps of each sequence in reverse, the others where they were."""
    if (time_axis, batch_axis) not in ((0, 1), (1, 0)):
        node.reject("time and batch are the first two axes", got=(time_axis, batch_axis), expected="(0, 1) or (1, 0)")
    data = input if time_axis == 0 else node.xp.permute_dims(input, (1, 0, *range(2, len(input.shape))))
    steps, batch = int(data.shape[0]), int(data.shape[1])
    time = node.backend.asarray(np.arange(steps, dtype=np.int64).reshape(-1, 1), like=input)
    lengths = node.xp.reshape(node.backend.astype(sequence_lens, node.backend.dtype(time)), (1, batch))
    source = node.xp.where(time < lengths, lengths - 1 - time, time)
    columns = node.backend.asarray(np.arange(batch, dtype=np.int64).reshape(1, -1), like=input)
    rest = tuple(int(n) for n in data.shape)[2:]
    flat = node.xp.reshape(data, (steps * batch, *rest))
    picked = node.xp.take(flat, node.xp.reshape(source * batch + columns, (-1,)), axis=0)
    result = node.xp.reshape(picked, (steps, batch, *rest))
    return result if time_axis == 0 else node.xp.permute_dims(result, (1, 0, *range(2, len(input.shape))))


def from_start(xp: Any, indices: Array, size: Size) -> Array:
    """Places in an axis, none negative; what is out of range is `size`, so that no framework counts it from an end.

    numpy and torch refuse that place, and JAX reads NaN there (the smallest integer of an integer dtype).
    """
    places = xp.where(indices < 0, indices + size, indices)
    return xp.where((places < 0) | (places > size), xp.zeros_like(places) + size, places)
