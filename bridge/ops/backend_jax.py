"""JAX: the array namespace is `jax.numpy`; products and convolutions run at the highest precision."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from bridge.errors import BadInput, Unsupported
from bridge.ops.backend import Array, Pads, Shape, Values, is_static
from bridge.ops.sizes import has_symbols


@dataclass(frozen=True, slots=True)
class JaxBackend:
    """JAX as a Backend; usable under jit, grad and vmap."""

    unroll: int = 1
    """Steps of a scan written out per iteration of the loop."""
    remat: int | None = None
    """Steps of a scan between the states that a gradient keeps; None keeps every step."""

    @property
    def name(self) -> str:
        """The framework, for messages."""
        return "jax"

    @property
    def xp(self) -> Any:
        """The array namespace."""
        import jax.numpy as jnp

        return jnp

    def asarray(self, value: Any, like: Array | None = None) -> Array:  # noqa: ARG002
        """`value` as a JAX array.

        Raises:
            Unsupported: float64, or an int64 beyond 32 bits, while x64 is off: JAX would narrow it silently.
        """
        if has_symbols(value):  # sizes that only a call knows, as numbers of the call
            return self.xp.stack([self.xp.asarray(size) for size in value.flat]).reshape(value.shape)
        if is_static(value):
            _check_width(value)
        return self.xp.asarray(value)

    def concrete(self, value: Array) -> np.ndarray | None:
        """`value` as numpy outside a transformation, None for a tracer."""
        import jax

        return None if isinstance(value, jax.core.Tracer) else np.asarray(value)

    def dtype(self, value: Array) -> np.dtype[Any]:
        """The dtype of `value`.

        Raises:
            BadInput: an array of another framework.
        """
        try:
            dtype: np.dtype[Any] = np.dtype(value.dtype)
        except TypeError as error:
            raise BadInput("an array of another framework", where="jax", got=type(value).__qualname__,
                           do="give it as numpy: numpy.asarray(array)") from error  # fmt: skip
        return dtype

    def astype(self, value: Array, dtype: np.dtype[Any]) -> Array:
        """`value` in another dtype; 64-bit integers are 32-bit ones while x64 is off.

        Raises:
            Unsupported: float64 while x64 is off.
        """
        import jax

        _check_width(np.empty(0, dtype))
        return self.xp.astype(value, jax.dtypes.canonicalize_dtype(dtype))

    def divide(self, a: Array, b: Array) -> Array:
        """The quotient; behind the barrier XLA cannot make a division by one number a product with its inverse."""
        import jax

        shape = self.xp.broadcast_shapes(a.shape, b.shape)
        return a / jax.lax.optimization_barrier(self.xp.broadcast_to(b, shape))

    def matmul(self, a: Array, b: Array) -> Array:
        """Matrix product, no TF32 or bfloat16 passes."""
        import jax

        return self.xp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)

    def sigmoid(self, x: Array) -> Array:
        """Logistic function."""
        import jax

        return jax.nn.sigmoid(x)

    def erf(self, x: Array) -> Array:
        """Error function."""
        import jax

        return jax.lax.erf(x)

    def conv(self, x: Array, w: Array, *, strides: Shape, pads: Pads, dilations: Shape, groups: int) -> Array:
        """Convolution by `lax.conv_general_dilated`."""
        import jax

        return jax.lax.conv_general_dilated(
            x,
            w,
            window_strides=tuple(strides),
            padding=[tuple(pad) for pad in pads],
            rhs_dilation=tuple(dilations),
            feature_group_count=groups,
            precision=jax.lax.Precision.HIGHEST,
        )

    def split(self, value: Array, parts: int) -> tuple[Array, ...]:
        """Equal parts of the last axis."""
        return tuple(self.xp.split(value, parts, axis=-1))

    def einsum(self, equation: str, *operands: Array) -> Array:
        """Einstein summation, no TF32 or bfloat16 passes."""
        import jax

        return self.xp.einsum(equation, *operands, precision=jax.lax.Precision.HIGHEST)

    def fft(self, real: Array, imaginary: Array, inverse: bool) -> tuple[Array, Array]:
        """The discrete Fourier transform along the last axis."""
        import jax

        result = (self.xp.fft.ifft if inverse else self.xp.fft.fft)(jax.lax.complex(real, imaginary))
        return result.real, result.imag

    def scatter(self, data: Array, rows: Array, updates: Array, reduction: str) -> Array:
        """Rows written or joined by `lax.scatter`."""
        place = data.at[rows]
        write = {"none": place.set, "add": place.add, "mul": place.multiply, "max": place.max, "min": place.min}
        return write[reduction](updates)

    def while_loop(self, holds: Callable[[Values], Array], step: Callable[[Values], Values], carry: Values) -> Values:
        """`lax.while_loop`; no gradient passes backwards through it.

        Raises:
            Unsupported: a step changes the shape or dtype of the carry.
        """
        import jax

        try:
            return tuple(jax.lax.while_loop(holds, step, carry))
        except TypeError as error:
            before, after = _described(carry), _described(jax.eval_shape(step, carry))
            if before == after:
                raise
            raise Unsupported("a step changes the shape or dtype of a state, which jit cannot follow", where="Loop",
                              got=after, expected=before) from error  # fmt: skip

    def scan(
        self, body: Callable[[Values, Values], tuple[Values, Values]], carry: Values, xs: Values, reverse: bool = False
    ) -> tuple[Values, Values]:
        """`lax.scan`; with `remat` a scan of scans, the inner ones computed again under grad."""
        import jax

        scan = partial(jax.lax.scan, body, reverse=reverse, unroll=self.unroll)
        steps = jax.tree.leaves(xs)[0].shape[0]
        if self.remat is None or steps <= self.remat:
            final, ys = scan(carry, xs)
            return tuple(final), tuple(ys)
        return scan_parts(jax.checkpoint(scan), carry, xs, self.remat, reverse)

    def cond(self, predicate: Array, then: Callable[[], Values], otherwise: Callable[[], Values]) -> Values:
        """`lax.cond` while tracing; outside, the branch that is taken and only that."""
        import jax

        known = self.concrete(predicate)
        if known is not None:
            return then() if bool(known.reshape(())) else otherwise()
        try:
            return tuple(jax.lax.cond(self.xp.reshape(predicate, ()), then, otherwise))
        except TypeError as error:
            shapes = [_described(jax.eval_shape(branch)) for branch in (then, otherwise)]
            if shapes[0] == shapes[1]:
                raise
            raise Unsupported("the branches differ in shape or dtype, which jit cannot follow", where="If",
                              got=shapes[1], expected=shapes[0],
                              do="fix the inputs of the condition at import: static={...}") from error  # fmt: skip


def scan_parts(
    over: Callable[[Values, Any], tuple[Values, Values]], carry: Values, xs: Any, size: int, reverse: bool
) -> tuple[Values, Values]:
    """`over(carry, part) -> (carry, ys)` on parts of `size` steps of the tree `xs`, in the order of the scan.

    What is left when the steps do not come out even is one shorter part, the last of the scan.
    """
    import jax

    steps = jax.tree.leaves(xs)[0].shape[0]
    left = steps % size
    at = left if reverse else steps - left  # where the shorter part meets the others
    head, tail = (jax.tree.map(lambda x, span=span: x[span], xs) for span in (slice(0, at), slice(at, None)))
    even, rest = (tail, head) if reverse else (head, tail)
    parts = jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), even)
    final, ys = jax.lax.scan(over, carry, parts, reverse=reverse)
    ys = tuple(y.reshape(-1, *y.shape[2:]) for y in ys)
    if left:
        final, last = over(final, rest)
        joined = (last, ys) if reverse else (ys, last)
        ys = tuple(jax.numpy.concatenate(pair) for pair in zip(*joined, strict=True))
    return tuple(final), tuple(ys)


def _described(values: Values) -> list[str]:
    return [f"{value.dtype}{list(value.shape)}" for value in values]


def _check_width(value: Any) -> None:
    import jax

    if jax.config.jax_enable_x64 or value.dtype.itemsize < 8:
        return
    do = 'enable it: jax.config.update("jax_enable_x64", True)'
    if value.dtype.kind in "fc":
        raise Unsupported("float64 while JAX runs with x64 off, which would round it to float32", where="jax", do=do)
    narrow = np.iinfo(np.int32 if value.dtype.kind == "i" else np.uint32)
    if value.size and (value.min() < narrow.min or value.max() > narrow.max):
        raise Unsupported(
            "an integer beyond 32 bits while JAX runs with x64 off, which would wrap it",
            where="jax",
            got=f"{value.min()} to {value.max()}",
            do=do,
        )
