"""The Keras door: what every framework door offers (see `door.Door`), on the jax, torch and tensorflow backends."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bridge.errors import NotRepresentable

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from bridge.cell import Cell
    from bridge.frameworks.door import ExportOptions
    from bridge.frameworks.keras_files import Loaded


def owns(source: object) -> bool:
    """Whether `source` is a Keras layer or model; a path ending in .keras or .h5 counts. Imports nothing."""
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source).lower().endswith((".keras", ".h5"))
    keras = sys.modules.get("keras")
    return keras is not None and hasattr(keras, "layers") and isinstance(source, keras.layers.Layer)


def export(source: Any, options: ExportOptions) -> ir.Model:
    """The ONNX model of a recurrent layer, a cell, a model made of recurrent layers, or a file of one.

    Raises:
        BadInput: not built, or a malformed file.
        Unsupported: another layer or option.
    """
    from bridge.frameworks import keras_export
    from bridge.frameworks.metadata import with_notes

    loaded = _opened(source, options.custom_objects)
    if _is_imported(loaded.model):
        present: ir.Model = loaded.model.origin.present(options)
        return present
    return with_notes(keras_export.export(loaded.model, options), loaded.notes)


def cells(source: Any) -> dict[str, Cell]:
    """Every recurrent cell by the name of its ONNX node.

    Raises:
        NotRepresentable: a layer that is carried as a Scan and has no Cell.
        BadInput: not built, or a malformed file.
        Unsupported: a custom recurrent layer.
    """
    if isinstance(source, (str, os.PathLike)):
        from bridge.frameworks.keras_files import cells_of_file

        return cells_of_file(os.fspath(source))
    if _is_imported(source):
        from bridge.graph import find_cells

        return find_cells(source.origin.present())
    import keras

    from bridge.frameworks import keras_graph
    from bridge.frameworks.keras_read import is_cell, is_recurrent, read_layers

    found = [("", source)] if is_recurrent(source) or is_cell(source) else []
    if isinstance(source, keras.Model):
        found = list(keras_graph.recurrent_layers(source))
    parts = [part for path, layer in found for part in read_layers(layer, path)]
    for part in parts:
        if any(direction.node is None for direction in part.directions):
            raise NotRepresentable("this layer is no ONNX operator, so it has no Cell", where=part.name,
                                   do="export it with to_onnx: it is an exact Scan")  # fmt: skip
    return {name: cell for part in parts for name, cell in part.nodes.items()}


def assign(model: Any, mapping: Mapping[str, Cell | Sequence[Cell]]) -> Any:
    """Put cells into recurrent layers of `model` by path ("" or its own name for a bare layer); all or none.

    Raises:
        UsageError: no such layer, or another number of cells than the layer has directions.
        NotRepresentable: a layer that cannot hold the cell as it is configured.
    """
    from bridge.frameworks import keras_build

    return keras_build.assign(model, mapping)


def build(cells: Sequence[Cell], own_cells: bool = False) -> Any:
    """A native layer with return_sequences=True; Bidirectional for two directions, Sequential for several cells.

    A layer of a reverse cell has go_backwards=True, and its outputs are in the order of computation: last step first.
    In a Sequential the next layer reads them in that order.

    Raises:
        NotRepresentable: the native layer has no place for the cell, and `own_cells` is False.
    """
    from bridge.frameworks import keras_build

    return keras_build.build(cells, own_cells)


def import_model(model: ir.Model, static: Mapping[str, object] | None = None) -> Any:
    """`model` as a keras.Model with native recurrent layers, trainable; called in graph order or by name."""
    from bridge.frameworks import keras_import

    return keras_import.import_model(model, static)


def execute(source: Any, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Keras' own forward pass, inputs and outputs named as `export` names them."""
    from bridge.frameworks import keras_execute

    model = _opened(source, None).model
    if _is_imported(model):
        return keras_execute.execute_imported(model, feeds)
    return keras_execute.execute(model, feeds)


def _is_imported(source: object) -> bool:
    """Whether `source` is a model that bridge imported; where it made none, the module is not loaded."""
    modules = sys.modules.get("bridge.frameworks.keras_modules")
    return modules is not None and bool(modules.is_imported(source))


def _opened(source: Any, custom_objects: Mapping[str, type] | None) -> Loaded:
    """A live model, out of a file where `source` is a path."""
    from bridge.frameworks.keras_files import Loaded, open_file

    if not isinstance(source, (str, os.PathLike)):
        return Loaded(source)
    return open_file(os.fspath(source), custom_objects)
