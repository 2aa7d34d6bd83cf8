"""A Cell into a framework's parameters: the same slots, read the other way.

The algebra: Wb and Rb of a gate may fold into one slot where they enter the equations only as a sum, which holds for
every gate but GRU's h under linear_before_reset. A piece without any slot must be what the layout computes with: zero,
or the constant that the framework adds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bridge.cell import Cell
from bridge.errors import NotRepresentable, UsageError
from bridge.layout.options import (
    check_options,
    check_saturation,
    constant_value,
    fit_activations,
    resolve,
    variants_for,
)
from bridge.layout.reading import Sizes, split_blocks
from bridge.layout.records import Layout, Piece, Slot, Variant, gate_letters

_ATTRIBUTES: Mapping[str, object] = {"clip": None, "input_forget": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """What makes a layout hold a cell."""

    params: dict[str, np.ndarray]
    """Fresh, writable arrays by flat dotted name."""
    options: dict[str, object]
    """Every option of the layout that has a value, as read_params takes them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A variant and the options under which it holds a cell, its arrays not written yet."""

    layout: Layout
    variant: Variant
    options: dict[str, object]
    slots: tuple[Slot, ...]
    pieces: dict[Piece, np.ndarray]
    sizes: Sizes


def plan(layout: Layout, cell: Cell, given: Mapping[str, object]) -> Plan:
    """How the layout holds the cell.

    Raises:
        UsageError: an unknown option or value.
        NotRepresentable: the layout has no place for something in the cell, the first thing found.
    """
    check_options(layout, given)
    _check_node(layout, cell)
    refusals = []
    variants = sorted(
        variants_for(layout, given), key=lambda one: one.linear_before_reset not in (None, cell.linear_before_reset)
    )
    for variant in variants:
        try:
            return _plan_variant(layout, variant, cell, given)
        except NotRepresentable as refusal:
            refusals.append(refusal)
    if not refusals:
        raise UsageError("no variant of this layout has these options", where=layout.name, got=dict(given))
    raise refusals[0]


def write(planned: Plan) -> Fit:
    """The arrays of a plan."""
    return Fit(params={slot.key: _array(slot, planned) for slot in planned.slots}, options=planned.options)


def _check_node(layout: Layout, cell: Cell) -> None:
    where = layout.name
    if cell.op != layout.op:
        raise NotRepresentable(f"this layout is a {layout.op}", where=where, got=f"a {cell.op} cell")
    if cell.num_directions != 1:
        raise NotRepresentable("this layout holds one direction", where=where, got="a bidirectional cell",
                               do="write each of cell.split()")  # fmt: skip
    for name, default in _ATTRIBUTES.items():
        if getattr(cell, name) != default and name not in layout.options:
            raise NotRepresentable(f"this layout has no {name}", where=where, got=f"{name}={getattr(cell, name)}")
    for name in ("initial_h", "initial_c"):
        state = getattr(cell, name)
        if state is not None and np.any(state):
            raise NotRepresentable(
                f"the cell has a constant {name} (max |{name}| = {_size(state)}) and this layout has no slot for it",
                where=where,
            )


def _plan_variant(layout: Layout, variant: Variant, cell: Cell, given: Mapping[str, object]) -> Plan:
    reset = variant.linear_before_reset
    if reset is not None and reset != cell.linear_before_reset:
        raise NotRepresentable(
            f"this layout applies the reset gate {'after' if reset else 'before'} the recurrent product",
            where=layout.name, got=f"linear_before_reset={int(cell.linear_before_reset)}",
        )  # fmt: skip
    chosen = {name: option.carried[0] for name, option in layout.options.items() if option.carried}
    for name, option in layout.options.items():
        if option.kind == "attribute":
            chosen[name] = getattr(cell, name)
            if name in given and given[name] != chosen[name]:
                raise NotRepresentable(f"{name}={given[name]!r} was asked for", where=layout.name,
                                       got=f"{name}={chosen[name]!r}")  # fmt: skip
    chosen.update(fit_activations(layout, cell.activation_table()[0], given))
    options = resolve(layout, {**chosen, **variant.when, **_presence(layout, variant, cell), **given})
    check_saturation(layout, variant, cell.activation_table()[0])
    slots = tuple(slot for slot in variant.slots if slot.optional is None or options[slot.optional])
    pieces = _stored_pieces(layout, variant, cell, options, slots)
    _check_ties(layout, slots, pieces)
    sizes = Sizes(hidden=cell.hidden_size, inputs=cell.input_size)
    return Plan(layout=layout, variant=variant, options=options, slots=slots, pieces=pieces, sizes=sizes)


def _presence(layout: Layout, variant: Variant, cell: Cell) -> dict[str, object]:
    """Optional slots are written where the layout's default says so, else where the cell has their blocks."""
    has = {"Wb": cell.B is not None, "Rb": cell.B is not None, "P": cell.P is not None}
    named = {
        slot.optional: any(has.get(block, True) for block in slot.blocks) for slot in variant.slots if slot.optional
    }
    return {name: there for name, there in named.items() if layout.options[name].default is None}


