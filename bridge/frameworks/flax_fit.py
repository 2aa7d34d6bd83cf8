"""Cells into native Flax cells: which cell holds a Cell, and what a cell that exists must be given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final, Literal

import numpy as np

from bridge.cell import Cell
from bridge.errors import NotRepresentable, UsageError

Api = Literal["nnx", "linen"]

NATIVE: Final = MappingProxyType(
    {("nnx", "LSTM"): "flax.nnx.OptimizedLSTMCell", ("nnx", "GRU"): "flax.nnx.GRUCell",
     ("nnx", "RNN"): "flax.nnx.SimpleCell", ("linen", "LSTM"): "flax.linen.OptimizedLSTMCell",
     ("linen", "GRU"): "flax.linen.GRUCell", ("linen", "RNN"): "flax.linen.SimpleCell"}
)  # fmt: skip
"""The native cell that each operator becomes, where it can hold the recurrence."""


@dataclass(frozen=True, slots=True, eq=False)
class NativeCell:
    """One direction of one recurrent node: the cell that holds it, and its parameters in native names."""

    layout: str
    options: Mapping[str, Any]
    params: Mapping[str, np.ndarray]
    """Of the layout; with the learned carry initial_h, initial_c [H] or [N, H] where bridge's own cell has one."""
    cell: Cell
    """The forward Cell, without initial states."""

    @property
    def carry_options(self) -> dict[str, Any]:
        """What tells bridge's own cell how it learns its carry; nothing for one that begins from zeros."""
        carry = self.params.get("initial_h")
        return {} if carry is None else {"learned_carry": True, "carry_batch": len(carry) if carry.ndim == 2 else None}


def fit_cell(cell: Cell, api: Api, *, preferred: str = "", own_cells: bool = True) -> NativeCell:
    """The cell that holds the recurrence of one direction: native, or bridge's own with `own_cells`.

    `preferred` (what a file says that it was; "" for nothing) is taken first, where it gives the same bits back.
    Initial states are left out.

    Raises:
        NotRepresentable: no native cell holds it, and `own_cells` is False.
    """
    from bridge.layout import fit, layouts, read_params

    plain = replace(cell, direction="forward", initial_h=None, initial_c=None)
    if preferred in layouts() and preferred.startswith((f"flax.{api}.", "bridge.")):
        kept = _try(preferred, plain)
        if kept is not None and read_params(preferred, kept.params, **kept.options) == plain:
            return kept
    if own_cells:
        native = _try(NATIVE[api, cell.op], plain)
        if native is not None:
            return native
    layout = f"bridge.{cell.op}Cell" if own_cells else NATIVE[api, cell.op]
    found = fit(layout, plain)
    return NativeCell(layout, found.options, found.params, plain)


def _try(layout: str, cell: Cell) -> NativeCell | None:
    from bridge.layout import fit

    try:
        found = fit(layout, cell)
    except NotRepresentable:
        return None
    return NativeCell(layout, found.options, found.params, cell)


def fit_with_carry(cell: Cell, api: Api, own_cells: bool) -> NativeCell:
    """As fit_cell, for a layer of its own: a constant initial state becomes a learned carry of bridge's own cell.

    Raises:
        NotRepresentable: a constant initial state and `own_cells` is False, or no cell at all.
    """
    from bridge.layout import fit

    states = carry_params(cell)
    if not states:
        return fit_cell(cell, api, own_cells=own_cells)
    layout = f"bridge.{cell.op}Cell"
    if not own_cells:
        raise NotRepresentable(
            f"the cell has a constant {' and '.join(states)} and {NATIVE[api, cell.op]} has no place for it",
            where=f"flax.{api}", do=f'build(cell, "flax.{api}", own_cells=True): bridge\'s own cell learns its carry',
        )  # fmt: skip
    plain = replace(cell, direction="forward", initial_h=None, initial_c=None)
    found = fit(layout, plain)
    return NativeCell(layout, found.options, {**found.params, **states}, plain)


def carry_params(cell: Cell) -> dict[str, np.ndarray]:
    """The constant initial states of one direction as a learned carry, [H] or [N, H]; nothing for zeros."""
    given = {name: getattr(cell, name) for name in ("initial_h", "initial_c")[: 2 if cell.op == "LSTM" else 1]}
    if not any(state is not None and np.any(state) for state in given.values()):
        return {}
    rows = max(1 if state is None else state.shape[1] for state in given.values())
    filled = {name: np.zeros((1, cell.hidden_size), cell.dtype) if state is None else state[0]
              for name, state in given.items()}  # fmt: skip
    wide = {name: np.broadcast_to(state, (rows, cell.hidden_size)) for name, state in filled.items()}
    return {name: np.ascontiguousarray(state[0] if rows == 1 else state) for name, state in wide.items()}


def refit(
    cell: Cell, layout: str, options: Mapping[str, Any], current: Mapping[str, Any], has_carry: bool, where: str
) -> dict[str, np.ndarray]:
    """The parameters that make an existing cell compute `cell`, in the shapes and dtypes of `current`.

    Raises:
        NotRepresentable: the existing cell has no place for it, other sizes, or a narrower dtype.
    """
    from bridge.layout import fit

    carry = carry_params(cell) if layout.startswith("bridge.") else {}
    if carry and not has_carry:
        raise NotRepresentable(f"the cell has a constant {' and '.join(carry)} and this one learns no carry",
                               where=where, do="create it with learned_carry=True")  # fmt: skip
    plain = replace(cell, direction="forward")
    if carry:
        plain = replace(plain, initial_h=None, initial_c=None)
    params: dict[str, np.ndarray] = dict(fit(layout, plain, **options).params)
    if has_carry:
        zeros = {
            name: np.zeros_like(np.asarray(current[name])) for name in ("initial_h", "initial_c") if name in current
        }
        params |= zeros | carry
    if set(params) != set(current):
        raise NotRepresentable("this cell has other parameters", where=where, got=", ".join(sorted(current)),
                               expected=", ".join(sorted(params)))  # fmt: skip
    for name, value in params.items():
        shape, dtype = tuple(current[name].shape), np.dtype(current[name].dtype)
        if value.shape != shape:
            raise NotRepresentable(f"{name} has another shape", where=where, got=list(shape),
                                   expected=list(value.shape))  # fmt: skip
        if not np.can_cast(value.dtype, dtype, "safe"):
            raise NotRepresentable(f"{name} is {dtype} and the cell {value.dtype}, which it would round", where=where)
    return {name: value.astype(current[name].dtype, copy=False) for name, value in params.items()}


def per_direction(cells: Cell | Sequence[Cell], directions: Sequence[bool | None], where: str) -> list[Cell]:
    """One cell for each direction of a layer; `directions` say which run in reverse (None: a bare step, either).

    Raises:
        UsageError: another number of directions.
        NotRepresentable: a cell that runs the other way.
    """
    listed = [cells] if isinstance(cells, Cell) else list(cells)
    halves = [half for cell in listed for half in cell.split()]
    if len(halves) != len(directions):
        raise UsageError("wrong number of cells", where=where, got=f"{len(halves)} directions",
                         expected=len(directions))  # fmt: skip
    for half, reverse in zip(halves, directions, strict=True):
        if len(directions) == 1 and reverse is not None and (half.direction == "reverse") != reverse:
            raise NotRepresentable(f"the cell runs {half.direction} and this layer the other way", where=where,
                                   do="replace(cell, direction=...), or set reverse on the layer")  # fmt: skip
    return halves
