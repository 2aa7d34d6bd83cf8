"""Handlers and the versions of the operators they carry. Decorators only label; `table.py` lists the modules."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType, ModuleType
from typing import Any, Final, TypeVar

from bridge.errors import UsageError

NEWEST_OPSET: Final = 26
"""The newest opset that onnxruntime 1.31.1 runs: what it cannot judge is not carried."""

Function = TypeVar("Function", bound=Callable[..., Any])
Key = tuple[str, str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """What `handles` writes on a function."""

    domain: str
    op: str
    versions: frozenset[int]
    static: frozenset[str]
    raw: bool
    differentiable: bool
    statistics: frozenset[str] = frozenset()
    """Inputs that training follows by other means than a gradient."""
    reason: str = ""
    """Why the static inputs must be static, where their name does not say it."""
    check: Callable[[Mapping[str, Any]], object] | None = None
    """Refuses attributes that make no sense together, before any node runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Handler:
    """One function that carries one since-version of an operator."""

    function: Callable[..., Any]
    """`function(node, *inputs, **attributes)`; its signature is the ONNX schema."""
    label: Label
    """The operator, and how its inputs are passed."""
    inputs: tuple[str, ...]
    """Names of the positional inputs."""
    variadic: str | None
    """Name of the inputs that repeat, after the others."""
    attributes: Mapping[str, Any]
    """Attribute names with their defaults; `inspect.Parameter.empty` where the schema requires one."""
    native: bool = False
    """Whether this is a framework's own layer, which has its node's attributes and weights inside."""

    def is_static(self, at: int) -> bool:
        """Whether input `at` must be known while tracing."""
        return at < len(self.inputs) and self.inputs[at] in self.label.static

    def trains(self, at: int) -> bool:
        """Whether a gradient of the output may change input `at`."""
        return at >= len(self.inputs) or self.inputs[at] not in self.label.static | self.label.statistics


def handles(
    op: str,
    *,
    versions: Iterable[int],
    domain: str = "",
    static: Iterable[str] = (),
    raw: bool = False,
    differentiable: bool = True,
    statistics: Iterable[str] = (),
    reason: str = "",
    check: Callable[[Mapping[str, Any]], object] | None = None,
) -> Callable[[Function], Function]:
    """Label a function as the handler of `op` in the given since-versions.

    Inputs named in `static` (shapes, axes) arrive as numpy and are refused while traced; `reason` says why where the
    name does not. The others arrive on one backend, all as numpy where all are static. `raw` passes every input as it
    is. `differentiable=False`: no gradient reaches the inputs, so an initialiser that only such nodes read is no
    parameter; nor are the `statistics` among the inputs. `check(attributes)` raises where the attributes make no sense.
    """
    label = Label(
        domain=domain,
        op=op,
        versions=frozenset(versions),
        static=frozenset(static),
        raw=raw,
        differentiable=differentiable,
        statistics=frozenset(statistics),
        reason=reason,
        check=check,
    )

    def write(function: Function) -> Function:
        function.onnx_labels = (*getattr(function, "onnx_labels", ()), label)  # type: ignore[attr-defined]
        return function

    return write


def build_table(modules: Iterable[ModuleType]) -> Mapping[Key, Handler]:
    """The immutable table (domain, operator, since-version) -> Handler of the labelled functions of `modules`.

    Raises:
        UsageError: two functions claim one version of one operator.
    """
    table: dict[Key, Handler] = {}
    for module in modules:
        for function in (*vars(module).values(), *getattr(module, "HANDLERS", ())):
            if getattr(function, "__module__", None) != module.__name__:
                continue  # imported from another module of the table
            for label in getattr(function, "onnx_labels", ()):
                for version in label.versions:
                    key = (label.domain, label.op, version)
                    if key in table:
                        raise UsageError("two handlers for one operator version", where=str(key))
                    table[key] = _handler(function, label)
    return MappingProxyType(table)


def resolve(table: Mapping[Key, Handler], domain: str, op: str, opset: int) -> Handler | None:
    """The handler of the largest since-version at or below `opset`; None where the operator is not carried."""
    if domain == "" and opset > NEWEST_OPSET:
        return None
    for since in range(min(opset, NEWEST_OPSET), 0, -1):
        if (domain, op, since) in table:
            return table[domain, op, since]
    return None


def _handler(function: Callable[..., Any], label: Label) -> Handler:
    _, *parameters = inspect.signature(function).parameters.values()
    by_kind: dict[Any, list[inspect.Parameter]] = {}
    for parameter in parameters:
        by_kind.setdefault(parameter.kind, []).append(parameter)
    variadic = by_kind.get(inspect.Parameter.VAR_POSITIONAL)
    return Handler(
        function=function,
        label=label,
        inputs=tuple(p.name for p in by_kind.get(inspect.Parameter.POSITIONAL_OR_KEYWORD, ())),
        variadic=variadic[0].name if variadic else None,
        attributes=MappingProxyType({p.name: p.default for p in by_kind.get(inspect.Parameter.KEYWORD_ONLY, ())}),
    )
