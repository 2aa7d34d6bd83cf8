"""Cells into nnx modules: the caller's own, or fresh native layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx

from bridge.cell import Cell
from bridge.errors import NotRepresentable
from bridge.frameworks.flax_assign import Places, Writes
from bridge.frameworks.flax_cells import layout_options
from bridge.frameworks.flax_fit import fit_with_carry, refit
from bridge.frameworks.flax_nnx_cells import OwnCell
from bridge.frameworks.flax_nnx_import import native_cell
from bridge.frameworks.flax_nnx_read import LAYERS, LAYOUTS, recurrent_modules


def build_layers(cells: Sequence[Cell], own_cells: bool) -> Any:
    """nnx.RNN for a Cell of one direction, nnx.Bidirectional for two, nnx.Sequential of them for several Cells.

    Raises:
        NotRepresentable: no native cell holds a Cell, and `own_cells` is False.
    """
    layers = [_build_layer(cell, own_cells) for cell in cells]
    return layers[0] if len(layers) == 1 else nnx.Sequential(*layers)


def _build_layer(cell: Cell, own_cells: bool) -> Any:
    halves = [native_cell(fit_with_carry(half, "nnx", own_cells)) for half in cell.split()]
    if len(halves) == 2:
        return nnx.Bidirectional(*map(nnx.RNN, halves))
    reverse = cell.direction == "reverse"
    return nnx.RNN(halves[0], reverse=reverse, keep_order=reverse)


def assign_cells(model: Any, mapping: Mapping[str, Cell | Sequence[Cell]]) -> Any:
    """Write cells into the recurrent modules of `model` at the given paths, all of them or none.

    Raises:
        UsageError: a path that is no recurrent module, or another number of cells than it has.
        NotRepresentable: a module that has no place for its cell.
    """
    writes: Writes = []
    for path, cells in mapping.items():
        writes += PLACES.writes(model, path, cells)
    for variable, value in writes:
        variable.set_value(jnp.asarray(value))
    return model


def _cell_writes(module: Any, cell: Cell, path: str) -> Writes:
    layout = LAYOUTS.get(type(module))
    if layout is None:
        raise NotRepresentable("this cell may compute anything", where=path, got=type(module).__name__)
    state = nnx.to_flat_state(nnx.state(module, nnx.Param))
    names = {".".join(map(str, key)): key for key, _ in state}
    current = {name: _at(module, key) for name, key in names.items()}
    has_carry = isinstance(module, OwnCell) and module.initial_h is not None
    options = layout_options(layout, module, path)
    values = {name: variable[...] for name, variable in current.items()}
    return [(current[name], value) for name, value in refit(cell, layout, options, values, has_carry, path).items()]


def _at(module: Any, key: Sequence[Any]) -> Any:
    for part in key:
        module = getattr(module, str(part))
    return module


PLACES = Places(sequential=nnx.Sequential, bidirectional=nnx.Bidirectional, rnn=nnx.RNN, layers=LAYERS,
                item="layers.{}", modules=recurrent_modules, of_cell=_cell_writes)  # fmt: skip
