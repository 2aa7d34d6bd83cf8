"""Native Keras layers with the weights of an imported graph, on any of Keras' backends."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from bridge.ops.native import Kind, NativeModule, Taken, Weight

NAMES: Final[Mapping[Kind, Mapping[str, str]]] = MappingProxyType({
    "Linear": {"kernel": "kernel", "bias": "bias"},
    "Conv": {"kernel": "kernel", "bias": "bias"},
    "BatchNorm": {"scale": "gamma", "bias": "beta", "mean": "moving_mean", "var": "moving_variance"},
    "LayerNorm": {"scale": "gamma", "bias": "beta"},
    "Embed": {"embedding": "embeddings"},
})  # fmt: skip
"""Names of the shared rules to Keras'."""


ZEROS: Final = "zeros"
"""How weights begin that are filled next: JAX compiles a program for every shape of random numbers."""


@dataclass(frozen=True, slots=True, eq=False)
class Native:
    """A layer, and how it is called in the place of its node."""

    layer: Any
    taken: Taken
    call: Callable[[Any], Any]

    @property
    def module(self) -> NativeModule:
        """What the layer holds."""
        return self.taken.module

    def variable(self, name: str) -> Any:
        """The Keras variable of a weight."""
        return getattr(self.layer, NAMES[self.module.kind][name])

    def array(self, name: str) -> np.ndarray:
        """What a weight holds now, as the graph has it."""
        from bridge.frameworks.keras_read import keras_array

        weight = self.module.weights[name]
        back: np.ndarray = weight.back(keras_array(self.variable(name)).reshape(_native_shape(weight)))
        return np.ascontiguousarray(back)

    def tensor(self, name: str) -> Any:
        """The same as a tensor that gradients flow through."""
        from keras import ops

        weight = self.module.weights[name]
        value = ops.reshape(ops.convert_to_tensor(self.variable(name)), _native_shape(weight))
        return ops.transpose(value, np.argsort(weight.axes).tolist()) if weight.axes else ops.reshape(
            value, weight.array.shape)  # fmt: skip


def native_layer(taken: Taken, name: str, shape: tuple[int | None, ...]) -> Native | None:
    """The layer for a node whose input has `shape`, built and filled; None where Keras has none that is the same."""
    made = MAKERS[taken.module.kind](taken, name, shape)
    if made is None:
        return None
    layer, call, built_on = made
    layer.build(built_on)
    layer.built = True
    native = Native(layer, taken, call)
    for own, weight in taken.module.weights.items():
        variable = native.variable(own)
        variable.assign(weight.native().reshape(tuple(variable.shape)))
    return native


Made = tuple[Any, Callable[[Any], Any], tuple[int | None, ...]]
"""A layer, its call, and the shape that it is built on."""


def _linear(taken: Taken, name: str, shape: tuple[int | None, ...]) -> Made | None:
    import keras

    if len(shape) < 2 or (taken.rank is not None and len(shape) != taken.rank):
        return None
    inputs, outputs = taken.module.sizes
    layer = keras.layers.Dense(outputs, use_bias=taken.module.options["use_bias"], name=name, kernel_initializer=ZEROS,
                               dtype=taken.module.dtype.name)  # fmt: skip
    return layer, layer, (*shape[:-1], inputs)


