"""Numbers as small integers with a scale and a zero point; sums of products are exact in int32."""

# ruff: noqa: ARG001  (a handler's signature is the ONNX schema)
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bridge.ops.backend import Array
from bridge.ops.convolution import conv
from bridge.ops.dtypes import numpy_dtype
from bridge.ops.node import Node
from bridge.ops.registry import handles

INT32, UINT8 = np.dtype(np.int32), np.dtype(np.uint8)


@handles("QuantizeLinear", versions={10}, differentiable=False)
def quantize_linear_10(node: Node, x: Array, y_scale: Array, y_zero_point: Array | None = None) -> Array:
    """Round x / scale to even, add the zero point, saturate."""
    return quantize_linear(node, x, y_scale, y_zero_point)


@handles("QuantizeLinear", versions={13}, differentiable=False)
def quantize_linear_13(
    node: Node, x: Array, y_scale: Array, y_zero_point: Array | None = None, *, axis: int = 1
) -> Array:
    """Round x / scale to even, add the zero point, saturate; a scale for each index of `axis`."""
    return quantize_linear(node, x, y_scale, y_zero_point, axis=axis)


@handles("QuantizeLinear", versions={19, 21, 23, 24, 25}, differentiable=False)
def quantize_linear(
    node: Node,
    x: Array,
    y_scale: Array,
    y_zero_point: Array | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
    precision: int = 0,
    saturate: int = 1,
) -> Array:
    """Round x / scale to even, add the zero point, saturate; a scale for each index or block of `axis`."""
    dtype = node.backend.dtype(y_zero_point) if y_zero_point is not None else UINT8
    if y_zero_point is None and output_dtype:
        dtype = numpy_dtype(output_dtype, node.where)
    if precision:
        node.refuse("a precision other than that of the scale is not carried", got=precision)
    if dtype.kind not in "iu" or dtype.itemsize > 2:
        node.refuse("quantises to 8 or 16 bits only", got=dtype)
    scale, zero = _spread(node, x, y_scale, axis, block_size), None
    if y_zero_point is not None:
        zero = _spread(node, x, y_zero_point, axis, block_size)
    x = node.backend.astype(x, node.backend.dtype(y_scale))
    return quantised(node, node.backend.divide(x, scale), zero, dtype)


def quantised(node: Node, x: Array, zero: Array | None, dtype: np.dtype[Any]) -> Array:
    """Numbers in units of the scale as integers of `dtype`: half to even, then the zero point, then the bounds."""
    rounded = node.xp.round(x)
    rounded = rounded if zero is None else rounded + node.backend.astype(zero, node.backend.dtype(x))
    bounds = np.iinfo(dtype)
    return node.backend.astype(node.xp.clip(rounded, bounds.min, bounds.max), dtype)


def _spread(node: Node, x: Array, value: Array, axis: int, block_size: int) -> Array:
    """A scale or zero point shaped to fit x: one for all, one for each index of `axis`, or one for each block of it."""
    at, rank = axis % max(len(x.shape), 1), len(x.shape)
    if block_size:
        places = np.arange(int(x.shape[at]), dtype=np.int64) // block_size
        return node.xp.take(value, node.backend.asarray(places, like=x), axis=at)
    if len(value.shape) == 1 and int(value.shape[0]) > 1:
        return node.xp.reshape(value, (-1, *[1] * (rank - 1 - at)))
    return node.xp.reshape(value, ()) if len(value.shape) == 1 else value


@handles("DequantizeLinear", versions={10})
def dequantize_linear_10(node: Node, x: Array, x_scale: Array, x_zero_point: Array | None = None) -> Array:
    """(x - zero point) * scale."""
    return dequantize_linear(node, x, x_scale, x_zero_point)


@handles("DequantizeLinear", versions={13, 19})
def dequantize_linear_13(
    node: Node, x: Array, x_scale: Array, x_zero_point: Array | None = None, *, axis: int = 1
) -> Array:
    """(x - zero point) * scale, a scale for each index of `axis`."""
    return dequantize_linear(node, x, x_scale, x_zero_point, axis=axis)


@handles("DequantizeLinear", versions={21, 23, 24, 25})
def dequantize_linear(
    node: Node,
    x: Array,
    x_scale: Array,
    x_zero_point: Array | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
) -> Array:
    """(x - zero point) * scale, a scale for each index or block of `axis`."""
    dtype = numpy_dtype(output_dtype, node.where) if output_dtype else node.backend.dtype(x_scale)
    wide = node.backend.astype(x, INT32)
    if x_zero_point is not None:
        wide = wide - node.backend.astype(_spread(node, x, x_zero_point, axis, block_size), INT32)
    scale = _spread(node, x, x_scale, axis, block_size)
    return node.backend.astype(node.backend.astype(wide, node.backend.dtype(x_scale)) * scale, dtype)


