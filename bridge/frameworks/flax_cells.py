"""A Flax cell of either API as a Cell: which layout it is, its activations, the dtype that it computes in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from bridge.cell import Cell
from bridge.errors import Unsupported
from bridge.frameworks.flax_activations import activation_of
from bridge.frameworks.flax_scan_activations import ActivatedCell, expression_of

if TYPE_CHECKING:
    from bridge.frameworks.flax_scan_activations import Expression

FUNCTIONS: Final = ("gate_fn", "activation_fn")
FLAGS: Final = ("residual", "reset_gate")


def layout_options(layout: str, cell: Any, where: str, *, named: bool = True) -> dict[str, Any]:
    """The options that `layout` must be told beside the parameters of the native or own `cell`.

    Activations stay at the layout's own where `named` is False.

    Raises:
        Unsupported: an activation that the ONNX recurrent operators do not have.
    """
    if layout.startswith("bridge."):
        return dict(cell.options)
    functions = [name for name in FUNCTIONS if named and hasattr(cell, name)]
    options: dict[str, Any] = {name: activation_of(getattr(cell, name), where) for name in functions}
    return options | {name: bool(getattr(cell, name)) for name in FLAGS if hasattr(cell, name)}


def read_cell(
    layout: str, cell: Any, params: Mapping[str, Any], initial: Sequence[np.ndarray] | None, where: str
) -> Cell | ActivatedCell:
    """What `cell` computes, as a forward recurrence; `initial` are its constant initial states, h first.

    Raises:
        Unsupported: a dtype that is not carried, an activation that has no ONNX expression.
        BadInput: missing or unexpected parameters, shapes that disagree.
    """
    from bridge.layout import read_params

    arrays = computed(params, getattr(cell, "dtype", None), where)
    expressions = other_activations(layout, cell, where)
    found = read_params(layout, arrays, **layout_options(layout, cell, where, named=expressions is None))
    if initial is not None:
        h, *c = (value.astype(found.dtype)[None] for value in initial)
        found = replace(found, initial_h=h, initial_c=c[0] if c else None)
    return found if expressions is None else ActivatedCell(cell=found, gate=expressions[0], candidate=expressions[1])


def other_activations(layout: str, cell: Any, where: str) -> tuple[Expression, Expression] | None:
    """The gates' and the candidate's activations where the operator lacks one of them; None where it has them.

    Raises:
        Unsupported: a function that has no ONNX expression either.
    """
    if layout.startswith("bridge."):
        return None
    functions = [getattr(cell, name) for name in FUNCTIONS if hasattr(cell, name)]
    try:
        for function in functions:
            activation_of(function, where)
    except Unsupported:
        found = [expression_of(function) for function in functions]
        known = [expression for expression in found if expression is not None]
        if len(known) < len(found) or (hasattr(cell, "reset_gate") and not cell.reset_gate):
            raise
        return known[0], known[-1]
    return None


def computed(params: Mapping[str, Any], dtype: Any, where: str) -> dict[str, np.ndarray]:
    """The parameters as numpy, in the dtype that the cell computes in.

    Raises:
        Unsupported: bfloat16, or a cell that rounds its parameters to a narrower dtype.
    """
    arrays = {name: np.asarray(value) for name, value in params.items()}
    wanted = np.result_type(*arrays.values()) if dtype is None else np.dtype(dtype)
    for name, array in arrays.items():
        if "bfloat16" in (array.dtype.name, wanted.name):
            raise Unsupported(f"{name}: bfloat16, which no kernel of onnxruntime computes", where=where,
                              expected="float16, float32 or float64",
                              do="convert the parameters to float32")  # fmt: skip
        if array.dtype != wanted and not np.can_cast(array.dtype, wanted, "safe"):
            raise Unsupported(f"{name} is {array.dtype} and the cell computes in {wanted}, which rounds it",
                              where=where, do=f"store the parameters as {wanted} first, or drop dtype=")  # fmt: skip
    return {name: array.astype(wanted, copy=False) for name, array in arrays.items()}


def constant_states(initialize: Callable[[int, int], Sequence[Any]], where: str) -> list[np.ndarray] | None:
    """The constant initial states [1 or N, ...] that `initialize(seed, batch)` draws, h first; None for zeros.

    Raises:
        Unsupported: an initial carry that is random, or differs from row to row.
    """
    first, other = ([np.asarray(state) for state in initialize(seed, 3)] for seed in (0, 1))
    rows = [state[:1] for state in first]
    for row, a, b in zip(rows, first, other, strict=True):
        if not (np.array_equal(a, b) and np.array_equal(a, np.broadcast_to(row, a.shape))):
            raise Unsupported("the initial carry is random or not the same for every row of a batch", where=where,
                              do="export with states=\"inputs\"")  # fmt: skip
    return rows if any(np.any(row) for row in rows) else None
