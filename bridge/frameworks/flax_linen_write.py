"""Cells into linen variables: the caller's own, or those of fresh native layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from flax.core import FrozenDict, freeze, meta

from bridge.cell import Cell
from bridge.errors import NotRepresentable
from bridge.frameworks.flax_assign import Places, Writes
from bridge.frameworks.flax_cells import layout_options
from bridge.frameworks.flax_fit import NativeCell, fit_with_carry, refit
from bridge.frameworks.flax_linen_cells import OwnCell
from bridge.frameworks.flax_linen_import import empty_cell, nested
from bridge.frameworks.flax_linen_read import LAYERS, LAYOUTS, bind, parameters, recurrent_modules

Pair = tuple[nn.Module, Mapping[str, Any]]


def build_layers(cells: Sequence[Cell], own_cells: bool) -> Pair:
    """nn.RNN for a Cell of one direction, nn.Bidirectional for two, nn.Sequential of them for several; with variables.

    Raises:
        NotRepresentable: no native cell holds a Cell, and `own_cells` is False.
    """
    built = [_build_layer(cell, own_cells) for cell in cells]
    if len(built) == 1:
        module, params = built[0]
        return module, {"params": params}
    layers = nn.Sequential([module for module, _ in built])
    return layers, {"params": {f"layers_{at}": params for at, (_, params) in enumerate(built)}}


def _build_layer(cell: Cell, own_cells: bool) -> tuple[nn.Module, dict[str, Any]]:
    natives = [fit_with_carry(half, "linen", own_cells) for half in cell.split()]
    params = [{"cell": nested(native.params)} for native in natives]
    if len(natives) == 2:
        module = nn.Bidirectional(*(nn.RNN(_empty(native)) for native in natives))
        return module, dict(zip(("forward_rnn", "backward_rnn"), params, strict=True))
    reverse = cell.direction == "reverse"
    return nn.RNN(_empty(natives[0]), reverse=reverse, keep_order=reverse), params[0]


def _empty(native: NativeCell) -> Any:
    return empty_cell(native, **native.carry_options)


def assign_cells(model: Pair, mapping: Mapping[str, Cell | Sequence[Cell]]) -> Pair:
    """The same module with new variables that hold cells at the given paths.

    Raises:
        UsageError: a path that is no recurrent module, or another number of cells than it has.
        NotRepresentable: a module that has no place for its cell.
    """
    module, variables = model
    bound = bind((module, variables))
    writes: Writes = []
    for path, cells in mapping.items():
        writes += PLACES.writes(bound, path, cells)
    params = _copied(variables["params"])
    for keys, value in writes:
        inner = params
        for key in keys[:-1]:
            inner = inner[key]
        old = inner[keys[-1]]
        inner[keys[-1]] = meta.replace_boxed(old, jnp.asarray(value)) if isinstance(old, meta.AxisMetadata) \
            else jnp.asarray(value)  # fmt: skip
    changed = {**variables, "params": params}
    return module, freeze(changed) if isinstance(variables, FrozenDict) else changed


def _copied(params: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _copied(value) if isinstance(value, Mapping) else value for name, value in params.items()}


def _cell_writes(cell: Any, wanted: Cell, path: str) -> Writes:
    layout = LAYOUTS.get(type(cell))
    if layout is None:
        raise NotRepresentable("this cell holds no ONNX recurrence", where=path, got=type(cell).__name__)
    current = parameters(cell)
    has_carry = isinstance(cell, OwnCell) and cell.learned_carry
    if has_carry:
        held = meta.unbox(cell.variables["params"])
        current |= {name: held[name] for name in ("initial_h", "initial_c") if name in held}
    values = refit(wanted, layout, layout_options(layout, cell, path), current, has_carry, path)
    return [((*cell.path, *name.split(".")), value) for name, value in values.items()]


PLACES = Places(sequential=nn.Sequential, bidirectional=nn.Bidirectional, rnn=nn.RNN, layers=LAYERS, item="layers_{}",
                modules=recurrent_modules, of_cell=_cell_writes)  # fmt: skip
