"""numpy: the referee of whole graphs, and the arithmetic of static values under every other backend."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from bridge.errors import Unsupported
from bridge.ops.backend import Array, Pads, Shape, Values
from bridge.ops.python_loops import python_scan, python_while
from bridge.ops.sizes import has_symbols

_erf = np.vectorize(math.erf, otypes=[np.float64])


@dataclass(frozen=True, slots=True)
class NumpyBackend:
    """numpy as a Backend. With `double`, every floating value is float64 and no cast rounds one."""

    double: bool = False
    """Evaluate as a referee: float16 and float32 become float64 wherever they arise."""

    @property
    def name(self) -> str:
        """The framework, for messages."""
        return "numpy"

    @property
    def xp(self) -> Any:
        """The array namespace."""
        import array_api_compat.numpy as xp

        return xp

    def asarray(self, value: Any, like: Array | None = None) -> Array:  # noqa: ARG002
        """`value` as an array, in float64 where `double` asks for it."""
        array = np.asarray(value)
        return array.astype(np.float64) if self.double and array.dtype.kind == "f" else array

    def concrete(self, value: Array) -> np.ndarray | None:
        """Every numpy value is known."""
        return np.asarray(value)

    def dtype(self, value: Array) -> np.dtype[Any]:
        """The dtype of `value`."""
        dtype: np.dtype[Any] = np.dtype(value.dtype)
        return dtype

    def astype(self, value: Array, dtype: np.dtype[Any]) -> Array:
        """`value` in another dtype; a referee keeps float64 where a narrower float is asked for.

        Raises:
            Unsupported: a size that is a symbol as anything but an integer.
        """
        if has_symbols(value):
            if np.dtype(dtype).kind not in "iuO":
                raise Unsupported("a size that only a call knows as another number than an integer", where="jax.export",
                                  got=f"{value.tolist()} as {dtype}", do="export it for that size")  # fmt: skip
            return value
        return np.asarray(value).astype(np.float64 if self.double and np.dtype(dtype).kind == "f" else dtype)

    def divide(self, a: Array, b: Array) -> Array:
        """The quotient."""
        return a / b

    def matmul(self, a: Array, b: Array) -> Array:
        """Matrix product."""
        return np.matmul(a, b)

    def sigmoid(self, x: Array) -> Array:
        """Logistic function; exp never sees a positive argument."""
        small = np.exp(-np.abs(x))
        return np.where(x >= 0, 1 / (1 + small), small / (1 + small)).astype(x.dtype)

    def erf(self, x: Array) -> Array:
        """Error function, computed in float64."""
        return _erf(x).astype(x.dtype) if np.size(x) else x

    def conv(self, x: Array, w: Array, *, strides: Shape, pads: Pads, dilations: Shape, groups: int) -> Array:
        """Convolution by windows: [N, C, out..., kernel...] against [M, C, kernel...], group by group."""
        rank = x.ndim - 2
        x = np.pad(x, [(0, 0), (0, 0), *pads])
        extent = [d * (k - 1) + 1 for k, d in zip(w.shape[2:], dilations, strict=True)]
        windows = np.lib.stride_tricks.sliding_window_view(x, extent, axis=tuple(range(2, x.ndim)))
        step: tuple[Any, ...] = (
            ...,
            *[slice(None, None, s) for s in strides],
            *[slice(None, None, d) for d in dilations],
        )
        windows = windows[step]
        contracted = [1, *range(2 + rank, 2 + 2 * rank)], [1, *range(2, 2 + rank)]
        parts = [
            np.moveaxis(np.tensordot(part, kernel, axes=contracted), -1, 1)
            for part, kernel in zip(np.split(windows, groups, axis=1), np.split(w, groups), strict=True)
        ]
        return np.concatenate(parts, axis=1)

    def split(self, value: Array, parts: int) -> tuple[Array, ...]:
        """Equal parts of the last axis."""
        return tuple(np.split(value, parts, axis=-1))

    def einsum(self, equation: str, *operands: Array) -> Array:
        """Einstein summation."""
        return np.einsum(equation, *operands)

    def fft(self, real: Array, imaginary: Array, inverse: bool) -> tuple[Array, Array]:
        """The discrete Fourier transform along the last axis."""
        result = (np.fft.ifft if inverse else np.fft.fft)(real + 1j * imaginary)
        return result.real.astype(real.dtype), result.imag.astype(real.dtype)

    def scatter(self, data: Array, rows: Array, updates: Array, reduction: str) -> Array:
        """Rows written or joined, in order where one row is named twice."""
        result = np.array(data)
        if reduction == "none":
            result[rows] = updates
        else:
            join = {"add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}[reduction]
            join.at(result, rows, updates)
        return result

    def while_loop(self, holds: Callable[[Values], Array], step: Callable[[Values], Values], carry: Values) -> Values:
        """A Python loop."""
        return python_while(holds, step, carry)

    def scan(
        self, body: Callable[[Values, Values], tuple[Values, Values]], carry: Values, xs: Values, reverse: bool = False
    ) -> tuple[Values, Values]:
        """A Python loop."""
        return python_scan(body, carry, xs, reverse, np.stack)

    def cond(self, predicate: Array, then: Callable[[], Values], otherwise: Callable[[], Values]) -> Values:
        """The branch that is taken, and only that."""
        return then() if bool(np.asarray(predicate).reshape(())) else otherwise()
