"""Normalisation by mean and variance, or by a norm, as at inference."""

# ruff: noqa: A002, ARG001  (a handler's signature is the ONNX schema)
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bridge.ops.backend import Array
from bridge.ops.node import Node
from bridge.ops.registry import handles

EPSILON = 9.999999747378752e-06
"""1e-5 in float32, as the schemas have it."""


@handles("BatchNormalization", versions={7}, statistics=["mean", "var"])
def batch_normalization_7(
    node: Node,
    X: Array,
    scale: Array,
    B: Array,
    mean: Array,
    var: Array,
    *,
    epsilon: float = EPSILON,
    momentum: float = 0.8999999761581421,
    spatial: int = 1,
) -> Array:
    """Each channel by its running statistics; statistics for each position (`spatial` 0) are refused."""
    if not spatial:
        node.refuse("spatial=0, statistics for each position, is not carried")
    return _by_channel(node, X, scale, B, mean, var, epsilon)


@handles("BatchNormalization", versions={9}, statistics=["mean", "var"])
def batch_normalization_9(
    node: Node,
    X: Array,
    scale: Array,
    B: Array,
    mean: Array,
    var: Array,
    *,
    epsilon: float = EPSILON,
    momentum: float = 0.8999999761581421,
) -> Array:
    """Each channel by its running statistics."""
    return _by_channel(node, X, scale, B, mean, var, epsilon)


@handles("BatchNormalization", versions={14, 15}, statistics=["input_mean", "input_var"])
def batch_normalization(
    node: Node,
    X: Array,
    scale: Array,
    B: Array,
    input_mean: Array,
    input_var: Array,
    *,
    epsilon: float = EPSILON,
    momentum: float = 0.8999999761581421,
    training_mode: int = 0,
) -> Any:
    """Each channel by its running statistics; in training mode by its own, which the running ones then follow."""
    if not training_mode:
        return _by_channel(node, X, scale, B, input_mean, input_var, epsilon)
    axes = (0, *range(2, len(X.shape)))
    mean, var = node.xp.mean(X, axis=axes), node.xp.var(X, axis=axes)
    Y = _by_channel(node, X, scale, B, mean, var, epsilon)
    running = (old * momentum + new * (1 - momentum) for old, new in ((input_mean, mean), (input_var, var)))
    return Y, *running


def _by_channel(node: Node, X: Array, scale: Array, B: Array, mean: Array, var: Array, epsilon: float) -> Array:
    scale, B, mean, var = (_broadcast(node, value, X) for value in (scale, B, mean, var))
    dtype = node.backend.dtype(X)
    normal = (X - mean) / node.xp.sqrt(var + epsilon) * scale + B
    return node.backend.astype(normal, dtype)


def _broadcast(node: Node, value: Array, X: Array) -> Array:
    """One number for each channel, shaped to fit X [N, C, ...]."""
    return node.xp.reshape(value, (1, -1, *[1] * (len(X.shape) - 2))) if len(X.shape) > 1 else value


@handles("InstanceNormalization", versions={6, 22})
def instance_normalization(node: Node, input: Array, scale: Array, B: Array, *, epsilon: float = EPSILON) -> Array:
    """Each channel of each sample by its own mean and variance."""
    normal, _, _ = _standardised(node, input, tuple(range(2, len(input.shape))), epsilon)
    return normal * _broadcast(node, scale, input) + _broadcast(node, B, input)


@handles("LayerNormalization", versions={17})
def layer_normalization(
    node: Node,
    X: Array,
    Scale: Array,
    B: Array | None = None,
    *,
    axis: int = -1,
    epsilon: float = EPSILON,
    stash_type: int = 1,
) -> tuple[Array, ...]:
    """The axes from `axis` on together; mean and inverse deviation come back in `stash_type`."""
    wide = _stashed(node, X, stash_type)
    normal, mean, inverse = _standardised(node, wide, _from(X, axis), epsilon)
    normal = node.backend.astype(normal, node.backend.dtype(X)) * Scale
    return (normal if B is None else normal + B), mean, inverse


@handles("RMSNormalization", versions={23})
def rms_normalization(
    node: Node, X: Array, scale: Array, *, axis: int = -1, epsilon: float = EPSILON, stash_type: int = 1
) -> Array:
    """X over the root of its mean square over the axes from `axis` on."""
    wide = _stashed(node, X, stash_type)
    mean_square = node.xp.mean(wide * wide, axis=_from(X, axis), keepdims=True)
    return node.backend.astype(wide / node.xp.sqrt(mean_square + epsilon), node.backend.dtype(X)) * scale


