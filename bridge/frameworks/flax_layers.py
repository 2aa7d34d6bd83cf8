"""What a Flax recurrent layer is, whichever of the two APIs it comes from: the reading side of both Flax doors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from bridge.cell import Cell
from bridge.errors import NotRepresentable
from bridge.frameworks.flax_scan_activations import ActivatedCell
from bridge.frameworks.flax_scan_cells import ConvLSTM

ScanCell = ConvLSTM | ActivatedCell
"""The cells that are no ONNX operator."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Direction:
    """One cell and what ONNX makes of it. Time runs as its Layer says: `body` is always a forward recurrence."""

    path: str
    """Module path of the RNN that holds the cell."""
    kind: str
    """The layout or class of the cell: "flax.nnx.GRUCell", "flax.linen.ConvLSTMCell", "bridge.LSTMCell", …"""
    body: Cell | ScanCell
    """A Cell where the operator can express the recurrence, else a ScanCell."""

    @property
    def states(self) -> tuple[str, ...]:
        """The names of the states: h, and c where the carry is (c, h)."""
        return ("h", "c") if self.body.op == "LSTM" else ("h",)

    @property
    def input_shape(self) -> tuple[int | str, ...]:
        """The axes of one step of the input behind the batch."""
        return (self.body.input_size,) if isinstance(self.body, Cell) else self.body.input_shape

    @property
    def width(self) -> int:
        """Units or filters of a state: the last of its axes."""
        return self.body.hidden_size if isinstance(self.body, Cell) else self.body.filters

    @property
    def state_shape(self) -> tuple[int | str, ...]:
        """The axes of a state behind the batch."""
        return (self.body.hidden_size,) if isinstance(self.body, Cell) else self.body.state_shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One RNN, one Bidirectional or one bare cell."""

    path: str
    """Module path, "rnn" for a bare layer."""
    module: Any
    """The native module, bound to its variables for linen."""
    directions: tuple[Direction, ...]
    """One, or forward and backward."""
    time_major: bool = False
    reverse: bool = False
    keep_order: bool = False
    return_carry: bool = False
    is_step: bool = False
    """A bare cell: one step, no time axis."""

    @property
    def is_bidirectional(self) -> bool:
        """Whether it merges two directions."""
        return len(self.directions) == 2

    @property
    def feature_rank(self) -> int:
        """How many axes of the input are features (and space)."""
        return len(self.directions[0].input_shape)

    def joined(self) -> Cell | None:
        """The one bidirectional Cell of both directions; None where they do not fit one operator."""
        if not self.is_bidirectional or not all(isinstance(each.body, Cell) for each in self.directions):
            return None
        forward, backward = (each.body for each in self.directions)
        try:
            return Cell.join(forward, reversed_in_time(backward))  # type: ignore[arg-type]
        except NotRepresentable:
            return None

    def cells(self) -> dict[str, Cell]:
        """The cells by the names that an export without lengths gives to their nodes."""
        joined = self.joined()
        if joined is not None:
            return {self.path: joined}
        backwards = [self.reverse, True] if self.is_bidirectional else [self.reverse]
        return {
            each.path: reversed_in_time(each.body) if backward else each.body
            for each, backward in zip(self.directions, backwards, strict=False)
            if isinstance(each.body, Cell)
        }


def reversed_in_time(cell: Cell) -> Cell:
    """The same cell, running from the last step to the first."""
    return replace(cell, direction="reverse")


def all_cells(layers: Sequence[Layer]) -> dict[str, Cell]:
    """The cells of several layers by node name.

    Raises:
        NotRepresentable: a layer that is carried as a Scan and has no Cell.
    """
    for each in (direction for layer in layers for direction in layer.directions):
        if not isinstance(each.body, Cell):
            raise NotRepresentable(f"a {each.kind} of this kind is no ONNX operator, so it has no Cell",
                                   where=each.path, do="export it with to_onnx: it is an exact Scan")  # fmt: skip
    return {name: cell for layer in layers for name, cell in layer.cells().items()}
