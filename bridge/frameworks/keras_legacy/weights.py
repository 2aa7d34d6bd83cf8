"""The arrays of a Keras 1 or 2 file, put into the layers that were made of its configuration.

Source: tf-keras 2.16.0 tf_keras/saving/legacy/hdf5_format.py save_weights_to_hdf5_group, _legacy_weights.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from bridge.errors import BadInput
from bridge.frameworks.keras_h5_files import attribute_names, stored_array
from bridge.frameworks.keras_legacy.layers import Built, Part

RENAMED: Final = MappingProxyType({"depthwise_kernel": "kernel"})
"""Names of weights that Keras 3 changed; a layer that still has the old one is asked for it first."""


@dataclass(frozen=True, slots=True, eq=False)
class Stored:
    """One array of the file."""

    name: str
    """As `weight_names` has it: bidirectional_1/forward_lstm_1/kernel:0."""
    array: np.ndarray

    @property
    def leaf(self) -> str:
        """The last part of its name, without the number that TensorFlow appends: kernel."""
        return re.sub(r"_\d+$", "", self.name.rpartition("/")[2].partition(":")[0])

    @property
    def groups(self) -> list[str]:
        """The parts of its name before the last."""
        return self.name.split("/")[:-1]


@dataclass(frozen=True, slots=True, eq=False)
class Slot:
    """One variable of a Keras 3 layer."""

    part: Part
    variable: Any

    def takes(self, stored: Stored) -> bool:
        """Whether the names agree."""
        own = str(self.variable.name)
        return stored.leaf in (own, re.sub(r"_\d+$", "", own)) or RENAMED.get(stored.leaf) == own


def read_weights(file: Any, path: str) -> dict[str, list[Stored]]:
    """The arrays of a file by layer, in the order in which it lists them.

    Raises:
        BadInput: an array that is not there, or not what it should be.
    """
    root = file.get("model_weights", file)
    found: dict[str, list[Stored]] = {}
    for layer in attribute_names(root, "layer_names"):
        if layer not in root:
            raise BadInput("a layer is listed and has no group", where=f"{path}: {layer}")
        names = attribute_names(root[layer], "weight_names")
        found[layer] = [Stored(name, stored_array(root[layer][name], f"{path}: {layer}/{name}")) for name in names]
    return found


def fill(built: Built, weights: Mapping[str, Sequence[Stored]], path: str) -> None:
    """Put `weights`, by top-level layer, into the layers of the model `built`; `path` is for messages.

    Raises:
        BadInput: weights that are missing, left over, or of another shape or dtype.
    """
    parts = {child.name: child.parts for child in built.children}
    for name in {**parts, **weights}:
        slots, stored = list(_slots(parts.get(name, ()))), list(weights.get(name, ()))
        where = f"{path}: {name}"
        values: dict[Part, dict[str, tuple[Any, np.ndarray]]] = defaultdict(dict)
        for slot, one in _matched(slots, stored, where):
            values[slot.part][str(slot.variable.path)] = (slot.variable, one.array)
        for part, held in values.items():
            _assign(part, list(held.values()), where)


def _slots(parts: Sequence[Part]) -> Iterator[Slot]:
    """The variables in the order in which Keras 2 stored them: all that train, then those that do not."""
    # A shared layer is stored once.
    unique = list({id(part.holder): part for part in parts}.values())
    yield from (Slot(part, one) for part in unique for one in part.holder.trainable_weights)
    yield from (Slot(part, one) for part in unique for one in part.holder.non_trainable_weights)


def _matched(slots: Sequence[Slot], stored: Sequence[Stored], where: str) -> list[tuple[Slot, Stored]]:
    """Each variable with its array: by the names of layer and weight, else in Keras' own order, names agreeing."""
    if len(slots) == len(stored):
        alone = len({id(slot.part) for slot in slots}) == 1
        named = [[one for one in stored if slot.takes(one) and (alone or slot.part.name in one.groups)]
                 for slot in slots]  # fmt: skip
        if all(len(found) == 1 for found in named) and len({id(found[0]) for found in named}) == len(slots):
            return [(slot, found[0]) for slot, found in zip(slots, named, strict=True)]
        if all(slot.takes(one) for slot, one in zip(slots, stored, strict=True)):
            return list(zip(slots, stored, strict=True))
    raise BadInput("the stored weights are not those of the layer", where=where,
                   got=", ".join(one.name for one in stored) or "none",
                   expected=", ".join(str(slot.variable.path) for slot in slots) or "none")  # fmt: skip


def _assign(part: Part, held: Sequence[tuple[Any, np.ndarray]], where: str) -> None:
    if part.cudnn:
        native = _native({str(variable.name): array for variable, array in held})
        held = [(variable, native[str(variable.name)]) for variable, _ in held]
    for variable, array in held:
        if tuple(variable.shape) != array.shape or str(variable.dtype) != array.dtype.name:
            raise BadInput(f"the weight {variable.name} does not fit its layer", where=where,
                           got=f"{array.dtype.name} {list(array.shape)}",
                           expected=f"{variable.dtype} {list(variable.shape)}")  # fmt: skip
        variable.assign(array)


def _native(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Weights of CuDNNLSTM or CuDNNGRU as LSTM or GRU has them: transposed buffers, and two biases."""
    from bridge import layout

    units, columns = arrays["recurrent_kernel"].shape
    op = "LSTM" if columns == 4 * units else "GRU"
    cell = layout.read_params(f"keras.CuDNN{op}", arrays)
    options = {"reset_after": True} if op == "GRU" else {}
    return dict(layout.write_params(f"keras.{op}", cell, **options))
