"""Pad."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bridge.ops.backend import Array
from bridge.ops.node import Node
from bridge.ops.registry import handles
from bridge.ops.sizes import Size, as_size, is_symbol, known, positions


@handles("Pad", versions={2})
def pad_by_attribute(
    node: Node, data: Array, *, mode: str = "constant", pads: Sequence[int], value: float = 0.0
) -> Array:
    """Every axis lengthened at both ends."""
    fill = np.asarray(value, node.backend.dtype(data))
    return _padded(node, data, pads, range(len(data.shape)), mode, fill)


@handles("Pad", versions={11, 13, 18, 19, 21, 23, 24, 25}, static=["pads", "constant_value", "axes"])
def pad(
    node: Node,
    data: Array,
    pads: np.ndarray,
    constant_value: np.ndarray | None = None,
    axes: np.ndarray | None = None,
    *,
    mode: str = "constant",
) -> Array:
    """The named axes lengthened at both ends; a negative number cuts."""
    dtype = node.backend.dtype(data)
    fill = np.zeros((), dtype) if constant_value is None else constant_value.reshape(()).astype(dtype)
    named = range(len(data.shape)) if axes is None else [int(at) % len(data.shape) for at in axes]
    return _padded(node, data, pads.tolist(), named, mode, fill)


def _padded(node: Node, data: Array, pads: Sequence[int], axes: Sequence[int], mode: str, fill: np.ndarray) -> Array:
    if mode not in ("constant", "reflect", "edge", "wrap"):
        node.reject("unknown mode", got=mode, expected="constant, reflect, edge or wrap")
    if len(pads) != 2 * len(axes):
        node.reject("pads holds a start and an end for each axis", got=len(pads), expected=2 * len(axes))
    for axis, before, after in zip(axes, pads[: len(axes)], pads[len(axes) :], strict=True):
        size = as_size(data.shape[axis])
        data = data[(*(slice(None),) * axis, slice(max(-before, 0), size - max(-after, 0)))]
        before, after = max(before, 0), max(after, 0)
        node.check_size([*data.shape[:axis], as_size(data.shape[axis]) + before + after, *data.shape[axis + 1 :]])
        if not before and not after:
            continue
        if mode == "constant":
            ends = [_filled(node, data, axis, count, fill) for count in (before, after)]
            data = node.xp.concat([ends[0], data, ends[1]], axis=axis)
        else:
            data = node.xp.take(data, _places(node, data, axis, mode, before, after), axis=axis)
    return data


def _places(node: Node, data: Array, axis: int, mode: str, before: int, after: int) -> Array:
    size = as_size(data.shape[axis])
    if known([size]) == [0]:
        node.reject("an axis without elements has nothing to repeat", got=tuple(data.shape), expected="constant")
    at = positions(node.backend, before + size + after, data) - before
    if mode == "edge":
        return node.xp.clip(at, 0, size - 1)
    return turned_in(at, size, mode, node.xp.maximum if is_symbol(size) else max)


def turned_in(at: Array, size: Size, mode: str, maximum: Callable[[Any, int], Any]) -> Array:
    """Which element of an axis of `size` stands `at` a place before or behind it, as often as it takes to get there.

    `mode` is "wrap", or "reflect", where the ends do not stand twice. `maximum` is that of two sizes.
    """
    if mode == "wrap":
        return at % size
    last = size - 1
    return last - abs(at % maximum(2 * last, 1) - last)


def _filled(node: Node, data: Array, axis: int, count: int, fill: np.ndarray) -> Array:
    sizes = tuple(count if at == axis else as_size(size) for at, size in enumerate(data.shape))
    return node.xp.broadcast_to(node.backend.asarray(fill, like=data), sizes)
