"""A framework's parameters as they stand where input comes first, for time loops that need no other order of gates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bridge.cell import GATES, Op
from bridge.layout.reading import Array, Reading, namespace, sizes_of, split_blocks, take_apart
from bridge.layout.records import Layout, Slot, gate_letters


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """One direction as matrices [in, out] in the namespace of the parameters.

    An array that holds all gates of a block side by side is taken as it is, in its own order of gates: a step of a
    stream would spend more time on moving weights than on using them.
    """

    op: Op
    gates: str
    """The operator's gate letters in the order of the columns; GRU's h is never between the others."""
    by_gate: bool
    """Whether the layer keeps W and R gate by gate: W and R join them, and one gate of either is an array it has."""
    W: Array
    """[I, n*H]"""
    R: Array
    """[H, n*H]"""
    Wb: Array | None
    """[n*H], or None where the layer has no such bias."""
    Rb: Array | None
    P: Array | None
    """[3*H], gates in the order i, o, f."""
    activations: tuple[str, ...]
    """As Cell.activations, always written out."""
    alpha: tuple[float, ...] | None
    beta: tuple[float, ...] | None
    linear_before_reset: bool
    clip: float | None
    input_forget: bool


def columns(layout: Layout, params: Mapping[str, Array], given: Mapping[str, object]) -> Columns:
    """The parameters of one direction. Raises as `reading.read`."""
    found = take_apart(layout, [params], given)
    blocks = _as_they_stand(found, params) or _put_together(found)
    return Columns(op=layout.op, **blocks, **found.attributes)


def _as_they_stand(found: Reading, params: Mapping[str, Array]) -> dict[str, Any] | None:
    """The order of the gates and the blocks; None where an array would have to be cut, turned or changed."""
    slots = [slot for slot in found.variant.slots if slot.key in params]
    orders = {"".join(slot.gates) for slot in slots}
    order = next(iter(orders))
    once = len([block for slot in slots for block in slot.blocks]) == len({b for slot in slots for b in slot.blocks})
    if found.variant.constants or len(orders) > 1 or not once or order[1:2] == "h":
        return None
    if sorted(order) != sorted(GATES[found.layout.op]) or any(map(_is_changed, slots)):
        return None
    sizes = sizes_of(found.layout, slots, params)
    blocks = dict.fromkeys(("W", "R", "Wb", "Rb", "P"))
    for slot in slots:
        blocks.update(zip(slot.blocks, split_blocks(slot, params[slot.key], sizes), strict=True))
    return {"gates": order, "by_gate": False, **blocks}


def _is_changed(slot: Slot) -> bool:
    turned = slot.axes == ("out", "in") or slot.buffers
    return turned or bool(slot.negate) or slot.identity is not None or any(len(tied) > 1 for tied in slot.gates)


def _put_together(found: Reading) -> dict[str, Any]:
    """The operator's own order of gates; a bias of which no slot holds any gate is None."""
    op, pieces = found.layout.op, found.pieces[0]
    xp = namespace(pieces["R", GATES[op][0]])
    zeros = xp.zeros_like(pieces["R", GATES[op][0]][:, 0])

    def stack(block: str) -> Array | None:
        names = [(block, gate) for gate in gate_letters(op, block)]
        if not any(name in pieces for name in names):
            return None
        parts = [pieces.get(name, zeros) for name in names]
        return xp.concat([part.T if part.ndim == 2 else part for part in parts], axis=-1)

    by_gate = all(len(slot.gates) == 1 for slot in found.variant.slots if {"W", "R"} & set(slot.blocks))
    blocks = {block: stack(block) for block in ("W", "R", "Wb", "Rb", "P")}
    return {"gates": GATES[op], "by_gate": by_gate, **blocks}
