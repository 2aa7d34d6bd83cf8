"""Small integers with a scale and a zero point."""

from __future__ import annotations

from typing import Any

import numpy as np

from bridge.frameworks.flax_code.code import unwrapped
from bridge.frameworks.flax_code.emit_shape import rank_of
from bridge.frameworks.flax_code.operands import Operand, Tensor
from bridge.frameworks.flax_code.registry import emits
from bridge.frameworks.flax_code.site import Site
from bridge.ops.dtypes import numpy_dtype


@emits("QuantizeLinear")
def quantize_linear(site: Site, x: Operand, y_scale: Operand, y_zero_point: Operand = None, *, axis: int = 1,
                    block_size: int = 0, output_dtype: int = 0, precision: int = 0,
                    saturate: int = 1) -> Operand:  # fmt: skip
    """X over its scale, rounded to even, moved by the zero point, saturated."""
    if block_size or precision or not isinstance(x, Tensor):
        site.refuse("QuantizeLinear by blocks, in another precision, or of something that is no tensor")
    dtype = np.dtype(np.uint8) if not output_dtype else numpy_dtype(output_dtype, site.where)
    dtype = y_zero_point.dtype if isinstance(y_zero_point, np.ndarray | Tensor) else dtype
    if dtype.kind not in "iu" or dtype.itemsize > 2 or not saturate:
        site.refuse("QuantizeLinear to something else than 8 or 16 bits", got=dtype)
    site.code.helpers.add("quantized")
    scale = _spread(site, x, y_scale, axis)
    zero = "0" if y_zero_point is None else _spread(site, x, y_zero_point, axis)
    return site.emit(f"quantized({site.ref(x)}, {scale}, {zero}, jnp.{dtype})", x.dims)


@emits("DequantizeLinear")
def dequantize_linear(site: Site, x: Operand, x_scale: Operand, x_zero_point: Operand = None, *, axis: int = 1,
                      block_size: int = 0, output_dtype: int = 0) -> Operand:  # fmt: skip
    """(x - zero point) times its scale."""
    dtype = x_scale.dtype if isinstance(x_scale, np.ndarray | Tensor) else None
    dtype = numpy_dtype(output_dtype, site.where) if output_dtype else dtype
    if block_size or not isinstance(x, Tensor) or dtype != np.float32:
        site.refuse("DequantizeLinear by blocks, to another dtype than float32, or of something that is no tensor")
    wide = f"{site.ref(x)}.astype(jnp.int32)"
    if x_zero_point is not None:
        wide = f"({wide} - {_spread(site, x, x_zero_point, axis)})"
    return site.emit(f"{wide}.astype(jnp.float32) * {_spread(site, x, x_scale, axis)}", x.dims)


def _spread(site: Site, x: Tensor, value: Operand, axis: int) -> str:
    """A scale or a zero point: one for all, or one for each index of an axis."""
    if isinstance(value, np.ndarray):
        value = value.astype(np.int32) if value.dtype.kind in "iu" else value
        if value.size == 1:
            return site.ref(value.reshape(()))
        rank = rank_of(site, x)
        return site.ref(value.reshape(-1, *[1] * (rank - 1 - axis % rank)))
    if not isinstance(value, Tensor) or value.rank != 0:
        site.refuse("a scale or a zero point that is neither constant nor one number")
    return site.ref(value)


@emits("DynamicQuantizeLinear")
def dynamic_quantize_linear(site: Site, x: Operand) -> Any:
    """X as uint8 by its own range, the scale, the zero point."""
    site.code.helpers.update(("quantized", "dynamically_quantized"))  # the one calls the other
    dims = x.dims if isinstance(x, Tensor) else None
    made = tuple(site.code.tensor(sizes, dtype) for sizes, dtype in (
        (dims, np.dtype(np.uint8)), ((), np.dtype(np.float32)), ((), np.dtype(np.uint8))))  # fmt: skip
    site.code.assign_many(", ".join(each.token for each in made), f"dynamically_quantized({site.ref(x)})", made)
    return made


@emits("MatMulInteger")
def mat_mul_integer(site: Site, A: Operand, B: Operand, a_zero_point: Operand = None,
                    b_zero_point: Operand = None) -> Operand:  # fmt: skip
    """The product of integers less their zero points, in int32."""
    left, right = _centred(site, A, a_zero_point, is_left=True), _centred(site, B, b_zero_point, is_left=False)
    return site.emit(f"jnp.matmul({unwrapped(left)}, {unwrapped(right)})")


def _centred(site: Site, values: Operand, zero: Operand, *, is_left: bool) -> str:
    text = f"{site.ref(values)}.astype(jnp.int32)"
    if zero is None or (isinstance(zero, np.ndarray) and not zero.any()):
        return text
    if isinstance(zero, np.ndarray) and (zero.size == 1 or (zero.ndim == 1 and not is_left)):
        wide = zero.astype(np.int32)
        return f"({text} - {site.ref(wide.reshape(()) if wide.size == 1 else wide)})"
    if not isinstance(zero, Tensor) or zero.rank != 0:  # a number for each row onnxruntime does not compute either
        site.refuse("a zero point that is neither one number nor a constant for each column")
    return f"({text} - {site.ref(zero)}.astype(jnp.int32))"
