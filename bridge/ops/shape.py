"""Operators that move, join, cut and describe: no arithmetic."""

# ruff: noqa: A002, ARG001  (a handler's signature is the ONNX schema)
from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Final

import numpy as np

from bridge.ops.backend import Array
from bridge.ops.dtypes import numpy_dtype
from bridge.ops.node import Node
from bridge.ops.registry import handles
from bridge.ops.sizes import Size, as_size, as_sizes, elements, has_symbols, is_symbol, size_array

FAR: Final = np.iinfo(np.int32).max
"""Places at or past this are past any size."""

OPEN_ENDS: Final = (np.iinfo(np.int32).max, np.iinfo(np.int64).max)
"""By which the ONNX text advises to say "to the end"."""

LAYOUT_VERSIONS = frozenset({21, 23, 24, 25})
"""Releases that only added element types to the whole family."""


@handles("Identity", versions={1, 13, 14, 16, 19} | LAYOUT_VERSIONS)
def identity(node: Node, input: Array) -> Array:
    """The input."""
    return input


@handles("Transpose", versions={1, 13} | LAYOUT_VERSIONS)
def transpose(node: Node, data: Array, *, perm: Sequence[int] | None = None) -> Array:
    """Axes permuted, or reversed where `perm` is not given."""
    return node.xp.permute_dims(data, tuple(perm) if perm is not None else tuple(reversed(range(len(data.shape)))))


@handles("Reshape", versions={5, 13, 14, 19} | LAYOUT_VERSIONS, static=["shape"])
def reshape(node: Node, data: Array, shape: np.ndarray, *, allowzero: int = 0) -> Array:
    """A new shape: -1 is what is left over, 0 copies the axis unless `allowzero`."""
    sizes = list(as_sizes(shape))
    if not allowzero:
        sizes = [data.shape[at] if size == 0 else size for at, size in enumerate(sizes)]
    # JAX may trace symbols, and TensorFlow sizes that it does not know.
    if -1 in sizes and all(isinstance(size, int) for size in (*sizes, *data.shape)):
        others, total = elements(size for size in sizes if size != -1), elements(data.shape)
        if others == 0 or total % others:
            node.reject("the sizes do not fit the data", got=tuple(data.shape), expected=sizes)
        sizes[sizes.index(-1)] = total // others
    return node.xp.reshape(data, tuple(sizes))


@handles("Flatten", versions={1, 9, 11, 13} | LAYOUT_VERSIONS)
def flatten(node: Node, input: Array, *, axis: int = 1) -> Array:
    """Two axes: the product of the sizes before `axis`, and of those from it on."""
    axis = axis + len(input.shape) if axis < 0 else axis
    return node.xp.reshape(input, (elements(input.shape[:axis]), elements(input.shape[axis:])))


@handles("Squeeze", versions={1, 11})
def squeeze_by_attribute(node: Node, data: Array, *, axes: Sequence[int] | None = None) -> Array:
    """Axes of size 1 removed: those named, or all."""
    return _squeezed(node, data, axes)


@handles("Squeeze", versions={13} | LAYOUT_VERSIONS, static=["axes"])
def squeeze(node: Node, data: Array, axes: np.ndarray | None = None) -> Array:
    """Axes of size 1 removed: those named, or all."""
    return _squeezed(node, data, None if axes is None else axes.tolist())


def _squeezed(node: Node, data: Array, axes: Sequence[int] | None) -> Array:
    sizes = list(data.shape)
    named = [at for at, size in enumerate(sizes) if size == 1] if axes is None else [a % len(data.shape) for a in axes]
    if any(sizes[at] != 1 for at in named):
        node.reject("squeezes an axis that is not of size 1", got=sizes, expected=f"1 at axes {named}")
    return node.xp.reshape(data, tuple(size for at, size in enumerate(sizes) if at not in named))


@handles("Unsqueeze", versions={1, 11})
def unsqueeze_by_attribute(node: Node, data: Array, *, axes: Sequence[int]) -> Array:
    """Axes of size 1 inserted at positions of the result."""
    return _unsqueezed(node, data, axes)


@handles("Unsqueeze", versions={13} | LAYOUT_VERSIONS, static=["axes"])
def unsqueeze(node: Node, data: Array, axes: np.ndarray) -> Array:
    """Axes of size 1 inserted at positions of the result."""
    return _unsqueezed(node, data, np.atleast_1d(axes).tolist())


def _unsqueezed(node: Node, data: Array, axes: Sequence[int]) -> Array:
    rank = len(data.shape) + len(axes)
    places = {axis + rank if axis < 0 else axis for axis in axes}
    if len(places) != len(axes) or not places <= set(range(rank)):
        node.reject("axes out of range or named twice", got=list(axes), expected=f"distinct, below {rank}")
    sizes = iter(data.shape)
    return node.xp.reshape(data, tuple(1 if at in places else next(sizes) for at in range(rank)))


@handles("Concat", versions={4, 11, 13})
def concat(node: Node, *inputs: Array, axis: int) -> Array:
    """Inputs joined along `axis`."""
    return node.xp.concat(list(inputs), axis=axis)


