"""Sizes of axes: numbers, or JAX's symbols where `jax.export` traces a model for sizes that only a call knows.

Shape arithmetic in numpy carries symbols in arrays of objects: their own operators do the arithmetic, and a comparison
that holds for some sizes only is an error of theirs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from bridge.ops.backend import Array, Backend

Size = Any
"""An int or a symbol."""


def is_symbol(size: object) -> bool:
    """Whether a size is a symbol of `jax.export`; told by its class, for a tracer has an aval and shapes have none."""
    return type(size).__module__.partition(".")[0] == "jax" and not hasattr(size, "aval")


def as_size(size: Size) -> Size:
    """An element of a shape or of a static array as an int; a symbol as it is."""
    return size if is_symbol(size) else int(size)


def as_sizes(sizes: Iterable[Size]) -> tuple[Size, ...]:
    """A shape, or a static array of one axis."""
    return tuple(map(as_size, sizes))


def elements(sizes: Iterable[Size]) -> Size:
    """The number of elements."""
    return math.prod(as_sizes(sizes))


def known(sizes: Iterable[Size]) -> list[int]:
    """The sizes that are numbers."""
    return [int(size) for size in sizes if not is_symbol(size)]


def size_array(sizes: Sequence[Size]) -> np.ndarray:
    """int64 [n], of objects where a size is a symbol."""
    array = np.empty(len(sizes), np.int64 if all(not is_symbol(size) for size in sizes) else object)
    for at, size in enumerate(sizes):
        array[at] = as_size(size)
    return array


def has_symbols(value: object) -> bool:
    """Whether a static value holds symbols."""
    return isinstance(value, np.ndarray) and value.dtype == object and any(map(is_symbol, value.flat))


def positions(backend: Backend, size: Size, like: Array, dtype: type[np.integer[Any]] = np.int64) -> Array:
    """0, 1, ... below `size` on the backend."""
    if is_symbol(size):
        return backend.astype(backend.xp.arange(size), np.dtype(dtype))
    return backend.asarray(np.arange(int(size), dtype=dtype), like=like)
