"""Emitters and the operators they write. Decorators only label; `table.py` lists the modules."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType, ModuleType
from typing import Any, TypeVar

from bridge.errors import UsageError

Emitter = Callable[..., Any]
Key = tuple[str, str]
Function = TypeVar("Function", bound=Emitter)


def emits(op: str, *, domain: str = "") -> Callable[[Function], Function]:
    """Label a function as the emitter of an operator.

    Its signature is the ONNX schema, of every version that bridge.ops carries: an operand that moved from an attribute
    to an input is both. It returns the operand of the output, or a tuple of several.
    """

    def write(function: Function) -> Function:
        function.onnx_emits = (*getattr(function, "onnx_emits", ()), (domain, op))  # type: ignore[attr-defined]
        return function

    return write


def build_table(modules: Iterable[ModuleType]) -> Mapping[Key, Emitter]:
    """The immutable table (domain, operator) -> emitter of the labelled functions of `modules`.

    Raises:
        UsageError: two functions claim one operator.
    """
    table: dict[Key, Emitter] = {}
    for module in modules:
        for function in (*vars(module).values(), *getattr(module, "EMITTERS", ())):
            if getattr(function, "__module__", None) != module.__name__:
                continue
            for key in getattr(function, "onnx_emits", ()):
                if key in table:
                    raise UsageError("two emitters for one operator", where=str(key))
                table[key] = function
    return MappingProxyType(table)