def _conv(taken: Taken, name: str, shape: tuple[int | None, ...]) -> Made | None:
    """Channels stay first where the backend computes so; TensorFlow on a CPU does not, and is given them last."""
    import keras

    module, options = taken.module, taken.module.options
    rank, groups, (inputs, outputs) = len(shape) - 2, options["feature_group_count"], module.sizes
    if len(shape) != taken.rank or options["padding"] == "SAME_LOWER":
        return None
    last = str(keras.backend.backend()) == "tensorflow"
    depthwise = groups > 1 and groups == inputs and rank < 3
    strides, dilation = options["strides"], options["kernel_dilation"]
    if groups > 1 and last and not depthwise:
        return None  # TensorFlow has no grouped convolution on a CPU
    # Keras takes no strides beside dilation, TensorFlow no unequal ones of a depthwise kernel: steps are left out then.
    stepped = max(strides) > 1 and (max(dilation) > 1 or (last and depthwise and len(set(strides)) > 1))
    if stepped and options["padding"] == "SAME":
        return None
    padding, pads = _padding(options)
    kind = "DepthwiseConv" if depthwise else "Conv"
    given: dict[str, Any] = {"filters": outputs, "groups": groups, "kernel_initializer": ZEROS}
    if depthwise:
        given = {"depth_multiplier": outputs // inputs, "depthwise_initializer": ZEROS}
    layer = getattr(keras.layers, f"{kind}{rank}D")(
        **given, kernel_size=options["kernel_size"], strides=1 if stepped else strides, padding=padding,
        dilation_rate=dilation, use_bias=options["use_bias"], name=name, dtype=module.dtype.name,
        data_format="channels_last" if last else "channels_first",
    )  # fmt: skip
    before = [] if pads is None else [_zero_padding(rank, pads, name, last)]
    steps = tuple(slice(None, None, stride) for stride in strides) if stepped else None
    window = (None,) * rank
    built_on = (None, *window, inputs) if last else (None, inputs, *window)
    return layer, _around(layer, before, rank, last, steps), built_on


def _around(layer: Any, before: list[Any], rank: int, last: bool, steps: tuple[slice, ...] | None) -> Any:
    def call(x: Any) -> Any:
        from keras import ops

        x = ops.transpose(x, (0, *range(2, rank + 2), 1)) if last else x
        for one in (*before, layer):
            x = one(x)
        if steps is not None:
            x = x[(slice(None), *steps)] if last else x[(slice(None), slice(None), *steps)]
        return ops.transpose(x, (0, rank + 1, *range(1, rank + 1))) if last else x

    return call


def _padding(options: Mapping[str, Any]) -> tuple[str, tuple[tuple[int, int], ...] | None]:
    """Keras' word, and the pairs that must be padded before."""
    given = options["padding"]
    if isinstance(given, str):
        return given.lower(), None
    if all(low == high == 0 for low, high in given):
        return "valid", None
    wanted = [(size - 1) * rate for size, rate in zip(options["kernel_size"], options["kernel_dilation"], strict=True)]
    same = all(
        (low, high) == (total // 2, total - total // 2) for (low, high), total in zip(given, wanted, strict=True)
    )
    if same and all(stride == 1 for stride in options["strides"]):
        return "same", None
    return "valid", tuple(given)


def _zero_padding(rank: int, pads: tuple[tuple[int, int], ...], name: str, last: bool) -> Any:
    import keras

    data_format = "channels_last" if last else "channels_first"
    return getattr(keras.layers, f"ZeroPadding{rank}D")(pads[0] if rank == 1 else pads, data_format=data_format,
                                                       name=f"{name}_padding")  # fmt: skip


def _batch_norm(taken: Taken, name: str, shape: tuple[int | None, ...]) -> Made | None:
    import keras

    module, options = taken.module, taken.module.options
    if len(shape) < 2:
        return None
    layer = keras.layers.BatchNormalization(axis=1, epsilon=options["epsilon"], momentum=options["momentum"],
                                            name=name, dtype=module.dtype.name)  # fmt: skip
    return layer, layer, (shape[0], *module.sizes, *shape[2:])


def _layer_norm(taken: Taken, name: str, shape: tuple[int | None, ...]) -> Made | None:
    import keras

    module, options = taken.module, taken.module.options
    layer = keras.layers.LayerNormalization(axis=-1, epsilon=options["epsilon"], center=options["use_bias"], name=name,
                                            dtype=module.dtype.name)  # fmt: skip
    return layer, layer, (*shape[:-1], *module.sizes)


def _embed(taken: Taken, name: str, shape: tuple[int | None, ...]) -> Made | None:
    import keras

    from bridge.frameworks.keras_operator import FromTheEnd

    rows, features = taken.module.sizes
    layer = keras.layers.Embedding(
        rows, features, name=name, embeddings_initializer=ZEROS, dtype=taken.module.dtype.name
    )
    indices = FromTheEnd(rows, name=f"{name}_indices")
    return layer, lambda x: layer(indices(x)), shape


MAKERS: Final[Mapping[Kind, Callable[[Taken, str, tuple[int | None, ...]], Made | None]]] = MappingProxyType(
    {"Linear": _linear, "Conv": _conv, "BatchNorm": _batch_norm, "LayerNorm": _layer_norm, "Embed": _embed}
)


def _native_shape(weight: Weight) -> tuple[int, ...]:
    return tuple(weight.native().shape)
