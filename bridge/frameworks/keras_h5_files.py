"""What an h5 file of Keras says about itself, and the guards around reading it. Only arrays and plain JSON are read.

Source: tf-keras 2.16.0 tf_keras/saving/legacy/hdf5_format.py.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from bridge.errors import BadInput

LARGEST_EXPANSION: Final = 1000
"""A dataset may be this many times larger than the file that holds it: weights hardly compress."""


RESET_AFTER_NOTE: Final = "reset_after is not recorded, so it is False; Keras 3 would take True"


@dataclass(frozen=True, slots=True)
class FileVersion:
    """The Keras that wrote a file."""

    text: str
    """As the file has it; "" where it has none."""
    numbers: tuple[int, ...]

    @property
    def vocabulary(self) -> str:
        """Whose names its activations are."""
        return "keras" if self.numbers[:1] >= (3,) else "keras2"

    @property
    def is_multi_backend(self) -> bool:
        """Whether it is Keras before TensorFlow took it over, at 2.4; TensorFlow's own said -tf until then."""
        return (0,) < self.numbers < (2, 4) and not self.text.endswith("-tf")

    @property
    def recurrent_activation(self) -> str | None:
        """The default of LSTM and GRU; None where the version does not tell."""
        if not self.numbers or self.text == "2.2.4-tf" or (self.text.endswith("-tf") and self.numbers < (2, 2, 4)):
            return None
        return "hard_sigmoid" if self.numbers < (2, 3) else "sigmoid"


def file_version(file: Any) -> FileVersion:
    """The `keras_version` of an open file, which older Keras keeps beside the weights too."""
    for group in (file, file.get("model_weights", {})):
        text = text_of(getattr(group, "attrs", {}).get("keras_version", ""))
        if text:
            return FileVersion(text, tuple(int(part) for part in re.findall(r"\d+", text.partition("-")[0])[:3]))
    # Keras 3 writes no version into .weights.h5; no older Keras has these groups.
    newest = "layers" in file or "_layer_checkpoint_dependencies" in file
    return FileVersion("3", (3,)) if newest else FileVersion("", ())


def text_of(value: Any) -> str:
    """An attribute as text."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def hard_sigmoid_note(version: FileVersion) -> str:
    """What a reader of the numbers must know about an older file's hard_sigmoid."""
    return (f"hard_sigmoid is clip(0.2 x + 0.5, 0, 1), as Keras {version.text or '2'} meant it; "
            "Keras 3 would load clip(x / 6 + 0.5, 0, 1)")  # fmt: skip


def attribute_names(group: Any, key: str) -> list[str]:
    """A list of names, which long lists have in parts: `weight_names`, or `weight_names0`, `weight_names1`, …."""
    if key in group.attrs:
        return [text_of(name) for name in group.attrs[key]]
    parts: list[Any] = []
    while f"{key}{len(parts)}" in group.attrs:
        parts.append(group.attrs[f"{key}{len(parts)}"])
    return [text_of(name) for part in parts for name in part]


def model_document(file: Any, path: str) -> Any:
    """The configuration of a whole model; None where the file holds weights only.

    Raises:
        BadInput: no JSON.
    """
    raw = file.attrs.get("model_config")
    try:
        return None if raw is None else json.loads(text_of(raw))
    except (ValueError, RecursionError) as error:
        raise BadInput(f"model_config is no JSON: {error}", where=path) from error


def refuse_links(group: Any, path: str) -> None:
    """Walk an open file.

    Raises:
        BadInput: a link, which may lead anywhere, or groups without end.
    """
    import h5py

    for name in group:
        link = group.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink):
            raise BadInput("a link, and weights stand in the file itself", where=f"{path}: {group.name}/{name}",
                           do="store the array in the file")  # fmt: skip
        if isinstance(item := group[name], h5py.Group):
            if item.name.count("/") > 64:
                raise BadInput("groups nested too deeply", where=path)
            refuse_links(item, path)


def stored_array(dataset: Any, where: str) -> np.ndarray:
    """A weight.

    Raises:
        BadInput: no floats, stored outside the file, or larger than the file can hold.
    """
    if dataset.dtype.kind != "f" or dataset.is_virtual or dataset.external:
        raise BadInput("not an array of floats inside this file", where=where, got=str(dataset.dtype))
    if dataset.nbytes > LARGEST_EXPANSION * max(dataset.file.id.get_filesize(), 1):
        raise BadInput("larger than the file can hold", where=where, got=list(dataset.shape))
    return np.asarray(dataset[()])
