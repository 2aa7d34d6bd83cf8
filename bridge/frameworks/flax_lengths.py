"""Flax's own handling of `seq_lengths` as ONNX nodes. Source: flax 0.12.8 nnx/nn/recurrent.py, linen/recurrent.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx_ir as ir

    from bridge.graph.writer import Writer


class Lengths:
    """The graph input `lengths` int32 [N], and what Flax does with it; the nodes they share are written once."""

    def __init__(self, w: Writer, lengths: ir.Value) -> None:
        self._w, self._lengths = w, lengths
        self._clamped: ir.Value | None = None
        self._order: ir.Value | None = None

    def at_least_one(self, x: ir.Value) -> ir.Value:
        """int32 [N]; 0 becomes T, since Flax picks index -1 for an empty sequence: the carry after all steps."""
        if self._clamped is None:
            w = self._w
            steps = w.cast(w.dim(x, 0), "int32")
            empty = w.op("Equal", self._lengths, w.constant(np.zeros(1, np.int32)))
            self._clamped = w.op("Where", empty, steps, self._lengths)
        return self._clamped

    def gather_last(self, y: ir.Value) -> ir.Value:
        """Take y [T, N, ...] at step length - 1 of each sequence: [N, ...]."""
        w = self._w
        last = w.op("Sub", w.cast(self.at_least_one(y), "int64"), w.constant([1]))
        return w.op("GatherND", self._batch_first(y), w.unsqueeze(last, 1), batch_dims=1)

    def flip(self, x: ir.Value) -> ir.Value:
        """Give x [T, N, ...] with each sequence flipped within its length, and the padding behind it flipped too."""
        w = self._w
        if self._order is None:
            steps = w.dim(x, 0)
            last = w.op("Sub", w.squeeze(steps, 0), w.constant(1))
            backwards = w.op("Range", last, w.constant(-1), w.constant(-1))
            shifted = w.op("Add", w.unsqueeze(backwards, 0), w.unsqueeze(w.cast(self._lengths, "int64"), 1))
            self._order = w.unsqueeze(w.op("Mod", shifted, steps), 2)
        flipped = w.op("GatherND", self._batch_first(x), self._order, batch_dims=1)
        return self._batch_first(flipped)

    def _batch_first(self, x: ir.Value) -> ir.Value:
        rank = len(x.shape) if x.shape is not None else 3
        return self._w.transpose(x, [1, 0, *range(2, rank)])
