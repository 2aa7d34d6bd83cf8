"""Resize and Upsample: one axis after the other, by the weights of `interpolation.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bridge.ops import interpolation
from bridge.ops.backend import Array
from bridge.ops.interpolation import Axis, Taps
from bridge.ops.node import Node
from bridge.ops.registry import handles


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """The attributes of Resize that say how, with their defaults since Resize-11."""

    mode: str = "nearest"
    coordinates: str = "half_pixel"
    nearest_mode: str = "round_prefer_floor"
    cubic_coeff_a: float = -0.75
    exclude_outside: bool = False
    extrapolation_value: float = 0.0
    antialias: bool = False

    def check(self, node: Node) -> None:
        """Refuse what has no meaning.

        Raises:
            BadInput: an unknown mode.
        """
        known = (("mode", self.mode, ("nearest", "linear", "cubic")),
                 ("coordinate_transformation_mode", self.coordinates, tuple(interpolation.COORDINATES)),
                 ("nearest_mode", self.nearest_mode, tuple(interpolation.ROUNDED)))  # fmt: skip
        for name, value, expected in known:
            if value not in expected:
                node.reject(f"unknown {name}", got=value, expected=" ".join(expected))

    def taps(self, axis: Axis) -> Taps:
        """Which old elements make the new ones."""
        at = interpolation.positions(axis, self.coordinates)
        if self.mode == "nearest":
            return interpolation.nearest(axis, at, self.nearest_mode)
        if self.antialias and axis.scale < 1:
            return interpolation.antialiased(axis, at, self.mode, self.cubic_coeff_a, self.exclude_outside)
        if self.mode == "linear":
            return interpolation.linear(axis, at)
        return interpolation.cubic(axis, at, self.cubic_coeff_a, self.exclude_outside)


@handles("Upsample", versions={7})
def upsample_7(node: Node, X: Array, *, mode: str = "nearest", scales: Sequence[float]) -> Array:
    """Each axis `scales` times as long."""
    return upsample(node, X, np.array(scales, np.float32), mode=mode)


@handles("Upsample", versions={9, 10}, static=["scales"])
def upsample(node: Node, X: Array, scales: np.ndarray, *, mode: str = "nearest") -> Array:
    """Each axis `scales` times as long."""
    method = Method(mode=mode, coordinates="asymmetric", nearest_mode="floor")
    return _by_scales(node, X, scales, method)


@handles("Resize", versions={10}, static=["scales"])
def resize_10(node: Node, X: Array, scales: np.ndarray, *, mode: str = "nearest") -> Array:
    """Each axis `scales` times as long; the nearest element is the one below, above where the axis shrinks."""
    if mode == "nearest" and (scales < 1).any():
        node.refuse("nearest with an axis that shrinks is not carried before opset 11")
    return _by_scales(node, X, scales, Method(mode=mode, coordinates="asymmetric", nearest_mode="floor"))


def _by_scales(node: Node, X: Array, scales: np.ndarray, method: Method) -> Array:
    axes = [Axis(old=int(size), new=int(np.floor(int(size) * scale)), scale=np.float32(scale))
            for size, scale in zip(X.shape, scales, strict=True)]  # fmt: skip
    return _resized(node, X, axes, method)


@handles("Resize", versions={11, 13}, static=["roi", "scales", "sizes"])
def resize_13(
    node: Node,
    X: Array,
    roi: np.ndarray | None = None,
    scales: np.ndarray | None = None,
    sizes: np.ndarray | None = None,
    *,
    coordinate_transformation_mode: str = "half_pixel",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    mode: str = "nearest",
    nearest_mode: str = "round_prefer_floor",
) -> Array:
    """Every axis to its scale or size."""
    return resize(node, X, roi, scales, sizes, coordinate_transformation_mode=coordinate_transformation_mode,
                  cubic_coeff_a=cubic_coeff_a, exclude_outside=exclude_outside,
                  extrapolation_value=extrapolation_value, mode=mode, nearest_mode=nearest_mode)  # fmt: skip


@handles("Resize", versions={18, 19}, static=["roi", "scales", "sizes"])
def resize(
    node: Node,
    X: Array,
    roi: np.ndarray | None = None,
    scales: np.ndarray | None = None,
    sizes: np.ndarray | None = None,
    *,
    antialias: int = 0,
    axes: Sequence[int] | None = None,
    coordinate_transformation_mode: str = "half_pixel",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch",
    mode: str = "nearest",
    nearest_mode: str = "round_prefer_floor",
) -> Array:
    """The named axes to their scales or sizes."""
    named = range(len(X.shape)) if axes is None else [axis % len(X.shape) for axis in axes]
    old = [int(X.shape[axis]) for axis in named]
    new, factors = _targets(node, old, scales, sizes, keep_aspect_ratio_policy)
    crop = coordinate_transformation_mode == "tf_crop_and_resize"
    if crop and (roi is None or roi.size != 2 * len(old)):
        node.reject("tf_crop_and_resize needs a start and an end for each axis in roi")
    edges = np.asarray(roi if crop else [0.0] * len(old) + [1.0] * len(old), np.float32).reshape(2, -1)
    by_axis = {
        axis: Axis(old=old[at], new=new[at], scale=np.float32(factors[at]), roi=(edges[0, at], edges[1, at]))
        for at, axis in enumerate(named)
    }
    every = [by_axis.get(at) or Axis(old=int(n), new=int(n), scale=np.float32(1)) for at, n in enumerate(X.shape)]
    method = Method(mode=mode, coordinates=coordinate_transformation_mode, nearest_mode=nearest_mode,
                    cubic_coeff_a=cubic_coeff_a, exclude_outside=bool(exclude_outside),
                    extrapolation_value=extrapolation_value, antialias=bool(antialias))  # fmt: skip
    return _resized(node, X, every, method)


def _targets(
    node: Node, old: Sequence[int], scales: np.ndarray | None, sizes: np.ndarray | None, policy: str
) -> tuple[list[int], list[float]]:
    """New sizes and scales of the named axes."""
    scales, sizes = (None if value is None or value.size == 0 else value for value in (scales, sizes))
    given = sizes if scales is None else scales
    if given is None or (scales is not None and sizes is not None) or given.size != len(old):
        node.reject("needs either scales or sizes, one for each axis", got=(scales, sizes), expected=len(old))
    if scales is not None:
        return [int(np.floor(size * scale)) for size, scale in zip(old, scales, strict=True)], scales.tolist()
    wanted = [int(size) for size in given]
    factors = [size / before for size, before in zip(wanted, old, strict=True)]
    if policy == "stretch":
        return wanted, factors
    if policy not in ("not_larger", "not_smaller"):
        node.reject("unknown keep_aspect_ratio_policy", got=policy, expected="stretch, not_larger or not_smaller")
    factor = min(factors) if policy == "not_larger" else max(factors)
    return [int(np.floor(factor * size + 0.5)) for size in old], [factor] * len(old)


def _resized(node: Node, X: Array, axes: Sequence[Axis], method: Method) -> Array:
    method.check(node)
    if any(axis.new < 1 or axis.old < 1 for axis in axes):
        node.reject("an axis would be empty", got=[axis.new for axis in axes])
    node.check_size([axis.new for axis in axes])
    dtype = node.backend.dtype(X)
    if method.coordinates == "align_corners" and any(axis.scale * axis.old != axis.new for axis in axes):
        node.refuse("align_corners to a size that the scale does not give exactly: ONNX and onnxruntime disagree")
    if method.mode != "nearest" and dtype.kind != "f":
        node.refuse("interpolates floats only", got=dtype)
    crop = method.coordinates == "tf_crop_and_resize"
    outside = np.zeros([1] * len(axes), np.bool_)
    for at, axis in enumerate(axes):
        if axis.old == axis.new and axis.scale == 1 and not crop:
            continue
        taps = method.taps(axis)
        X = _weighed(node, X, at, taps)
        outside = outside | taps.outside.reshape(-1, *[1] * (len(axes) - at - 1))
    if not crop or not outside.any():
        return X
    fill = node.backend.asarray(np.full((), method.extrapolation_value, dtype), like=X)
    return node.xp.where(node.backend.asarray(outside, like=X), fill, X)


def _weighed(node: Node, X: Array, at: int, taps: Taps) -> Array:
    dtype, shape = node.backend.dtype(X), (-1, *[1] * (len(X.shape) - at - 1))
    rows = [node.xp.take(X, node.backend.asarray(places, like=X), axis=at) for places in taps.places]
    if taps.weights is None:
        return rows[0]
    weights = [node.backend.asarray(row.astype(dtype).reshape(shape), like=X) for row in taps.weights]
    first, *rest = (row * weight for row, weight in zip(rows, weights, strict=True))
    for part in rest:
        first = first + part
    return first
