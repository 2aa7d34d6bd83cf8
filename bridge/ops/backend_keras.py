"""Keras 3: `keras.ops` under the array API's names, on any of Keras's own backends."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from bridge.errors import Unsupported
from bridge.ops.backend import Array, Pads, Shape, Values, is_static
from bridge.ops.backend_jax import JaxBackend
from bridge.ops.backend_torch import TorchBackend
from bridge.ops.python_loops import python_scan, python_while

_NAMES: Final[Mapping[str, str]] = MappingProxyType({
    "permute_dims": "transpose", "concat": "concatenate", "pow": "power", "cumulative_sum": "cumsum",
    "remainder": "mod", "acos": "arccos", "asin": "arcsin", "atan": "arctan", "acosh": "arccosh", "asinh": "arcsinh",
    "atanh": "arctanh", "bitwise_invert": "bitwise_not", "cumulative_prod": "cumprod",
})  # fmt: skip
"""Functions of the array API that keras.ops has under another name."""


def _under_keras() -> JaxBackend | TorchBackend | None:
    """Bridge's own backend for the framework that Keras runs on; None on TensorFlow."""
    import keras

    own = {"jax": JaxBackend, "torch": TorchBackend}.get(keras.backend.backend())
    return None if own is None else own()


def _on_jax() -> JaxBackend | None:
    """The JAX backend where Keras runs on JAX."""
    own = _under_keras()
    return own if isinstance(own, JaxBackend) else None


class _Namespace:
    """`keras.ops` under the array API's names."""

    def maximum(self, a: Array, b: Array) -> Array:
        """The larger; on torch, keras.ops.maximum gives int32 for int64."""
        return self._of_two("maximum", a, b, a > b)

    def minimum(self, a: Array, b: Array) -> Array:
        """The smaller; see `maximum`."""
        return self._of_two("minimum", a, b, a < b)

    def argsort(self, x: Array, axis: int, descending: bool, stable: bool) -> Array:  # noqa: ARG002
        """The order of the elements along `axis`; keras.ops sorts stably, and upwards only."""
        import keras

        if not descending:
            return keras.ops.argsort(x, axis=axis)
        size = int(x.shape[axis])
        return size - 1 - keras.ops.flip(keras.ops.argsort(keras.ops.flip(x, axis=axis), axis=axis), axis=axis)

    def argmax(self, x: Array, axis: int, keepdims: bool) -> Array:
        """Where the largest element is, the first of equals; keras.ops has -0.0 below 0.0 on jax and tensorflow."""
        return self._extreme("argmax", x, axis, keepdims)

    def argmin(self, x: Array, axis: int, keepdims: bool) -> Array:
        """Where the smallest element is; see `argmax`."""
        return self._extreme("argmin", x, axis, keepdims)

    def _extreme(self, name: str, x: Array, axis: int, keepdims: bool) -> Array:
        import keras

        if (jax := _on_jax()) is not None:
            return getattr(jax.xp, name)(x, axis=axis, keepdims=keepdims)
        if keras.backend.backend() == "tensorflow":
            import tensorflow as tf

            indices = getattr(tf.math, name)(x, axis=axis, output_type=tf.int32)
            return tf.expand_dims(indices, axis) if keepdims else indices
        return getattr(keras.ops, name)(x, axis=axis, keepdims=keepdims)

    def _of_two(self, name: str, a: Array, b: Array, first: Array) -> Array:
        import keras

        if "float" in keras.backend.standardize_dtype(a.dtype):
            return getattr(keras.ops, name)(a, b)
        return keras.ops.where(first, a, b)

    def __getattr__(self, name: str) -> Any:
        import keras

        return getattr(keras.ops, _NAMES.get(name, name))


_NAMESPACE: Final = _Namespace()


