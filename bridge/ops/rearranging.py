"""Triangles, diagonals and blocks: operators that place elements by their position."""

# ruff: noqa: A002  (a handler's signature is the ONNX schema)
from __future__ import annotations

import numpy as np

from bridge.ops.backend import Array
from bridge.ops.dtypes import numpy_dtype
from bridge.ops.node import Node
from bridge.ops.registry import handles


@handles("Trilu", versions={14}, static=["k"])
def trilu(node: Node, input: Array, k: np.ndarray | None = None, *, upper: int = 1) -> Array:
    """The upper or lower triangle of each matrix from diagonal `k` on, zero elsewhere."""
    rows, columns = (np.arange(int(size)) for size in input.shape[-2:])
    distance = columns[None, :] - rows[:, None] - (0 if k is None else int(k.item()))
    kept = node.backend.asarray(distance >= 0 if upper else distance <= 0, like=input)
    return node.xp.where(kept, input, node.xp.zeros_like(input))


@handles("EyeLike", versions={9, 22}, raw=True, differentiable=False)
def eye_like(node: Node, input: Array, *, dtype: int | None = None, k: int = 0) -> np.ndarray:
    """Ones on diagonal `k`, in the shape of the input; static, as only the shape is read."""
    if len(input.shape) != 2:
        node.reject("the input is no matrix", got=tuple(input.shape))
    own = np.dtype(input.dtype) if isinstance(input, np.ndarray) else node.backend.dtype(input)
    wanted = own if dtype is None else numpy_dtype(dtype, node.where)
    rows, columns = (int(size) for size in input.shape)
    return np.eye(rows, columns, k, dtype=wanted)


@handles("DepthToSpace", versions={1})
def depth_to_space_1(node: Node, input: Array, *, blocksize: int) -> Array:
    """Channels to square blocks, block position first."""
    return depth_to_space(node, input, blocksize=blocksize)


@handles("DepthToSpace", versions={11, 13})
def depth_to_space(node: Node, input: Array, *, blocksize: int, mode: str = "DCR") -> Array:
    """Channels to square blocks; the block position is the outer part of the channel (DCR) or the inner (CRD)."""
    N, C, H, W = (int(size) for size in input.shape)
    b = blocksize
    if mode not in ("DCR", "CRD"):
        node.reject("unknown mode", got=mode, expected="DCR or CRD")
    if C % (b * b):
        node.reject("the channels do not fill the blocks", got=C, expected=f"a multiple of {b * b}")
    depth = C // (b * b)
    split, order = ((N, b, b, depth, H, W), (0, 3, 4, 1, 5, 2)) if mode == "DCR" else (
        (N, depth, b, b, H, W), (0, 1, 4, 2, 5, 3))  # fmt: skip
    return node.xp.reshape(node.xp.permute_dims(node.xp.reshape(input, split), order), (N, depth, H * b, W * b))


@handles("SpaceToDepth", versions={1, 13})
def space_to_depth(node: Node, input: Array, *, blocksize: int) -> Array:
    """Square blocks to channels, block position first."""
    N, C, H, W = (int(size) for size in input.shape)
    b = blocksize
    if H % b or W % b:
        node.reject("the blocks do not fill the image", got=(H, W), expected=f"multiples of {b}")
    blocks = node.xp.reshape(input, (N, C, H // b, b, W // b, b))
    return node.xp.reshape(node.xp.permute_dims(blocks, (0, 3, 5, 1, 2, 4)), (N, C * b * b, H // b, W // b))
