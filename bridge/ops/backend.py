"""What an operator needs of a framework: an array namespace, and the little that the array API lacks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np

Array: TypeAlias = Any
"""An array of the backend, or numpy where the value is static."""

Values: TypeAlias = tuple[Array, ...]
"""What a step of a loop takes and gives."""

Shape: TypeAlias = Sequence[int]
Pads: TypeAlias = Sequence[tuple[int, int]]


def is_static(value: Array) -> bool:
    """Whether a value is known without running the backend."""
    return isinstance(value, np.ndarray | np.generic)


class Backend(Protocol):
    """One framework's arrays. Dtypes are numpy's everywhere; `like` gives the device of a new array."""

    @property
    def name(self) -> str:
        """The framework, for messages."""

    @property
    def xp(self) -> Any:
        """The array namespace (Python array API)."""

    def asarray(self, value: Any, like: Array | None = None) -> Array:
        """`value` as this backend's array with the dtype it has, on the device of `like`.

        Raises:
            Unsupported: the backend cannot hold the dtype or a value without rounding it.
        """

    def concrete(self, value: Array) -> np.ndarray | None:
        """`value` as numpy where its numbers are known now, None while it is traced."""

    def dtype(self, value: Array) -> np.dtype[Any]:
        """The dtype of `value`."""

    def astype(self, value: Array, dtype: np.dtype[Any]) -> Array:
        """`value` in another dtype."""

    def divide(self, a: Array, b: Array) -> Array:
        """The quotient, rounded once: what is rounded to integers next must not be off by a unit before."""

    def matmul(self, a: Array, b: Array) -> Array:
        """Matrix product in the full precision of its dtype."""

    def sigmoid(self, x: Array) -> Array:
        """Logistic function, without overflow."""

    def erf(self, x: Array) -> Array:
        """Error function."""

    def conv(self, x: Array, w: Array, *, strides: Shape, pads: Pads, dilations: Shape, groups: int) -> Array:
        """Convolution (correlation) of x [N, C, ...] with w [M, C/groups, ...], zero padding per axis."""

    def split(self, value: Array, parts: int) -> tuple[Array, ...]:
        """Equal parts of the last axis; a gradient joins theirs again in one step, where slices would be added up."""

    def einsum(self, equation: str, *operands: Array) -> Array:
        """Einstein summation in the full precision of the dtype."""

    def fft(self, real: Array, imaginary: Array, inverse: bool) -> tuple[Array, Array]:
        """The discrete Fourier transform along the last axis, in two real arrays; the inverse divides by its length."""

    def scatter(self, data: Array, rows: Array, updates: Array, reduction: str) -> Array:
        """`data` with `updates` [n, ...] in rows [n], none negative: "none" replaces, add, mul, max and min join."""

    def while_loop(self, holds: Callable[[Values], Array], step: Callable[[Values], Values], carry: Values) -> Values:
        """`step` on `carry` as long as it `holds` (one boolean)."""

    def scan(
        self, body: Callable[[Values, Values], tuple[Values, Values]], carry: Values, xs: Values, reverse: bool = False
    ) -> tuple[Values, Values]:
        """Run `body(carry, x) -> (carry, y)` over axis 0 of `xs`; ys keep the order of xs, reversed or not."""

    def cond(self, predicate: Array, then: Callable[[], Values], otherwise: Callable[[], Values]) -> Values:
        """The outputs of the branch that `predicate` (one boolean) chooses."""
