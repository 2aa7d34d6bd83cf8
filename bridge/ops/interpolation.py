"""Where the elements of a resized axis lie in the old one, and with which weights. Static: numpy alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np

Coordinates = Callable[[np.ndarray, "Axis"], np.ndarray]


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One axis to resize; numbers are float32, as onnxruntime computes them."""

    old: int
    new: int
    scale: np.float32
    roi: tuple[np.float32, np.float32] = (np.float32(0), np.float32(1))
    """First and last position, as parts of the axis."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Taps:
    """out[i] = sum over k of weights[k, i] * in[places[k, i]]."""

    places: np.ndarray
    weights: np.ndarray | None
    """None where each new element is one old element."""
    outside: np.ndarray
    """New elements that lie outside the old axis."""


HALF: Final = np.float32(0.5)


def _half_pixel_symmetric(x: np.ndarray, axis: Axis) -> np.ndarray:
    adjustment = np.float32(axis.new) / (axis.scale * np.float32(axis.old))
    offset = np.float32(axis.old) / 2 * (1 - adjustment)
    return offset + (x + HALF) / axis.scale - HALF


def _align_corners(x: np.ndarray, axis: Axis) -> np.ndarray:
    return x * np.float32(axis.old - 1) / np.float32(axis.new - 1) if axis.new > 1 else np.zeros_like(x)


def _crop_and_resize(x: np.ndarray, axis: Axis) -> np.ndarray:
    (start, end), last = axis.roi, np.float32(axis.old - 1)
    if axis.new == 1:
        return HALF * (start + end) * last + np.zeros_like(x)
    return start * last + x * (end - start) * last / np.float32(axis.new - 1)


COORDINATES: Final[Mapping[str, Coordinates]] = MappingProxyType({
    "half_pixel": lambda x, axis: (x + HALF) / axis.scale - HALF,
    "half_pixel_symmetric": _half_pixel_symmetric,
    "pytorch_half_pixel": lambda x, axis: (x + HALF) / axis.scale - HALF if axis.new > 1 else np.zeros_like(x),
    "tf_half_pixel_for_nn": lambda x, axis: (x + HALF) / axis.scale,
    "asymmetric": lambda x, axis: x / axis.scale,
    "align_corners": _align_corners,
    "tf_crop_and_resize": _crop_and_resize,
})  # fmt: skip
"""New position to old position. Source: onnx/defs/tensor/defs.cc, Resize-19; tf_half_pixel_for_nn: Resize-11."""

ROUNDED: Final[Mapping[str, Callable[[np.ndarray], np.ndarray]]] = MappingProxyType({
    "round_prefer_floor": lambda x: np.ceil(x - HALF),
    "round_prefer_ceil": lambda x: np.floor(x + HALF),
    "floor": np.floor,
    "ceil": np.ceil,
})  # fmt: skip


def positions(axis: Axis, coordinates: str) -> np.ndarray:
    """The old position of each new element."""
    return COORDINATES[coordinates](np.arange(axis.new, dtype=np.float32), axis)


def nearest(axis: Axis, at: np.ndarray, rounding: str) -> Taps:
    """One old element each."""
    places = np.clip(ROUNDED[rounding](at).astype(np.int64), 0, axis.old - 1)
    return Taps(places=places[None], weights=None, outside=_outside(axis, at))


def linear(axis: Axis, at: np.ndarray) -> Taps:
    """Two neighbours, weighed by distance; beyond the ends the end itself."""
    inside = np.clip(at, 0, axis.old - 1)
    below = np.minimum(np.floor(inside).astype(np.int64), axis.old - 1)
    above = np.minimum(below + 1, axis.old - 1)
    fraction = inside - below
    return Taps(places=np.stack([below, above]), weights=np.stack([1 - fraction, fraction]), outside=_outside(axis, at))


def cubic(axis: Axis, at: np.ndarray, a: float, exclude_outside: bool) -> Taps:
    """Four neighbours, weighed by the cubic kernel with parameter `a`."""
    first = np.floor(at).astype(np.int64)
    places = first + np.arange(-1, 3)[:, None]
    weights = _cubic_kernel(np.abs(at - places), a)
    return _tapped(axis, at, places, weights, exclude_outside)


def antialiased(axis: Axis, at: np.ndarray, kernel: str, a: float, exclude_outside: bool) -> Taps:
    """A kernel as wide as one new element where the axis shrinks."""
    scale = min(float(axis.scale), 1.0)
    reach = {"linear": 1.0, "cubic": 2.0}[kernel]
    start = int(np.floor(-reach / scale)) + 1
    count = int(2 * reach) - 2 * start
    places = np.floor(at).astype(np.int64) + (start + np.arange(count))[:, None]
    distance = np.abs(places - at.astype(np.float64)) * scale
    weights = np.clip(1 - distance, 0, 1) if kernel == "linear" else _cubic_kernel(distance, a)
    return _tapped(axis, at, places, weights / weights.sum(axis=0), exclude_outside)


def _tapped(axis: Axis, at: np.ndarray, places: np.ndarray, weights: np.ndarray, exclude_outside: bool) -> Taps:
    if exclude_outside:
        weights = np.where((places >= 0) & (places < axis.old), weights, 0)
        weights = weights / weights.sum(axis=0)
    return Taps(places=np.clip(places, 0, axis.old - 1), weights=weights, outside=_outside(axis, at))


def _cubic_kernel(x: np.ndarray, a: float) -> np.ndarray:
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0))


def _outside(axis: Axis, at: np.ndarray) -> np.ndarray:
    return (at < 0) | (at > axis.old - 1)
