"""ConvTranspose: the gradient of a convolution, as an operator."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bridge.ops.backend import Array
from bridge.ops.node import Node
from bridge.ops.registry import handles


@handles("ConvTranspose", versions={1, 11, 22})
def conv_transpose(
    node: Node,
    X: Array,
    W: Array,
    B: Array | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    output_padding: Sequence[int] | None = None,
    output_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Array:
    """X [N, C, ...] with W [C, M/group, ...]: zeros between the elements of X, then a convolution with W reversed."""
    rank = len(X.shape) - 2
    kernel = [int(size) for size in W.shape[2:]]
    if rank not in (1, 2, 3):
        node.refuse("has no kernel for this number of spatial axes", got=rank)
    if kernel_shape is not None and list(kernel_shape) != kernel:
        node.reject("kernel_shape and W disagree", got=list(kernel_shape), expected=kernel)
    if int(X.shape[1]) != int(W.shape[0]) or int(W.shape[0]) % group:
        node.reject("the channels of X, W and the groups disagree", got=(tuple(X.shape), tuple(W.shape), group))
    strides, dilations = list(strides or [1] * rank), list(dilations or [1] * rank)
    extra = list(output_padding or [0] * rank)
    extents = [dilation * (size - 1) + 1 for dilation, size in zip(dilations, kernel, strict=True)]
    full = [(int(size) - 1) * stride + extent
            for size, stride, extent in zip(X.shape[2:], strides, extents, strict=True)]  # fmt: skip
    sides = _cropped(node, X, full, strides, extra, pads, auto_pad, output_shape)
    pads_of_x = [(extent - 1 - before, extent - 1 - after + more)
                 for extent, (before, after), more in zip(extents, sides, extra, strict=True)]  # fmt: skip
    spread = _spread(node, X, strides)
    inside = [(max(before, 0), max(after, 0)) for before, after in pads_of_x]
    Y = node.backend.conv(spread, _flipped(node, W, group), strides=[1] * rank, pads=inside, dilations=dilations,
                          groups=group)  # fmt: skip
    cuts = [slice(max(-before, 0), int(size) - max(-after, 0))
            for size, (before, after) in zip(Y.shape[2:], pads_of_x, strict=True)]  # fmt: skip
    Y = Y[(slice(None), slice(None), *cuts)]
    return Y if B is None else Y + node.xp.reshape(B, (1, -1, *[1] * rank))


def _cropped(
    node: Node,
    X: Array,
    full: Sequence[int],
    strides: Sequence[int],
    extra: Sequence[int],
    pads: Sequence[int] | None,
    auto_pad: str,
    output_shape: Sequence[int] | None,
) -> list[tuple[int, int]]:
    """How much of the full result each end loses. Source: onnx/defs/nn/defs.cc, ConvTranspose-22."""
    rank = len(full)
    if auto_pad not in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"):
        node.reject("unknown auto_pad", got=auto_pad, expected="NOTSET, VALID, SAME_UPPER or SAME_LOWER")
    if output_shape is None and not auto_pad.startswith("SAME"):
        given = list(pads or [0] * 2 * rank) if auto_pad == "NOTSET" else [0] * 2 * rank
        return list(zip(given[:rank], given[rank:], strict=True))
    wanted = list(output_shape or [int(size) * stride for size, stride in zip(X.shape[2:], strides, strict=True)])
    sides = []
    for size, more, target in zip(full, extra, wanted[-rank:], strict=True):
        total = size + more - target
        if total < 0:  # onnxruntime: output_shape gets bias alone beyond the full result, auto_pad nothing
            sides.append((0, total if output_shape else 0))
            continue
        small, large = total // 2, total - total // 2
        sides.append((small, large) if auto_pad == "SAME_UPPER" else (large, small))
    return sides


def _spread(node: Node, X: Array, strides: Sequence[int]) -> Array:
    """X with stride - 1 zeros between its elements along each spatial axis."""
    for at, stride in enumerate(strides, start=2):
        if stride == 1:
            continue
        sizes = tuple(int(n) for n in X.shape)
        zeros = np.zeros((*sizes[: at + 1], stride - 1, *sizes[at + 1 :]), node.backend.dtype(X))
        paired = node.xp.concat([node.xp.expand_dims(X, axis=at + 1), node.backend.asarray(zeros, like=X)], axis=at + 1)
        X = node.xp.reshape(paired, (*sizes[:at], sizes[at] * stride, *sizes[at + 1 :]))
        X = X[(*(slice(None),) * at, slice(0, (sizes[at] - 1) * stride + 1))]
    return X


def _flipped(node: Node, W: Array, group: int) -> Array:
    """W [C, M/group, ...] as the kernel [M, C/group, ...] of the convolution, reversed along its spatial axes."""
    channels, outputs, *kernel = (int(n) for n in W.shape)
    W = node.xp.reshape(W, (group, channels // group, outputs, *kernel))
    W = node.xp.permute_dims(W, (0, 2, 1, *range(3, 3 + len(kernel))))
    W = node.xp.reshape(W, (group * outputs, channels // group, *kernel))
    return node.xp.flip(W, axis=tuple(range(2, 2 + len(kernel))))
