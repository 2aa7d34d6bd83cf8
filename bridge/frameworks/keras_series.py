"""Sequences and masks on their way through an exported Keras model: axes are moved once, and only when asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx_ir as ir

    from bridge.graph import Writer

Order = tuple[int, ...]
"""Axes of a value in terms of Keras' own: (1, 0, 2) is time-major, [T, N, F] for Keras' [N, T, F]."""


class Mask:
    """A right-padded mask, as the lengths of the sequences."""

    def __init__(self, w: Writer, lengths: ir.Value) -> None:
        self._w, self.lengths = w, lengths
        self._some: ir.Value | None = None

    def valid(self, x: ir.Value) -> ir.Value:
        """Bool [T, N]: whether a step of `x` [T, N, ...] belongs to its sequence."""
        from bridge.graph import sequences

        return sequences.valid_steps(self._w, x, self.lengths)

    def full(self, x: ir.Value) -> ir.Value:
        """Bool [N]: whether a sequence fills every step of `x` [T, N, ...]."""
        w = self._w
        return w.op("Equal", self.lengths, w.squeeze(w.cast(w.dim(x, 0), "int32"), 0))

    @property
    def some(self) -> ir.Value:
        """Bool [N]: whether a sequence has any valid step."""
        if self._some is None:
            self._some = self._w.op("Greater", self.lengths, self._w.constant(np.asarray(0, np.int32)))
        return self._some

    def choose(self, condition: ir.Value, then: ir.Value, otherwise: ir.Value | None) -> ir.Value:
        """`then` where `condition` (bool, the leading axes of `then`) holds, else `otherwise`; None is zero."""
        w, rank = self._w, len(then.shape or ())
        known = len(condition.shape or ())
        condition = w.unsqueeze(condition, *range(known, rank)) if rank > known else condition
        if otherwise is None:
            otherwise = w.constant(np.asarray(0, "float32" if then.dtype is None else then.dtype.numpy()))
        return w.typed(w.op("Where", condition, then, otherwise), None if then.shape is None else tuple(then.shape))


class Series:
    """A sequence in the graph, in whichever order of axes its reader wants; every order is made once."""

    def __init__(self, make: Callable[[Order], ir.Value], rank: int, mask: Mask | None = None) -> None:
        self._make = make
        self._made: dict[Order, ir.Value] = {}
        self.rank, self.mask = rank, mask

    @classmethod
    def of(cls, w: Writer, value: ir.Value, order: Order, mask: Mask | None = None) -> Series:
        """The sequence that `value` is, its axes in `order`."""

        def make(wanted: Order) -> ir.Value:
            return w.transpose(value, [order.index(axis) for axis in wanted])

        return cls(make, len(order), mask)

    def masked(self, mask: Mask | None) -> Series:
        """The same values under another mask."""
        return Series(self.in_order, self.rank, mask)

    def in_order(self, order: Order) -> ir.Value:
        """The value with its axes in `order`."""
        if order not in self._made:
            self._made[order] = self._make(order)
        return self._made[order]

    @property
    def batch_major(self) -> ir.Value:
        """As Keras has it, [N, T, ...]."""
        return self.in_order(tuple(range(self.rank)))
