"""A stack of cells as a .keras file of native layers."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bridge.cell import Cell
from bridge.errors import NotRepresentable
from bridge.frameworks.keras_build import build


def sequential(cells: Sequence[Cell]) -> Any:
    """A built `keras.Sequential` of native layers, input [batch, time, features].

    Raises:
        NotRepresentable: Keras has no place for a cell, or one only runs backwards.
    """
    import keras

    for at, cell in enumerate(cells):
        if cell.direction == "reverse":
            raise NotRepresentable("a layer of Keras that only runs backwards gives its steps in reverse order",
                                   where=f"layer {at}, {cell.op}",
                                   do="carry the whole model: save what bridge.to_keras(source) gives")  # fmt: skip
    layers = build(list(cells), False)
    stacked = list(layers.layers) if isinstance(layers, keras.Sequential) else [layers]
    return keras.Sequential([keras.Input((None, cells[0].input_size), dtype=cells[0].dtype.name), *stacked])


def save(model: Any, target: Path) -> None:
    """Write a Keras model beside its place and move it there when it is complete."""
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
        temporary = Path(folder) / target.name
        model.save(temporary)
        temporary.replace(target)
