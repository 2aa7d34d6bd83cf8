"""Layouts broken on purpose: native parameters rearranged as a wrong layout would read them.

Each break leaves shapes and names alone, so that only the comparison of numbers can notice it.
"""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bridge.layout.records import Constant, Slot
    from tests.conformance.rows import Row

Params = dict[str, np.ndarray]
Broken = tuple[str, Params]
"""(what was done, the parameters that were read)."""


def gate_order(row: Row, params: Params) -> Iterator[Broken]:
    """Two gates swapped, in one array or between two arrays of the same block."""
    for slot in row.slots:
        for one, other in combinations(range(len(slot.gates)), 2):
            yield (
                f"{slot.key}: gates {slot.gates[one]} and {slot.gates[other]} swapped",
                {
                    **params,
                    slot.key: _swapped(params[slot.key], slot, row.hidden, one, other),
                },
            )
    for one, other in combinations(row.slots, 2):
        if one.blocks == other.blocks and len(one.gates) == len(other.gates) == 1:
            yield f"{one.key} and {other.key} swapped", {**params, one.key: params[other.key],
                                                         other.key: params[one.key]}  # fmt: skip


def transposition(row: Row, params: Params) -> Iterator[Broken]:
    """Every gate's matrix transposed, which a square one survives; [x, h] stacked the other way round."""
    for slot in row.slots:
        if slot.axes == ("in", "out"):
            yield f"{slot.key} transposed", {**params, slot.key: _transposed(params[slot.key], row.hidden)}
        elif slot.axes == ("out", "in"):
            yield f"{slot.key} transposed", {**params, slot.key: _transposed(params[slot.key].T, row.hidden).T}
        if len(slot.blocks) == 2 and "in" in slot.axes:
            yield f"{slot.key}: x and h swapped", {**params, slot.key: np.roll(params[slot.key], row.hidden, axis=0)}


def bias_rule(row: Row, params: Params) -> Iterator[Broken]:
    """A bias or peephole dropped or negated; a run-time constant, sign or identity forgotten; GRU's biases merged."""
    for slot in row.slots:
        value = params[slot.key]
        if "in" not in slot.axes:
            yield f"{slot.key} dropped", {**params, slot.key: np.zeros_like(value)}
            yield f"{slot.key} negated", {**params, slot.key: -value}
            for constant in row.variant.constants:
                if _holds_gate_of(slot, constant):
                    forgotten = _without_constant(row, slot, constant, value)
                    yield f"{slot.key}: constant of {constant.gate} forgotten", {**params, slot.key: forgotten}
        if slot.negate:
            yield f"{slot.key}: sign of {slot.negate} forgotten", {**params, slot.key: _negated(row, slot, value)}
        if slot.identity and row.options.get(slot.identity):
            yield f"{slot.key}: identity forgotten", {**params, slot.key: value - np.eye(row.hidden, dtype=np.float32)}
    yield from _merged(row, params)


def _merged(row: Row, params: Params) -> Iterator[Broken]:
    """GRU, linear_before_reset: Rb of h added to Wb of h, where the layout keeps both."""
    places = {block: slot for slot in row.slots for block in ("Wb", "Rb") if (block, "h") in slot.pieces()}
    if len(places) < 2 or not row.variant.linear_before_reset:
        return
    moved = {name: value.copy() for name, value in params.items()}
    source, target = (_view(moved[places[block].key], places[block], row.hidden, block, "h") for block in ("Rb", "Wb"))
    target += source
    source[...] = 0
    yield "both biases of h merged", moved


def _view(value: np.ndarray, slot: Slot, hidden: int, block: str, gate: str) -> np.ndarray:
    """One gate's piece of a bias array."""
    at = next(index for index, tied in enumerate(slot.gates) if gate in tied)
    return value.reshape(len(slot.blocks), len(slot.gates), hidden)[slot.blocks.index(block), at]


def _swapped(value: np.ndarray, slot: Slot, hidden: int, one: int, other: int) -> np.ndarray:
    axis = slot.axes.index("out")
    chunks = np.split(value, value.shape[axis] // hidden, axis=axis)
    for start in range(0, len(chunks), len(slot.gates)):
        chunks[start + one], chunks[start + other] = chunks[start + other], chunks[start + one]
    return np.concatenate(chunks, axis=axis)


def _transposed(value: np.ndarray, hidden: int) -> np.ndarray:
    """[in, out] of square blocks, each of them transposed."""
    blocks = [np.split(part, part.shape[1] // hidden, axis=1) for part in np.split(value, value.shape[0] // hidden)]
    return np.block([[block.T for block in line] for line in blocks])


def _negated(row: Row, slot: Slot, value: np.ndarray) -> np.ndarray:
    chunks = np.split(value, len(slot.gates), axis=slot.axes.index("out"))
    signed = [-chunk if set(tied) & set(slot.negate) else chunk for chunk, tied in zip(chunks, slot.gates, strict=True)]
    return np.concatenate(signed, axis=slot.axes.index("out"))


def _holds_gate_of(slot: Slot, constant: Constant) -> bool:
    """Whether a bias array holds the gate to which the framework adds a constant that it does not store."""
    return not constant.saturates and slot.blocks != ("P",) and any(constant.gate in tied for tied in slot.gates)


def _without_constant(row: Row, slot: Slot, constant: Constant, value: np.ndarray) -> np.ndarray:
    named = isinstance(constant.value, str)
    amount = row.options.get(constant.value, row.record.options[constant.value].default) if named else constant.value
    changed = value.copy()
    _view(changed, slot, row.hidden, slot.blocks[0], constant.gate)[...] -= np.float32(amount)
    return changed
