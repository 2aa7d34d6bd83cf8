"""Node: what a handler knows of the graph node it runs, beside its inputs and attributes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from bridge.errors import BadInput, Unsupported
from bridge.ops.backend import Array, Backend

Body = Callable[..., tuple[Array, ...]]
"""A subgraph bound to the values it captures: its inputs in order to its outputs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One node on one backend. The same node runs on numpy where all its inputs are static."""

    name: str
    """The node's own name; its first output's where it has none."""
    op_type: str
    """The operator."""
    outputs: int
    """How many outputs the graph lists."""
    backend: Backend
    """Where the node runs."""

    @property
    def xp(self) -> Any:
        """The array namespace of the backend."""
        return self.backend.xp

    @property
    def where(self) -> str:
        """Operator and name, for messages."""
        return f"{self.op_type} node {self.name!r}"

    def refuse(self, what: str, *, got: object = None, do: str = "") -> NoReturn:
        """Raise Unsupported in the name of this node."""
        raise Unsupported(what, where=self.where, got=got, do=do)

    def reject(self, what: str, *, got: object = None, expected: object = None) -> NoReturn:
        """Raise BadInput in the name of this node."""
        raise BadInput(what, where=self.where, got=got, expected=expected)
