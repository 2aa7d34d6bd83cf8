"""A framework's parameters into ONNX blocks, on any array namespace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bridge.cell import GATES, Op
from bridge.errors import BadInput
from bridge.layout.options import activations_of, check_saturation, constant_value, resolve, variants_for
from bridge.layout.records import MATRICES, Layout, Piece, Slot, Variant, gate_letters

Array = Any
"""An array of any namespace that array_api_compat knows: numpy, jax (traced too), torch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """The inputs and attributes of one ONNX recurrent node in the namespace of the parameters."""

    op: Op
    W: Array
    """[D, n*H, I]"""
    R: Array
    """[D, n*H, H]"""
    B: Array | None
    """[D, 2*n*H], or None where the layer has no bias."""
    P: Array | None
    """[D, 3*H], or None."""
    activations: tuple[str, ...]
    """As Cell.activations, always written out."""
    alpha: tuple[float, ...] | None
    """As Cell.activation_alpha."""
    beta: tuple[float, ...] | None
    """As Cell.activation_beta."""
    linear_before_reset: bool = False
    clip: float | None = None
    input_forget: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """H and I."""

    hidden: int
    inputs: int

    def columns(self, block: str) -> int:
        """What a row of W or R multiplies."""
        return self.inputs if block == "W" else self.hidden

    def shape(self, slot: Slot) -> tuple[int, ...]:
        """The shape of a slot's array."""
        stacked = 1 if "in" in slot.axes or "block" in slot.axes else len(slot.blocks)
        length = {
            "out": len(slot.gates) * self.hidden * stacked,
            "in": sum(self.columns(block) for block in slot.blocks),
            "block": len(slot.blocks),
        }
        return tuple(length[axis] for axis in slot.axes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What every gate of every block finds, before anything is put together."""

    layout: Layout
    variant: Variant
    pieces: list[dict[Piece, Array]]
    """One table for each direction."""
    attributes: dict[str, Any]
    """activations, alpha, beta, linear_before_reset, clip and input_forget, as Blocks has them."""


def read(layout: Layout, directions: Sequence[Mapping[str, Array]], given: Mapping[str, object]) -> Blocks:
    """Blocks of one layer, D = the number of directions given (one, or forward and backward).

    Raises:
        UsageError: an unknown option or value.
        BadInput: missing or unexpected names, shapes or dtypes that disagree, a dimension of 0.
        NotRepresentable: an option's value with which the layer is not the operator.
    """
    found = take_apart(layout, directions, given)
    return Blocks(op=layout.op, **_assemble(layout, found.pieces), **found.attributes)


def take_apart(layout: Layout, directions: Sequence[Mapping[str, Array]], given: Mapping[str, object]) -> Reading:
    """The pieces and attributes of one layer. Raises as `read`."""
    values = resolve(layout, given)
    variant = _choose(layout, directions[0], given)
    values.update(variant.when)
    for params in directions[1:]:
        missing, unexpected = _names(variant, params, given)
        if missing or unexpected:
            raise _misnamed(layout, variant, params, missing, unexpected)
    found = [_all_pieces(layout, variant, params, values) for params in directions]
    _check_equal_shapes(layout, found)
    activations = activations_of(layout, values)
    check_saturation(layout, variant, activations)
    repeated = activations * len(directions)
    before_reset = variant.linear_before_reset
    attributes: dict[str, Any] = {
        "activations": tuple(one.name for one in repeated),
        "alpha": tuple(float(one.alpha) for one in repeated if one.alpha is not None) or None,
        "beta": tuple(float(one.beta) for one in repeated if one.beta is not None) or None,
        "linear_before_reset": bool(values.get("linear_before_reset") if before_reset is None else before_reset),
        "clip": values.get("clip"),
        "input_forget": bool(values.get("input_forget", False)),
    }
    return Reading(layout=layout, variant=variant, pieces=found, attributes=attributes)


def _all_pieces(
    layout: Layout, variant: Variant, params: Mapping[str, Array], values: Mapping[str, object]
) -> dict[Piece, Array]:
    """What every gate of every block finds in the arrays of one direction."""
    slots = [slot for slot in variant.slots if slot.key in params]
    sizes = sizes_of(layout, slots, params)
    pieces: dict[Piece, Array] = {}
    for slot in slots:
        identity = bool(slot.identity and values[slot.identity])
        pieces.update(_pieces(slot, params[slot.key], sizes, add_identity=identity))
    _add_constants(layout, variant, values, pieces)
    return pieces


def _check_equal_shapes(layout: Layout, directions: Sequence[dict[Piece, Array]]) -> None:
    sizes = [tuple(next(piece for (block, _), piece in pieces.items() if block == "W").shape) for pieces in directions]
    if len(set(sizes)) > 1:
        raise BadInput("the two directions have different sizes [H, I]", where=layout.name,
                       got=f"{list(sizes[0])} and {list(sizes[1])}")  # fmt: skip


def _choose(layout: Layout, params: Mapping[str, Array], given: Mapping[str, object]) -> Variant:
    """The variant whose names and ranks the parameters have; the layout's default wins where two do."""
    failures = []
    for variant in variants_for(layout, given):
        missing, unexpected = _names(variant, params, given)
        ranks = [slot for slot in variant.slots if slot.key in params and params[slot.key].ndim != len(slot.axes)]
        if not missing and not unexpected and not ranks:
            return variant
        failures.append((missing, unexpected, ranks, variant))
    missing, unexpected, ranks, variant = min(failures, key=lambda one: (len(one[0]) + len(one[1]), len(one[2])))
    if not missing and not unexpected:
        slot = ranks[0]
        raise BadInput(f"{slot.key} has the wrong number of axes", where=layout.name,
                       got=list(params[slot.key].shape), expected=f"[{', '.join(slot.axes)}]")  # fmt: skip
    raise _misnamed(layout, variant, params, missing, unexpected)


def _misnamed(
    layout: Layout, variant: Variant, params: Mapping[str, Array], missing: list[str], unexpected: list[str]
) -> BadInput:
    return BadInput(
        f"missing parameters: {', '.join(missing) or 'none'}; unexpected: {', '.join(unexpected) or 'none'}",
        where=layout.name,
        got=", ".join(sorted(params)),
        expected=", ".join(slot.key + (" (optional)" if slot.optional else "") for slot in variant.slots),
    )


def _names(variant: Variant, params: Mapping[str, Array], given: Mapping[str, object]) -> tuple[list[str], list[str]]:
    """Missing and unexpected names. Optional slots of one name come together, and as the option says if it is given."""
    groups: dict[str, list[str]] = {}
    for slot in variant.slots:
        if slot.optional:
            groups.setdefault(slot.optional, []).append(slot.key)
    present = {name: bool(given.get(name, any(key in params for key in keys))) for name, keys in groups.items()}
    wanted = [slot.key for slot in variant.slots if slot.optional is None or present[slot.optional]]
    return [key for key in wanted if key not in params], sorted(key for key in params if key not in wanted)


def sizes_of(layout: Layout, slots: list[Slot], params: Mapping[str, Array]) -> Sizes:
    """H and I, with every shape and dtype checked against them."""
    recurrent = next(slot for slot in slots if "R" in slot.blocks)
    inputs = next(slot for slot in slots if "W" in slot.blocks)
    hidden = params[recurrent.key].shape[recurrent.axes.index("out")] // len(recurrent.gates)
    columns = params[inputs.key].shape[inputs.axes.index("in")]
    sizes = Sizes(hidden=hidden, inputs=columns - hidden * (inputs.blocks.count("R")))
    dtype = params[recurrent.key].dtype
    for slot in slots:
        array = params[slot.key]
        if 0 in array.shape:
            raise BadInput(f"{slot.key} has a dimension of 0", where=layout.name, got=list(array.shape),
                           expected="at least one unit and one input")  # fmt: skip
        if tuple(array.shape) != sizes.shape(slot) or sizes.inputs < 1:
            raise BadInput(
                f"{slot.key} has the wrong shape", where=layout.name, got=list(array.shape),
                expected=f"{list(sizes.shape(slot))} for {sizes.hidden} units (from {recurrent.key}) "
                f"and {sizes.inputs} inputs (from {inputs.key})",
            )  # fmt: skip
        if array.dtype != dtype:
            raise BadInput(f"{slot.key} is {array.dtype} and {recurrent.key} is {dtype}", where=layout.name,
                           do="cast them to one dtype")  # fmt: skip
    return sizes


def _pieces(slot: Slot, array: Array, sizes: Sizes, *, add_identity: bool) -> dict[Piece, Array]:
    """What each gate of each block finds in one array: matrices as [H, columns], vectors as [H]."""
    found: dict[Piece, Array] = {}
    for block, part in zip(slot.blocks, split_blocks(slot, array, sizes), strict=True):
        for at, tied in enumerate(slot.gates):
            rows = slice(at * sizes.hidden, (at + 1) * sizes.hidden)
            if part.ndim == 1:
                piece = part[rows]
            elif slot.axes == ("out", "in"):
                piece = part[rows, :]
            elif slot.buffers:
                piece = part[:, rows].reshape((sizes.hidden, sizes.columns(block)))
            else:
                piece = part[:, rows].T
            for gate in tied:
                found[block, gate] = -piece if gate in slot.negate else piece
    if add_identity:
        found = {name: _plus_identity(piece) for name, piece in found.items()}
    return found


def split_blocks(slot: Slot, array: Array, sizes: Sizes) -> list[Array]:
    """The part of a slot's array that each of its blocks has; views, where the namespace has such."""
    if "block" in slot.axes:
        return [array[at] for at in range(len(slot.blocks))]
    if "in" in slot.axes:
        axis = slot.axes.index("in")
        lengths = [sizes.columns(block) for block in slot.blocks]
    else:
        axis = 0
        lengths = [len(slot.gates) * sizes.hidden] * len(slot.blocks)
    starts = [sum(lengths[:at]) for at in range(len(lengths))]
    spans = [slice(start, start + length) for start, length in zip(starts, lengths, strict=True)]
    return [array[span] if axis == 0 else array[:, span] for span in spans]


def _plus_identity(piece: Array) -> Array:
    # Only the diagonal is touched: adding 0 elsewhere would turn -0.0 into 0.0.
    xp = namespace(piece)
    ones = xp.ones_like(piece)
    return xp.where(xp.tril(xp.triu(ones)) != 0, piece + ones, piece)


def _add_constants(layout: Layout, variant: Variant, values: Mapping[str, object], pieces: dict[Piece, Array]) -> None:
    """Put biases that the framework adds at run time, and the zero weights of gates that it lacks, in their places."""
    for constant in variant.constants:
        for block in MATRICES:
            if (block, constant.gate) not in pieces:
                other = next(pieces[block, gate] for gate in GATES[layout.op] if (block, gate) in pieces)
                pieces[block, constant.gate] = namespace(other).zeros_like(other)
        vector = pieces["R", constant.gate][:, 0]
        pieces[constant.block, constant.gate] = namespace(vector).full_like(vector, constant_value(constant, values))


def _assemble(layout: Layout, directions: Sequence[dict[Piece, Array]]) -> dict[str, Any]:
    """The operator's inputs, gates in its own order; a bias that no slot holds is zeros, B is None where none does.

    Both directions are laid down in one go: for a large layer each copy of the weights costs as much as the rest.
    """
    first = directions[0]["R", GATES[layout.op][0]]
    xp, hidden = namespace(first), int(first.shape[0])
    zeros = xp.zeros_like(first[:, 0])

    def stack(*blocks: str) -> Array | None:
        names = [(block, gate) for block in blocks for gate in gate_letters(layout.op, block)]
        if not any(name in pieces for pieces in directions for name in names):
            return None
        rows = _end_to_end([pieces.get(name, zeros) for pieces in directions for name in names], xp)
        return xp.reshape(rows, (len(directions), len(names) * hidden, *rows.shape[1:]))

    return {"W": stack("W"), "R": stack("R"), "B": stack("Wb", "Rb"), "P": stack("P")}


def _end_to_end(parts: list[Array], xp: Any) -> Array:
    """The rows of all parts, one after another.

    numpy parts that need no transposition are laid down as one bytes object: an ONNX file takes bytes and nothing
    else, and a further copy of the weights is a third of an export's time.
    """
    first = parts[0]
    if all(
        isinstance(part, np.ndarray) and part.flags.c_contiguous and part.dtype == first.dtype for part in parts
    ) and (first.dtype.kind == "f"):
        rows = np.frombuffer(b"".join(part.data.cast("B") for part in parts), first.dtype)
        return rows.reshape((-1, *first.shape[1:]))
    return xp.concat(parts, axis=0)


def namespace(array: Array) -> Any:
    """The array API of `array`."""
    from array_api_compat import array_namespace

    return array_namespace(array)
