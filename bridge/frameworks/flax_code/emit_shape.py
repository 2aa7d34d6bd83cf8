"""Operators that move, join, cut and describe. Arithmetic of shapes is resolved while the code is written."""

# ruff: noqa: A002  (an emitter's signature is the ONNX schema)
from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import accumulate, pairwise
from typing import Any, Final

import numpy as np

from bridge.frameworks.flax_code.code import shape_text
from bridge.frameworks.flax_code.operands import Operand, Sizes, Tensor, Zeros
from bridge.frameworks.flax_code.registry import emits
from bridge.frameworks.flax_code.site import Site, as_sizes

MOST_PARTS: Final = 8
"""Layers and directions of a state that is cut into its parts."""


def size(site: Site, x: Tensor, axis: int) -> int | str:
    """The size of an axis: a number, or an expression that reads it off a graph input or off `x` itself."""
    if x.dims is not None and isinstance(x.dims[axis], int):
        return x.dims[axis]
    if x.dims is not None and str(x.dims[axis]) in site.code.symbols:
        return site.code.symbols[str(x.dims[axis])]
    if x.split_of is not None and axis < 2:
        return size(site, x.split_of, axis)
    if x.view is not None:
        base, axes = x.view
        place = axes[axis]
        return 1 if place is None else size(site, base, place)
    return f"{site.ref(x)}.shape[{axis}]"


def is_text(item: int | str) -> bool:
    """Whether a size is an expression."""
    return isinstance(item, str)


def rank_of(site: Site, x: Tensor) -> int:
    """The number of axes of `x`."""
    if x.rank is None:
        site.refuse("nothing says how many axes an input has")
    return x.rank


@emits("Shape")
def shape(site: Site, data: Operand, *, start: int = 0, end: int | None = None) -> Operand:
    """The sizes of a tensor, read off it when the code runs where they are not known."""
    if not isinstance(data, Tensor):
        site.refuse("Shape of something that is no tensor")
    return Sizes(tuple(size(site, data, axis) for axis in range(rank_of(site, data)))[start:end])


@emits("Size")
def size_of(site: Site, data: Operand) -> Operand:
    """How many elements: of a vector of sizes, its length."""
    if isinstance(data, Sizes):
        return np.asarray(len(data.items), np.int64)
    if not isinstance(data, Tensor):
        site.refuse("Size of something that is no tensor")
    items = [size(site, data, axis) for axis in range(rank_of(site, data))]
    known = math.prod(item for item in items if isinstance(item, int))
    factors = [*([known] if known != 1 else []), *filter(is_text, items)]
    return Sizes((f"({' * '.join(map(str, factors))})" if len(factors) > 1 else (factors or [1])[0],), is_scalar=True)


@emits("ConstantOfShape")
def constant_of_shape(site: Site, input: Operand, *, value: np.ndarray | None = None) -> Operand:
    """One number everywhere."""
    sizes = site.sizes(input, "the shape")
    number = np.zeros(1, np.float32) if value is None else value
    if number.dtype == np.float32 and not number.any():
        return Zeros(sizes)
    if number.dtype.kind in "iu" and len(sizes.items) == 1 and isinstance(sizes.items[0], int):
        return np.full(sizes.items[0], number.reshape(()))
    return site.emit(f"jnp.full({shape_text(sizes.items)}, {site.ref(number.reshape(()))})")


@emits("Transpose")
def transpose(site: Site, data: Operand, *, perm: Sequence[int] | None = None) -> Operand:
    """Axes in another order."""
    if not isinstance(data, Tensor):
        site.refuse("Transpose of something that is no tensor")
    return site.code.view(data, perm if perm is not None else range(rank_of(site, data))[::-1])


@emits("Unsqueeze")
def unsqueeze(site: Site, data: Operand, axes_input: Operand = None, *, axes: Sequence[int] | None = None) -> Operand:
    """New axes of size 1."""
    places = list(axes) if axes is not None else site.known(axes_input, "axes")
    if isinstance(data, Sizes):
        return _of_rank(site, data, len(places) + (not data.is_scalar))
    if not isinstance(data, Tensor):
        site.refuse("Unsqueeze of something that is no tensor")
    rank = rank_of(site, data) + len(places)
    places = [axis % rank for axis in places]
    old = iter(range(rank))
    return site.code.view(data, [None if at in places else next(old) for at in range(rank)])


