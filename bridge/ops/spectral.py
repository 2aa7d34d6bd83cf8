"""Fourier transforms, windows and mel filters. A complex number is a last axis of two: real and imaginary part."""

# ruff: noqa: A002  (a handler's signature is the ONNX schema)
from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bridge.ops.backend import Array
from bridge.ops.dtypes import numpy_dtype
from bridge.ops.node import Node
from bridge.ops.registry import handles


@handles("DFT", versions={17}, static=["dft_length"])
def dft_17(
    node: Node,
    input: Array,
    dft_length: np.ndarray | None = None,
    *,
    axis: int = 1,
    inverse: int = 0,
    onesided: int = 0,
) -> Array:
    """The discrete Fourier transform along `axis`."""
    return _dft(node, input, dft_length, axis, inverse, onesided)


@handles("DFT", versions={20}, static=["dft_length", "axis"])
def dft(
    node: Node,
    input: Array,
    dft_length: np.ndarray | None = None,
    axis: np.ndarray | None = None,
    *,
    inverse: int = 0,
    onesided: int = 0,
) -> Array:
    """The discrete Fourier transform along `axis`."""
    return _dft(node, input, dft_length, -2 if axis is None else int(axis.item()), inverse, onesided)


def _dft(node: Node, data: Array, dft_length: np.ndarray | None, axis: int, inverse: int, onesided: int) -> Array:
    """Zeros or a cut make the axis `dft_length` long; `onesided` keeps the first half, whose mirror is the rest."""
    rank, parts = len(data.shape), int(data.shape[-1])
    at = axis % rank
    if at == rank - 1 or parts not in (1, 2):
        node.reject("the last axis holds the real and the imaginary part", got=(tuple(data.shape), axis))
    if onesided and bool(inverse) != (parts == 2):
        node.reject("a one-sided transform is of real numbers, its inverse of complex ones", got=tuple(data.shape))
    order = [*(a for a in range(rank - 1) if a != at), at, rank - 1]
    moved = node.xp.permute_dims(data, tuple(order))
    length = None if dft_length is None else int(dft_length.item())
    if onesided and inverse:
        result = _real_of_half(node, moved, 2 * (int(moved.shape[-2]) - 1) if length is None else length)
    else:
        result = _transformed(node, _of_length(node, moved, length), bool(inverse), bool(onesided))
    return node.xp.permute_dims(result, tuple(int(a) for a in np.argsort(order)))


