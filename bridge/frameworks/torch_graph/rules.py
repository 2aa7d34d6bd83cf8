"""Operators that a plain torch function computes exactly: what is a call in the code and no leaf of its own.

A rule answers None wherever an attribute, a dtype or a shape is not the function's own: such a node stays the operator.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

import torch
from torch.nn import functional

from bridge.frameworks.torch_graph.facts import Call, Facts, Site
from bridge.ops.steps import Step

Rule = Callable[[Site], Call | None]

FARTHEST: Final = 2**31 - 1
"""A bound of a Slice from here on means the end of the axis."""


def call_of(step: Step, facts: Facts) -> Call | None:
    """The call that computes `step`; None where only the operator itself does."""
    label = step.handler.label
    rule = RULES.get(label.op) if not label.domain and not step.handler.native else None
    return None if rule is None else rule(Site(step, facts))


def _unary(target: Any) -> Rule:
    def rule(site: Site) -> Call | None:
        x = site.floating(0)
        return None if x is None else Call(target, (x,))

    return rule


def _binary(target: Any, *, scalar: bool = True) -> Rule:
    """A function of two tensors of floats, or of one and a number behind it."""

    def rule(site: Site) -> Call | None:
        a, b = site.floating(0), site.floating(1)
        number = site.literal(1) if scalar else None
        if a is None or (b is None and number is None):
            return None
        return Call(target, (a, number if b is None else b))

    return rule


def _commuting(target: Any) -> Rule:
    """The same where the number may stand before."""

    def rule(site: Site) -> Call | None:
        a, b, number = site.floating(0), site.floating(1), site.literal(0)
        if a is None and b is not None and number is not None:
            return Call(target, (b, number))
        return _binary(target)(site)

    return rule


def _power(site: Site) -> Call | None:
    """A power has the dtype of its base, for torch only where the exponent's is no other."""
    given = [value.dtype for at in (0, 1) if (value := site.tensor(at)) is not None]
    return _binary(torch.pow)(site) if len(set(given)) == 1 else None


def _logical(target: Any) -> Rule:
    def rule(site: Site) -> Call | None:
        values = tuple(site.tensor(at) for at in range(len(site.step.inputs)))
        return None if None in values else Call(target, values)

    return rule


def _transpose(site: Site) -> Call | None:
    x, perm = site.tensor(0), site.attribute("perm")
    return None if x is None or not perm else Call(torch.permute, (x, tuple(map(int, perm))))


def _concat(site: Site) -> Call | None:
    values = tuple(site.tensor(at) for at in range(len(site.step.inputs)))
    return None if None in values else Call(torch.cat, (values, int(site.attribute("axis"))))


def _over_axis(target: Any) -> Rule:
    """Softmax and its logarithm; older versions join axes first."""

    def rule(site: Site) -> Call | None:
        x, axis = site.floating(0), site.attribute("axis")
        return None if x is None or site.since < 13 else Call(target, (x, int(axis)))

    return rule


def _axes(site: Site) -> tuple[int, ...] | None:
    """The axes of an operator that had them as an attribute once."""
    given = site.numbers(1) if len(site.step.inputs) > 1 else site.attribute("axes")
    return None if not given else tuple(map(int, given))


def _unsqueeze(site: Site) -> Call | None:
    x, axes = site.tensor(0), _axes(site)
    return Call(torch.unsqueeze, (x, axes[0])) if x is not None and axes is not None and len(axes) == 1 else None


def _squeeze(site: Site) -> Call | None:
    """Squeeze of torch keeps axes that are not 1 where ONNX refuses them: they must be known to be 1."""
    x, axes = site.tensor(0), _axes(site)
    if x is None or axes is None or x.shape is None:
        return None
    fits = all(-len(x.shape) <= axis < len(x.shape) and x.shape[axis] == 1 for axis in axes)
    return Call(torch.squeeze, (x, axes if len(axes) > 1 else axes[0])) if fits else None


def _reshape(site: Site) -> Call | None:
    x, shape, rank = site.tensor(0), site.numbers(1), site.rank(0)
    if x is None or shape is None:
        return None
    if 0 not in shape:
        return Call(torch.reshape, (x, shape))
    kept = len(shape) - 1
    if site.attribute("allowzero") or rank is None or any(shape[:-1]) or not shape[-1] or kept >= rank:
        return None
    return Call(torch.flatten, (x, kept))


def _flatten(site: Site) -> Call | None:
    x, rank = site.tensor(0), site.rank(0)
    return Call(torch.flatten, (x, 1)) if x is not None and (rank or 0) > 1 and site.attribute("axis") == 1 else None


def _gather(site: Site) -> Call | None:
    x, at = site.tensor(0), site.literal(1)
    return None if x is None or not isinstance(at, int) else Call(torch.select, (x, int(site.attribute("axis")), at))


