"""Pooling as nnx.max_pool and nnx.avg_pool, which keep channels last."""

# ruff: noqa: ARG001  (an emitter's signature is the ONNX schema)
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bridge.frameworks.flax_code.code import shape_text
from bridge.frameworks.flax_code.emit_layers import padding_text, window_dims
from bridge.frameworks.flax_code.emit_shape import rank_of
from bridge.frameworks.flax_code.operands import Operand, Tensor
from bridge.frameworks.flax_code.registry import emits
from bridge.frameworks.flax_code.site import Site


@emits("MaxPool")
def max_pool(site: Site, X: Operand, *, auto_pad: Any = "NOTSET", ceil_mode: int = 0,
             dilations: Sequence[int] | None = None, kernel_shape: Sequence[int] = (),
             pads: Sequence[int] | None = None, storage_order: int = 0,
             strides: Sequence[int] | None = None) -> Operand:  # fmt: skip
    """nnx.max_pool."""
    if site.used(1):
        site.refuse("MaxPool whose indices are read")
    return _pool(site, X, "nnx.max_pool", "", auto_pad, ceil_mode, dilations, kernel_shape, pads, strides)


@emits("AveragePool")
def average_pool(site: Site, X: Operand, *, auto_pad: Any = "NOTSET", ceil_mode: int = 0, count_include_pad: int = 0,
                 dilations: Sequence[int] | None = None, kernel_shape: Sequence[int] = (),
                 pads: Sequence[int] | None = None, strides: Sequence[int] | None = None) -> Operand:  # fmt: skip
    """nnx.avg_pool."""
    padded = any(pads or ()) or auto_pad not in ("NOTSET", b"NOTSET")
    more = ", count_include_pad=False" if padded and not count_include_pad else ""
    return _pool(site, X, "nnx.avg_pool", more, auto_pad, ceil_mode, dilations, kernel_shape, pads, strides)


@emits("GlobalAveragePool")
def global_average_pool(site: Site, X: Operand) -> Operand:
    """The mean over space."""
    return _global(site, X, "mean")


@emits("GlobalMaxPool")
def global_max_pool(site: Site, X: Operand) -> Operand:
    """The maximum over space."""
    return _global(site, X, "max")


def _global(site: Site, X: Operand, name: str) -> Operand:
    if not isinstance(X, Tensor):
        site.refuse("a constant input")
    axes = shape_text([*range(2, rank_of(site, X))])
    return site.emit(f"{site.ref(X)}.{name}({axes}, keepdims=True)")


def _pool(site: Site, X: Operand, function: str, more: str, auto_pad: Any, ceil_mode: int,
          dilations: Sequence[int] | None, kernel: Sequence[int], pads: Sequence[int] | None,
          strides: Sequence[int] | None) -> Operand:  # fmt: skip
    space = len(kernel)
    if not isinstance(X, Tensor):
        site.refuse("a constant input")
    if ceil_mode or set(dilations or (1,)) != {1}:
        site.refuse("pooling with dilations, or with windows that reach over the end")
    pads, strides = pads or [0] * 2 * space, strides or [1] * space
    last = site.code.view(X, (0, *range(2, space + 2), 1))
    channels = "?" if last.dims is None else last.dims[-1]
    dims = window_dims(last.dims, kernel, strides, [1] * space, pads, auto_pad, channels)
    arguments = [site.ref(last), shape_text(list(kernel)), f"strides={shape_text(list(strides))}"]
    padding = padding_text(site, auto_pad, pads, pairs_only=True)
    arguments += [] if padding == '"VALID"' else [f"padding={padding}"]
    y = site.code.assign(f"{function}({', '.join(arguments)}{more})", dims, site.dtype())
    return site.code.view(y, (0, space + 1, *range(1, space + 1)))
