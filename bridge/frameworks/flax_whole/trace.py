"""Trace a model with symbolic sizes: as many as it allows, each as free as it allows.

Axes 0 and 1 of every input begin as symbols of their own. Where the model needs two of them to be equal, those that
are equal in the example become one symbol: batches first, then times, then any. What no symbol fits is fixed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import flax
import jax
from jax import export
from jax.errors import InconclusiveDimensionOperation

from bridge.errors import BadInput, Unsupported, UsageError
from bridge.frameworks.flax_whole.signature import Input

FAILURES: Final = (TypeError, ValueError, NotImplementedError, ArithmeticError, LookupError, AttributeError,
                   AssertionError, RuntimeError, flax.errors.FlaxError, InconclusiveDimensionOperation, BadInput
                   )  # fmt: skip
"""What a model's own code raises when it is traced and cannot be."""

Axis = tuple[int, int]
"""The number of an input, and its axis."""
Group = tuple[Axis, ...]


@dataclass(frozen=True, kw_only=True)
class Symbolic:
    """Which axes are symbols."""

    names: Mapping[Axis, str]
    constraints: tuple[str, ...] = ()

    def specs(self, inputs: Sequence[Input]) -> list[jax.ShapeDtypeStruct]:
        """The inputs as what JAX traces."""
        scope = export.SymbolicScope(self.constraints)
        dims = {name: export.symbolic_shape(name, scope=scope)[0] for name in dict.fromkeys(self.names.values())}
        return [
            jax.ShapeDtypeStruct([dims[self.names[at, axis]] if (at, axis) in self.names else size
                                  for axis, size in enumerate(each.shape)], each.traced)
            for at, each in enumerate(inputs)
        ]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Traced:
    """A jaxpr, and what its sizes are."""

    jaxpr: Any
    symbolic: Symbolic
    fixed: Sequence[tuple[str, int, int]]
    """Input, axis and size of what the model itself fixes."""


def trace(
    function: Callable[..., Any], parameters: Any, inputs: Sequence[Input], dynamic: object, where: str
) -> Traced:
    """`function(parameters, *inputs)` as a jaxpr.

    Raises:
        Unsupported: the model cannot be traced; its own error is named.
        UsageError: `dynamic` names an input or an axis that the example does not have.
    """
    asked = _asked(inputs, dynamic)
    tracer = _Tracer(function, parameters, inputs, asked)
    found = tracer.freest()
    if found is None:
        error = tracer.errors[-1]
        raise Unsupported("JAX cannot trace the model with these inputs", where=where, got=_short(error),
                          do=_advice(error)) from error  # fmt: skip
    symbolic, jaxpr = tracer.loosened(*found)
    fixed = [(each.name, axis, each.shape[axis]) for at, each in enumerate(inputs) if each.name not in asked.named
             for axis in range(min(2, len(each.shape))) if (at, axis) not in symbolic.names]  # fmt: skip
    return Traced(jaxpr=jaxpr, symbolic=symbolic, fixed=fixed)


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip()[:600]}"


def _advice(error: Exception) -> str:
    if isinstance(error, jax.errors.ConcretizationTypeError):
        return "control flow must not depend on the data: use jnp.where or lax.cond"
    return "call the model with the example itself; name axes with dynamic={input: {axis: symbol}}"


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """What `dynamic` says."""

    names: Mapping[Axis, str]
    constraints: tuple[str, ...]
    named: frozenset[str]


CONSTRAINED: Final = re.compile(r"\s*([A-Za-z_]\w*)\s*(?:(?:<=|>=|==|<|>).+)?")


def _asked(inputs: Sequence[Input], dynamic: object) -> _Asked:
    if dynamic is None:
        return _Asked(names={}, constraints=(), named=frozenset())
    known = {each.name: at for at, each in enumerate(inputs)}
    if not isinstance(dynamic, Mapping):
        raise UsageError("dynamic is no mapping", where="to_onnx", got=type(dynamic).__name__,
                         expected="{input name: {axis: symbol}}")  # fmt: skip
    names: dict[Axis, str] = {}
    constraints: list[str] = []
    for name, axes in dynamic.items():
        if name not in known or not isinstance(axes, Mapping):
            raise UsageError(f"dynamic: {name!r} is no array among the inputs", where="to_onnx", got=repr(axes)[:80],
                             expected=", ".join(known))  # fmt: skip
        for axis, symbol in axes.items():
            found = CONSTRAINED.fullmatch(symbol) if isinstance(symbol, str) else None
            fits = isinstance(axis, int) and 0 <= axis < len(inputs[known[name]].shape)
            if not fits or (symbol is not None and found is None):
                raise UsageError(f"dynamic: {name!r} has no such axis or symbol", where="to_onnx",
                                 got=f"{{{axis}: {symbol!r}}}", expected="an axis of the example, and a name such as "
                                 "'time' or 'time <= 512'")  # fmt: skip
            if found is not None:
                names[known[name], axis] = found.group(1)
                if symbol.strip() != found.group(1):
                    constraints.append(symbol.replace("<=", " <= "))
    return _Asked(names=names, constraints=tuple(dict.fromkeys(constraints)), named=frozenset(dynamic))


