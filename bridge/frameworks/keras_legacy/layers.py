"""One layer of a Keras 1 or 2 file as a Keras 3 layer that computes what the file's Keras computed.

Source: keras 2.2.4 keras/layers; tf-keras 2.16.0 tf_keras/layers; keras 3.15.1 keras/src/layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from bridge.errors import BadInput, Unsupported
from bridge.frameworks.keras_files import EXECUTABLE
from bridge.frameworks.keras_legacy.options import Scope, options_of, safe_name

MODELS: Final = ("Model", "Functional", "Sequential")

CUDNN: Final = MappingProxyType({"CuDNNLSTM": "LSTM", "CuDNNGRU": "GRU"})
"""Layers of Keras 2 that only differ in how their weights are kept; GRU with the reset gate after the product."""

CARRIED: Final = frozenset({
    "Activation", "ActivityRegularization", "Add", "AdditiveAttention", "AlphaDropout", "Attention", "Average",
    "AveragePooling1D", "AveragePooling2D", "AveragePooling3D", "BatchNormalization", "Concatenate", "Conv1D",
    "Conv1DTranspose", "Conv2D", "Conv2DTranspose", "Conv3D", "Conv3DTranspose", "ConvLSTM1D", "ConvLSTM2D",
    "ConvLSTM3D", "Cropping1D", "Cropping2D", "Cropping3D", "Dense", "DepthwiseConv1D", "DepthwiseConv2D", "Dot",
    "Dropout", "ELU", "Embedding", "Flatten", "GRU", "GRUCell", "GaussianDropout", "GaussianNoise",
    "GlobalAveragePooling1D", "GlobalAveragePooling2D", "GlobalAveragePooling3D", "GlobalMaxPooling1D",
    "GlobalMaxPooling2D", "GlobalMaxPooling3D", "LSTM", "LSTMCell", "LayerNormalization", "LeakyReLU", "Masking",
    "MaxPooling1D", "MaxPooling2D", "MaxPooling3D", "Maximum", "Minimum", "MultiHeadAttention", "Multiply", "PReLU",
    "Permute", "ReLU", "RepeatVector", "Rescaling", "Reshape", "SeparableConv1D", "SeparableConv2D", "SimpleRNN",
    "SimpleRNNCell", "Softmax", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D", "Subtract",
    "UnitNormalization", "UpSampling1D", "UpSampling2D", "UpSampling3D", "ZeroPadding1D", "ZeroPadding2D",
    "ZeroPadding3D",
})  # fmt: skip
"""Layers that compute the same in Keras 2 and 3 under the same weights."""

ALSO: Final = MappingProxyType({"BatchNormalizationV1": "BatchNormalization", "BatchNormalizationV2":
                                "BatchNormalization", "LSTMV1": "LSTM", "LSTMV2": "LSTM", "GRUV1": "GRU",
                                "GRUV2": "GRU"})  # fmt: skip
"""Names under which TensorFlow wrote layers of the same configuration."""

MERGES: Final = ("concat", "sum", "ave", "mul", None)


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Something that holds weights: a layer, half of a Bidirectional, a cell."""

    name: str
    """As the file calls it."""
    holder: Any
    cudnn: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Built:
    """A layer or model of the file, made."""

    name: str
    """As the file calls it."""
    layer: Any
    parts: tuple[Part, ...]
    """What holds its weights, in the order in which Keras 2 stored them."""
    time_major: bool = False
    children: tuple[Built, ...] = ()
    """The layers of a model."""


def make_layer(entry: Any, scope: Scope) -> Built:
    """A layer, wrapper or model, without weights yet, from `{"class_name": …, "config": …}`.

    Raises:
        Unsupported: a class that is not carried, code, or an option that Keras 3 has no place for.
        BadInput: a malformed configuration.
    """
    kind, config = _class_and_config(entry, scope)
    name = str(config.get("name") or (isinstance(entry, dict) and entry.get("name")) or kind.lower())
    config = {**config, "name": name}
    short = kind.rpartition(">")[2]
    custom = scope.custom_objects.get(kind, scope.custom_objects.get(short))
    if custom is not None:
        return _custom(custom, config, scope)
    short = ALSO.get(short, short)
    if short in EXECUTABLE:
        raise Unsupported(f"the file holds a {short}, which is code, and bridge runs none", where=scope.where(name),
                          do="pass a class for it as custom_objects, or replace it by a layer of Keras")  # fmt: skip
    if short in MODELS:
        from bridge.frameworks.keras_legacy.graph import make_model

        return make_model({"class_name": short, "config": config}, scope)
    wrapper = WRAPPERS.get(short)
    if wrapper is not None:
        return wrapper(config, scope)
    return _plain_layer(short, config, scope)


def _class_and_config(entry: Any, scope: Scope) -> tuple[str, dict[str, Any]]:
    if isinstance(entry, dict) and isinstance(entry.get("class_name"), str) and isinstance(entry.get("config"), dict):
        return entry["class_name"], entry["config"]
    if isinstance(entry, dict) and entry.get("class_name") == "Sequential" and isinstance(entry.get("config"), list):
        return "Sequential", {"layers": entry["config"]}
    raise BadInput("no layer: a class_name and a config are expected", where=scope.path, got=repr(entry)[:80])


