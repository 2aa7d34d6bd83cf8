"""Reductions. The axes are an attribute before opset 18 (ReduceSum: 13), an input since."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from bridge.ops.backend import Array
from bridge.ops.node import Node
from bridge.ops.registry import handles
from bridge.ops.sizes import as_sizes, elements

Reduce = Callable[[Node, Array, tuple[int, ...], bool], Array]

_NOTHING: Final = MappingProxyType({"sum": 0.0, "prod": 1.0, "max": -np.inf, "min": np.inf, "mean": np.nan})
"""What a reduction over no elements gives; integers take the nearest value they have."""


def _fold(name: str) -> Reduce:
    def fold(node: Node, data: Array, axes: tuple[int, ...], keepdims: bool) -> Array:
        dtype = node.backend.dtype(data)
        if 0 in as_sizes(data.shape[at] for at in axes):
            return _of_nothing(node, data, axes, keepdims, name)
        if not axes:
            return data
        if dtype.kind == "b":
            data = node.backend.astype(data, np.dtype(np.uint8))
            return _over(node, name, data, axes, keepdims) != 0
        if name == "mean" and dtype.kind != "f":
            total = elements(data.shape[at] for at in axes)
            return node.backend.astype(node.xp.sum(data, axis=axes, keepdims=keepdims) / total, dtype)
        return node.backend.astype(_over(node, name, data, axes, keepdims), dtype)

    return fold


def _over(node: Node, name: str, data: Array, axes: tuple[int, ...], keepdims: bool) -> Array:
    if name != "prod":
        return getattr(node.xp, name)(data, axis=axes, keepdims=keepdims)
    for at in sorted(axes, reverse=True):  # torch multiplies along one axis at a time
        data = node.xp.prod(data, axis=at, keepdims=keepdims)
    return data


def _of_nothing(node: Node, data: Array, axes: tuple[int, ...], keepdims: bool, name: str) -> Array:
    dtype, value = node.backend.dtype(data), _NOTHING[name]
    if dtype.kind in "iu" and np.isinf(value):
        value = np.iinfo(dtype).min if value < 0 else np.iinfo(dtype).max
    elif dtype.kind == "b":
        value = value > 0
    sizes = [1 if at in axes else int(size) for at, size in enumerate(data.shape)]
    sizes = sizes if keepdims else [size for at, size in enumerate(sizes) if at not in axes]
    return node.backend.asarray(np.full(sizes, value, dtype), like=data)


def _log_sum_exp(node: Node, data: Array, axes: tuple[int, ...], keepdims: bool) -> Array:
    """The largest element is taken out first, so that exp does not overflow.

    Of integers every step is an integer again, as in onnxruntime.
    """
    if not axes:
        return data
    dtype = node.backend.dtype(data)
    largest = _fold("max")(node, data, axes, True)
    largest = node.xp.where(node.xp.isfinite(largest), largest, node.xp.zeros_like(largest))
    parts = node.backend.astype(node.xp.exp(data - largest), dtype)
    total = _log(node, _fold("sum")(node, parts, axes, keepdims))
    return total + node.xp.reshape(largest, tuple(total.shape))


def _sum_of(before: Callable[[Node, Array], Array], after: Callable[[Node, Array], Array]) -> Reduce:
    def reduce(node: Node, data: Array, axes: tuple[int, ...], keepdims: bool) -> Array:
        return after(node, _fold("sum")(node, before(node, data), axes, keepdims))

    return reduce


def _same(_node: Node, data: Array) -> Array:
    return data


def _square(_node: Node, data: Array) -> Array:
    return data * data


def _abs(node: Node, data: Array) -> Array:
    return node.xp.abs(data)


def _sqrt(node: Node, data: Array) -> Array:
    return node.backend.astype(node.xp.sqrt(data), node.backend.dtype(data))


def _log(node: Node, data: Array) -> Array:
    return node.backend.astype(node.xp.log(data), node.backend.dtype(data))


def _axes(data: Array, axes: Sequence[int] | np.ndarray | None) -> tuple[int, ...]:
    named = axes is not None and len(axes) > 0
    return tuple(int(at) % len(data.shape) for at in axes or ()) if named else tuple(range(len(data.shape)))


def _pair(op: str, reduce: Reduce, by_attribute: set[int], by_input: set[int]) -> tuple[Callable[..., Any], ...]:
    """The handlers of one reduction: axes as an attribute, axes as an input."""

    @handles(op, versions=by_attribute)
    def before(node: Node, data: Array, *, axes: Sequence[int] | None = None, keepdims: int = 1) -> Array:
        """Reduce over `axes`, or all."""
        return reduce(node, data, _axes(data, axes), bool(keepdims))

    @handles(op, versions=by_input, static=["axes"])
    def since(
        node: Node, data: Array, axes: np.ndarray | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
    ) -> Array:
        """Reduce over `axes`; where they are empty, over all or over none."""
        named = () if axes is None else tuple(axes.tolist())
        return reduce(node, data, () if noop_with_empty_axes and not named else _axes(data, named), bool(keepdims))

    return before, since


_OLD, _NEW = {1, 11, 13}, {18}
reduce_sum = _pair("ReduceSum", _fold("sum"), {1, 11}, {13})
reduce_max = _pair("ReduceMax", _fold("max"), {1, 11, 12, 13}, {18, 20})
reduce_min = _pair("ReduceMin", _fold("min"), {1, 11, 12, 13}, {18, 20})
reduce_mean = _pair("ReduceMean", _fold("mean"), _OLD, _NEW)
reduce_prod = _pair("ReduceProd", _fold("prod"), _OLD, _NEW)
reduce_l1 = _pair("ReduceL1", _sum_of(_abs, _same), _OLD, _NEW)
reduce_l2 = _pair("ReduceL2", _sum_of(_square, _sqrt), _OLD, _NEW)
reduce_sum_square = _pair("ReduceSumSquare", _sum_of(_square, _same), _OLD, _NEW)
reduce_log_sum = _pair("ReduceLogSum", _sum_of(_same, _log), _OLD, _NEW)
reduce_log_sum_exp = _pair("ReduceLogSumExp", _log_sum_exp, _OLD, _NEW)
HANDLERS: Final = (
    *reduce_sum, *reduce_max, *reduce_min, *reduce_mean, *reduce_prod, *reduce_l1, *reduce_l2, *reduce_sum_square,
    *reduce_log_sum, *reduce_log_sum_exp,
)  # fmt: skip
"""The module's handlers, which `build_table` reads where they are not functions of the module by name."""