def _real_of_half(node: Node, half: Array, length: int) -> Array:
    """The real signal [..., length, 1] whose spectrum begins with `half`; the rest is its mirrored conjugate."""
    half = _of_length(node, half, length // 2 + 1)
    mirror = node.backend.asarray(np.arange(length - length // 2 - 1, 0, -1, dtype=np.int64), like=half)
    signs = node.backend.asarray(np.array([1, -1], node.backend.dtype(half)), like=half)
    full = node.xp.concat([half, node.xp.take(half, mirror, axis=len(half.shape) - 2) * signs], axis=-2)
    return _transformed(node, full, True, False)[..., :1]


def _of_length(node: Node, data: Array, length: int | None) -> Array:
    *before, size, parts = (int(n) for n in data.shape)
    if length is None or length == size:
        return data
    if length < size:
        return data[..., :length, :]
    node.check_size((*before, length, parts))
    zeros = np.zeros((*before, length - size, parts), node.backend.dtype(data))
    return node.xp.concat([data, node.backend.asarray(zeros, like=data)], axis=-2)


def _transformed(node: Node, data: Array, inverse: bool, onesided: bool) -> Array:
    """The transform along the last axis but one, in float32 or wider."""
    dtype = node.backend.dtype(data)
    wide = data if dtype.itemsize >= 4 else node.backend.astype(data, np.dtype(np.float32))
    real = wide[..., 0]
    imaginary = wide[..., 1] if int(wide.shape[-1]) == 2 else node.xp.zeros_like(real)
    result = node.xp.stack(node.backend.fft(real, imaginary, inverse), axis=-1)
    if onesided:
        result = result[..., : int(data.shape[-2]) // 2 + 1, :]
    return node.backend.astype(result, dtype)


@handles("STFT", versions={17}, static=["frame_step", "frame_length"])
def stft(
    node: Node,
    signal: Array,
    frame_step: np.ndarray,
    window: Array | None = None,
    frame_length: np.ndarray | None = None,
    *,
    onesided: int = 1,
) -> Array:
    """Transforms of windows of a signal [batch, time(, 1 or 2)], `frame_step` apart: [batch, frames, bins, 2]."""
    if len(signal.shape) == 2:
        signal = node.xp.expand_dims(signal, axis=2)
    step, steps = int(frame_step.item()), int(signal.shape[1])
    length = _frame_length(node, window, frame_length)
    if step < 1 or not 0 < length <= steps:
        node.reject("frame_step or frame_length is out of range", got=(step, length), expected=f"up to {steps}")
    if onesided and int(signal.shape[2]) == 2:
        node.refuse("a one-sided transform of a complex signal is not carried")
    count = (steps - length) // step + 1
    places = (np.arange(count)[:, None] * step + np.arange(length)).reshape(-1).astype(np.int64)
    frames = node.xp.take(signal, node.backend.asarray(places, like=signal), axis=1)
    frames = node.xp.reshape(frames, (int(signal.shape[0]), count, length, int(signal.shape[2])))
    if window is not None:
        frames = frames * node.xp.reshape(window, (1, 1, length, 1))
    return _transformed(node, frames, False, bool(onesided))


def _frame_length(node: Node, window: Array | None, frame_length: np.ndarray | None) -> int:
    if window is None and frame_length is None:
        node.reject("has neither window nor frame_length")
    length = int(window.shape[0]) if window is not None else 0
    length = length if frame_length is None else int(frame_length.item())
    if window is not None and int(window.shape[0]) != length:
        node.reject("window and frame_length disagree", got=(int(window.shape[0]), length))
    return length


@handles("HannWindow", versions={17}, static=["size"], differentiable=False)
def hann_window(node: Node, size: np.ndarray, *, output_datatype: int = 1, periodic: int = 1) -> np.ndarray:
    """1/2 - 1/2 cos."""
    return _cosines(node, size, output_datatype, periodic, (0.5, -0.5))


@handles("HammingWindow", versions={17}, static=["size"], differentiable=False)
def hamming_window(node: Node, size: np.ndarray, *, output_datatype: int = 1, periodic: int = 1) -> np.ndarray:
    """25/46 - 21/46 cos."""
    return _cosines(node, size, output_datatype, periodic, (25 / 46, -21 / 46))


@handles("BlackmanWindow", versions={17}, static=["size"], differentiable=False)
def blackman_window(node: Node, size: np.ndarray, *, output_datatype: int = 1, periodic: int = 1) -> np.ndarray:
    """0.42 - 0.5 cos + 0.08 cos of the double angle."""
    return _cosines(node, size, output_datatype, periodic, (0.42, -0.5, 0.08))


def _cosines(node: Node, size: np.ndarray, output_datatype: int, periodic: int, factors: Sequence[float]) -> np.ndarray:
    count = int(size.item())
    node.check_size((count,))
    angle = 2 * np.pi * np.arange(count) / max(count if periodic else count - 1, 1)
    window: np.ndarray = sum((factor * np.cos(at * angle) for at, factor in enumerate(factors)), np.zeros(count))
    return window.astype(numpy_dtype(output_datatype, node.where))


@handles(
    "MelWeightMatrix",
    versions={17},
    static=["num_mel_bins", "dft_length", "sample_rate", "lower_edge_hertz", "upper_edge_hertz"],
    differentiable=False,
)
def mel_weight_matrix(
    node: Node,
    num_mel_bins: np.ndarray,
    dft_length: np.ndarray,
    sample_rate: np.ndarray,
    lower_edge_hertz: np.ndarray,
    upper_edge_hertz: np.ndarray,
    *,
    output_datatype: int = 1,
) -> np.ndarray:
    """Triangular filters [dft_length // 2 + 1, num_mel_bins]. Source: onnx/reference/ops/op_mel_weight_matrix.py."""
    bins, length = int(num_mel_bins.item()), int(dft_length.item())
    node.check_size((length // 2 + 1, bins))
    low, high = (2595 * np.log10(1 + float(edge.item()) / 700) for edge in (lower_edge_hertz, upper_edge_hertz))
    mel = np.arange(bins + 2) * ((high - low) / (bins + 2)) + low
    edges = ((length + 1) * (700 * (10 ** (mel / 2595) - 1)) // int(sample_rate.item())).astype(int)
    if bins < 1 or edges.min() < 0 or edges.max() > length // 2:
        node.reject("the edges lie outside the spectrum", got=edges.tolist(), expected=f"0 to {length // 2}")
    output = np.zeros((length // 2 + 1, bins))
    for at, (first, centre, last) in enumerate(zip(edges, edges[1:], edges[2:], strict=False)):
        if centre > first:
            output[first : centre + 1, at] = np.arange(centre + 1 - first) / (centre - first)
        output[centre, at] = 1
        output[centre:last, at] = (last - np.arange(centre, last)) / max(last - centre, 1)
    return output.astype(numpy_dtype(output_datatype, node.where))