@handles("GroupNormalization", versions={18})
def group_normalization_18(
    node: Node, X: Array, scale: Array, bias: Array, *, epsilon: float = EPSILON, num_groups: int
) -> Array:
    """The channels of a group together; scale and bias have one number for each group."""
    flat = _grouped(node, X, num_groups)
    normal, _, _ = _standardised(node, flat, (2,), epsilon)
    scale, bias = (node.xp.reshape(value, (1, num_groups, 1)) for value in (scale, bias))
    return node.xp.reshape(normal * scale + bias, tuple(X.shape))


@handles("GroupNormalization", versions={21})
def group_normalization(
    node: Node,
    X: Array,
    scale: Array,
    bias: Array,
    *,
    epsilon: float = EPSILON,
    num_groups: int,
    stash_type: int = 1,
) -> Array:
    """The channels of a group together; scale and bias have one number for each channel."""
    normal, _, _ = _standardised(node, _grouped(node, _stashed(node, X, stash_type), num_groups), (2,), epsilon)
    normal = node.backend.astype(node.xp.reshape(normal, tuple(X.shape)), node.backend.dtype(X))
    return normal * _broadcast(node, scale, X) + _broadcast(node, bias, X)


def _grouped(node: Node, X: Array, groups: int) -> Array:
    if int(X.shape[1]) % groups:
        node.reject("the groups do not divide the channels", got=int(X.shape[1]), expected=f"a multiple of {groups}")
    return node.xp.reshape(X, (X.shape[0], groups, -1))


def _stashed(node: Node, X: Array, stash_type: int) -> Array:
    """X in the dtype that statistics are computed in."""
    if stash_type != 1:
        node.refuse("stash_type other than float32 is not carried", got=stash_type)
    dtype = node.backend.dtype(X)
    return X if dtype.itemsize >= 4 else node.backend.astype(X, np.dtype(np.float32))


def _from(X: Array, axis: int) -> tuple[int, ...]:
    return tuple(range(axis % len(X.shape), len(X.shape)))


def _standardised(node: Node, data: Array, axes: tuple[int, ...], epsilon: float) -> tuple[Array, Array, Array]:
    """Data minus its mean over its deviation; the mean; the inverse of the deviation."""
    mean = node.xp.mean(data, axis=axes, keepdims=True)
    centred = data - mean
    inverse = 1 / node.xp.sqrt(node.xp.mean(centred * centred, axis=axes, keepdims=True) + epsilon)
    return centred * inverse, mean, inverse


@handles("MeanVarianceNormalization", versions={9, 13})
def mean_variance_normalization(node: Node, X: Array, *, axes: Sequence[int] = (0, 2, 3)) -> Array:
    """(X - mean) / (deviation + 1e-9) over `axes`."""
    named = tuple(axis % len(X.shape) for axis in axes)
    centred = X - node.xp.mean(X, axis=named, keepdims=True)
    return centred / (node.xp.sqrt(node.xp.mean(centred * centred, axis=named, keepdims=True)) + 1e-9)


@handles("LpNormalization", versions={1, 22})
def lp_normalization(node: Node, input: Array, *, axis: int = -1, p: int = 2) -> Array:
    """Vectors along `axis` over their 1- or 2-norm; a zero vector stays zero."""
    if p not in (1, 2):
        node.reject("unknown norm", got=p, expected="1 or 2")
    total = node.xp.sum(node.xp.abs(input) if p == 1 else input * input, axis=axis, keepdims=True)
    empty = total == 0
    norm = node.xp.where(empty, node.xp.ones_like(total), total)
    return input / (norm if p == 1 else node.xp.sqrt(norm))


@handles("LRN", versions={1, 13})
def lrn(
    node: Node, X: Array, *, alpha: float = 9.999999747378752e-05, beta: float = 0.75, bias: float = 1.0, size: int
) -> Array:
    """X over (bias + alpha / size * the squares of `size` neighbouring channels summed) ** beta."""
    channels, squares = int(X.shape[1]), X * X
    before = (size - 1) // 2
    total = node.xp.zeros_like(X)
    for shift in range(-before, size - before):
        kept = [at + shift for at in range(channels)]
        mask = np.array([0 <= at < channels for at in kept]).reshape(1, -1, *[1] * (len(X.shape) - 2))
        places = node.backend.asarray(np.clip(np.array(kept, np.int64), 0, channels - 1), like=X)
        inside = node.backend.asarray(mask.astype(node.backend.dtype(X)), like=X)
        total = total + node.xp.take(squares, places, axis=1) * inside
    return X / (bias + alpha / size * total) ** beta
