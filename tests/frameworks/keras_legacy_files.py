"""h5 files as Keras 1 and 2 wrote them, made by hand: plain JSON and arrays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np

INPUTS, UNITS = 4, 3
FIRST = {"batch_input_shape": [None, None, INPUTS]}
"""What Keras 2 wrote into the first layer of a Sequential."""
Weights = dict[str, dict[str, np.ndarray]]


def entry(kind: str, name: str, inbound: list[Any] | None = None, **config: Any) -> dict[str, Any]:
    """A layer of a configuration; `inbound` are its calls, for a functional model."""
    made: dict[str, Any] = {"class_name": kind, "config": {"name": name, "trainable": True, **config}}
    return made if inbound is None else {**made, "name": name, "inbound_nodes": inbound}


def functional(layers: list[Any], inputs: list[str], outputs: list[Any], name: str = "model_1") -> dict[str, Any]:
    """The configuration of a functional model, class `Model` as Keras 2 called it."""
    ends = [one if isinstance(one, list) else [one, 0, 0] for one in outputs]
    config = {"name": name, "layers": layers, "input_layers": [[one, 0, 0] for one in inputs], "output_layers": ends}
    return {"class_name": "Model", "config": config}


def ref(name: str, node: int = 0, at: int = 0, **kwargs: Any) -> list[Any]:
    """An output of a layer's call, as inbound_nodes names it."""
    return [name, node, at, kwargs]


def source(name: str, *shape: int | None, dtype: str = "float32") -> dict[str, Any]:
    """An InputLayer."""
    return entry("InputLayer", name, [], batch_input_shape=[None, *shape], dtype=dtype, sparse=False)


def write(
    path: Path, document: Any, weights: Weights, version: str | None = "2.2.4", names: list[str] | None = None
) -> str:
    """Write a whole model; the arrays of a layer by the names that `weight_names` has."""
    with h5py.File(path, "w") as file:
        root = file.create_group("model_weights")
        for place in (file, root):
            if version is not None:
                place.attrs["keras_version"] = version.encode()
        file.attrs["model_config"] = json.dumps(document).encode()
        names = list(dict.fromkeys([*_names(document), *weights])) if names is None else names
        root.attrs["layer_names"] = [name.encode() for name in names]
        for name in names:
            group = root.create_group(name)
            group.attrs["weight_names"] = [key.encode() for key in weights.get(name, {})]
            for key, array in weights.get(name, {}).items():
                group[key] = array
    return str(path)


def _names(document: dict[str, Any]) -> list[str]:
    config = document["config"]
    return [layer["config"]["name"] for layer in (config if isinstance(config, list) else config["layers"])]


def uniform(rng: np.random.Generator, **shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Random arrays in +-0.6 by name."""
    return {name: rng.uniform(-0.6, 0.6, shape).astype(np.float32) for name, shape in shapes.items()}


def recurrent(
    rng: np.random.Generator, gates: int, inputs: int = INPUTS, units: int = UNITS, bias: tuple[int, ...] | None = None
) -> dict[str, np.ndarray]:
    """kernel, recurrent_kernel and bias of a layer with as many gates."""
    return uniform(rng, kernel=(inputs, gates * units), recurrent_kernel=(units, gates * units),
                   bias=(gates * units,) if bias is None else bias)  # fmt: skip


def named(prefix: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """As TensorFlow names variables: prefix/kernel:0."""
    return {f"{prefix}/{name}:0": array for name, array in arrays.items()}
