"""Scan, Loop, and If on values: their subgraphs become functions in the call, for jax.lax.scan, while_loop and cond."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import numpy as np

from bridge.frameworks.flax_code.code import NO_DTYPE, Code
from bridge.frameworks.flax_code.layers import clean
from bridge.frameworks.flax_code.operands import Dims, Operand, Sizes, Tensor, Zeros
from bridge.frameworks.flax_code.site import Site, as_sizes, dtype_of
from bridge.ops.iteration import UNBOUNDED

if TYPE_CHECKING:
    import onnx_ir as ir

    from bridge.frameworks.flax_code.walking import Walk
    from bridge.ops.steps import Block, Step

Writer = Callable[["Walk", Site, "Step", Sequence[Operand]], tuple[Operand, ...]]


def write_if(walk: Walk, site: Site, step: Step, operands: Sequence[Operand]) -> tuple[Operand, ...]:
    """`jax.lax.cond` over a function for each branch."""
    code, blocks = walk.code, [step.bodies[name] for name in ("then_branch", "else_branch")]
    then, otherwise = (code.define(name, partial(_branch, walk, block))
                       for name, block in zip(("then_branch", "else_branch"), blocks, strict=True))  # fmt: skip
    makes = []
    for one, other in zip(*(block.outputs for block in blocks), strict=True):
        sizes = _dims(walk.scope[one]), _dims(walk.scope[other])
        if not _alike(*sizes):
            site.refuse("If whose condition depends on inputs, and whose branches differ in shape")
        makes.append(code.tensor(_common(*sizes), dtype_of(one), clean(str(one.name))))
    condition = scalar_text(code, operands[0])
    code.assign_many(", ".join(each.token for each in makes),
                     f"jax.lax.cond({condition}, {then.token}, {otherwise.token})", tuple(makes))  # fmt: skip
    return tuple(makes)


def _branch(walk: Walk, block: Block) -> tuple[list[Tensor], list[str]]:
    walk.run(block)
    return [], [walk.code.array_ref(walk.scope[value]) for value in block.outputs]


def write_scan(walk: Walk, site: Site, step: Step, operands: Sequence[Operand]) -> tuple[Operand, ...]:
    """`jax.lax.scan` over the slices of the scan inputs. Source: onnx/defs/controlflow/defs.cc, Scan-25."""
    body, given = step.bodies["body"], step.attributes
    count = len(operands) - int(given["num_scan_inputs"])
    rows = len(body.outputs) - count
    ways = given.get("scan_input_directions") or [0] * (len(operands) - count)
    ways_out = given.get("scan_output_directions") or [0] * rows
    axes, axes_out = given.get("scan_input_axes") or [0] * len(ways), given.get("scan_output_axes") or [0] * rows
    xs = [_turned(site, _axis_first(site, x, axis), way != ways[0])
          for x, axis, way in zip(operands[count:], axes, ways, strict=True)]  # fmt: skip
    finals, ys = _scan(walk, body, body.inputs, operands[:count], xs, body.outputs, backwards=bool(ways[0]))
    moved = [_axis_at(site, _turned(site, y, way != ways[0]), axis)
             for y, axis, way in zip(ys, axes_out, ways_out, strict=True)]  # fmt: skip
    return (*finals, *moved)


def write_loop(walk: Walk, site: Site, step: Step, operands: Sequence[Operand]) -> tuple[Operand, ...]:
    """A Loop whose steps are counted as `jax.lax.scan`, any other as `jax.lax.while_loop`.

    Inside, the condition is true: no step runs without it. Source: onnx/defs/controlflow/defs.cc, Loop-25.
    """
    body, (most, going), states = step.bodies["body"], operands[:2], operands[2:]
    at, condition, *carried = body.inputs
    walk.bind(condition, np.asarray(True))
    if isinstance(most, np.ndarray) and int(most.reshape(())) >= UNBOUNDED:
        most = None
    count = None if most is None else as_sizes(most)
    if count is not None and (going is None or _is_true(going)) and _goes_on(walk, body):
        steps = walk.code.assign(f"jnp.arange({count.items[0]})", (count.items[0],), np.dtype(np.int64), "steps")
        finals, ys = _scan(walk, body, (*carried, at), states, [steps], body.outputs[1:], backwards=False)
        return (*finals, *ys)
    if len(body.outputs) > 1 + len(states):
        site.refuse("Loop that has rows to stack, and how many is known only at run time")
    return _while(walk, body, most, going, states)


def _goes_on(walk: Walk, body: Block) -> bool:
    """Whether every step hands the condition on as it is, or gives a constant that is true."""
    made_by = {output: step for step in body.steps for output in step.outputs}
    value: ir.Value | None = body.outputs[0]
    while value in made_by and made_by[value].node.op_type in ("Identity", "Cast"):
        value = made_by[value].inputs[0]
    return value is not None and (value is body.inputs[1] or _is_true(walk.scope.get(value)))


def _scan(walk: Walk, body: Block, inputs: Sequence[ir.Value], states: Sequence[Operand], xs: Sequence[Tensor],
          outputs: Sequence[ir.Value], *, backwards: bool) -> tuple[list[Tensor], list[Tensor]]:  # fmt: skip
    """The final states, and the rows stacked along axis 0.

    Args:
        walk: where the call is being written.
        body: what one step does.
        inputs: its inputs: the states, then what is read of `xs`.
        states: what they begin as.
        xs: what is read, along axis 0.
        outputs: its outputs: the states, then the rows.
        backwards: from the last step to the first.
    """
    code, count = walk.code, len(states)

    def write() -> tuple[list[Tensor], list[str]]:
        carry = [_bound(walk, value, state) for value, state in zip(inputs[:count], states, strict=True)]
        slices = [_bound(walk, value, x, axes=1) for value, x in zip(inputs[count:], xs, strict=True)]
        parameters = [_parameter(code, carry, "carry"), _parameter(code, slices, "x")]
        walk.run(body)
        results = [code.array_ref(walk.scope[value]) for value in outputs]
        return parameters, [_packed(results[:count]), _packed(results[count:])]

    step = code.define("step", write)
    time = "?" if not xs[0].dims else xs[0].dims[0]
    finals = [_made(walk, value, ()) for value in outputs[:count]]
    ys = [_made(walk, value, (time,)) for value in outputs[count:]]
    arguments = [step.token, _packed([code.array_ref(state) for state in states]), _packed([code.ref(x) for x in xs])]
    target = ", ".join(_packed([each.token for each in group], "_") for group in (finals, ys))
    end = ", reverse=True" if backwards else ""
    code.assign_many(target, f"jax.lax.scan({', '.join(arguments)}{end})", (*finals, *ys))
    return finals, ys


def _while(walk: Walk, body: Block, most: Operand, going: Operand, states: Sequence[Operand]) -> tuple[Tensor, ...]:
    """jax.lax.while_loop over (step, whether to go on, states)."""
    code = walk.code
    at, _, *carried = body.inputs

    def holds() -> tuple[list[Tensor], list[str]]:
        carry = code.tensor(None, NO_DTYPE, "carry")
        limit = "" if most is None else f" & ({carry.token}[0] < {scalar_text(code, most)})"
        return [carry], [f"{carry.token}[1]{limit}"]

    def write() -> tuple[list[Tensor], list[str]]:
        number = _bound(walk, at, np.asarray(0))
        flag = code.tensor((), np.dtype(np.bool_), "_")
        carry = [_bound(walk, value, state) for value, state in zip(carried, states, strict=True)]
        whole = _parameter(code, [number, flag, *carry], "carry")
        walk.run(body)
        on, *results = body.outputs
        texts = [f"{number.token} + 1", scalar_text(code, walk.scope[on])]
        return [whole], [_packed([*texts, *(code.array_ref(walk.scope[value]) for value in results)])]

    again, step = code.define("again", holds), code.define("step", write)
    begin = "jnp.array(True)" if going is None else scalar_text(code, going)
    start = _packed(["jnp.array(0)", begin, *(code.array_ref(state) for state in states)])
    finals = tuple(_made(walk, value, ()) for value in body.outputs[1:])
    target = ", ".join(["_", "_", *(each.token for each in finals)])
    code.assign_many(target, f"jax.lax.while_loop({again.token}, {step.token}, {start})", finals)
    return finals


BODIES: Final[Mapping[str, Writer]] = MappingProxyType({"If": write_if, "Loop": write_loop, "Scan": write_scan})
"""Operator -> what writes it."""


def scalar_text(code: Code, operand: Operand) -> str:
    """A flag or a number, of shape () or (1,), as an array of shape ()."""
    if isinstance(operand, np.ndarray):
        operand = operand.reshape(())
    text = code.array_ref(operand)
    return text if _dims(operand) == () else f"{text}.reshape(())"


def _bound(walk: Walk, value: ir.Value, start: Operand, axes: int = 0) -> Tensor:
    """The tensor that an input of a body is: like `start` without its first `axes` axes."""
    dims = _dims(start)
    made = walk.code.tensor(None if dims is None else dims[axes:], _dtype(start), clean(str(value.name)))
    walk.bind(value, made)
    return made


def _parameter(code: Code, parts: Sequence[Tensor], name: str) -> Tensor:
    """One parameter for several tensors, taken apart in the function's first line."""
    if len(parts) == 1:
        return parts[0]
    whole = code.tensor(None, NO_DTYPE, name if parts else "_")
    if parts:
        code.assign_many(", ".join(each.token for each in parts), whole.token, tuple(parts))
    return whole


