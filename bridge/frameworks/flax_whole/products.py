"""dot_general and convolution."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from bridge.errors import Unsupported
from bridge.frameworks.flax_whole.shapes import padded
from bridge.frameworks.flax_whole.sizes import is_static, is_symbolic
from bridge.frameworks.flax_whole.terms import Lowering, Term, constant

if TYPE_CHECKING:
    import onnx_ir as ir

LETTERS: Final = "abcdefghijklmnopqrstuvwxyz"


def dot_general(c: Lowering, eqn: Any, x: Term, y: Term) -> Term:
    """A product of arrays: MatMul where it is one, else Einsum."""
    (sum_x, sum_y), (batch_x, batch_y) = eqn.params["dimension_numbers"]
    dtype = np.dtype(eqn.outvars[0].aval.dtype)
    if dtype == np.bool_:
        raise Unsupported("a product of booleans", where=c.path, do="cast them first")
    free_x = [at for at in range(len(x.shape)) if at not in (*sum_x, *batch_x)]
    free_y = [at for at in range(len(y.shape)) if at not in (*sum_y, *batch_y)]
    if not batch_x and sum_x and free_x and is_static(y.shape):
        value = _dense(c, x, y, (sum_x, sum_y), (free_x, free_y), dtype)
    elif batch_x and len(sum_x) == len(free_x) == len(free_y) == 1:
        left = _turned(c, x, [*batch_x, *free_x, *sum_x], dtype)
        right = _turned(c, y, [*batch_y, *sum_y, *free_y], dtype)
        value = c.op("MatMul", left, right)
    else:
        value = _einsum(c, x, y, (sum_x, sum_y), (batch_x, batch_y), dtype)
    return c.result(eqn, value)


def _cast(c: Lowering, term: Term, dtype: np.dtype[Any]) -> ir.Value:
    return c.w.cast(c.full(term), dtype.name)


def _turned(c: Lowering, term: Term, order: Sequence[int], dtype: np.dtype[Any]) -> ir.Value:
    value = _cast(c, term, dtype)
    return value if list(order) == sorted(order) else c.op("Transpose", value, perm=list(order))


def _dense(
    c: Lowering, x: Term, y: Term, sums: tuple[Sequence[int], Sequence[int]], free: tuple[list[int], list[int]],
    dtype: np.dtype[Any],
) -> ir.Value:  # fmt: skip
    """Take x [..., K] times a matrix y [K, N]; several axes of K or N are one for the product."""
    (sum_x, sum_y), (free_x, free_y) = sums, free
    inner = math.prod(int(y.shape[at]) for at in sum_y)
    outer = [int(y.shape[at]) for at in free_y]
    if y.is_constant and not y.is_thin:
        turned = np.asarray(y.array).transpose([*sum_y, *free_y]).reshape(inner, math.prod(outer))
        right = c.w.cast(c.narrow(constant(turned, name=y.name)), dtype.name)
    else:
        right = _turned(c, y, [*sum_y, *free_y], dtype)
        right = c.reshaped(right, [y.shape[at] for at in (*sum_y, *free_y)], [inner, math.prod(outer)])
    kept = [x.shape[at] for at in free_x]
    left = _turned(c, x, [*free_x, *sum_x], dtype)
    left = c.reshaped(left, [*kept, *(x.shape[at] for at in sum_x)], [*kept, inner])
    value = c.typed(c.op("MatMul", left, right), [*kept, math.prod(outer)])
    return c.reshaped(value, [*kept, math.prod(outer)], [*kept, *outer])


def _einsum(
    c: Lowering, x: Term, y: Term, sums: tuple[Sequence[int], Sequence[int]],
    batch: tuple[Sequence[int], Sequence[int]], dtype: np.dtype[Any],
) -> ir.Value:  # fmt: skip
    left = list(LETTERS[: len(x.shape)])
    right = list(LETTERS[len(left) : len(left) + len(y.shape)])
    for own, other in (*zip(*sums, strict=True), *zip(*batch, strict=True)):
        right[other] = left[own]
    out = [left[at] for at in batch[0]]
    out += [left[at] for at in range(len(left)) if at not in (*sums[0], *batch[0])]
    out += [right[at] for at in range(len(right)) if at not in (*sums[1], *batch[1])]
    equation = f"{''.join(left)},{''.join(right)}->{''.join(out)}"
    found: ir.Value = c.op("Einsum", _cast(c, x, dtype), _cast(c, y, dtype), equation=equation)
    return found


def convolution(c: Lowering, eqn: Any, x: Term, kernel: Term) -> Term:
    """conv_general_dilated: Conv, or ConvTranspose where the input is dilated."""
    p = eqn.params
    numbers = p["dimension_numbers"]
    if p["batch_group_count"] != 1:
        raise Unsupported("a convolution with batch groups", where=c.path)
    value = c.full(x)
    value = c.op("Transpose", value, perm=list(numbers.lhs_spec)) if _turns(numbers.lhs_spec) else value
    if all(step == 1 for step in p["lhs_dilation"]):
        value = _conv(c, value, _weights(c, kernel, numbers.rhs_spec), p)
    else:
        value = _transposed(c, value, kernel, numbers.rhs_spec, p)
    back = [list(numbers.out_spec).index(at) for at in range(len(numbers.out_spec))]
    return c.result(eqn, c.op("Transpose", value, perm=back) if _turns(back) else value)


def _turns(order: Sequence[int]) -> bool:
    return list(order) != sorted(order)


def _weights(c: Lowering, kernel: Term, spec: Sequence[int]) -> ir.Value:
    if kernel.is_constant and not kernel.is_thin:
        return c.narrow(constant(np.asarray(kernel.array).transpose(spec), name=kernel.name))
    value = c.full(kernel)
    return c.op("Transpose", value, perm=list(spec)) if _turns(spec) else value


def _conv(c: Lowering, x: ir.Value, weights: ir.Value, p: Mapping[str, Any]) -> ir.Value:
    pads = list(p["padding"])
    if any(is_symbolic(size) or size < 0 for pair in pads for size in pair):
        x = padded(c, x, [(0, 0), (0, 0), *pads], None)
        pads = [(0, 0)] * len(pads)
    flat = [int(low) for low, _ in pads] + [int(high) for _, high in pads]
    found: ir.Value = c.op("Conv", x, weights, strides=_ints(p["window_strides"]), pads=flat,
                           dilations=_ints(p["rhs_dilation"]), group=int(p["feature_group_count"]))  # fmt: skip
    return found


def _ints(sizes: Sequence[Any]) -> list[int]:
    return [int(size) for size in sizes]


def _transposed(c: Lowering, x: ir.Value, kernel: Term, spec: Sequence[int], p: Mapping[str, Any]) -> ir.Value:
    """The gradient of a convolution: kernel back to front, borders counted from the full overlap."""
    if any(step != 1 for step in p["window_strides"]) or not kernel.is_constant or kernel.is_thin:
        raise Unsupported("a convolution of a dilated input with strides or a computed kernel", where=c.path)
    array = np.asarray(kernel.array).transpose(spec)
    outs, ins, *window = array.shape
    groups = int(p["feature_group_count"])
    array = array.reshape(groups, outs // groups, ins, *window).swapaxes(1, 2).reshape(
        groups * ins, outs // groups, *window)  # fmt: skip
    array = np.flip(array, tuple(range(2, array.ndim)))
    reach = [(size - 1) * int(step) for size, step in zip(window, p["rhs_dilation"], strict=True)]
    borders = [(full - low, full - high) for full, (low, high) in zip(reach, p["padding"], strict=True)]
    if any(is_symbolic(size) for pair in borders for size in pair):
        raise Unsupported("a transposed convolution whose padding depends on the input's size", where=c.path)
    flat = [max(int(low), 0) for low, _ in borders] + [max(int(high), 0) for _, high in borders]
    weights = c.narrow(constant(np.ascontiguousarray(array), name=kernel.name))
    y = c.op("ConvTranspose", x, weights, strides=_ints(p["lhs_dilation"]), pads=flat,
             dilations=_ints(p["rhs_dilation"]), group=groups)  # fmt: skip
    return padded(c, y, [(0, 0), (0, 0), *((max(-low, 0), max(-high, 0)) for low, high in borders)], None)


RULES: Final[Mapping[str, Callable[..., Any]]] = MappingProxyType(
    {"dot_general": dot_general, "conv_general_dilated": convolution}
)