def _levels(inputs: Sequence[Input], asked: _Asked) -> list[tuple[Group, ...]]:
    """Which axes share a symbol: none, axes 0 that are equal in the example, axes 1 too, any, any but the last."""
    free = [(at, axis) for at, each in enumerate(inputs) if each.name not in asked.named
            for axis in range(min(2, len(each.shape)))]  # fmt: skip

    def size(place: Axis) -> int:
        return inputs[place[0]].shape[place[1]]

    keys: list[Callable[[Axis], Any]] = [
        lambda place: place,
        lambda place: size(place) if place[1] == 0 else place,
        lambda place: (place[1], size(place)),
        size,
        lambda place: place if 0 < place[1] == len(inputs[place[0]].shape) - 1 else size(place),  # which are features
    ]
    levels: dict[tuple[Group, ...], None] = {}
    for key in keys:
        grouped: dict[Any, list[Axis]] = {}
        for place in free:
            grouped.setdefault(key(place), []).append(place)
        levels[tuple(tuple(group) for group in grouped.values())] = None
    return list(levels)


def _assigned(inputs: Sequence[Input], groups: Sequence[Group], asked: _Asked) -> Symbolic:
    names: dict[Axis, str] = dict(asked.names)
    taken = set(names.values())
    for group in sorted(groups, key=lambda group: len({axis for _, axis in group}) < 2):
        axes = {axis for _, axis in group}
        own = f"{_identifier(inputs[group[0][0]].name)}_{'time' if axes == {1} else 'batch'}"
        wanted = [*(("time", "batch") if axes == {1} else ("batch", "time")), own]
        label = next((name for name in wanted if name not in taken), f"{own}_{len(taken)}")
        taken.add(label)
        names |= dict.fromkeys(group, label)
    return Symbolic(names=names, constraints=asked.constraints)


class _Tracer:
    """One model, traced with one assignment after the other."""

    def __init__(self, function: Callable[..., Any], parameters: Any, inputs: Sequence[Input], asked: _Asked) -> None:
        self._function, self._parameters, self._inputs, self._asked = function, parameters, inputs, asked
        self.errors: list[Exception] = []

    def attempt(self, symbolic: Symbolic) -> Any:
        """The jaxpr; None where the model does not allow it."""
        try:
            return jax.make_jaxpr(self._function)(self._parameters, *symbolic.specs(self._inputs))
        except FAILURES as error:
            self.errors.append(error)
            return None

    def freest(self) -> tuple[Symbolic, Any] | None:
        """The assignment with the most symbols; None where not even the example can be traced."""
        levels = _levels(self._inputs, self._asked)
        for groups in levels:
            symbolic = _assigned(self._inputs, groups, self._asked)
            jaxpr = self.attempt(symbolic)
            if jaxpr is not None:
                return symbolic, jaxpr
        symbolic = _assigned(self._inputs, (), self._asked)
        jaxpr = self.attempt(symbolic)
        if jaxpr is None:
            return None
        best = symbolic, jaxpr
        for groups in levels:
            found = self._grown(groups)
            if found is not None and len(found[0].names) > len(best[0].names):
                best = found
        return best

    def _grown(self, groups: Sequence[Group]) -> tuple[Symbolic, Any] | None:
        """One group after another made symbolic, where the model allows it; of one that it does not, each axis."""
        chosen: tuple[Group, ...] = ()
        found: tuple[Symbolic, Any] | None = None
        for group in groups:
            singles = [(place,) for place in group] if len(group) > 1 else []
            for part in (group, *singles):
                symbolic = _assigned(self._inputs, (*chosen, part), self._asked)
                jaxpr = self.attempt(symbolic)
                if jaxpr is not None:
                    chosen, found = (*chosen, part), (symbolic, jaxpr)
                if jaxpr is not None and part is group:
                    break
        return found

    def loosened(self, symbolic: Symbolic, jaxpr: Any) -> tuple[Symbolic, Any]:
        """Equal sizes of the example that the model does not need to be equal get symbols of their own again."""
        for place, label in list(symbolic.names.items()):
            sharing = [other for other, name in symbolic.names.items() if name == label]
            own = f"{_identifier(self._inputs[place[0]].name)}_{label}"
            if place in self._asked.names or len(sharing) < 2 or place == sharing[0] or own in symbolic.names.values():
                continue
            freer = Symbolic(names={**symbolic.names, place: own}, constraints=symbolic.constraints)
            found = self.attempt(freer)
            if found is not None:
                symbolic, jaxpr = freer, found
        return symbolic, jaxpr


def _identifier(name: str) -> str:
    return re.sub(r"[^0-9A-Za-z_]", "_", name)