def _plain_layer(kind: str, config: dict[str, Any], scope: Scope) -> Built:
    import keras

    name, native = config["name"], CUDNN.get(kind, kind)
    if native not in CARRIED:
        raise Unsupported(f"the layer {kind} is not carried from files of Keras 2", where=scope.where(name),
                          do="pass its class as custom_objects")  # fmt: skip
    time_major = bool(config.get("time_major"))
    config = {key: value for key, value in config.items() if key != "time_major"}
    if kind in CUDNN:
        config |= {"activation": "tanh", "recurrent_activation": "sigmoid"}
        config |= {"reset_after": True} if native == "GRU" else {}
    cls = getattr(keras.layers, native)
    layer = _constructed(cls, options_of(cls, config, scope), scope, name)
    return Built(name, layer, (Part(name, layer, kind in CUDNN),), time_major)


def _constructed(cls: Any, options: Mapping[str, Any], scope: Scope, name: str) -> Any:
    try:
        return cls(**options)
    except (TypeError, ValueError, AttributeError, ArithmeticError, LookupError) as error:
        raise BadInput(f"Keras makes no {cls.__name__} of this configuration: {error}",
                       where=scope.where(name)) from error  # fmt: skip


def _custom(cls: Any, config: dict[str, Any], scope: Scope) -> Built:
    name = config["name"]
    cleaned = {key: value for key, value in config.items() if key not in ("batch_input_shape", "input_length")}
    cleaned["name"] = safe_name(name)
    make = getattr(cls, "from_config", None)
    if make is None:
        raise BadInput("custom_objects gives no layer class", where=scope.where(name), got=repr(cls)[:80])
    try:
        layer = make(cleaned)
    except (TypeError, ValueError, AttributeError, LookupError) as error:
        raise BadInput(f"the class given for it takes no such configuration: {error}",
                       where=scope.where(name)) from error  # fmt: skip
    return Built(name, layer, (Part(name, layer),))


# ---------------------------------------------------------------------- wrappers


def _bidirectional(config: dict[str, Any], scope: Scope) -> Built:
    import keras

    name = config["name"]
    inner = _inner(config, "layer", scope)
    if config.get("merge_mode", "concat") not in MERGES:
        raise BadInput("no merge mode of Keras", where=scope.where(name), got=repr(config["merge_mode"])[:80])
    given = {key: value for key, value in config.items() if key not in ("layer", "backward_layer")}
    options: dict[str, Any] = options_of(keras.layers.Bidirectional, given, scope)
    parts = [inner]
    if config.get("backward_layer"):
        parts.append(_inner(config, "backward_layer", scope))
        options["backward_layer"] = parts[1].layer
    layer = _constructed(keras.layers.Bidirectional, {**options, "layer": inner.layer}, scope, name)
    if scope.version.is_multi_backend:
        # Keras before TensorFlow took it over repeated the last output where masked; later ones write zeros there.
        layer.forward_layer.zero_output_for_mask = layer.backward_layer.zero_output_for_mask = False
    cudnn = [part.parts[0].cudnn for part in (parts[0], parts[-1])]
    halves = ((f"forward_{inner.name}", layer.forward_layer), (f"backward_{inner.name}", layer.backward_layer))
    return Built(name, layer, tuple(Part(half, own, flag) for (half, own), flag in zip(halves, cudnn, strict=True)))


def _time_distributed(config: dict[str, Any], scope: Scope) -> Built:
    import keras

    inner = _inner(config, "layer", scope)
    given = {key: value for key, value in config.items() if key != "layer"}
    options = options_of(keras.layers.TimeDistributed, given, scope)
    layer = _constructed(keras.layers.TimeDistributed, {**options, "layer": inner.layer}, scope, config["name"])
    return Built(config["name"], layer, inner.parts)


def _rnn(config: dict[str, Any], scope: Scope) -> Built:
    import keras

    cell = _inner(config, "cell", scope)
    given = {key: value for key, value in config.items() if key not in ("cell", "time_major")}
    options = options_of(keras.layers.RNN, given, scope)
    layer = _constructed(keras.layers.RNN, {**options, "cell": cell.layer}, scope, config["name"])
    return Built(config["name"], layer, cell.parts, bool(config.get("time_major")))


def _stacked(config: dict[str, Any], scope: Scope) -> Built:
    import keras

    cells = config.get("cells")
    if not isinstance(cells, list) or not cells:
        raise BadInput("StackedRNNCells without cells", where=scope.where(config["name"]))
    made = [make_layer(cell, scope) for cell in cells]
    given = {key: value for key, value in config.items() if key != "cells"}
    options = options_of(keras.layers.StackedRNNCells, given, scope)
    cls = keras.layers.StackedRNNCells
    layer = _constructed(cls, {**options, "cells": [one.layer for one in made]}, scope, config["name"])
    return Built(config["name"], layer, tuple(part for one in made for part in one.parts))


WRAPPERS: Final = MappingProxyType(
    {"Bidirectional": _bidirectional, "TimeDistributed": _time_distributed, "RNN": _rnn, "StackedRNNCells": _stacked}
)


def _inner(config: Mapping[str, Any], key: str, scope: Scope) -> Built:
    inner = make_layer(config.get(key), scope)
    if inner.time_major:
        raise Unsupported("time_major inside another layer is not carried", where=scope.where(str(config["name"])))
    return inner
