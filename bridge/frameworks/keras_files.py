"""Keras files: .keras in safe mode, and .h5. Nothing in a file is ever executed."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bridge.cell import Cell
from bridge.errors import BadInput, Unsupported
from bridge.frameworks.keras_read import no_copy_warning

EXECUTABLE = ("Lambda", "__lambda__", "TorchModuleWrapper", "TFSMLayer", "JaxLayer", "FlaxLayer")
"""Classes whose configuration holds code, or names a file that does."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model out of a file, and what had to be decided to read it."""

    model: Any
    notes: tuple[str, ...] = ()


MODULES = ("keras", "builtins")
"""Where classes that a file names may come from; others only as custom_objects."""


def load(path: str, custom_objects: Mapping[str, type] | None) -> Any:
    """The model in a .keras or .h5 file.

    Raises:
        BadInput: malformed.
        Unsupported: classes that are not Keras' own and not given, or code.
    """
    return open_file(path, custom_objects).model


def open_file(path: str, custom_objects: Mapping[str, type] | None) -> Loaded:
    """As `load`, with what had to be decided to read the file."""
    if path.lower().endswith(".h5"):
        from bridge.frameworks.keras_legacy.loading import load_legacy

        return load_legacy(path, custom_objects)
    _check_archive(path, custom_objects or {})
    return loaded_by_keras(path, custom_objects)


def loaded_by_keras(path: str, custom_objects: Mapping[str, type] | None) -> Loaded:
    """What Keras itself makes of a file, once nothing in it is code.

    Raises:
        BadInput: Keras cannot load it.
    """
    import keras

    from bridge.frameworks import keras_registered  # noqa: F401 (registered with Keras by importing)

    try:
        with no_copy_warning():
            model = keras.saving.load_model(
                path, custom_objects=dict(custom_objects or {}), compile=False, safe_mode=True
            )
    except (ValueError, TypeError, LookupError, OSError, AttributeError, NotImplementedError, zipfile.BadZipFile
            ) as error:  # fmt: skip
        raise BadInput(f"Keras cannot load this file: {error}", where=path) from error
    return Loaded(model)


def cells_of_file(path: str) -> dict[str, Cell]:
    """Every recurrent cell of a .keras or .h5 file by layer path."""
    if path.lower().endswith(".h5"):
        from bridge.frameworks.keras_h5 import read_h5

        return dict(read_h5(path).cells)
    from bridge.frameworks import keras

    return keras.cells(load(path, None))


def _check_archive(path: str, custom_objects: Mapping[str, type]) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
            if "config.json" not in names or not {"model.weights.h5", "model.weights.npz"} & names:
                raise BadInput("not a .keras file", where=path, got=", ".join(sorted(names)[:5]) or "an empty archive",
                               expected="config.json and model.weights.h5")  # fmt: skip
            config = json.loads(archive.read("config.json"))
    except (
        OSError,
        zipfile.BadZipFile,
        ValueError,
        NotImplementedError,
        RecursionError,
        RuntimeError,
        EOFError,
        zlib.error,
    ) as error:
        raise BadInput(
            "not a readable .keras file", where=path, got=str(error), do="check the path, or save it again"
        ) from error
    check_classes(config, path, custom_objects)


def check_classes(config: Any, path: str, custom_objects: Mapping[str, type]) -> None:
    """Refuse a configuration that holds code or names a class from elsewhere.

    Raises:
        Unsupported: the class is named.
    """
    for module, name, registered in _classes(config):
        given = name in custom_objects or registered in custom_objects
        if name in EXECUTABLE:
            raise Unsupported(f"the file holds a {name}, which is code, and bridge runs none", where=path,
                              do="replace it by a layer of Keras")  # fmt: skip
        if module is not None and module.partition(".")[0] not in MODULES and not given:
            raise Unsupported(f"the file names the class {module}.{name}", where=path,
                              do="pass it as custom_objects")  # fmt: skip


def _classes(node: Any) -> Iterator[tuple[str | None, str, str]]:
    """(module, class name, registered name) of every object in a configuration."""
    pending = [node]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            if isinstance(item.get("class_name"), str):
                module = item.get("module")
                registered = str(item.get("registered_name") or "")
                own = registered.startswith("bridge>")  # bridge's own cells, which are code of this package
                yield None if own or not isinstance(module, str) else module, item["class_name"], registered
            pending += item.values()
        elif isinstance(item, list):
            pending += item
