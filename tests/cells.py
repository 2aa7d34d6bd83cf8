"""Random cells for tests: asymmetric weights, non-zero biases, nothing saturated."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from bridge.cell import GATES, Cell

OPS = tuple(GATES)


def random_cell(
    kind: str,
    inputs: int,
    hidden: int,
    rng: np.random.Generator,
    *,
    dtype: str = "float32",
    direction: str = "forward",
    bias: bool = True,
    peepholes: bool = False,
    initial_h: int = 0,
    initial_c: int = 0,
    **attributes: Any,
) -> Cell:
    """A random Cell of an operator ("LSTM", "GRU", "RNN"), or one that a layout ("torch.LSTM") can hold.

    `initial_h` and `initial_c` are the batch of a constant initial state (1 serves every batch), 0 for none.
    `attributes` are Cell's own (activations, clip, input_forget, linear_before_reset, ...), or a layout's options.
    """
    if kind not in GATES:
        return _cell_of_layout(kind, inputs, hidden, rng, dtype=dtype, direction=direction, **attributes)
    shapes = _shapes(kind, inputs, hidden, directions=2 if direction == "bidirectional" else 1)
    absent = {"B": not bias, "P": not peepholes, "initial_h": not initial_h, "initial_c": not initial_c}
    arrays = {name: uniform(rng, shape, hidden, dtype) for name, shape in shapes.items() if not absent.get(name)}
    for name, batch in (("initial_h", initial_h), ("initial_c", initial_c)):
        if batch:
            directions, _, units = shapes[name]
            arrays[name] = rng.uniform(-0.9, 0.9, (directions, batch, units)).astype(dtype)
    return Cell(kind, direction=direction, **arrays, **attributes)


def random_input(cell: Cell, rng: np.random.Generator, *, time: int = 5, batch: int = 3) -> np.ndarray:
    """A standard normal X [time, batch, I] in the cell's dtype."""
    return rng.standard_normal((time, batch, cell.input_size)).astype(cell.dtype)


def uniform(rng: np.random.Generator, shape: tuple[int, ...], hidden: int, dtype: str = "float32") -> np.ndarray:
    """Values in +-1/sqrt(hidden), the initialisation of torch: sums over H terms stay near 1."""
    bound = 1.0 / np.sqrt(hidden)
    return rng.uniform(-bound, bound, shape).astype(dtype)


def _shapes(op: str, inputs: int, hidden: int, directions: int) -> dict[str, tuple[int, ...]]:
    rows = len(GATES[op]) * hidden
    return {
        "W": (directions, rows, inputs),
        "R": (directions, rows, hidden),
        "B": (directions, 2 * rows),
        "P": (directions, 3 * hidden),
        "initial_h": (directions, 0, hidden),
        "initial_c": (directions, 0, hidden),
    }


def _cell_of_layout(
    layout: str, inputs: int, hidden: int, rng: np.random.Generator, *, dtype: str, direction: str, **options: Any
) -> Cell:
    """Read random parameters of the shapes that a layer has.

    So whatever the layout lacks (a bias, an independent gate) is missing from the cell by construction.
    """
    from bridge.layout import read_params, template

    empty = template(layout, inputs, hidden, dtype=dtype, **options)
    params = {name: uniform(rng, zeros.shape, hidden, dtype) for name, zeros in empty.params.items()}
    return replace(read_params(layout, params, **empty.options), direction=direction)