def _slice(site: Site) -> Call | None:
    x, starts, ends, axes = site.tensor(0), site.numbers(1), site.numbers(2), site.numbers(3)
    steps = site.numbers(4) if site.given(4) is not None else (1,)
    if x is None or starts is None or ends is None or axes is None or steps is None:
        return None
    if len(starts) != 1 or len(ends) != 1 or len(axes) != 1 or len(steps) != 1 or steps[0] < 1 or axes[0] < 0:
        return None
    start, stop = starts[0] or None, None if ends[0] >= FARTHEST else ends[0]
    index = slice(start, stop, None if steps[0] == 1 else steps[0])
    return Call(operator.getitem, (x, (*[slice(None)] * axes[0], index)))


def _reduce(target: Any) -> Rule:
    def rule(site: Site) -> Call | None:
        x, axes = site.floating(0), _axes(site)
        if x is None or axes is None:
            return None
        return Call(target, (x, axes), {"keepdim": bool(site.attribute("keepdims"))})

    return rule


def _gelu(site: Site) -> Call | None:
    x = site.floating(0)
    return None if x is None else Call(functional.gelu, (x,), {"approximate": str(site.attribute("approximate"))})


def _sloped(target: Any) -> Rule:
    def rule(site: Site) -> Call | None:
        x = site.floating(0)
        return None if x is None else Call(target, (x, float(site.attribute("alpha"))))

    return rule


def _where(site: Site) -> Call | None:
    condition, a, b = site.tensor(0), site.floating(1), site.floating(2)
    values = (site.literal(1) if a is None else a, site.literal(2) if b is None else b)
    if condition is None or (a is None and b is None) or None in values:
        return None
    return Call(torch.where, (condition, *values))


def _pool(targets: tuple[Any, ...], **extra: str) -> Rule:
    """Pooling with the same padding on both sides; `extra` are further attributes and the options that they are."""

    def rule(site: Site) -> Call | None:
        x, size, pads = site.floating(0), tuple(site.attribute("kernel_shape")), tuple(site.attribute("pads") or ())
        rank = len(size)
        low, high = (pads[:rank], pads[rank:]) if pads else ((0,) * rank,) * 2
        plain = not site.attribute("ceil_mode") and not site.attribute("storage_order") and low == high
        plain = plain and site.attribute("auto_pad") in ("NOTSET", "") and len(site.step.outputs) == 1
        plain = plain and set(site.attribute("dilations") or (1,)) == {1} and rank <= len(targets)
        if x is None or not plain or any(2 * pad > side for pad, side in zip(low, size, strict=True)):
            return None
        strides = tuple(site.attribute("strides") or (1,) * rank)
        options = {option: bool(site.attribute(name)) for name, option in extra.items()}
        return Call(targets[rank - 1], (x, size, strides, low), options)

    return rule


MAX_POOLS: Final = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)
AVERAGE_POOLS: Final = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)

RULES: Final[Mapping[str, Rule]] = MappingProxyType({
    **{name.capitalize(): _unary(getattr(torch, name)) for name in
       ("relu", "sigmoid", "tanh", "exp", "log", "sqrt", "neg", "abs", "floor", "ceil", "erf", "sin", "cos")},
    "Add": _commuting(torch.add), "Mul": _commuting(torch.mul), "Sub": _binary(torch.sub),
    "Div": _binary(torch.div, scalar=False), "Pow": _power, "MatMul": _binary(torch.matmul, scalar=False),
    "Equal": _binary(torch.eq), "Less": _binary(torch.lt), "LessOrEqual": _binary(torch.le),
    "Greater": _binary(torch.gt), "GreaterOrEqual": _binary(torch.ge),
    "And": _logical(torch.logical_and), "Or": _logical(torch.logical_or), "Not": _logical(torch.logical_not),
    "Transpose": _transpose, "Concat": _concat, "Softmax": _over_axis(torch.softmax),
    "LogSoftmax": _over_axis(torch.log_softmax), "Unsqueeze": _unsqueeze, "Squeeze": _squeeze, "Reshape": _reshape,
    "Flatten": _flatten, "Gather": _gather, "Slice": _slice, "ReduceMean": _reduce(torch.mean),
    "ReduceSum": _reduce(torch.sum), "ReduceMax": _reduce(torch.amax), "ReduceMin": _reduce(torch.amin),
    "Gelu": _gelu, "LeakyRelu": _sloped(functional.leaky_relu), "Elu": _sloped(functional.elu), "Where": _where,
    "MaxPool": _pool(MAX_POOLS), "AveragePool": _pool(AVERAGE_POOLS, count_include_pad="count_include_pad"),
})  # fmt: skip
"""By operator of ONNX's own domain."""