def _packed(texts: Sequence[str], nothing: str = "None") -> str:
    """One expression for several."""
    return nothing if not texts else texts[0] if len(texts) == 1 else f"({', '.join(texts)})"


def _made(walk: Walk, value: ir.Value, before: tuple[int | str, ...]) -> Tensor:
    """The tensor outside for what a body gives back, with more axes before its own."""
    found = walk.scope[value]
    dims = _dims(found)
    return walk.code.tensor(None if dims is None else (*before, *dims), _dtype(found), clean(str(value.name)))


def _dims(operand: Operand) -> Dims:
    """What is known of an operand's sizes."""
    if isinstance(operand, np.ndarray):
        return operand.shape
    if isinstance(operand, Sizes):
        return () if operand.is_scalar else (len(operand.items),)
    if isinstance(operand, Zeros):
        return tuple(operand.sizes.items)
    return None if operand is None else operand.dims


def _dtype(operand: Operand) -> np.dtype[np.generic]:
    """The dtype of an operand: sizes are int64, zeros that stand for no state yet float32."""
    if isinstance(operand, np.ndarray | Tensor):
        return operand.dtype
    return np.dtype(np.int64 if isinstance(operand, Sizes) else np.float32)


def _alike(one: Dims, other: Dims) -> bool:
    """Whether two values may have one shape, as far as is known."""
    if one is None or other is None:
        return True
    return len(one) == len(other) and all(
        a == b or not (isinstance(a, int) and isinstance(b, int)) for a, b in zip(one, other, strict=True)
    )


