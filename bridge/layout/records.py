"""What one layout says: slots, constants, options, variants. Frozen, and checked once when a file is loaded.

A *block* is one input of the ONNX operator: W [n*H, I], R [n*H, H], Wb and Rb [n*H], P [3*H]. A *slot* is one array of
the framework and the gates of one or several blocks that it holds. A gate's part of a block is a *piece*.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from bridge.cell import DEFAULT_ACTIVATIONS, GATES, Activation, Op
from bridge.errors import BadInput

Piece = tuple[str, str]
"""(block, gate letter)."""

MATRICES: Final = ("W", "R")
VECTORS: Final = ("Wb", "Rb", "P")
PEEPHOLE_GATES: Final = "iof"
ROLES: Final = {"LSTM": "fgh", "GRU": "fg", "RNN": "f"}
"""The letters that the ONNX text gives to the activations, in the order of the attribute."""

OptionKind = Literal["flag", "number", "presence", "activation", "activations", "attribute", "fixed"]


def gate_letters(op: str, block: str) -> str:
    """The gates of a block in the order of its rows."""
    return PEEPHOLE_GATES if block == "P" else GATES[op]


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """One array of the framework."""

    key: str
    """Flat dotted name of the parameter."""
    blocks: tuple[str, ...]
    """Blocks in the order in which they are stacked: along "block" where axes has it, else along "in" or "out"."""
    gates: tuple[str, ...]
    """Gates in the order in which they follow each other along "out"; several letters share one stored gate."""
    axes: tuple[str, ...]
    """What each axis of the array is: "out", "in", "block"."""
    negate: str = ""
    """Gates that are stored with the opposite sign."""
    identity: str | None = None
    """Name of the flag under which the framework adds the identity to R."""
    optional: str | None = None
    """Name of the presence option; slots of one name come and go together."""
    buffers: bool = False
    """Each gate's [in, out] columns hold, row by row, the elements of its [out, in] matrix (cuDNN)."""

    def __post_init__(self) -> None:
        kinds = {block in MATRICES for block in self.blocks}
        allowed = {True: (("in", "out"), ("out", "in")), False: (("out",), ("block", "out"))}
        if not self.blocks or not set(self.blocks) <= {*MATRICES, *VECTORS} or len(kinds) != 1:
            raise _malformed(self.key, "blocks are W and R, or Wb, Rb and P", self.blocks)
        if self.axes not in allowed[kinds.pop()]:
            raise _malformed(self.key, "axes do not suit the blocks", self.axes)
        if self.buffers and (self.axes != ("in", "out") or len(self.blocks) > 1):
            raise _malformed(self.key, "buffers are of one matrix stored as in,out", self.axes)
        if self.identity and self.blocks != ("R",):
            raise _malformed(self.key, "the identity is added to R", self.blocks)
        if not set(self.negate) <= set("".join(self.gates)):
            raise _malformed(self.key, "negates gates that it does not hold", self.negate)

    def pieces(self) -> Iterator[Piece]:
        """Every (block, gate) that the array holds."""
        return ((block, gate) for block in self.blocks for tied in self.gates for gate in tied)


@dataclass(frozen=True, slots=True, kw_only=True)
class Constant:
    """A bias that the framework adds at run time instead of storing it."""

    block: str
    gate: str
    value: float | str
    """A number, or the name of the option that holds it."""
    saturates: bool = False
    """The gate's activation must be exactly 1 there: the constant stands for a gate that the framework lacks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One keyword of read_params and write_params."""

    kind: OptionKind
    """flag and number choose variants and constants; presence says whether optional slots are there; activation and
    activations name functions; attribute is one of the Cell's own; fixed has values that bridge cannot carry."""
    default: object = None
    """The framework's own default; None where there is none and the parameters or the cell decide."""
    roles: str = ""
    """Of an activation: which of the operator's f, g, h it sets."""
    carried: tuple[object, ...] = ()
    """Of a fixed option: the values with which the layout is the ONNX operator, the first is written; empty: unset."""
    why: str = ""
    """Of a fixed option: why other values are refused."""

    def __post_init__(self) -> None:
        if (self.kind == "activation") != bool(self.roles) or (self.kind == "fixed") != bool(self.why):
            raise BadInput("an activation has roles; a fixed option says why", where="layout", got=self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One set of slots; a layout with options that move arrays about has several."""

    when: Mapping[str, object]
    """The flags under which these slots hold."""
    linear_before_reset: bool | None
    """GRU: where the reset gate is applied; None where an option says it, or for other operators."""
    slots: tuple[Slot, ...]
    constants: tuple[Constant, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where one framework keeps each gate of one layer.

    Raises:
        BadInput: pieces twice or missing, names that no option declares.
    """

    name: str
    framework: str
    op: Op
    source: str
    variants: tuple[Variant, ...]
    options: Mapping[str, Option] = field(default_factory=dict)
    activations: tuple[Activation, ...] = ()
    """What the layer computes with where no option says otherwise."""

    def __post_init__(self) -> None:
        if not self.activations:
            object.__setattr__(self, "activations", tuple(map(Activation, DEFAULT_ACTIVATIONS[self.op])))
        if len(self.activations) != len(ROLES[self.op]):
            raise _malformed(self.name, "one activation for each role", self.activations)
        for variant in self.variants:
            _check_pieces(self, variant)
            _check_names(self, variant)
            if (self.op == "GRU") == (
                variant.linear_before_reset is None and "linear_before_reset" not in self.options
            ):
                raise _malformed(self.name, "a GRU, and nothing else, says linear_before_reset", variant.when)


def _check_pieces(layout: Layout, variant: Variant) -> None:
    counts = Counter(piece for slot in variant.slots for piece in slot.pieces())
    counts.update((constant.block, constant.gate) for constant in variant.constants)
    valid = {(block, gate) for block in (*MATRICES, *VECTORS) for gate in gate_letters(layout.op, block)}
    gateless = {constant.gate for constant in variant.constants if constant.saturates}
    needed = {(block, gate) for block in MATRICES for gate in GATES[layout.op] if gate not in gateless}
    wrong = [piece for piece, count in counts.items() if count > 1 or piece not in valid] + sorted(needed - set(counts))
    keys = [slot.key for slot in variant.slots]
    if wrong or len(set(keys)) < len(keys):
        raise _malformed(layout.name, "pieces or names that are unknown, missing or there twice", wrong or keys)


def _check_names(layout: Layout, variant: Variant) -> None:
    used = [(name, "flag") for name in variant.when]
    used += [(slot.identity, "flag") for slot in variant.slots if slot.identity]
    used += [(slot.optional, "presence") for slot in variant.slots if slot.optional]
    used += [(constant.value, "number") for constant in variant.constants if isinstance(constant.value, str)]
    for name, kind in used:
        if name not in layout.options or layout.options[name].kind != kind:
            raise _malformed(layout.name, f"no {kind} of this name is declared", name)


def _malformed(where: str, what: str, got: object) -> BadInput:
    return BadInput(what, where=f"layout {where}", got=got)
