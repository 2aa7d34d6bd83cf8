"""Which module of a Flax model a path names, and which Cell goes into which of its cells: the same for both APIs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bridge.cell import Cell
from bridge.errors import UsageError
from bridge.frameworks.flax_fit import per_direction

Writes = list[tuple[Any, np.ndarray]]
"""Places, as the API addresses them, and what goes there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """What an API calls its modules, and how it finds the places of one cell."""

    sequential: type[Any]
    bidirectional: type[Any]
    rnn: type[Any]
    layers: tuple[type[Any], ...]
    """The modules that may be a bare layer."""
    item: str
    """The path of layer number 0 of a sequential model, with {} for the number."""
    modules: Callable[[Any], Iterable[tuple[str, Any]]]
    """Every recurrent module of a model, by path."""
    of_cell: Callable[[Any, Cell, str], Writes]
    """The writes of a Cell into one native cell; the last argument is its path, for messages."""

    def writes(self, model: Any, path: str, cells: Cell | Sequence[Cell]) -> Writes:
        """The writes of `cells` at `path`; "" is a bare layer, or a sequential model with a Cell for each layer.

        Raises:
            UsageError: a path that is no recurrent module, or another number of cells than it has.
        """
        if path == "" and type(model) is self.sequential:
            listed = [cells] if isinstance(cells, Cell) else list(cells)
            if len(listed) != len(model.layers):
                raise UsageError("wrong number of cells", where=self.sequential.__qualname__, got=len(listed),
                                 expected=len(model.layers))  # fmt: skip
            return [write for at, cell in enumerate(listed) for write in self.writes(model, self.item.format(at), cell)]
        module = self._at(model, path)
        reverses: list[bool | None]
        if isinstance(module, self.bidirectional):
            parts, reverses = [module.forward_rnn.cell, module.backward_rnn.cell], [False, True]
        elif isinstance(module, self.rnn):
            parts, reverses = [module.cell], [bool(module.reverse)]
        else:
            parts, reverses = [module], [None]
        halves = per_direction(cells, reverses, path or type(module).__name__)
        return [write for part, half in zip(parts, halves, strict=True) for write in self.of_cell(part, half, path)]

    def _at(self, model: Any, path: str) -> Any:
        found = dict(self.modules(model))
        if isinstance(model, self.layers) and path in ("", *found):
            return model
        if path in found:
            return found[path]
        raise UsageError(f"no recurrent module at {path!r}", where="assign", expected=", ".join(found) or "none there")
