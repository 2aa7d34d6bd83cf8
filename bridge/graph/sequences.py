"""The time axis: what frameworks do with sequences around a recurrent node, in the few nodes each needs.

T is time, N batch, D directions, H features. Values are ONNX layout 0 (time first) unless a function says otherwise;
`lengths` is int32 [N] with 0 ≤ lengths ≤ T.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    import onnx_ir as ir

    from bridge.graph.writer import Writer

BEFORE_START: Final = -(2**63)
"""A Slice with step -1 that ends here takes in element 0."""


def flip(w: Writer, x: ir.Value, axis: int) -> ir.Value:
    """`x` with `axis` in reversed order."""
    y = w.slice(x, axis, -1, BEFORE_START, -1)
    return w.typed(y, x.shape)


def valid_steps(w: Writer, x: ir.Value, lengths: ir.Value) -> ir.Value:
    """Where [T, N], bool: step t of row n lies before the row's length. `x` is any [T, …] value, for T."""
    steps = w.op("Less", w.unsqueeze(time_steps(w, x), 1), w.unsqueeze(lengths, 0))
    return w.typed(steps, (_dim(x, 0), _dim(lengths, 0)))


def time_steps(w: Writer, x: ir.Value) -> ir.Value:
    """Count 0 … T-1 as int32 [T]."""
    # Counted in int64: of a limit that was cast, onnxruntime may know the number and takes it for int64 then.
    steps = w.op("Range", w.constant(0), w.squeeze(w.dim(x, 0), 0), w.constant(1))
    return w.typed(w.cast(steps, "int32"), (_dim(x, 0),))


def zero_past(w: Writer, y: ir.Value, lengths: ir.Value) -> ir.Value:
    """Put zeros past each length of y [T, N, …]."""
    valid = _over_features(w, valid_steps(w, y, lengths), y)
    return w.typed(w.op("Where", valid, y, _zero(w, y)), y.shape)


def gather_last(w: Writer, y: ir.Value, lengths: ir.Value) -> ir.Value:
    """The last valid step of each row: y [T, N, …] to [N, …]; step 0 of a row of length 0."""
    last = w.op("Sub", w.cast(lengths, "int64"), w.constant(1))
    last = w.op("Max", last, w.constant(0))
    rows = w.op("Range", w.constant(0), w.squeeze(w.dim(y, 1), 0), w.constant(1))
    index = w.concat([w.unsqueeze(last, 1), w.unsqueeze(rows, 1)], 1)
    found = w.op("GatherND", y, index)
    return found if y.shape is None else w.typed(found, y.shape[1:])


def merge_directions(w: Writer, y: ir.Value, *, batch_first: bool = False) -> ir.Value:
    """Y [T, D, N, H] of a recurrent node to [T, N, D*H], forward features first; [N, T, D*H] with `batch_first`."""
    if y.shape is None or not isinstance(y.shape[1], int) or not isinstance(y.shape[3], int):
        directions, hidden = 0, 0
    else:
        directions, hidden = y.shape[1], y.shape[3]
    if directions == 1:
        y = w.squeeze(y, 1)
        return w.transpose(y, (1, 0, 2)) if batch_first else y
    order = (2, 0, 1, 3) if batch_first else (0, 2, 1, 3)
    merged = w.reshape(w.transpose(y, order), (0, 0, directions * hidden or -1))
    return w.typed(merged, (_dim(y, order[0]), _dim(y, order[1]), directions * hidden or None))


def lengths_of_mask(w: Writer, mask: ir.Value) -> ir.Value:
    """int32 [N]: how many steps of the bool mask [N, T] hold. The lengths of a right-padded mask."""
    return w.op("ReduceSum", w.cast(mask, "int32"), w.constant([1]), keepdims=0)


def right_padded(w: Writer, mask: ir.Value) -> ir.Value:
    """A bool scalar: in every row of the mask [N, T], no step holds after one that does not."""
    values = w.cast(mask, "int32")
    earlier = w.slice(values, 1, 0, -1)
    later = w.slice(values, 1, 1, 2**63 - 1)
    rising = w.op("Max", w.op("Sub", later, earlier), w.constant(np.asarray(0, np.int32)))
    count = w.op("ReduceSum", rising, keepdims=0)
    return w.op("Equal", count, w.constant(np.asarray(0, np.int32)))


def _over_features(w: Writer, valid: ir.Value, y: ir.Value) -> ir.Value:
    rank = 3 if y.shape is None else len(y.shape)
    return w.unsqueeze(valid, *range(2, rank)) if rank > 2 else valid


def _zero(w: Writer, like: ir.Value) -> ir.Value:
    return w.constant(np.asarray(0, "float32" if like.dtype is None else like.dtype.numpy()))


def _dim(x: ir.Value, axis: int) -> int | ir.SymbolicDim | None:
    return None if x.shape is None else x.shape[axis]
