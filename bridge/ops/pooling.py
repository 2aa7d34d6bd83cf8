"""Pooling. A window is a few shifted slices, one axis after the other, so that every backend differentiates it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np

from bridge.ops.backend import Array, Pads
from bridge.ops.convolution import window_pads
from bridge.ops.node import Node
from bridge.ops.registry import handles


@dataclass(frozen=True, slots=True, kw_only=True)
class Windows:
    """Where the windows of one pooling node lie, per spatial axis."""

    sizes: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    """Padding that belongs to the input: what AveragePool may count."""
    extra: tuple[int, ...]
    """Padding behind it that only fills the last window of `ceil_mode`, and never counts."""
    counts: tuple[int, ...]
    """Windows along each axis."""

    @property
    def sides(self) -> Pads:
        """All padding, before and after each axis."""
        return [(before, after + extra) for (before, after), extra in zip(self.pads, self.extra, strict=True)]


def _windows(
    node: Node,
    X: Array,
    kernel_shape: Sequence[int],
    strides: Sequence[int] | None,
    dilations: Sequence[int] | None,
    pads: Sequence[int] | None,
    auto_pad: str,
    ceil_mode: int,
) -> Windows:
    """The windows of a node, the last one dropped where `ceil_mode` would start it in the padding behind."""
    sizes, rank = tuple(int(n) for n in X.shape[2:]), len(X.shape) - 2
    kernel, strides, dilations = tuple(kernel_shape), tuple(strides or [1] * rank), tuple(dilations or [1] * rank)
    if not len(kernel) == len(strides) == len(dilations) == rank or rank == 0 or min(*kernel, *strides, *dilations) < 1:
        node.reject("kernel_shape, strides and dilations need one positive number per spatial axis",
                    got=(kernel, strides, dilations), expected=f"{rank} of each")  # fmt: skip
    extents = [dilation * (size - 1) + 1 for dilation, size in zip(dilations, kernel, strict=True)]
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        sides = [_same_pads(*axis, auto_pad) for axis in zip(sizes, kernel, strides, strict=True)]
    else:
        sides = window_pads(node, list(sizes), extents, list(strides), pads, auto_pad)
    extra, counts = [], []
    for size, extent, stride, (before, after) in zip(sizes, extents, strides, sides, strict=True):
        room = size + before + after - extent
        if room < 0:
            node.reject("the window is larger than the padded input", got=extent, expected=size + before + after)
        count = room // stride + 1
        if ceil_mode and room % stride and count * stride < size + before:
            count += 1
        extra.append(max((count - 1) * stride + extent - size - before - after, 0))
        counts.append(count)
    return Windows(sizes=sizes, kernel=kernel, strides=strides, dilations=dilations,
                   pads=tuple(sides), extra=tuple(extra), counts=tuple(counts))  # fmt: skip


def _same_pads(size: int, kernel: int, stride: int, auto_pad: str) -> tuple[int, int]:
    """Padding that gives ceil(size / stride) windows of adjacent elements, the odd one at the named end.

    As in onnxruntime, dilations do not count, so dilated windows are fewer; and windows that are shorter than a stride
    begin after the input does: its padding is negative then, halved towards zero.
    """
    total = (-(-size // stride) - 1) * stride + kernel - size
    before = int((total if auto_pad == "SAME_UPPER" else total + 1) / 2)
    return before, total - before


def _padded(node: Node, data: Array, windows: Windows, fill: float) -> Array:
    dtype = node.backend.dtype(data)
    for at, (before, after) in enumerate(windows.sides, start=2):
        if before < 0:
            data = data[(*(slice(None),) * at, slice(-before, None))]
        if before > 0 or after > 0:
            sizes = tuple(int(n) for n in data.shape)
            ends = [node.backend.asarray(np.full((*sizes[:at], count, *sizes[at + 1 :]), fill, dtype), like=data)
                    for count in (max(before, 0), max(after, 0))]  # fmt: skip
            data = node.xp.concat([ends[0], data, ends[1]], axis=at)
    return data


def _shifts(data: Array, windows: Windows, at: int) -> Iterator[Array]:
    """For each place in the window of axis `at`, the elements that all windows have there."""
    count, stride, dilation = windows.counts[at - 2], windows.strides[at - 2], windows.dilations[at - 2]
    for place in range(windows.kernel[at - 2]):
        start = place * dilation
        yield data[(*(slice(None),) * at, slice(start, start + (count - 1) * stride + 1, stride))]


def _joined(node: Node, data: Array, windows: Windows, fill: float, join: Callable[[Array, Array], Array]) -> Array:
    """`join` over the elements of every window of `data` padded with `fill`."""
    data = _padded(node, data, windows, fill)
    for at in reversed(range(2, len(data.shape))):
        data = reduce(join, _shifts(data, windows, at))
    return data


def _lowest(node: Node, X: Array) -> float:
    dtype = node.backend.dtype(X)
    return -np.inf if dtype.kind == "f" else float(np.iinfo(dtype).min)


@handles("MaxPool", versions={1, 8, 10, 11, 12, 22})
def max_pool(
    node: Node,
    X: Array,
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Sequence[int] | None = None,
    kernel_shape: Sequence[int],
    pads: Sequence[int] | None = None,
    storage_order: int = 0,
    strides: Sequence[int] | None = None,
) -> Array | tuple[Array, Array]:
    """The largest element of each window; with a second output, its place in the flattened X, the first of equals."""
    windows = _windows(node, X, kernel_shape, strides, dilations, pads, auto_pad, ceil_mode)
    if node.outputs == 1:
        return _joined(node, X, windows, _lowest(node, X), node.xp.maximum)
    data = _padded(node, X, windows, _lowest(node, X))
    places = _padded(node, _places(node, X, storage_order), windows, -1)
    for at in reversed(range(2, len(X.shape))):
        best, *others = zip(_shifts(data, windows, at), _shifts(places, windows, at), strict=True)
        for value, place in others:
            larger = node.xp.logical_or(value > best[0], best[1] < 0)  # padding is no element, however small X is
            best = node.xp.where(larger, value, best[0]), node.xp.where(larger, place, best[1])
        data, places = best
    return data, places


def _places(node: Node, X: Array, storage_order: int) -> Array:
    """The position of every element in the flattened X; `storage_order` 1 counts the spatial axes column by column."""
    batch, channels, *sizes = (int(n) for n in X.shape)
    spatial = np.arange(int(np.prod(sizes)), dtype=np.int64)
    spatial = spatial.reshape(sizes[::-1]).T if storage_order else spatial.reshape(sizes)
    planes = np.arange(batch * channels, dtype=np.int64).reshape(batch, channels, *[1] * len(sizes))
    return node.backend.asarray(planes * spatial.size + spatial, like=X)


@handles("AveragePool", versions={7, 10, 11, 19, 22})
def average_pool(
    node: Node,
    X: Array,
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: Sequence[int] | None = None,
    kernel_shape: Sequence[int],
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Array:
    """The mean of each window: over what lies in X, or with `count_include_pad` in X and its padding."""
    windows = _windows(node, X, kernel_shape, strides, dilations, pads, auto_pad, ceil_mode)
    if ceil_mode and max(windows.dilations) > 1 and any(after < 0 for _, after in windows.pads):
        node.refuse("averages less than its last window, which is dilated and shorter than a stride", got=auto_pad)
    total = _joined(node, X, windows, 0, operator.add)
    counts = _counts(windows, bool(count_include_pad)).astype(node.backend.dtype(X))
    return total / node.backend.asarray(counts, like=X)


def _counts(windows: Windows, include_pad: bool) -> np.ndarray:
    """How many elements each window averages over."""
    counts = np.ones((), np.int64)
    for size, (before, after), kernel, stride, dilation, count in zip(
        windows.sizes, windows.pads, windows.kernel, windows.strides, windows.dilations, windows.counts, strict=True
    ):
        places = np.arange(count)[:, None] * stride + np.arange(kernel) * dilation
        first, last = (0, before + size + after) if include_pad else (before, before + size)
        counts = counts[..., None] * ((places >= first) & (places < last)).sum(axis=1)
    return counts


@handles("LpPool", versions={2, 11, 18, 22})
def lp_pool(
    node: Node,
    X: Array,
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Sequence[int] | None = None,
    kernel_shape: Sequence[int],
    p: int = 2,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Array:
    """The p-norm of each window."""
    windows = _windows(node, X, kernel_shape, strides, dilations, pads, auto_pad, ceil_mode)
    return _joined(node, node.xp.abs(X) ** p, windows, 0, operator.add) ** (1 / p)


def _spatial(X: Array) -> tuple[int, ...]:
    return tuple(range(2, len(X.shape)))


@handles("GlobalAveragePool", versions={1, 22})
def global_average_pool(node: Node, X: Array) -> Array:
    """The mean of each channel."""
    return node.xp.mean(X, axis=_spatial(X), keepdims=True)


@handles("GlobalMaxPool", versions={1, 22})
def global_max_pool(node: Node, X: Array) -> Array:
    """The largest element of each channel."""
    return node.xp.max(X, axis=_spatial(X), keepdims=True)


@handles("GlobalLpPool", versions={2, 22})
def global_lp_pool(node: Node, X: Array, *, p: int = 2) -> Array:
    """The p-norm of each channel."""
    return node.xp.sum(node.xp.abs(X) ** p, axis=_spatial(X), keepdims=True) ** (1 / p)
