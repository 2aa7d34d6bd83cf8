"""A Cell as ONNX nodes: the fused operator, or an exact Scan where the operator does not run.

Both take x [T, N, I] and give Y [T, D, N, H], Y_h and, for LSTM, Y_c [D, N, H]. Never layout=1: no kernel of
onnxruntime 1.31.1 has it.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from bridge.errors import BadInput, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx_ir as ir

    from bridge.cell import Cell
    from bridge.graph.writer import Writer

Form = Literal["fused", "scan"]

PATH: Final = "bridge.path"
"""Node metadata: the module path of the cell, its key in `find_cells`."""

CELL: Final = "bridge.cell"
"""Node metadata of a Scan that is a cell: its attributes, and the initialiser of every block, as JSON."""

ARRAYS: Final = ("W", "R", "B", "P", "initial_h", "initial_c")
ATTRIBUTES: Final = (
    "op", "direction", "activations", "activation_alpha", "activation_beta", "clip", "input_forget",
    "linear_before_reset",
)  # fmt: skip


def write_recurrent(
    w: Writer,
    cell: Cell,
    x: ir.Value,
    lengths: ir.Value | None,
    initial_h: ir.Value | None,
    initial_c: ir.Value | None,
    name: str,
    form: Form,
    metadata: Mapping[str, str] | None,
    valid: ir.Value | None = None,
) -> tuple[ir.Value, ir.Value, ir.Value | None]:
    """Write one cell as `form`; float64 is always a Scan (onnxruntime's operators throw on it).

    Args:
        w: the Writer.
        cell: the cell, one or two directions.
        x: [T, N, I] of the cell's dtype.
        lengths: int32 [N], or None for full length. Outputs past a length are 0; a length of 0 gives zero states.
        initial_h: [D, N, H]; the cell's own where None, else zeros.
        initial_c: [D, N, H], LSTM only.
        name: of the node.
        form: "fused" or "scan".
        metadata: of the node; "bridge.path" is `name` where it is not given.
        valid: bool [T, N] in the place of `lengths`, for a Scan: a step that is not valid keeps the state and
            outputs its h.

    Raises:
        UsageError: x or a state has another dtype or size than the cell.
        BadInput: the cell's constant state is made for another batch than x has.
    """
    from bridge.graph.recurrent_scan import write_cell_scan

    if form not in ("fused", "scan"):
        raise UsageError("unknown form", where=f"recurrent {name!r}", got=repr(form), expected="fused or scan")
    _check(cell, x, lengths, initial_h, initial_c, name)
    metadata = {PATH: name, **(metadata or {})}
    given = {"initial_h": initial_h, "initial_c": initial_c}
    arrays = {
        block: w.constant(array, f"{name}.{block}")
        for block in ARRAYS
        if (array := getattr(cell, block)) is not None and given.get(block) is None
    }
    states = {block: expand_state(w, arrays[block], x) for block in given if block in arrays}
    initial_h, initial_c = states.get("initial_h", initial_h), states.get("initial_c", initial_c)
    if valid is not None or form == "scan" or cell.dtype == np.float64:
        return write_cell_scan(w, cell, x, arrays, lengths, initial_h, initial_c, name, metadata, valid)
    return _write_fused(w, cell, x, arrays, lengths, initial_h, initial_c, name, metadata)


def attributes_of(cell: Cell) -> dict[str, Any]:
    """The operator's attributes, without those at their default: CUDA gives a node up for a mere `activations`.

    Lists of alpha and beta hold exactly one value per activation that uses one, which is how onnxruntime reads them.
    """
    found: dict[str, Any] = {"hidden_size": cell.hidden_size}
    if cell.direction != "forward":
        found["direction"] = cell.direction
    if not cell.has_default_activations:
        table = [activation for direction in cell.activation_table() for activation in direction]
        found["activations"] = [activation.name for activation in table]
        found["activation_alpha"] = [a.alpha for a in table if a.alpha is not None] or None
        found["activation_beta"] = [a.beta for a in table if a.beta is not None] or None
    if cell.clip is not None:
        found["clip"] = cell.clip
    if cell.input_forget:
        found["input_forget"] = 1
    if cell.linear_before_reset:
        found["linear_before_reset"] = 1
    return found


def expand_state(w: Writer, state: ir.Value, x: ir.Value) -> ir.Value:
    """A constant state [D, N or 1, H] as [D, N, H]: one row is expanded to the batch of `x` [T, N, I]."""
    batch = None if x.shape is None else x.shape[1]
    directions, rows, hidden = state.shape.numpy() if state.shape is not None else (0, 0, 0)
    if isinstance(batch, int) and rows not in (1, batch):
        raise BadInput("the constant state is made for another batch", where=str(state.name), got=rows, expected=batch)
    if rows > 1 or batch == 1:
        return state
    target = w.concat([w.constant([directions]), w.dim(x, 1), w.constant([hidden])], 0)
    return w.typed(w.op("Expand", state, target, name=f"{state.name}.expanded"), (directions, batch, hidden))


def describe(cell: Cell, arrays: Mapping[str, str]) -> str:
    """The "bridge.cell" of a Scan: attributes and names of initialisers, from which the same Cell is read again."""
    attributes = {name: getattr(cell, name) for name in ATTRIBUTES}
    return json.dumps({**attributes, "arrays": dict(arrays)}, sort_keys=True)


def _write_fused(
    w: Writer,
    cell: Cell,
    x: ir.Value,
    arrays: Mapping[str, ir.Value],
    lengths: ir.Value | None,
    initial_h: ir.Value | None,
    initial_c: ir.Value | None,
    name: str,
    metadata: Mapping[str, str],
) -> tuple[ir.Value, ir.Value, ir.Value | None]:
    inputs = [x, arrays["W"], arrays["R"], arrays.get("B"), lengths, initial_h]
    labels = [f"{name}.Y", f"{name}.Y_h"]
    if cell.op == "LSTM":
        inputs += [initial_c, arrays.get("P")]
        labels += [f"{name}.Y_c"]
    node = w.append(cell.op, inputs, name, labels, metadata, **attributes_of(cell))
    time, batch = (None, None) if x.shape is None else x.shape[:2]
    directions, hidden = cell.num_directions, cell.hidden_size
    for value in node.outputs:
        shape = (directions, batch, hidden)
        w.typed(value, (time, *shape) if value is node.outputs[0] else shape, cell.dtype.name)
    return node.outputs[0], node.outputs[1], node.outputs[2] if cell.op == "LSTM" else None


def _check(
    cell: Cell,
    x: ir.Value,
    lengths: ir.Value | None,
    initial_h: ir.Value | None,
    initial_c: ir.Value | None,
    name: str,
) -> None:
    where = f"recurrent {name!r}"
    if initial_c is not None and cell.op != "LSTM":
        raise UsageError(f"initial_c belongs to LSTM, not {cell.op}", where=where)
    directions, hidden = cell.num_directions, cell.hidden_size
    expected: list[tuple[str, ir.Value | None, str, tuple[int | None, ...]]] = [
        ("x", x, cell.dtype.name, (None, None, cell.input_size)),
        ("lengths", lengths, "int32", (None,)),
        ("initial_h", initial_h, cell.dtype.name, (directions, None, hidden)),
        ("initial_c", initial_c, cell.dtype.name, (directions, None, hidden)),
    ]
    for label, value, dtype, shape in expected:
        if value is None:
            continue
        if value.dtype is not None and value.dtype.numpy() != np.dtype(dtype):
            raise UsageError(f"{label} has the wrong dtype", where=where, got=value.dtype, expected=dtype)
        if value.shape is not None and not _fits(value.shape, shape):
            raise UsageError(f"{label} has the wrong shape", where=where, got=value.shape,
                             expected=[("any" if size is None else size) for size in shape])  # fmt: skip


def _fits(shape: ir.Shape, expected: tuple[int | None, ...]) -> bool:
    if len(shape) != len(expected):
        return False
    return all(not isinstance(size, int) or want in (None, size) for size, want in zip(shape, expected, strict=True))
