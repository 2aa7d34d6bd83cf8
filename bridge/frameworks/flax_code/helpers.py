"""Functions that stand in model.py before the class, where its call needs them."""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

HELPERS: Final = MappingProxyType({"zero_padding": '''\
def zero_padding(y, lengths, time_axis):
    """Zeros past the length of each sequence: y [time, batch, ...], or [batch, time, ...] with time_axis=1."""
    time = jnp.arange(y.shape[time_axis])
    valid = time[:, None] < lengths if time_axis == 0 else time < lengths[:, None]
    return jnp.where(valid[..., None], y, 0.0)
''', "reversed_sequences": '''\
def reversed_sequences(x, lengths, time_axis):
    """The first lengths[n] steps of each sequence in reverse: x [time, batch, ...], or [batch, time, ...]."""
    time = jnp.expand_dims(jnp.arange(x.shape[time_axis]), 1 - time_axis)
    lengths = jnp.expand_dims(lengths, time_axis)
    source = jnp.where(time < lengths, lengths - 1 - time, time)
    return jnp.take_along_axis(x, source.reshape(*source.shape, *[1] * (x.ndim - 2)), axis=time_axis)
''', "quantized": '''\
def quantized(x, scale, zero_point, dtype):
    """x over its scale, rounded to even, moved by the zero point, as the nearest integers of dtype."""
    # Behind the barrier the quotient is one, and not a product with an inverse, which may round the other way.
    steps = jnp.round(x / jax.lax.optimization_barrier(jnp.broadcast_to(scale, x.shape)))
    return jnp.clip(steps + zero_point, jnp.iinfo(dtype).min, jnp.iinfo(dtype).max).astype(dtype)
''', "dynamically_quantized": '''\
def dynamically_quantized(x):
    """x as uint8, with the scale and the zero point by which its range, 0 included, becomes 0 to 255."""
    low, high = jnp.minimum(x.min(), 0.0), jnp.maximum(x.max(), 0.0)
    scale = jnp.where(high == low, 1.0, (high - low) / jax.lax.optimization_barrier(jnp.float32(255)))
    zero_point = jnp.round(jnp.clip(-low / scale, 0, 255)).astype(jnp.uint8)
    return quantized(x, scale, zero_point, jnp.uint8), scale, zero_point
'''})  # fmt: skip
"""Functions that only some operators need."""
