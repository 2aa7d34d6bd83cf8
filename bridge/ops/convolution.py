"""Conv: one, two or three spatial axes, groups, dilations, every way to say the padding."""

from __future__ import annotations

from collections.abc import Sequence

from bridge.ops.backend import Array
from bridge.ops.node import Node
from bridge.ops.registry import handles
from bridge.ops.sizes import as_sizes


@handles("Conv", versions={1, 11, 22})
def conv(
    node: Node,
    X: Array,
    W: Array,
    B: Array | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Array:
    """X [N, C, ...] with W [M, C/group, ...]: the correlation, as ONNX defines convolution."""
    rank = len(X.shape) - 2
    kernel = [int(size) for size in W.shape[2:]]
    if rank not in (1, 2, 3):
        node.refuse("has no kernel for this number of spatial axes", got=rank)
    if kernel_shape is not None and list(kernel_shape) != kernel:
        node.reject("kernel_shape and W disagree", got=list(kernel_shape), expected=kernel)
    if int(X.shape[1]) != int(W.shape[1]) * group:
        node.reject("the channels of X, W and the groups disagree", got=(tuple(X.shape), tuple(W.shape), group))
    strides, dilations = list(strides or [1] * rank), list(dilations or [1] * rank)
    extents = [dilation * (size - 1) + 1 for dilation, size in zip(dilations, kernel, strict=True)]
    sides = window_pads(node, as_sizes(X.shape[2:]), extents, strides, pads, auto_pad)
    Y = node.backend.conv(X, W, strides=strides, pads=sides, dilations=dilations, groups=group)
    return Y if B is None else Y + node.xp.reshape(B, (1, -1, *[1] * rank))


def window_pads(
    node: Node,
    sizes: Sequence[int],
    extents: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int] | None,
    auto_pad: str,
) -> list[tuple[int, int]]:
    """Padding before and after each axis; SAME_* gives ceil(size / stride) windows, the odd one at the named end."""
    rank = len(sizes)
    if auto_pad == "NOTSET":
        given = list(pads or [0] * 2 * rank)
        return list(zip(given[:rank], given[rank:], strict=True))
    if auto_pad == "VALID":
        return [(0, 0)] * rank
    if auto_pad not in ("SAME_UPPER", "SAME_LOWER"):
        node.reject("unknown auto_pad", got=auto_pad, expected="NOTSET, VALID, SAME_UPPER or SAME_LOWER")
    sides = []
    for size, extent, stride in zip(sizes, extents, strides, strict=True):
        total = max((-(-size // stride) - 1) * stride + extent - size, 0)
        small, large = total // 2, total - total // 2
        sides.append((small, large) if auto_pad == "SAME_UPPER" else (large, small))
    return sides