def _cell_pieces(cell: Cell) -> dict[Piece, np.ndarray]:
    blocks = {"W": cell.W[0], "R": cell.R[0], "Wb": cell.Wb[0], "Rb": cell.Rb[0]}
    if cell.P is not None:
        blocks["P"] = cell.P[0]
    hidden = cell.hidden_size
    return {
        (block, gate): array[at * hidden : (at + 1) * hidden]
        for block, array in blocks.items()
        for at, gate in enumerate(gate_letters(cell.op, block))
    }


def _stored_pieces(
    layout: Layout, variant: Variant, cell: Cell, options: Mapping[str, object], slots: tuple[Slot, ...]
) -> dict[Piece, np.ndarray]:
    """What each piece with a slot stores, signs and identities still as in ONNX. Raises NotRepresentable."""
    pieces = _cell_pieces(cell)
    held = {piece for slot in slots for piece in slot.pieces()}
    constants = {
        (one.block, one.gate): float(cell.dtype.type(constant_value(one, options))) for one in variant.constants
    }
    for gate in gate_letters(cell.op, "W"):
        if not (cell.op == "GRU" and gate == "h" and cell.linear_before_reset):
            _fold(layout, gate, pieces, held, constants)
    for (block, gate), piece in pieces.items():
        if (block, gate) in held:
            continue
        excess = piece.astype(np.float64) - constants.get((block, gate), 0.0)
        if np.any(excess):
            raise NotRepresentable(
                f"gate {gate!r} has a non-zero {block} (max |{block}| = {_size(excess)}) "
                "and this layout has no slot for it",
                where=layout.name,
            )
    return {name: piece for name, piece in pieces.items() if name in held}


def _fold(
    layout: Layout, gate: str, pieces: dict[Piece, np.ndarray], held: set[Piece], constants: Mapping[Piece, float]
) -> None:
    """Move what the one bias of a gate has beyond its constant into the other, where only the other has a slot."""
    names = (("Wb", gate), ("Rb", gate))
    for own, other in (names, names[::-1]):
        if own in held and other not in held:
            constant = constants.get(other, 0.0)
            pieces[own] = _plus_excess(layout, gate, pieces[own], pieces[other], constant)
            pieces[other] = np.full_like(pieces[other], constant)
            return
    if not held.isdisjoint(names):
        return
    total = pieces[names[0]].astype(np.float64) + pieces[names[1]].astype(np.float64)
    if np.array_equal(total, np.full_like(total, sum(constants.get(name, 0.0) for name in names))):
        for name in names:
            pieces[name] = np.full_like(pieces[name], constants.get(name, 0.0))


def _plus_excess(layout: Layout, gate: str, own: np.ndarray, other: np.ndarray, constant: float) -> np.ndarray:
    """`own + (other - constant)`, rounded once; the bits of `own` where there is nothing to add."""
    excess = other.astype(np.float64) - constant
    with np.errstate(over="ignore"):
        total = (own.astype(np.float64) + excess).astype(own.dtype)
    if not np.isfinite(total).all():
        raise NotRepresentable(f"the biases of gate {gate!r} overflow {own.dtype} when folded into one slot",
                               where=layout.name, got=_size(own.astype(np.float64) + excess))  # fmt: skip
    return np.where(excess == 0, own, total)


def _check_ties(layout: Layout, slots: tuple[Slot, ...], pieces: Mapping[Piece, np.ndarray]) -> None:
    for slot in slots:
        for block, tied in ((block, tied) for block in slot.blocks for tied in slot.gates):
            for other in tied[1:]:
                apart = pieces[block, tied[0]].astype(np.float64) - pieces[block, other]
                if np.any(apart):
                    raise NotRepresentable(
                        f"gates {tied[0]!r} and {other!r} differ in {block} (by up to {_size(apart)}) "
                        "and this layout has one slot for both",
                        where=layout.name,
                    )


def _array(slot: Slot, planned: Plan) -> np.ndarray:
    """One array of the framework, the inverse of reading's pieces."""
    subtract = bool(slot.identity and planned.options[slot.identity])
    array = np.empty(planned.sizes.shape(slot), planned.pieces[next(slot.pieces())].dtype)
    for block, part in zip(slot.blocks, split_blocks(slot, array, planned.sizes), strict=True):
        for at, tied in enumerate(slot.gates):
            rows = slice(at * planned.sizes.hidden, (at + 1) * planned.sizes.hidden)
            gate = _gate(slot, block, tied, planned, subtract=subtract)
            if part.ndim == 1 or slot.axes == ("out", "in"):
                part[rows] = gate
            elif slot.buffers:
                part[:, rows] = gate.reshape(part.shape[0], planned.sizes.hidden)
            else:
                part[:, rows] = gate.T
    return array


def _gate(slot: Slot, block: str, tied: str, planned: Plan, *, subtract: bool) -> np.ndarray:
    piece = planned.pieces[block, tied[0]]
    if subtract:
        piece = piece.copy()
        np.einsum("ii->i", piece)[...] -= piece.dtype.type(1)
    return -piece if tied[0] in slot.negate else piece


def _size(array: Any) -> str:
    return f"{float(np.max(np.abs(np.asarray(array, np.float64)))):.3g}"
