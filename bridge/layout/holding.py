"""Whether a layout holds a cell, and how many numbers it stores for it, without writing an array."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from bridge.cell import Cell
from bridge.layout.files import find
from bridge.layout.writing import plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """How a layout holds a cell."""

    parameters: int
    """Numbers stored for every direction of the cell together."""
    options: dict[str, object]
    """The options under which the stored numbers mean the cell; those of the first direction."""


def holding(layout: str, cell: Cell) -> Holding:
    """How a layout holds a cell, each direction in a layer of its own. Nothing is copied.

    Raises:
        UsageError: an unknown layout.
        NotRepresentable: it does not; the first reason found.
    """
    plans = [plan(find(layout), half, {}) for half in cell.split()]
    count = sum(prod(one.sizes.shape(slot)) for one in plans for slot in one.slots)
    return Holding(parameters=count, options=dict(plans[0].options))
