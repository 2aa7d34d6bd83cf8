"""Keras layers written otherwise for the time of one trace on TensorFlow: the same numbers by operators of ONNX."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
import tensorflow as tf

from bridge.errors import Unsupported
from bridge.frameworks.keras_read import is_recurrent


def rewritten(layer: Any) -> Callable[..., Any]:
    """What to call in the place of `layer.call`: that itself, where it can be traced as it is."""
    kinds = keras.layers
    if isinstance(layer, kinds.Reshape) and -1 not in layer.target_shape:
        return _reshape(layer)
    if isinstance(layer, kinds.TimeDistributed) and type(layer).call is kinds.TimeDistributed.call:
        return _time_distributed(layer)
    if type(layer) is kinds.Dense and getattr(layer, "quantization_mode", None) is None:
        return _dense(layer)
    call: Callable[..., Any] = layer.call
    return call


def told(error: Unsupported) -> Unsupported:
    """`error`, which Keras shall hand on as it is: it puts the arguments of the call into other errors' texts."""
    error._keras_call_info_injected = True  # type: ignore[attr-defined]  # noqa: SLF001
    return error


def _dense(layer: Any) -> Callable[..., Any]:
    """Dense by one product: Keras' own is a chain of reshapes on TensorFlow."""

    def call(inputs: Any, training: Any = None) -> Any:  # noqa: ARG001 (Keras' signature)
        if inputs.shape[-1] is None:
            raise ValueError(f"{layer.name}: the features have no fixed number, so an axis before cannot be open")
        if len(inputs.shape) < 3 or isinstance(inputs, tf.SparseTensor) or inputs.dtype != layer.compute_dtype:
            return type(layer).call(layer, inputs)
        x = tf.matmul(inputs, tf.convert_to_tensor(layer.kernel))
        x = x if layer.bias is None else x + layer.bias
        return x if layer.activation is None else layer.activation(x)

    return call


def _reshape(layer: Any) -> Callable[..., Any]:
    """Reshape to fixed sizes, which an open axis cannot be part of."""

    def call(inputs: Any) -> Any:
        if None in inputs.shape[1:]:
            raise ValueError(f"{layer.name}: reshapes to {layer.target_shape}, so no axis before can be open")
        return type(layer).call(layer, inputs)

    return call


def _time_distributed(layer: Any) -> Callable[..., Any]:
    """TimeDistributed with time folded into the batch: Keras' own is a loop, or a vectorised map."""

    def call(inputs: Any, training: Any = None, mask: Any = None) -> Any:
        inner, options = layer.layer, {}
        if mask is not None and inner._call_has_mask_arg:  # noqa: SLF001 (what Keras' own call asks)
            if is_recurrent(inner):
                raise told(Unsupported("TimeDistributed hands its layer one mask for each step, and none for each "
                                        "sequence", where=layer.name, do="mask inside of a wrapped model"))  # fmt: skip
            options["mask"] = _folded(mask)
        if inner._call_has_training_arg:  # noqa: SLF001
            options["training"] = training
        outputs = inner.call(_folded(inputs), **options)
        lead, steps = tf.shape(inputs)[:2], inputs.shape[1]

        def unfolded(value: Any) -> Any:
            y = tf.reshape(value, tf.concat([lead, tf.shape(value)[1:]], 0))
            y.set_shape((inputs.shape[0], steps, *value.shape[1:]))
            return y

        return keras.tree.map_structure(unfolded, outputs)

    return call


def _folded(x: Any) -> Any:
    y = tf.reshape(x, tf.concat([[-1], tf.shape(x)[2:]], 0))
    y.set_shape((None, *x.shape[2:]))
    return y


@contextmanager
def without_xla() -> Iterator[None]:
    """`tf.function` without XLA, by which Keras compiles grouped convolutions on a CPU and hides them."""
    kept = tf.function

    def function(*args: Any, **kwargs: Any) -> Any:
        return kept(*args, **{**kwargs, "jit_compile": None})

    tf.function = function
    try:
        yield
    finally:
        tf.function = kept


@contextmanager
def plain_signbit() -> Iterator[None]:
    """Keras' signbit, which argmax asks about zeros, without the Bitcast that ONNX lacks; 1 / -0 is negative."""
    from keras.src.backend.tensorflow import numpy as functions

    kept = getattr(functions, "signbit", None)
    if kept is None:  # another release of Keras, whose argmax does not ask
        yield
        return

    def signbit(x: Any) -> Any:
        x = tf.convert_to_tensor(x)
        if not x.dtype.is_floating:
            return kept(x)
        zero = tf.equal(x, 0)
        return tf.where(zero, 1 / tf.where(zero, x, tf.ones_like(x)) < 0, x < 0)

    functions.signbit = signbit
    try:
        yield
    finally:
        functions.signbit = kept