@dataclass(frozen=True, slots=True)
class KerasBackend:
    """Keras as a Backend. float64 is refused: keras.ops narrows it silently on the jax and torch backends."""

    @property
    def name(self) -> str:
        """The framework, for messages."""
        return "keras"

    @property
    def xp(self) -> Any:
        """The array namespace."""
        return _NAMESPACE

    def asarray(self, value: Any, like: Array | None = None) -> Array:  # noqa: ARG002
        """`value` as a tensor of Keras's backend.

        Raises:
            Unsupported: float64, or integers beyond what the backend holds.
        """
        import keras

        if not is_static(value):
            return value
        _check_dtype(value.dtype)
        if (jax := _on_jax()) is not None:  # which keras.ops asks for 64 bits that it does not have
            return jax.asarray(value)
        return keras.ops.convert_to_tensor(value, dtype=value.dtype.name)

    def concrete(self, value: Array) -> np.ndarray | None:
        """`value` as numpy where it is eager."""
        own = _under_keras()
        if own is not None:
            return own.concrete(value)
        return np.asarray(value.numpy()) if hasattr(value, "numpy") else None

    def dtype(self, value: Array) -> np.dtype[Any]:
        """The dtype of `value`."""
        import keras

        dtype: np.dtype[Any] = np.dtype(keras.backend.standardize_dtype(value.dtype))
        return dtype

    def astype(self, value: Array, dtype: np.dtype[Any]) -> Array:
        """`value` in another dtype; raises Unsupported for float64."""
        import keras

        _check_dtype(np.dtype(dtype))
        if (jax := _on_jax()) is not None:
            return jax.astype(value, dtype)
        return keras.ops.cast(value, np.dtype(dtype).name)

    def divide(self, a: Array, b: Array) -> Array:
        """The quotient; on JAX rounded once."""
        jax = _on_jax()
        return a / b if jax is None else jax.divide(a, b)

    def matmul(self, a: Array, b: Array) -> Array:
        """Matrix product; on JAX in full precision."""
        import keras

        if (jax := _on_jax()) is not None:
            return jax.matmul(a, b)
        return keras.ops.matmul(a, b)

    def sigmoid(self, x: Array) -> Array:
        """Logistic function."""
        import keras

        return keras.ops.sigmoid(x)

    def erf(self, x: Array) -> Array:
        """Error function."""
        import keras

        return keras.ops.erf(x)

    def conv(self, x: Array, w: Array, *, strides: Shape, pads: Pads, dilations: Shape, groups: int) -> Array:
        """Convolution group by group, channels last as TensorFlow wants it; strides are taken afterwards."""
        from keras import ops

        rank = len(x.shape) - 2
        last = (0, *range(2, rank + 2), 1)
        x = ops.pad(ops.transpose(x, last), [(0, 0), *pads, (0, 0)])
        w = ops.transpose(w, (*range(2, rank + 2), 1, 0))
        parts = [
            ops.conv(part, kernel, strides=1, padding="valid", data_format="channels_last",
                     dilation_rate=tuple(dilations))
            for part, kernel in zip(ops.split(x, groups, axis=-1), ops.split(w, groups, axis=-1), strict=True)
        ]  # fmt: skip
        y = ops.concatenate(parts, axis=-1) if groups > 1 else parts[0]
        y = y[(slice(None), *(slice(None, None, stride) for stride in strides))]
        return ops.transpose(y, (0, rank + 1, *range(1, rank + 1)))

    def split(self, value: Array, parts: int) -> tuple[Array, ...]:
        """Equal parts of the last axis."""
        import keras

        return tuple(keras.ops.split(value, parts, axis=-1))

    def einsum(self, equation: str, *operands: Array) -> Array:
        """Einstein summation; on JAX in full precision."""
        import keras

        if (jax := _on_jax()) is not None:
            return jax.einsum(equation, *operands)
        return keras.ops.einsum(equation, *operands)

    def fft(self, real: Array, imaginary: Array, inverse: bool) -> tuple[Array, Array]:
        """The discrete Fourier transform along the last axis; the inverse by way of the conjugate."""
        import keras

        real, imaginary = keras.ops.fft((real, -imaginary if inverse else imaginary))
        size = int(real.shape[-1])
        return (real / size, -imaginary / size) if inverse else (real, imaginary)

    def scatter(self, data: Array, rows: Array, updates: Array, reduction: str) -> Array:
        """Rows written or joined, by Keras's backend itself."""
        own = _under_keras()
        if own is not None:
            return own.scatter(data, rows, updates, reduction)
        import keras
        import tensorflow as tf

        write = {"none": tf.tensor_scatter_nd_update, "add": tf.tensor_scatter_nd_add,
                 "max": tf.tensor_scatter_nd_max, "min": tf.tensor_scatter_nd_min}  # fmt: skip
        if reduction not in write:
            raise Unsupported("TensorFlow has no scatter that multiplies", where="keras", got=reduction)
        return write[reduction](data, keras.ops.expand_dims(rows, -1), updates)

    def while_loop(self, holds: Callable[[Values], Array], step: Callable[[Values], Values], carry: Values) -> Values:
        """`lax.while_loop` on JAX, `keras.ops.while_loop` in a TensorFlow graph, else a Python loop."""
        import keras

        if (jax := _on_jax()) is not None:
            return jax.while_loop(holds, step, carry)
        if self.concrete(carry[0]) is not None:
            return python_while(holds, step, carry)
        return tuple(keras.ops.while_loop(lambda *values: holds(values), lambda *values: step(values), carry))

    def scan(
        self, body: Callable[[Values, Values], tuple[Values, Values]], carry: Values, xs: Values, reverse: bool = False
    ) -> tuple[Values, Values]:
        """`lax.scan` on JAX, `tf.while_loop` in a TensorFlow graph, else a Python loop.

        `keras.ops.scan` of Keras 3.15.1 fails on TensorFlow with two carries, or with ys unlike the carry.
        """
        import keras

        if (jax := _on_jax()) is not None:
            return jax.scan(body, carry, xs, reverse)
        if keras.backend.backend() == "tensorflow":
            import tensorflow as tf

            if not tf.executing_eagerly():
                return _graph_scan(body, carry, xs, reverse)
        return python_scan(body, carry, xs, reverse, keras.ops.stack)

    def cond(self, predicate: Array, then: Callable[[], Values], otherwise: Callable[[], Values]) -> Values:
        """`keras.ops.cond` while tracing; else the branch that is taken and only that."""
        import keras

        known = self.concrete(predicate)
        if known is not None:
            return then() if bool(known.reshape(())) else otherwise()
        return tuple(keras.ops.cond(keras.ops.reshape(predicate, ()), then, otherwise))


