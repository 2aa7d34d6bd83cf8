"""What can be said of a layout without writing an array: its operator, its options, whether it holds a cell."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

from bridge.cell import Cell, Op
from bridge.layout.files import find
from bridge.layout.records import Slot
from bridge.layout.writing import plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """How a layout holds a cell."""

    parameters: int
    """Numbers stored for every direction of the cell together."""
    options: dict[str, object]
    """The options under which the stored numbers mean the cell; those of the first direction."""


def op_of(layout: str) -> Op:
    """The operator of a layout."""
    return find(layout).op


def holding(layout: str, cell: Cell) -> Holding:
    """Whether and how a layout holds a cell, each direction in a layer of its own. Nothing is copied.

    Raises:
        NotRepresentable: it does not; the first reason found.
    """
    plans = [plan(find(layout), half, {}) for half in cell.split()]
    count = sum(prod(one.sizes.shape(slot)) for one in plans for slot in one.slots)
    return Holding(parameters=count, options=dict(plans[0].options))


def describe(layout: str) -> dict[str, Any]:
    """A layout as `rnn-bridge layouts --json` prints it: operator, source, options and slots of each variant."""
    row = find(layout)
    return {
        "layout": row.name,
        "op": row.op,
        "source": row.source,
        "options": {
            name: {"kind": option.kind, "default": _plain(option.default)} for name, option in row.options.items()
        },
        "variants": [
            {"when": dict(variant.when), "slots": [_slot(slot) for slot in variant.slots]} for variant in row.variants
        ],
    }


def _slot(slot: Slot) -> dict[str, Any]:
    return {
        "key": slot.key,
        "blocks": list(slot.blocks),
        "gates": list(slot.gates),
        "axes": list(slot.axes),
        "optional": slot.optional is not None,
    }


def _plain(value: object) -> object:
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
