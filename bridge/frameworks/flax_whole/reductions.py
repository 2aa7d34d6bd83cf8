"""Primitives that look along an axis: sums and extremes, running ones, windows, sorting."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from bridge.errors import Unsupported
from bridge.frameworks.flax_whole.shapes import padded
from bridge.frameworks.flax_whole.sizes import is_symbolic
from bridge.frameworks.flax_whole.terms import Lowering, Term, constant

if TYPE_CHECKING:
    import onnx_ir as ir

    from bridge.graph.writer import Writer

REDUCTIONS: Final = MappingProxyType({"reduce_sum": "ReduceSum", "reduce_max": "ReduceMax", "reduce_min": "ReduceMin",
                                      "reduce_prod": "ReduceProd"})  # fmt: skip
BOOLEAN: Final = MappingProxyType({"reduce_and": "ReduceMin", "reduce_or": "ReduceMax"})
RUNNING: Final = MappingProxyType({"cumprod": "Mul", "cummax": "Max", "cummin": "Min"})


def reduction(c: Lowering, eqn: Any, x: Term) -> Term:
    """Sum, max, min, product over axes."""
    axes = [int(axis) for axis in eqn.params["axes"]]
    if not axes:
        return x
    name = eqn.primitive.name
    origin = (f"{name} {axes[0]}", (x,)) if len(axes) == 1 else None
    return c.result(eqn, c.op(REDUCTIONS[name], c.full(x), c.ints(axes), keepdims=0), origin=origin)


def boolean_reduction(c: Lowering, eqn: Any, x: Term) -> Term:
    """All and any."""
    if np.dtype(x.dtype) != np.bool_:
        raise Unsupported("and, or over the bits of integers", where=c.path, got=eqn.primitive.name)
    axes = [int(axis) for axis in eqn.params["axes"]]
    if not axes:
        return x
    counted = c.op(BOOLEAN[eqn.primitive.name], c.w.cast(c.full(x), "int32"), c.ints(axes), keepdims=0)
    return c.result(eqn, c.w.cast(counted, "bool"))


def extreme_index(c: Lowering, eqn: Any, x: Term) -> Term:
    """argmax, argmin: the first of equals."""
    (axis,) = eqn.params["axes"]
    value = c.full(x)
    if np.dtype(x.dtype) == np.bool_:
        value = c.w.cast(value, "int32")
    op_type = "ArgMax" if eqn.primitive.name == "argmax" else "ArgMin"
    found = c.op(op_type, value, axis=int(axis), keepdims=0)
    return c.result(eqn, c.w.cast(found, np.dtype(eqn.params["index_dtype"]).name))


def running_sum(c: Lowering, eqn: Any, x: Term) -> Term:
    """Cumsum."""
    axis = c.number(int(eqn.params["axis"]), np.int64)
    return c.result(eqn, c.op("CumSum", c.full(x), axis, reverse=int(bool(eqn.params["reverse"]))))


def running(c: Lowering, eqn: Any, x: Term) -> Term:
    """cummax, cummin, cumprod, cumlogsumexp by a Scan along the axis."""
    axis, rank = int(eqn.params["axis"]), len(x.shape)
    order = [axis, *(at for at in range(rank) if at != axis)]
    turned = c.typed(c.w.transpose(c.full(x), order), [x.shape[at] for at in order])
    rest = tuple(x.shape[at] for at in order[1:])
    name, dtype = eqn.primitive.name, np.dtype(x.dtype)
    first = np.full((1,) * len(rest), _neutral(name, dtype), dtype)
    start = c.full(constant(first, rest))

    def body(b: Writer, states: tuple[ir.Value, ...], steps: tuple[ir.Value, ...]) -> Any:
        new = b.typed(_joined(b, name, states[0], steps[0], dtype), states[0].shape)
        return [new], [new]

    label = ".".join(filter(None, (c.path, name)))
    _, (found,) = c.w.scan(body, [start], [turned], reverse=bool(eqn.params["reverse"]), name=label)
    return c.result(eqn, c.w.transpose(found, [order.index(at) for at in range(rank)]))


def _neutral(name: str, dtype: np.dtype[Any]) -> Any:
    if name == "cumprod":
        return 1
    if dtype.kind == "f":
        return np.inf if name == "cummin" else -np.inf
    return np.iinfo(dtype).max if name == "cummin" else np.iinfo(dtype).min


def _joined(b: Writer, name: str, state: ir.Value, step: ir.Value, dtype: np.dtype[Any]) -> ir.Value:
    if name in RUNNING:
        return b.op(RUNNING[name], state, step)
    top = b.op("Max", state, step)
    zero, infinity = (b.constant(np.asarray(number, dtype)) for number in (0, np.inf))
    top = b.op("Where", b.op("Equal", b.op("Abs", top), infinity), zero, top)  # inf - inf would be NaN
    parts = [b.op("Exp", b.op("Sub", each, top)) for each in (state, step)]
    return b.op("Add", top, b.op("Log", b.op("Add", *parts)))


def window(c: Lowering, eqn: Any, x: Term) -> Term:
    """reduce_window_max, _min, _sum: pooling over the axes that have a window."""
    p = eqn.params
    sizes, strides, pads = p["window_dimensions"], p["window_strides"], list(p["padding"])
    if any(step != 1 for step in p["base_dilation"]):
        raise Unsupported("a window over a dilated input", where=c.path)
    spatial = [at for at in range(len(sizes)) if sizes[at] != 1 or strides[at] != 1 or tuple(pads[at]) != (0, 0)]
    kind = eqn.primitive.name.removeprefix("reduce_window_")
    dtype = np.dtype(x.dtype)
    if spatial and all(sizes[at] == x.shape[at] and tuple(pads[at]) == (0, 0) for at in spatial):
        return c.result(eqn, c.op(f"Reduce{kind.capitalize()}", c.full(x), c.ints(spatial), keepdims=1))
    if dtype.kind != "f" or any(is_symbolic(sizes[at]) for at in spatial):
        raise Unsupported("a window over integers, or as large as an axis", where=c.path, got=dtype)
    others = [at for at in range(len(sizes)) if at not in spatial]
    if not spatial:
        return x
    order = [*others, *spatial]
    value = c.op("Neg", c.full(x)) if kind == "min" else c.full(x)
    lowest = c.number(0 if kind == "sum" else -np.inf, dtype)
    value = padded(c, c.w.transpose(value, order), [(0, 0)] * len(others) + [tuple(pads[at]) for at in spatial], lowest)
    inner = _inner(c, value, [x.shape[at] for at in others], spatial, p, kind)
    if kind == "sum":
        inner = c.op("Mul", inner, c.number(math.prod(int(sizes[at]) for at in spatial), dtype))
    turned = [eqn.outvars[0].aval.shape[at] for at in order]
    inner = _unfolded(c, inner, len(others), turned)
    value = c.w.transpose(inner, [order.index(at) for at in range(len(order))])
    return c.result(eqn, c.op("Neg", value) if kind == "min" else value)


def _inner(c: Lowering, value: ir.Value, others: list[Any], spatial: list[int], p: Mapping[str, Any], kind: str
           ) -> ir.Value:  # fmt: skip
    """Pool value [*others, *space] as ONNX wants it: [N, C, *space]."""
    if len(others) < 2:
        value = c.op("Unsqueeze", value, c.ints(list(range(2 - len(others)))))
    elif len(others) > 2:
        space = c.op("Shape", value, start=len(others))
        value = c.op("Reshape", value, c.w.concat([c.ints([1, -1]), space], 0))
    attributes: dict[str, Any] = {
        "kernel_shape": [int(p["window_dimensions"][at]) for at in spatial],
        "strides": [int(p["window_strides"][at]) for at in spatial],
    }
    dilations = [int(p["window_dilation"][at]) for at in spatial]
    if any(step != 1 for step in dilations):
        attributes["dilations"] = dilations
    found: ir.Value = c.op("AveragePool" if kind == "sum" else "MaxPool", value, **attributes)
    return found


def _unfolded(c: Lowering, value: ir.Value, count: int, shape: list[Any]) -> ir.Value:
    if count < 2:
        value = c.op("Squeeze", value, c.ints(list(range(2 - count))))
    elif count > 2:
        value = c.op("Reshape", value, c.shape(shape))
    return c.typed(value, shape)


def top_k(c: Lowering, eqn: Any, x: Term) -> list[Term]:
    """The k largest of the last axis, largest first, and where they are; the first of equals first."""
    axis = int(eqn.params.get("axis", -1))
    values, found = c.op("TopK", c.full(x), c.shape([eqn.params["k"]]), axis=axis, outputs=2)
    found = c.w.cast(found, np.dtype(eqn.outvars[1].aval.dtype).name)
    return [c.result(eqn, values), c.result(eqn, found, at=1)]


def sort(c: Lowering, eqn: Any, *terms: Term) -> list[Term]:
    """Sort by one key, smallest first, equals as they stood; what goes with the key is gathered."""
    if eqn.params["num_keys"] != 1:
        raise Unsupported("a sort by several keys", where=c.path)
    axis, key = int(eqn.params["dimension"]), terms[0]
    value = c.full(key)
    dtype = np.dtype(key.dtype)
    small = dtype.name in ("bool", "int8", "int16", "uint8", "uint16")
    value = c.w.cast(value, "int32") if small else value
    values, order = c.op("TopK", value, c.shape([key.shape[axis]]), axis=axis, largest=0, outputs=2)
    results = [c.result(eqn, c.w.cast(values, dtype.name))]
    for at, term in enumerate(terms[1:], 1):
        results.append(c.result(eqn, c.op("GatherElements", c.full(term), order, axis=axis), at=at))
    return results


RULES: Final[Mapping[str, Callable[..., Any]]] = MappingProxyType(
    {**dict.fromkeys(REDUCTIONS, reduction), **dict.fromkeys(BOOLEAN, boolean_reduction), "argmax": extreme_index,
     "argmin": extreme_index, "cumsum": running_sum,
     **dict.fromkeys(("cummax", "cummin", "cumprod", "cumlogsumexp"), running),
     "reduce_window_max": window, "reduce_window_min": window, "reduce_window_sum": window, "top_k": top_k,
     "sort": sort}
)  # fmt: skip