def _graph_scan(
    body: Callable[[Values, Values], tuple[Values, Values]], carry: Values, xs: Values, reverse: bool
) -> tuple[Values, Values]:
    import tensorflow as tf

    steps = tf.shape(xs[0])[0]
    _, probe = body(carry, tuple(x[0] for x in xs))  # the types and shapes of ys; its nodes are pruned
    rows = tuple(tf.TensorArray(y.dtype, size=steps, element_shape=y.shape) for y in probe)

    def step(t: Array, carry: Values, rows: Values) -> tuple[Array, Values, Values]:
        at = steps - 1 - t if reverse else t
        carry, ys = body(carry, tuple(x[at] for x in xs))
        return t + 1, carry, tuple(row.write(at, y) for row, y in zip(rows, ys, strict=True))

    _, final, rows = tf.while_loop(lambda t, *_: t < steps, step, (tf.constant(0), tuple(carry), rows))
    return tuple(final), tuple(row.stack() for row in rows)


def _check_dtype(dtype: np.dtype[Any]) -> None:
    if dtype == np.float64:
        raise Unsupported("keras.ops narrows float64 silently on some of its backends", where="keras",
                          do="export the model in float32")  # fmt: skip
    if dtype == np.uint64:
        raise Unsupported("keras.ops computes 64-bit unsigned integers in 32 bits", where="keras",
                          do="cast to int64 in the model")  # fmt: skip
    own = _under_keras()
    if own is not None:
        own.asarray(np.empty(0, dtype))  # which has refusals of its own
