"""Whole models out of h5 files of Keras 1 and 2, with the meaning that they had there, as live Keras 3 models.

Keras 3's own loader refuses many of these files, and reads others with other numbers: it takes hard_sigmoid for its
own, and reset_after for True. Here the configuration is read as plain JSON, the layers are made one by one, and what
has no place in Keras 3 is refused by name. Nothing in the file is ever executed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bridge.errors import BadInput, Unsupported
from bridge.frameworks.keras_files import Loaded, check_classes, loaded_by_keras
from bridge.frameworks.keras_h5_files import FileVersion, file_version, model_document, refuse_links

MALFORMED = (TypeError, ValueError, AttributeError, LookupError, ArithmeticError)
"""What comes of reading values of other types than a configuration has."""


def load_legacy(path: str, custom_objects: Mapping[str, Any] | None = None) -> Loaded:
    """The model in an h5 file of any Keras.

    A file of weights alone gives its recurrent layers, one on the other: inputs [batch, time, features], outputs the
    last layer's sequence and its final states.

    Args:
        path: of the file.
        custom_objects: classes of layers, and activations, that the file may name.

    Raises:
        BadInput: a malformed file.
        Unsupported: a class, an option or code that is not carried, or weights alone of more than recurrent layers.
        MissingExtra: h5py is not installed.
    """
    import h5py

    try:
        with h5py.File(path, "r") as file:
            refuse_links(file, path)
            version, document = file_version(file), model_document(file, path)
            if document is not None and version.numbers[:1] < (3,):
                return _whole(file, path, document, version, custom_objects or {})
        if document is None:
            return _weights_alone(path)
        check_classes(document, path, custom_objects or {})
        return loaded_by_keras(path, custom_objects)
    except (OSError, RuntimeError, KeyError, RecursionError) as error:
        raise BadInput(
            "not a readable h5 file", where=path, got=str(error), do="check the path, or save it again"
        ) from error


def _whole(file: Any, path: str, document: Any, version: FileVersion, custom_objects: Mapping[str, Any]) -> Loaded:
    from bridge.frameworks.keras_legacy.graph import make_model
    from bridge.frameworks.keras_legacy.options import Scope
    from bridge.frameworks.keras_legacy.weights import fill, read_weights
    from bridge.frameworks.keras_read import no_copy_warning

    weights = read_weights(file, path)
    sizes = frozenset(size for stored in weights.values() for one in stored for size in one.array.shape)
    # Kernels hold several gates side by side, CuDNN's biases two rows of them.
    sizes |= {size // gates for size in sizes for gates in (3, 4, 6, 8) if size % gates == 0}
    scope = Scope(path, version, custom_objects, sizes)
    try:
        with no_copy_warning():
            built = make_model(document, scope)
    except MALFORMED as error:
        raise BadInput(f"the configuration is malformed: {error}", where=path) from error
    fill(built, weights, path)
    return Loaded(built.layer, tuple(dict.fromkeys(scope.notes)))


# ---------------------------------------------------------------------- weights alone


def _weights_alone(path: str) -> Loaded:
    import keras

    from bridge.frameworks import keras_build
    from bridge.frameworks.keras_h5 import read_h5
    from bridge.frameworks.keras_legacy.options import safe_name

    found = read_h5(path)
    if not found.cells:
        raise BadInput("no recurrent weights, and no model", where=path)
    if found.others:
        raise Unsupported("the file holds weights alone, and not what lies between its layers", where=path,
                          got=", ".join(found.others[:5]),
                          do="make the model in Keras and load its weights, or take bridge.cells(path)")  # fmt: skip
    cells = list(found.cells.items())
    x = start = keras.Input((None, cells[0][1].input_size), dtype=cells[0][1].dtype.name, name="input")
    for name, cell in cells:
        if x.shape[-1] != cell.input_size:
            raise Unsupported("the layers do not chain into one stack", where=f"{path}: {name}",
                              got=f"{x.shape[-1]} features into {cell.input_size} inputs",
                              do="take the cells: bridge.cells(path)")  # fmt: skip
        last = name == cells[-1][0]
        layer = keras_build.layer_of(cell, own_cells=True, name=safe_name(name), return_state=last)
        outputs = layer(x)
        x = outputs[0] if last else outputs
    said = "weights alone: the recurrent layers of the file one on the other, each returning its whole sequence"
    return Loaded(keras.Model(start, outputs, name="stack"), (said, *found.notes))