@handles("Split", versions={2, 11})
def split_by_attribute(node: Node, input: Array, *, axis: int = 0, split: Sequence[int] | None = None) -> Any:
    """Consecutive parts along `axis`, of the given sizes or equal."""
    return _parts(input, axis, split or _equal_sizes(node, input, axis, node.outputs))


@handles("Split", versions={13}, static=["split"])
def split_13(node: Node, input: Array, split: np.ndarray | None = None, *, axis: int = 0) -> Any:
    """Consecutive parts along `axis`, of the given sizes or equal."""
    return _parts(input, axis, split if split is not None else _equal_sizes(node, input, axis, node.outputs))


@handles("Split", versions={18}, static=["split"])
def split(
    node: Node,
    input: Array,
    split: np.ndarray | None = None,
    *,
    axis: int = 0,
    num_outputs: int | None = None,
) -> Any:
    """Consecutive parts along `axis`: of the given sizes, or `num_outputs` of which the last may be smaller."""
    if split is None and num_outputs is None:
        node.reject("has neither split nor num_outputs")
    if split is not None:
        return _parts(input, axis, split)
    count = int(num_outputs or 0)
    total = int(input.shape[axis])
    chunk = -(-total // count)
    if (count - 1) * chunk >= total:
        node.reject("the axis does not fill this many parts", got=total, expected=f"{count} parts of up to {chunk}")
    return _parts(input, axis, [min(chunk, total - at * chunk) for at in range(count)])


def _equal_sizes(node: Node, data: Array, axis: int, count: int) -> list[int]:
    total = as_size(data.shape[axis])
    if total % count != 0:
        node.reject("the axis does not split into equal parts", got=total, expected=f"a multiple of {count}")
    return [total // count] * count


def _parts(data: Array, axis: int, sizes: Sequence[int] | np.ndarray) -> tuple[Array, ...]:
    axis = axis % len(data.shape)
    ends = list(accumulate(as_sizes(sizes)))
    starts = [0, *ends[:-1]]
    before = (slice(None),) * axis
    return tuple(data[(*before, slice(start, end))] for start, end in zip(starts, ends, strict=True))


@handles("Slice", versions={1})
def slice_by_attribute(
    node: Node, data: Array, *, axes: Sequence[int] | None = None, ends: Sequence[int], starts: Sequence[int]
) -> Array:
    """A range of each named axis."""
    return _sliced(node, data, starts, ends, axes, None)


@handles("Slice", versions={10, 11, 13}, static=["starts", "ends", "axes", "steps"])
def slice_(
    node: Node,
    data: Array,
    starts: np.ndarray,
    ends: np.ndarray,
    axes: np.ndarray | None = None,
    steps: np.ndarray | None = None,
) -> Array:
    """A range of each named axis; a negative step runs backwards."""
    return _sliced(node, data, starts, ends, axes, steps)


def _sliced(node: Node, data: Array, starts: Any, ends: Any, axes: Any, steps: Any) -> Array:
    count = len(starts)
    axes = range(count) if axes is None else axes
    steps = [1] * count if steps is None else steps
    cuts: list[slice] = [slice(None)] * len(data.shape)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        axis, size, step = int(axis) % len(data.shape), as_size(data.shape[int(axis)]), int(step)
        end = open_end(end, step)
        if any(map(is_symbol, (start, end, size))):
            cuts[axis] = _symbolic_cut(node, as_size(start), as_size(end), step)
            continue
        cut = bounds(int(start), int(end), size, step)
        if step > 0:
            cuts[axis] = slice(cut.start, cut.stop, step)
        else:  # torch and TensorFlow take no negative step
            data = node.xp.take(data, node.backend.asarray(np.asarray(cut, np.int64), like=data), axis=axis)
    return data[tuple(cuts)]


def _symbolic_cut(node: Node, start: Size, end: Size, step: int) -> slice:
    """A slice of an axis whose size only a call knows: JAX clamps it as Python does, and so as Slice-13 says.

    Not so where a range that runs backwards starts before the first element: there Slice-13 starts at the first.
    """
    if step < 0 and not is_symbol(start) and start < -1:
        node.refuse("runs backwards from a place counted from the end, on an axis whose size only a call knows",
                    got=start, do="start at -1, or export it for one size")  # fmt: skip
    first, last = (FAR, -FAR) if step < 0 else (-FAR, FAR)  # past the ends of the axis, in the direction of the step
    begin, stop = _near(start), _near(end)
    if begin == last or stop == first:
        return slice(0, 0)
    return slice(None if begin == first else begin, None if stop == last else stop, step)


def _near(place: Size) -> Size:
    """A place in an axis; +-FAR where it is past any size, by which exporters mean an end of the axis."""
    if is_symbol(place) or abs(place) < FAR:
        return place
    return FAR if place > 0 else -FAR


def open_end(end: Size, step: int) -> Size:
    """The end of a range, before every element where the largest of its dtype ends a range that runs backwards.

    Source: onnxruntime 1.31.1, measured.
    """
    return -FAR if step < 0 and end in OPEN_ENDS else end


def bounds(start: int, end: int, size: int, step: int) -> range:
    """Start and end clamped as Slice-13 says, as a range of positions."""
    start, end = (value + size if value < 0 else value for value in (start, end))
    low, high = (0, size) if step > 0 else (-1, size - 1)
    start = min(max(start, 0), high)
    end = min(max(end, low), size)
    return range(start, max(end, start) if step > 0 else end, step)


@handles("Shape", versions={1, 13, 15, 19} | LAYOUT_VERSIONS, raw=True, differentiable=False)
def shape(node: Node, data: Array, *, end: int | None = None, start: int = 0) -> np.ndarray:
    """The sizes, known while tracing."""
    return size_array(tuple(data.shape)[start:end])


@handles("Size", versions={1, 13, 19} | LAYOUT_VERSIONS, raw=True, differentiable=False)
def size(node: Node, data: Array) -> np.ndarray:
    """The number of elements, known while tracing."""
    return size_array([elements(data.shape)]).reshape(())


@handles("Expand", versions={8, 13}, static=["shape"])
def expand(node: Node, input: Array, shape: np.ndarray) -> Array:
    """Broadcast to the common shape of the input's and `shape`."""
    common = node.xp if has_symbols(shape) or any(map(is_symbol, input.shape)) else np
    sizes = common.broadcast_shapes(as_sizes(input.shape), as_sizes(shape))
    node.check_size(sizes)
    return node.xp.broadcast_to(input, sizes)


@handles("Tile", versions={6, 13}, static=["repeats"])
def tile(node: Node, input: Array, repeats: np.ndarray) -> Array:
    """The input repeated along each axis."""
    times = as_sizes(repeats)
    node.check_size([as_size(size) * count for size, count in zip(input.shape, times, strict=True)])
    return node.xp.tile(input, times)


@handles("ConstantOfShape", versions={9, 20} | LAYOUT_VERSIONS, static=["input"])
def constant_of_shape(node: Node, input: np.ndarray, *, value: np.ndarray | None = None) -> Array:
    """One value (float32 zero where not given) in the given shape."""
    sizes = as_sizes(input)
    node.check_size(sizes)
    value = np.zeros(1, np.float32) if value is None else value
    if has_symbols(input):
        return node.xp.broadcast_to(node.backend.asarray(value.reshape(())), sizes)
    return np.full(sizes, value.reshape(()), value.dtype)


@handles("Range", versions={11}, static=["start", "limit", "delta"], differentiable=False)
def range_(node: Node, start: np.ndarray, limit: np.ndarray, delta: np.ndarray) -> Array:
    """Start, start + delta, ... below `limit`."""
    if any(map(has_symbols, (start, limit, delta))):
        return node.xp.arange(start.item(), limit.item(), delta.item())
    if delta.item() == 0:
        node.reject("the delta is 0")
    count = max(int(np.ceil((limit.item() - start.item()) / delta.item())), 0)
    node.check_size((count,))
    values: np.ndarray = (start + np.arange(count) * delta).astype(start.dtype)
    return values


@handles("Cast", versions={6, 9, 13, 19} | LAYOUT_VERSIONS)
def cast(node: Node, input: Array, *, round_mode: str = "up", saturate: int = 1, to: int) -> Array:
    """Another element type; `round_mode` and `saturate` concern float8, which is refused."""
    return _cast(node, input, numpy_dtype(to, node.where))


@handles("CastLike", versions={15, 19} | LAYOUT_VERSIONS)
def cast_like(node: Node, input: Array, target_type: Array, *, round_mode: str = "up", saturate: int = 1) -> Array:
    """The element type of another value."""
    return _cast(node, input, node.backend.dtype(target_type))


def _cast(node: Node, data: Array, dtype: np.dtype[Any]) -> Array:
    if dtype.kind == "b":
        # TensorFlow compares no bool with a number.
        return data if node.backend.dtype(data).kind == "b" else data != 0
    return node.backend.astype(data, dtype)


@handles("Dropout", versions={7, 10})
def dropout_by_attribute(node: Node, data: Array, *, ratio: float = 0.5) -> Any:
    """Inference: the input, and a mask of ones."""
    return data, _ones(node, data)


@handles("Dropout", versions={12, 13, 22}, static=["ratio", "training_mode"])
def dropout(
    node: Node,
    data: Array,
    ratio: np.ndarray | None = None,
    training_mode: np.ndarray | None = None,
    *,
    seed: int | None = None,
) -> Any:
    """Inference: the input, and a mask of ones.

    Raises:
        Unsupported: training mode with a ratio above 0, whose result is random.
    """
    if training_mode is not None and bool(training_mode) and (ratio is None or float(ratio) > 0):
        node.refuse("drops at random in training mode", do="export the model in inference mode")
    return data, _ones(node, data)


def _ones(node: Node, data: Array) -> Array:
    return node.backend.asarray(np.ones(tuple(data.shape), np.bool_), like=data)
