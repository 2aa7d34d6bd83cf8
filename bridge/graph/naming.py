"""Unique names for the values and nodes of one model."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Container

    import onnx_ir as ir


def unused(wanted: str, taken: Container[str]) -> str:
    """`wanted`, or `wanted_1`, `wanted_2`, … where it is taken."""
    name, count = wanted, 0
    while name in taken:
        count += 1
        name = f"{wanted}_{count}"
    return name


def value_names(model: ir.Model) -> set[str]:
    """The names of all values, those of bodies too."""
    ends = (value for graph in model.graphs() for value in (*graph.inputs, *graph.initializers.values()))
    inner = (value for node in model.graph.all_nodes() for value in node.outputs)
    return {str(value.name) for values in (ends, inner) for value in values}


class Names:
    """The names of one model: unique across all its graphs, since a body sees the names around it."""

    def __init__(self) -> None:
        self._taken: dict[str, int] = {}

    def fresh(self, wanted: str) -> str:
        """As `unused`, and taken from now on."""
        name, count = wanted, self._taken.get(wanted, 0)
        while name in self._taken:
            count += 1
            name = f"{wanted}_{count}"
        if count:
            self._taken[wanted] = count
        self._taken[name] = 0
        return name

    def release(self, name: str) -> None:
        """Let another take `name`."""
        self._taken.pop(name, None)

    def __len__(self) -> int:
        return len(self._taken)

    def __contains__(self, name: str) -> bool:
        return name in self._taken