def _of_rank(site: Site, data: Sizes, rank: int) -> Sizes:
    if rank > 1:
        site.refuse("sizes in more than one axis")
    return Sizes(data.items, is_scalar=rank == 0)


@emits("Squeeze")
def squeeze(site: Site, data: Operand, axes_input: Operand = None, *, axes: Sequence[int] | None = None) -> Operand:
    """Axes of size 1 taken away."""
    places = list(axes) if axes is not None else site.known(axes_input, "axes")
    if isinstance(data, Sizes):
        return Sizes(data.items, is_scalar=True)
    if not isinstance(data, Tensor):
        site.refuse("Squeeze of something that is no tensor")
    if places is None:
        site.refuse("Squeeze without axes")
    rank = rank_of(site, data)
    places = [axis % rank for axis in places]
    if data.view is not None and all(data.view[1][axis] is None for axis in places):
        base, around = data.view
        return site.code.view(base, [axis for at, axis in enumerate(around) if at not in places])
    if data.view is not None and len(places) == 1 and data.view[1][places[0]] is not None:
        return _squeezed_base(site, data, places[0])
    dims = None if data.dims is None else tuple(dim for at, dim in enumerate(data.dims) if at not in places)
    axis = str(places[0]) if len(places) == 1 else shape_text(places)
    return site.emit(f"{site.ref(data)}.squeeze({axis})", dims)


def _squeezed_base(site: Site, data: Tensor, place: int) -> Tensor:
    """An axis that a view took from its base is squeezed there, and the view stays a view."""
    base, around = data.view or (data, ())
    gone = around[place]
    dims = None if base.dims is None else tuple(dim for at, dim in enumerate(base.dims) if at != gone)
    made = site.code.assign(f"{site.ref(base)}.squeeze({gone})", dims, site.dtype())
    kept = [axis for at, axis in enumerate(around) if at != place]
    return site.code.view(made, [axis if axis is None or gone is None or axis < gone else axis - 1 for axis in kept])


@emits("Flatten")
def flatten(site: Site, input: Operand, *, axis: int = 1) -> Operand:
    """Two axes."""
    if not isinstance(input, Tensor) or axis != 1:
        site.refuse("Flatten before another axis than 1")
    first = size(site, input, 0)
    rest = [size(site, input, at) for at in range(1, rank_of(site, input))]
    wide = math.prod(each for each in rest if isinstance(each, int)) if not any(map(is_text, rest)) else -1
    sizes = (-1, wide) if wide != -1 else (first, -1)
    return site.emit(f"{site.ref(input)}.reshape({sizes[0]}, {sizes[1]})")


@emits("Reshape")
def reshape(site: Site, data: Operand, shape: Operand, *, allowzero: int = 0) -> Operand:
    """A new shape: -1 is what is left over, 0 copies the axis."""
    items = list(site.sizes(shape, "the new shape").items)
    if isinstance(data, Sizes):
        return _of_rank(site, data, len(items))
    if not isinstance(data, Tensor):
        site.refuse("Reshape of something that is no tensor")
    merged = _merged_directions(site, data, items)
    if merged is not None:
        return merged
    if not allowzero:
        items = [size(site, data, at) if item == 0 else item for at, item in enumerate(items)]
    inferred = site.dims()
    dims = _reshaped_dims(site, items, inferred)
    items = [dim if item == -1 and isinstance(dim, int) else item
             for item, dim in zip(items, dims or items, strict=True)]  # fmt: skip
    expressions = [at for at, item in enumerate(items) if isinstance(item, str)]
    if expressions and -1 not in items:
        items[expressions[-1] if len(expressions) == 1 else expressions[0]] = -1
    return site.emit(f"{site.ref(data)}.reshape({', '.join(map(str, items))})", dims)


