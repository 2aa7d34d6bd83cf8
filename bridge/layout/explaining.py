"""Gate by gate: where one layout keeps it, which rows of the ONNX operator it is, where another layout keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bridge.cell import GATES
from bridge.errors import UsageError
from bridge.layout.files import find
from bridge.layout.options import choose, constant_value
from bridge.layout.records import Layout, Piece, Slot, Variant, gate_letters


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a layout keeps one gate of one block."""

    key: str | None
    """The framework's array; None where no array holds it."""
    slice: str
    """The part of the array as an index, in units of H and I: "[0:I, 3H:4H]"."""
    note: str
    """What is done to it on the way to ONNX: "transposed", "negated", "+ identity", ...; "" for nothing."""

    def __str__(self) -> str:
        text = f"{self.key}{self.slice}" if self.key else ""
        return " ".join(part for part in (text, f"({self.note})" if self.note else "") if part)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One gate of one block on its way from a layout through ONNX to another."""

    block: str
    gate: str
    source: Place
    onnx: str
    """The rows of the operator's input: "W[0, 2H:3H]"."""
    target: Place


def explain(
    a: str, b: str, *, options: Mapping[str, object] | None = None, target_options: Mapping[str, object] | None = None
) -> tuple[Step, ...]:
    """The way of every gate from layout `a` through ONNX to layout `b`, under the given options or the defaults.

    Raises:
        UsageError: an unknown layout or option, or layouts of different operators.
    """
    first, second = find(a), find(b)
    if first.op != second.op:
        raise UsageError("the layouts are of different operators", where="explain",
                         got=f"{a} is a {first.op}, {b} is a {second.op}")  # fmt: skip
    sources, targets = _places(first, options or {}, folds=False), _places(second, target_options or {}, folds=True)
    nowhere, no_slot = _no_array("zeros"), _no_array("no slot: must be zero")
    return tuple(
        Step(block=block, gate=gate, onnx=_onnx(first.op, block, at), source=sources.get((block, gate), nowhere),
             target=targets.get((block, gate), no_slot))
        for block in ("W", "R", "Wb", "Rb", *(("P",) if first.op == "LSTM" else ()))
        for at, gate in enumerate(gate_letters(first.op, block))
        if block in ("W", "R") or (block, gate) in sources or (block, gate) in targets
    )  # fmt: skip


def describe(layout: str) -> dict[str, Any]:
    """A layout in plain values: its operator, source, options and the parameters of its default variant."""
    row = find(layout)
    variant, _ = choose(row, {})
    return {
        "layout": row.name,
        "framework": row.framework,
        "op": row.op,
        "source": row.source,
        "parameters": [slot.key for slot in variant.slots],
        "options": {
            name: {"kind": option.kind, "default": option.default} for name, option in sorted(row.options.items())
        },
    }


def op_of(layout: str) -> str:
    """The operator of a layout. Raises UsageError where it is unknown."""
    return find(layout).op


def _onnx(op: str, block: str, at: int) -> str:
    name, offset = ("B", at + (len(GATES[op]) if block == "Rb" else 0)) if block in ("Wb", "Rb") else (block, at)
    return f"{name}[0, {_span(offset, 'H')}]"


def _span(at: int, unit: str) -> str:
    start = ("0", unit)[at] if at < 2 else f"{at}{unit}"
    return f"{start}:{at + 1 if at else ''}{unit}"


def _places(layout: Layout, given: Mapping[str, object], *, folds: bool) -> dict[Piece, Place]:
    variant, values = choose(layout, given)
    places: dict[Piece, Place] = {}
    for slot in variant.slots:
        if slot.optional and not values.get(slot.optional, True):
            continue
        for index, block in enumerate(slot.blocks):
            for at, tied in enumerate(slot.gates):
                for gate in tied:
                    note = ", ".join(_notes(slot, gate, tied, values))
                    places[block, gate] = Place(key=slot.key, slice=_slice(slot, index, at), note=note)
    _add_constants(variant, values, places)
    if folds:
        _add_folds(layout, variant, values, places)
    return places


def _slice(slot: Slot, index: int, at: int) -> str:
    stacked = len(slot.blocks) > 1
    if "in" not in slot.axes and "block" not in slot.axes:
        whole = len(slot.gates) == 1 and not stacked
        return "" if whole else f"[{_span(at + index * len(slot.gates), 'H')}]"
    inner = {"W": "0:I", "R": "I:I+H"}.get(slot.blocks[index], "") if stacked else ":"
    parts = {"out": _span(at, "H") if len(slot.gates) > 1 else ":", "in": inner, "block": str(index)}
    text = ", ".join(parts[axis] for axis in slot.axes)
    return "" if set(text) <= {":", ",", " "} else f"[{text}]"


def _notes(slot: Slot, gate: str, tied: str, values: Mapping[str, object]) -> list[str]:
    notes = []
    if slot.buffers:
        notes.append("row-major [H, in] buffer")
    elif slot.axes == ("in", "out"):
        notes.append("transposed")
    if gate in slot.negate:
        notes.append("negated")
    if slot.identity and values[slot.identity]:
        notes.append("+ identity")
    if len(tied) > 1:
        notes.append(f"shared by gates {' and '.join(tied)}")
    return notes


def _add_constants(variant: Variant, values: Mapping[str, object], places: dict[Piece, Place]) -> None:
    for constant in variant.constants:
        note = f"constant {constant_value(constant, values):g} added at run time"
        places[constant.block, constant.gate] = _no_array(note)


def _add_folds(layout: Layout, variant: Variant, values: Mapping[str, object], places: dict[Piece, Place]) -> None:
    """Say where a bias without a slot goes: into the gate's other one, where the two enter only as a sum."""
    reset = values.get("linear_before_reset") if variant.linear_before_reset is None else variant.linear_before_reset
    for gate in GATES[layout.op]:
        for own, other in (("Wb", "Rb"), ("Rb", "Wb")):
            held, there = places.get((own, gate)), places.get((other, gate))
            if held is None or held.key is None or (layout.op == "GRU" and gate == "h" and reset):
                continue
            if there is None:
                places[other, gate] = _no_array(f"folded into {held.key}{held.slice}")
            elif there.key is None:
                places[other, gate] = _no_array(f"{there.note}, the rest folded into {held.key}{held.slice}")


def _no_array(note: str) -> Place:
    return Place(key=None, slice="", note=note)
