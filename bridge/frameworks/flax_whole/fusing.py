"""A scan whose body steps a cell, as the cell's whole layer.

    for each step:   u = before(x);  carry, h = cell(carry, u);  y = after(h)

is `before` over the whole sequence, one recurrent operator, and `after` over the whole sequence, since neither reads
the carry. Cells on top of one another are taken one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Literal, Var

from bridge.frameworks.flax_whole.recurrence import recurrence_p
from bridge.frameworks.flax_whole.walk import bind, called, live_equations


def fused(eqn: Any) -> ClosedJaxpr | None:
    """The same function of the same operands without the loop; None where the body does more with a carry."""
    p = eqn.params
    if not _has_cell(p["jaxpr"].jaxpr):
        return None
    body = _flat(p["jaxpr"])
    try:
        plan = _Plan(p, body)
    except _Carried:
        return None
    operands = [jax.ShapeDtypeStruct(var.aval.shape, var.aval.dtype) for var in eqn.invars]
    try:
        return jax.make_jaxpr(plan.run)(*operands)
    except NotImplementedError:  # an equation beside the cell that cannot be vectorised over time
        return None


class _Carried(Exception):
    """Something besides the cells reads the carry."""


def _has_cell(jaxpr: Any) -> bool:
    for eqn in jaxpr.eqns:
        inner = called(eqn)
        if eqn.primitive is recurrence_p and eqn.params["call"].is_step:
            return True
        if inner is not None and _has_cell(inner.jaxpr):
            return True
    return False


def _flat(closed: ClosedJaxpr) -> ClosedJaxpr:
    """The same with every call inlined."""
    avals = [jax.ShapeDtypeStruct(var.aval.shape, var.aval.dtype) for var in closed.jaxpr.invars]
    return jax.make_jaxpr(lambda *values: _evaluate(closed, values))(*avals)


def _evaluate(closed: ClosedJaxpr, values: Sequence[Any]) -> list[Any]:
    jaxpr = closed.jaxpr
    env: dict[Any, Any] = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*closed.consts, *values), strict=True))

    def read(var: Any) -> Any:
        return var.val if isinstance(var, Literal) else env[var]

    for eqn in jaxpr.eqns:
        operands, inner = [read(var) for var in eqn.invars], called(eqn)
        results = _evaluate(inner, operands) if inner is not None else _bound(eqn, operands)
        env.update(zip(eqn.outvars, results, strict=True))
    return [read(var) for var in jaxpr.outvars]


def _bound(eqn: Any, operands: Sequence[Any]) -> list[Any]:
    scope = str(eqn.source_info.name_stack)
    with jax.named_scope(scope) if scope else nullcontext():
        return bind(eqn, operands)


class _Plan:
    """Which equation of a flat body does what."""

    def __init__(self, p: Any, body: ClosedJaxpr) -> None:
        self.p, self.body = p, body
        jaxpr = body.jaxpr
        consts, carries = p["num_consts"], p["num_carry"]
        self.consts = jaxpr.invars[:consts]
        self.carries = jaxpr.invars[consts : consts + carries]
        self.xs = jaxpr.invars[consts + carries :]
        self.equations = live_equations(jaxpr, [True] * len(jaxpr.outvars))
        self.finals: dict[int, tuple[Any, int]] = {}
        held = set(self.carries)
        for eqn in self.equations:
            own = [var for var in eqn.invars if isinstance(var, Var) and var in held]
            if eqn.primitive is recurrence_p and eqn.params["call"].is_step:
                self._cell(eqn, own)
            elif own:
                raise _Carried
        kept = [at for at, var in enumerate(jaxpr.outvars[:carries]) if var is self.carries[at]]
        if set(self.finals) | set(kept) != set(range(carries)) or any(var in held for var in jaxpr.outvars[carries:]):
            raise _Carried
        self._check_cell_states()

    def _cell(self, eqn: Any, own: Sequence[Any]) -> None:
        call = eqn.params["call"]
        states = eqn.invars[1 : 1 + call.states]
        if list(own) != list(states) or any(var in self.carries for var in eqn.invars[1 + call.states :]):
            raise _Carried
        for at, state in enumerate(states):
            place = self.carries.index(state)
            if self.body.jaxpr.outvars[place] is not eqn.outvars[1 + at] and not (
                at == 0 and self.body.jaxpr.outvars[place] is eqn.outvars[0]
            ):
                raise _Carried
            self.finals[place] = (eqn, 1 + at)

    def _check_cell_states(self) -> None:
        """The cell state of an LSTM is a carry and nothing else: there is no sequence of it."""
        for eqn in self.equations:
            if eqn.primitive is not recurrence_p or not eqn.params["call"].is_step:
                continue
            hidden = set(eqn.outvars[2:])
            outputs = self.body.jaxpr.outvars[self.p["num_carry"] :]
            read = [var for other in self.equations for var in other.invars if isinstance(var, Var)]
            if any(var in hidden for var in (*outputs, *read)):
                raise _Carried

    def run(self, *operands: Any) -> list[Any]:
        """What the scan returns."""
        p, jaxpr = self.p, self.body.jaxpr
        count, carries = p["num_consts"], p["num_carry"]
        still = dict(zip((*self.consts, *jaxpr.constvars), (*operands[:count], *self.body.consts), strict=True))
        start = dict(zip(self.carries, operands[count : count + carries], strict=True))
        moving = dict(zip(self.xs, operands[count + carries :], strict=True))
        finals: dict[Any, Any] = {}
        for eqn in self.equations:
            if eqn.primitive is recurrence_p and eqn.params["call"].is_step:
                self._layer(eqn, still, start, moving, finals)
            else:
                _over_time(eqn, still, moving)
        ends = [finals[self.finals[at]] if at in self.finals else start[self.carries[at]] for at in range(carries)]
        return [*ends, *(self._sequence(var, still, moving) for var in jaxpr.outvars[carries:])]

    def _layer(self, eqn: Any, still: Any, start: Any, moving: Any, finals: Any) -> None:
        call = eqn.params["call"]
        whole = replace(call, is_step=False, time_major=True, reverse=bool(self.p["reverse"]), keep_order=True)
        x = self._sequence(eqn.invars[0], still, moving)
        states = [start[var] for var in eqn.invars[1 : 1 + call.states]]
        parameters = [still[var] for var in eqn.invars[1 + call.states :]]
        y, *ends = recurrence_p.bind(x, *states, *parameters, call=whole)
        moving[eqn.outvars[0]] = moving[eqn.outvars[1]] = y
        finals.update({(eqn, 1 + at): end for at, end in enumerate(ends)})

    def _sequence(self, var: Any, still: Any, moving: Any) -> Any:
        if isinstance(var, Var) and var in moving:
            return moving[var]
        value = var.val if isinstance(var, Literal) else still[var]
        return jax.numpy.broadcast_to(value, (self.p["length"], *var.aval.shape))


def _over_time(eqn: Any, still: Any, moving: Any) -> None:
    """One equation for all steps at once."""
    axes = [0 if isinstance(var, Var) and var in moving else None for var in eqn.invars]
    values = [var.val if isinstance(var, Literal) else moving[var] if var in moving else still[var]
              for var in eqn.invars]  # fmt: skip
    if 0 in axes:
        results = jax.vmap(lambda *each: _bound(eqn, each), in_axes=axes)(*values)
        moving.update(zip(eqn.outvars, results, strict=True))
    else:
        still.update(zip(eqn.outvars, _bound(eqn, values), strict=True))
