"""What a Flax recurrent layer is, whichever of the two APIs it comes from: the reading side of both Flax doors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bridge.cell import Cell
from bridge.errors import NotRepresentable, Unsupported
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
    pair: Cell | None = None
    """What `joined` gives, where an earlier call of the same layer has asked: its weights are the same arrays."""

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
        if self.pair is not None:
            return self.pair
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """How the layers of one API are read: linen and nnx have the same classes under the same names."""

    api: Any
    """The module that holds RNN, Bidirectional and RNNCellBase."""
    name: str
    """How a person calls it: "nn" or "nnx"."""
    concatenate: Callable[..., Any]
    """The API's own default of merge_fn."""
    rnn: Callable[[Any, str], Direction]
    """Reads an RNN at a path."""
    cell: Callable[[Any, str], Direction]
    """Reads a cell at a path."""

    def layer(self, module: Any, path: str) -> Layer:
        """One RNN, Bidirectional or bare cell; of linen, bound to its variables.

        Raises:
            Unsupported: a subclass with its own forward, or a merge function of the caller's own.
        """
        if isinstance(module, self.api.RNNCellBase):
            return Layer(path=path, module=module, directions=(self.cell(module, path),), is_step=True)
        if type(module) is self.api.RNN:
            return Layer(path=path, module=module, directions=(self.rnn(module, path),),
                         time_major=bool(module.time_major), reverse=bool(module.reverse),
                         keep_order=bool(module.keep_order), return_carry=bool(module.return_carry))  # fmt: skip
        if type(module) is not self.api.Bidirectional:
            raise Unsupported("a subclass may compute anything", where=path, got=type(module).__name__,
                              do=f"use {self.name}.RNN or {self.name}.Bidirectional itself")  # fmt: skip
        if module.merge_fn is not self.concatenate:
            raise Unsupported("merge_fn is a function of the caller's own", where=path,
                              got=getattr(module.merge_fn, "__name__", repr(module.merge_fn)),
                              expected="the default, which concatenates",
                              do="export both RNNs and merge outside")  # fmt: skip
        parts = {"forward_rnn": module.forward_rnn, "backward_rnn": module.backward_rnn}
        for name, rnn in parts.items():
            if type(rnn) is not self.api.RNN:
                raise Unsupported(f"{name} is {_described(rnn)}", where=path, expected=f"{self.name}.RNN")
        directions = tuple(self.rnn(rnn, f"{path}.{name}") for name, rnn in parts.items())
        return Layer(path=path, module=module, directions=directions, time_major=bool(module.time_major),
                     return_carry=bool(module.return_carry))  # fmt: skip


def _described(thing: object) -> str:
    """What a refusal calls a module or a function."""
    return getattr(thing, "__name__", None) or type(thing).__name__


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
