"""scan, while and cond: ONNX Scan, Loop and If whose bodies are lowered like any other jaxpr."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from jax.extend.core import ClosedJaxpr

from bridge.frameworks.flax_whole.elementwise import where
from bridge.frameworks.flax_whole.fusing import fused
from bridge.frameworks.flax_whole.recurrence import recurrence_p
from bridge.frameworks.flax_whole.sizes import is_symbolic
from bridge.frameworks.flax_whole.terms import Lowering, Term, constant
from bridge.frameworks.flax_whole.walk import Rule, called, lower

if TYPE_CHECKING:
    import onnx_ir as ir

    from bridge.graph.writer import Writer

UNROLLED: Final = 64
"""Steps that a loop over a number of layers may have to be written out."""


def scan(c: Lowering, eqn: Any, *terms: Term, rules: Mapping[str, Rule]) -> list[Term]:
    """lax.scan: as fused operators where its body is a cell and what runs before and after it, else as a Scan."""
    p = eqn.params
    whole = fused(eqn)
    if whole is not None:
        return lower(c, whole, terms, rules)
    if _steps_other_cells(p, terms):
        return _unrolled(c, eqn, terms, rules)
    consts, carry = terms[: p["num_consts"]], terms[p["num_consts"] :][: p["num_carry"]]
    xs = terms[p["num_consts"] + p["num_carry"] :]
    states = [c.full(term) for term in carry]
    steps = [c.full(term) for term in xs] or [_counter(c, p["length"])]
    avals = [var.aval for var in p["jaxpr"].jaxpr.invars]
    inner_avals = avals[p["num_consts"] :]
    outer = c.w

    def body(b: Writer, held: tuple[ir.Value, ...], step: tuple[ir.Value, ...]) -> Any:
        values = [*held, *(step if xs else ())]
        own = [Term(shape=tuple(aval.shape), dtype=aval.dtype, thin=tuple(aval.shape), value=value)
               for aval, value in zip(inner_avals, values, strict=True)]  # fmt: skip
        results = inside(c, b, p["jaxpr"], [*consts, *own], rules)
        return results[: p["num_carry"]], results[p["num_carry"] :]

    name = ".".join(filter(None, (c.path, "Scan")))
    final, stacked = outer.scan(body, states, steps, reverse=bool(p["reverse"]), name=name)
    return [c.result(eqn, value, at=at) for at, value in enumerate((*final, *stacked))]


def inside(c: Lowering, b: Writer, closed: ClosedJaxpr, terms: Sequence[Term], rules: Mapping[str, Rule]
           ) -> list[ir.Value]:  # fmt: skip
    """The results of a body, written by its own Writer."""
    outer, c.w = c.w, b
    try:
        return [c.full(term) for term in lower(c, closed, terms, rules)]
    finally:
        c.w = outer


def _counter(c: Lowering, length: Any) -> ir.Value:
    count = c.op("Squeeze", c.sizes.value(length), c.ints([0]))
    return c.typed(c.op("Range", c.number(0, np.int64), count, c.number(1, np.int64)), (length,))


def _steps_other_cells(p: Mapping[str, Any], terms: Sequence[Term]) -> bool:
    """Whether each step has a recurrent layer of its own weights: a scan over layers."""
    layers = _has_layer(p["jaxpr"].jaxpr)
    xs = terms[p["num_consts"] + p["num_carry"] :]
    return layers and not is_symbolic(p["length"]) and p["length"] <= UNROLLED and any(t.is_constant for t in xs)


def _has_layer(jaxpr: Any) -> bool:
    for eqn in jaxpr.eqns:
        inner = called(eqn)
        if eqn.primitive is recurrence_p or (inner is not None and _has_layer(inner.jaxpr)):
            return True
    return False


def _unrolled(c: Lowering, eqn: Any, terms: Sequence[Term], rules: Mapping[str, Rule]) -> list[Term]:
    p = eqn.params
    consts, carry = terms[: p["num_consts"]], list(terms[p["num_consts"] :][: p["num_carry"]])
    xs = terms[p["num_consts"] + p["num_carry"] :]
    order = range(int(p["length"]))
    rows: list[list[Term]] = []
    for at in reversed(order) if p["reverse"] else order:
        results = lower(c, p["jaxpr"], [*consts, *carry, *(_row(c, term, at) for term in xs)], rules)
        carry = results[: p["num_carry"]]
        rows.append(results[p["num_carry"] :])
    rows = rows[::-1] if p["reverse"] else rows
    stacked = []
    for at, parts in enumerate(zip(*rows, strict=True), int(p["num_carry"])):
        values = [c.op("Unsqueeze", c.full(term), c.ints([0])) for term in parts]
        stacked.append(c.result(eqn, c.w.concat(values, 0), at=at))
    return [*carry, *stacked]


def _row(c: Lowering, term: Term, at: int) -> Term:
    shape = term.shape[1:]
    if term.is_constant and not term.is_thin:
        array = term.array[at]
        return constant(array, name=f"{term.name}.{at}" if term.name else "")
    value = c.typed(c.op("Gather", c.full(term), c.number(at, np.int64), axis=0), shape)
    return replace(term, shape=shape, thin=shape, value=value, array=None, origin=None)


def cond(c: Lowering, eqn: Any, index: Term, *terms: Term, rules: Mapping[str, Rule]) -> list[Term]:
    """lax.cond and lax.switch: nested Ifs; a branch that a constant chooses is inlined."""
    branches = eqn.params["branches"]
    if index.is_constant:
        at = int(np.clip(int(np.asarray(index.array)), 0, len(branches) - 1))
        return lower(c, branches[at], terms, rules)
    found = _choice(c, c.narrow(index), np.dtype(index.dtype), list(branches), terms, rules)
    return [c.result(eqn, value, at=at) for at, value in enumerate(found)]


def _choice(
    c: Lowering, index: ir.Value, dtype: np.dtype[Any], branches: list[ClosedJaxpr], terms: Sequence[Term],
    rules: Mapping[str, Rule],
) -> Sequence[ir.Value]:  # fmt: skip
    if len(branches) == 1:
        return [c.full(term) for term in lower(c, branches[0], terms, rules)]
    first = c.op("LessOrEqual", index, c.number(0, dtype)) if dtype != np.bool_ else c.op("Not", index)

    def rest(b: Writer) -> Sequence[ir.Value]:
        outer, c.w = c.w, b
        try:
            lowered = index if dtype == np.bool_ else c.op("Sub", index, c.number(1, dtype))
            return _choice(c, lowered, dtype, branches[1:], terms, rules)
        finally:
            c.w = outer

    name = ".".join(filter(None, (c.path, "If")))
    return c.w.choose(first, lambda b: inside(c, b, branches[0], terms, rules), rest, name=name)


def while_loop(c: Lowering, eqn: Any, *terms: Term, rules: Mapping[str, Rule]) -> list[Term]:
    """lax.while_loop, and lax.fori_loop where the number of steps is a size: an ONNX Loop.

    Under vmap the test is one for each row: the loop goes on while any holds, and a row stays as its own test fails.
    """
    from bridge.graph.subgraphs import write_loop

    p = eqn.params
    tests, bodies = p["cond_nconsts"], p["body_nconsts"]
    for_test, for_body, carry = terms[:tests], terms[tests : tests + bodies], terms[tests + bodies :]
    avals = [var.aval for var in p["body_jaxpr"].jaxpr.invars[bodies:]]
    rows = len(p["cond_jaxpr"].out_avals[0].shape)
    states = [c.full(term) for term in carry]

    def held(values: Sequence[ir.Value]) -> list[Term]:
        return [Term(shape=tuple(aval.shape), dtype=aval.dtype, thin=tuple(aval.shape), value=value)
                for aval, value in zip(avals, values, strict=True)]  # fmt: skip

    def tested(b: Writer, terms: Sequence[Term]) -> ir.Value:
        (found,) = inside(c, b, p["cond_jaxpr"], [*for_test, *terms], rules)
        return found

    def body(b: Writer, values: tuple[ir.Value, ...]) -> Any:
        new = inside(c, b, p["body_jaxpr"], [*for_body, *held(values)], rules)
        if rows:
            running = tested(b, held(values))
            new = [_still(c, b, running, (yes, no), aval) for yes, no, aval in zip(new, values, avals, strict=True)]
        return _any(b, tested(b, held(new)), rows), new

    begins = _any(c.w, tested(c.w, carry), rows)
    name = ".".join(filter(None, (c.path, "Loop")))
    final = write_loop(c.w, begins, body, states, name, None)
    return [c.result(eqn, value, at=at) for at, value in enumerate(final)]


def _any(b: Writer, test: ir.Value, rows: int) -> ir.Value:
    """Whether a test holds for any row."""
    if not rows:
        return test
    highest = b.op("ReduceMax", b.cast(test, "int32"), b.constant(list(range(rows))), keepdims=0)
    return b.typed(b.cast(highest, "bool"), ())


def _still(c: Lowering, b: Writer, running: ir.Value, pair: tuple[ir.Value, ir.Value], aval: Any) -> ir.Value:
    """The first of a pair in the rows that go on, the second in the others."""
    outer, c.w = c.w, b
    try:
        rows = len(running.shape or ())
        fresh = list(range(rows, len(aval.shape)))
        running = c.op("Unsqueeze", running, c.ints(fresh)) if fresh else running
        return c.typed(where(c, running, *pair, aval.dtype), aval.shape, aval.dtype)
    finally:
        c.w = outer


CONTROL: Final[Mapping[str, Callable[..., Any]]] = MappingProxyType({"scan": scan, "cond": cond, "while": while_loop})
"""Rules that lower bodies, and take the table for that."""
