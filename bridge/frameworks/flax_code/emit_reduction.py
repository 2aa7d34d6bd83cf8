"""Operators over whole axes."""

# ruff: noqa: A002  (an emitter's signature is the ONNX schema)
from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from bridge.frameworks.flax_code.code import jax_name, shape_text
from bridge.frameworks.flax_code.emit_shape import rank_of, size
from bridge.frameworks.flax_code.operands import Operand, Tensor
from bridge.frameworks.flax_code.registry import emits
from bridge.frameworks.flax_code.site import Site

REDUCTIONS: Final = MappingProxyType(
    {"ReduceMax": "jnp.max({}{})", "ReduceMean": "jnp.mean({}{})", "ReduceMin": "jnp.min({}{})",
     "ReduceProd": "jnp.prod({}{})", "ReduceSum": "jnp.sum({}{})", "ReduceL1": "jnp.sum(jnp.abs({}){})",
     "ReduceLogSum": "jnp.log(jnp.sum({}{}))", "ReduceLogSumExp": "jax.scipy.special.logsumexp({}{})",
     "ReduceL2": "jnp.sqrt(jnp.sum(jnp.square({}){}))", "ReduceSumSquare": "jnp.sum(jnp.square({}){})"}
)  # fmt: skip


FLOATING: Final = frozenset({"ReduceMean", "ReduceLogSum", "ReduceLogSumExp", "ReduceL2"})
"""What jax.numpy makes floats of, and ONNX numbers of the dtype it is given."""

PER_AXIS: Final = 13
"""The opset from which on Softmax and its like are over one axis."""


def reduction(op: str, template: str) -> Callable[..., Operand]:
    """The emitter of an operator in REDUCTIONS."""

    @emits(op)
    def emit(site: Site, data: Operand, axes_input: Operand = None, *, axes: Sequence[int] | None = None,
             keepdims: int = 1, noop_with_empty_axes: int = 0) -> Operand:  # fmt: skip
        places = list(axes) if axes is not None else site.known(axes_input, "axes") or []
        if not places and noop_with_empty_axes:
            return data
        axis = f", axis={places[0] if len(places) == 1 else shape_text(places)}" if places else ""
        text = template.format(site.ref(data), f"{axis}{', keepdims=True' if keepdims else ''}")
        if site.dtype().kind == "f" or op not in FLOATING:
            return site.emit(text)
        if op == "ReduceLogSumExp":
            site.refuse("ReduceLogSumExp of integers")  # which onnxruntime rounds at every step
        return site.emit(f"{text}.astype(jnp.{jax_name(site.dtype())})")

    return emit


def over_axis(op: str, function: str) -> Callable[..., Operand]:
    """The emitter of Softmax and LogSoftmax."""

    @emits(op)
    def emit(site: Site, input: Operand, *, axis: int | None = None) -> Operand:
        if not isinstance(input, Tensor):
            site.refuse("of something that is no tensor")
        last = rank_of(site, input) - 1
        if _axis(site, axis, last) == last:
            return site.on_last_axis(input, f"{function}({{}})".format)
        return site.emit(f"{function}({site.ref(input)}, axis={axis})")

    return emit


def _axis(site: Site, axis: int | None, last: int) -> int:
    """The axis of Softmax and its like, which until opset 12 took all axes from it on as one."""
    if site.opset >= PER_AXIS:
        return last if axis is None else axis % (last + 1)
    first = 1 if axis is None else axis % (last + 1)
    if first != last:
        site.refuse("several axes as one, as before opset 13", do="convert the model to opset 13 or later")
    return last


EMITTERS: Final = (
    *(reduction(*row) for row in REDUCTIONS.items()),
    over_axis("Softmax", "jax.nn.softmax"),
    over_axis("LogSoftmax", "jax.nn.log_softmax"),
)


@emits("ArgMax")
@emits("ArgMin")
def arg(site: Site, data: Operand, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Operand:
    """Where the largest or smallest element is."""
    if select_last_index:
        site.refuse("select_last_index")
    name = site.op_type.lower()
    return site.emit(f"jnp.{name}({site.ref(data)}, axis={axis}{', keepdims=True' if keepdims else ''})")


@emits("CumSum")
def cumsum(site: Site, x: Operand, axis: Operand, *, exclusive: int = 0, reverse: int = 0) -> Operand:
    """Running sums."""
    if exclusive:
        site.refuse("CumSum that is exclusive")
    (at,) = site.known(axis, "the axis")
    if reverse:
        return site.emit(f"jnp.flip(jnp.cumsum(jnp.flip({site.ref(x)}, {at}), axis={at}), {at})")
    return site.emit(f"jnp.cumsum({site.ref(x)}, axis={at})")


@emits("Hardmax")
def hardmax(site: Site, input: Operand, *, axis: int | None = None) -> Operand:
    """1 at the first largest element along an axis, 0 elsewhere."""
    if not isinstance(input, Tensor):
        site.refuse("Hardmax of something that is no tensor")
    last = rank_of(site, input) - 1
    text, at = site.ref(input), _axis(site, axis, last)
    dtype = "" if input.dtype == np.float32 else f", dtype=jnp.{input.dtype}"
    return site.emit(f"jax.nn.one_hot(jnp.argmax({text}, axis={at}), {size(site, input, at)}, axis={at}{dtype})")


@emits("Einsum")
def einsum(site: Site, *Inputs: Operand, equation: Any) -> Operand:
    """Sums of products by subscripts."""
    text = equation.decode() if isinstance(equation, bytes) else equation
    if not re.fullmatch(r"[A-Za-z,.> -]+", text):
        site.refuse("an equation of other letters", got=text[:40])
    return site.emit(f'jnp.einsum("{text}", {", ".join(map(site.ref, Inputs))})')
