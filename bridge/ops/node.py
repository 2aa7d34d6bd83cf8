"""Node: what a handler knows of the graph node it runs, beside its inputs and attributes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from bridge.errors import BadInput, Unsupported
from bridge.ops.backend import Array, Backend
from bridge.ops.sizes import Size, known

LARGEST: Final = 2**28
"""Elements that an operator may make out of a shape or a count: 1 GB of float32. More is absurd or hostile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """A subgraph bound to the values it captures: call it with its inputs in order."""

    run: Callable[..., tuple[Array, ...]]
    """Inputs to outputs."""
    declared: tuple[tuple[int | None, tuple[int | None, ...] | None], ...]
    """Element type and sizes of the outputs as the graph declares them; None where it does not."""

    def __call__(self, *values: Array) -> tuple[Array, ...]:
        """The outputs."""
        return self.run(*values)


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

    def check_size(self, shape: Sequence[Size]) -> None:
        """Refuse to make an array that no sane model makes.

        Raises:
            BadInput: a negative size, or more than `LARGEST` elements.
        """
        sizes = known(shape)
        if any(size < 0 for size in sizes) or math.prod(sizes) > LARGEST:
            self.reject("would make an array of an absurd size", got=list(shape), expected=f"up to {LARGEST} elements")