def _common(one: Dims, other: Dims) -> Dims:
    if one is None or other is None:
        return None
    return tuple(a if a == b else "?" for a, b in zip(one, other, strict=True))


def _is_true(operand: Operand) -> bool:
    return isinstance(operand, np.ndarray) and bool(operand.reshape(()))


def _axis_first(site: Site, operand: Operand, axis: int) -> Tensor:
    """A scan input with the axis that it is read along in front."""
    if not isinstance(operand, Tensor):
        operand = site.code.assign(site.code.array_ref(operand), _dims(operand), _dtype(operand))
    if axis == 0:
        return operand
    if operand.rank is None:
        site.refuse("Scan along another axis than the first of something whose rank is not known")
    at = axis % operand.rank
    return site.code.view(operand, (at, *(other for other in range(operand.rank) if other != at)))


def _axis_at(site: Site, y: Tensor, axis: int) -> Tensor:
    """Stacked rows with the axis that they are stacked along in its place."""
    if axis == 0:
        return y
    if y.rank is None:
        site.refuse("Scan that stacks along another axis than the first what has no known rank")
    at, order = axis % y.rank, list(range(1, y.rank))
    order.insert(at, 0)
    return site.code.view(y, order)


def _turned(site: Site, x: Tensor, turned: bool) -> Tensor:
    return site.code.assign(f"jnp.flip({site.ref(x)}, 0)", x.dims, x.dtype) if turned else x
