"""Unique names for the values and nodes of one model."""

from __future__ import annotations


class Names:
    """The names of one model: unique across all its graphs, since a body sees the names around it."""

    def __init__(self) -> None:
        self._taken: dict[str, int] = {}

    def fresh(self, wanted: str) -> str:
        """`wanted`, or `wanted_1`, `wanted_2`, … where it is taken."""
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

    def __contains__(self, name: str) -> bool:
        return name in self._taken