@handles("DynamicQuantizeLinear", versions={11}, differentiable=False)
def dynamic_quantize_linear(node: Node, x: Array) -> Any:
    """X in uint8 by its own range, which always holds 0; the scale; the zero point."""
    zero = node.xp.zeros_like(node.xp.max(x))
    low, high = node.xp.minimum(node.xp.min(x), zero), node.xp.maximum(node.xp.max(x), zero)
    scale = node.xp.where(high == low, zero + 1, node.backend.divide(high - low, zero + 255))
    zero_point = node.backend.astype(node.xp.round(node.xp.clip(-low / scale, 0, 255)), UINT8)
    return quantised(node, node.backend.divide(x, scale), zero_point, UINT8), scale, zero_point


@handles("MatMulInteger", versions={10}, differentiable=False)
def mat_mul_integer(
    node: Node, A: Array, B: Array, a_zero_point: Array | None = None, b_zero_point: Array | None = None
) -> Array:
    """(A - its zero point) @ (B - its zero point) in int32; a zero point for each row of A or column of B."""
    return node.backend.matmul(_centred(node, A, a_zero_point, rows=True), _centred(node, B, b_zero_point))


def _centred(node: Node, values: Array, zero: Array | None, rows: bool = False) -> Array:
    values = node.backend.astype(values, INT32)
    if zero is None:
        return values
    zero = node.backend.astype(zero, INT32)
    if rows and len(zero.shape) == 1 and int(zero.shape[0]) > 1:
        zero = node.xp.expand_dims(zero, axis=1)
    return values - zero


@handles("QLinearMatMul", versions={10, 21}, differentiable=False)
def q_linear_mat_mul(
    node: Node,
    a: Array,
    a_scale: Array,
    a_zero_point: Array,
    b: Array,
    b_scale: Array,
    b_zero_point: Array,
    y_scale: Array,
    y_zero_point: Array,
) -> Array:
    """The product of two quantised matrices, quantised."""
    product = mat_mul_integer(node, a, b, a_zero_point, b_zero_point)
    if len(a_scale.shape) == 1 and int(a_scale.shape[0]) > 1:
        a_scale = node.xp.expand_dims(a_scale, axis=1)
    return _requantised(node, product, a_scale * b_scale, y_scale, y_zero_point)


def _requantised(node: Node, product: Array, scale: Array, y_scale: Array, y_zero_point: Array) -> Array:
    real = node.backend.astype(product, node.backend.dtype(y_scale)) * (scale / y_scale)
    return quantised(node, real, y_zero_point, node.backend.dtype(y_zero_point))


@handles("ConvInteger", versions={10}, differentiable=False)
def conv_integer(
    node: Node,
    x: Array,
    w: Array,
    x_zero_point: Array | None = None,
    w_zero_point: Array | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Array:
    """The convolution of (x - its zero point) with (w - its zero point) in int32; padding is the zero point."""
    if w_zero_point is not None and len(w_zero_point.shape) == 1:
        w_zero_point = node.xp.reshape(w_zero_point, (-1, *[1] * (len(w.shape) - 1)))
    if x_zero_point is not None:
        x_zero_point = node.xp.reshape(x_zero_point, ())
    return conv(node, _centred(node, x, x_zero_point), _centred(node, w, w_zero_point), auto_pad=auto_pad,
                dilations=dilations, group=group, kernel_shape=kernel_shape, pads=pads, strides=strides)  # fmt: skip


@handles("QLinearConv", versions={10}, differentiable=False)
def q_linear_conv(
    node: Node,
    x: Array,
    x_scale: Array,
    x_zero_point: Array,
    w: Array,
    w_scale: Array,
    w_zero_point: Array,
    y_scale: Array,
    y_zero_point: Array,
    B: Array | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Array:
    """The convolution of quantised arrays, quantised; B is int32 in units of x_scale * w_scale."""
    product = conv_integer(node, x, w, x_zero_point, w_zero_point, auto_pad=auto_pad, dilations=dilations, group=group,
                           kernel_shape=kernel_shape, pads=pads, strides=strides)  # fmt: skip
    by_channel = (1, -1, *[1] * (len(x.shape) - 2))
    if B is not None:
        product = product + node.xp.reshape(B, by_channel)
    scale = x_scale * (node.xp.reshape(w_scale, by_channel) if len(w_scale.shape) == 1 else w_scale)
    return _requantised(node, product, scale, y_scale, y_zero_point)