def _reshaped_dims(site: Site, items: Sequence[int | str], inferred: Any) -> tuple[int | str, ...]:
    symbols = {text: symbol for symbol, text in site.code.symbols.items()}
    known = inferred if inferred is not None and len(inferred) == len(items) else ["?"] * len(items)
    return tuple(item if isinstance(item, int) and item != -1 else
                 symbols.get(str(item), dim if isinstance(dim, int) or dim != "?" else "?")
                 for item, dim in zip(items, known, strict=True))  # fmt: skip


def _merged_directions(site: Site, data: Tensor, items: Sequence[int | str]) -> Tensor | None:
    """Two directions side by side again, as nnx.Bidirectional gives them."""
    split, axes = data.view if data.view is not None else (data, (0, 1, 2, 3))
    if split.split_of is None or len(items) != 3:
        return None
    whole = split.split_of
    if whole is None or axes[-2:] != (2, 3) or set(axes[:2]) != {0, 1} or whole.dims is None:
        return None
    kept = [items[at] in (0, -1) or items[at] == size(site, data, at) for at in (0, 1)]
    # Where two of three sizes are the old ones, so is the third.
    if not any(kept) or items[2] not in (-1, whole.dims[-1]) or (items.count(-1) and not all(kept)):
        return None
    return site.code.view(whole, (*axes[:2], 2))


@emits("Concat")
def concat(site: Site, *inputs: Operand, axis: int) -> Operand:
    """Inputs one after another; sizes stay sizes."""
    parts = [as_sizes(each) for each in inputs]
    if all(part is not None for part in parts) and any(isinstance(each, Sizes) for each in inputs):
        return Sizes(tuple(item for part in parts if part is not None for item in part.items))
    stacked = [part for each in inputs for part in _stack(each)] if axis == 0 else []
    if stacked and all(isinstance(each, Tensor) and _stack(each) for each in inputs):
        return site.emit(f"jnp.stack([{', '.join(map(site.ref, stacked))}])")
    return site.emit(f"jnp.concatenate([{', '.join(map(site.ref, inputs))}], axis={axis})")


def _stack(operand: Operand) -> tuple[Tensor, ...]:
    """The tensors that are stacked to make an operand."""
    if not isinstance(operand, Tensor):
        return ()
    if operand.view is not None and operand.view[1] == (None, *range(len(operand.view[1]) - 1)):
        return (operand.view[0],)
    return operand.parts


@emits("Split")
def split(site: Site, input: Operand, split_input: Operand = None, *, axis: int = 0,
          split: Sequence[int] | None = None, num_outputs: int | None = None) -> Any:  # fmt: skip
    """Consecutive parts along an axis, as slices."""
    if not isinstance(input, Tensor):
        site.refuse("Split of something that is no tensor")
    at, count = axis % rank_of(site, input), num_outputs or len(site.outputs)
    sizes = list(split) if split is not None else site.known(split_input, "the sizes")
    if sizes is None:
        whole = size(site, input, at)
        if not isinstance(whole, int):
            site.refuse("equal parts of an axis whose size is not known")
        step = -(-whole // count)
        sizes = [min(step, whole - step * number) for number in range(count)]
    bounds = [0, *accumulate(sizes)]
    if at == 0 and input.view is None:
        return tuple(rows(site, input, first, last) for first, last in pairwise(bounds))
    return tuple(
        site.emit(f"{site.ref(input)}[{':, ' * at}{first}:{last}]", at=number)
        for number, (first, last) in enumerate(pairwise(bounds))
    )


def rows(site: Site, data: Tensor, begin: int, stop: int) -> Tensor:
    """Some elements along the first axis, each of which may be asked for alone."""
    dims = data.dims
    made = site.code.tensor(None if dims is None else (stop - begin, *dims[1:]), data.dtype)
    made.late = lambda: f"{site.ref(data)}[{begin}:{stop}]"
    rest = None if dims is None else dims[1:]
    parts = [site.code.tensor(rest, data.dtype) for _ in range(begin, stop)] if stop - begin <= MOST_PARTS else []
    for at, part in enumerate(parts, begin):
        part.late = partial(lambda at: f"{site.ref(data)}[{at}]", at)
    made.parts = tuple(parts)
    return made
