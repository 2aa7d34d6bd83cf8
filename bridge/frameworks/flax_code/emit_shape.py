"""Operators that move, join, cut and describe. Arithmetic of shapes is resolved while the code is written."""

# ruff: noqa: A002  (an emitter's signature is the ONNX schema)
from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import accumulate, pairwise
from typing import Any, Final

import numpy as np

from bridge.frameworks.flax_code.code import shape_text, unwrapped
from bridge.frameworks.flax_code.operands import Operand, Sizes, Tensor, Zeros
from bridge.frameworks.flax_code.registry import emits
from bridge.frameworks.flax_code.site import Site, as_sizes

MOST_PARTS: Final = 8
"""Layers and directions of a state that is cut into its parts."""

FAR: Final = 2**31 - 1
"""Ends of slices at or past this mean "to the end"."""


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
    return Sizes((" * ".join(map(str, [known, *(item for item in items if isinstance(item, str))])),), is_scalar=True)


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
        return Sizes(data.items)
    if not isinstance(data, Tensor):
        site.refuse("Unsqueeze of something that is no tensor")
    rank = rank_of(site, data) + len(places)
    places = [axis % rank for axis in places]
    old = iter(range(rank))
    return site.code.view(data, [None if at in places else next(old) for at in range(rank)])


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
    if isinstance(data, Sizes):
        return data
    if not isinstance(data, Tensor):
        site.refuse("Reshape of something that is no tensor")
    items = list(site.sizes(shape, "the new shape").items)
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
        return tuple(_rows(site, input, first, last) for first, last in pairwise(bounds))
    return tuple(
        site.emit(f"{site.ref(input)}[{':, ' * at}{first}:{last}]", at=number)
        for number, (first, last) in enumerate(pairwise(bounds))
    )


@emits("Slice")
def slice_(site: Site, data: Operand, starts_input: Operand = None, ends_input: Operand = None,
           axes_input: Operand = None, steps_input: Operand = None, *, starts: Any = None, ends: Any = None,
           axes: Any = None) -> Operand:  # fmt: skip
    """A part of each axis."""
    begin = list(starts) if starts is not None else list(site.sizes(starts_input, "where it starts").items)
    stop = list(ends) if ends is not None else list(site.sizes(ends_input, "where it ends").items)
    places = list(axes) if axes is not None else site.known(axes_input, "axes") or list(range(len(begin)))
    steps = site.known(steps_input, "steps") or [1] * len(begin)
    if isinstance(data, Zeros):
        return data
    if isinstance(data, Sizes):
        return Sizes(data.items[slice(*(_bound(each) for each in (begin[0], stop[0], steps[0])))])
    if not isinstance(data, Tensor):
        site.refuse("Slice of something that is no tensor")
    if data.view is not None and all(data.view[1][axis] is not None for axis in places):
        base, around = data.view
        inner = {around[axis]: _range(*each) for axis, *each in zip(places, begin, stop, steps, strict=True)}
        inner = {axis: text for axis, text in inner.items() if text != ":" and not _whole(base, axis, text)}
        if not inner:
            return data
        dims = base.dims if base.dims is None else tuple("?" if at in inner else d for at, d in enumerate(base.dims))
        dims = _sliced_dims(dims, around, site.dims())
        return site.code.view(site.code.assign(_indexed(site, base, inner), dims, site.dtype()), around)
    chosen = {axis % rank_of(site, data): _range(*each)
              for axis, *each in zip(places, begin, stop, steps, strict=True)}  # fmt: skip
    chosen = {axis: text for axis, text in chosen.items() if text != ":" and not _whole(data, axis, text)}
    if not chosen:
        return data
    if [*chosen] == [0] and isinstance(begin[0], int) and isinstance(stop[0], int) and 0 <= begin[0] < stop[0] < 2**10:
        return _rows(site, data, begin[0], stop[0])
    return site.emit(_indexed(site, data, chosen))


def _rows(site: Site, data: Tensor, begin: int, stop: int) -> Tensor:
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


def _whole(x: Tensor, axis: int | None, text: str) -> bool:
    """Whether a range is all of an axis."""
    return axis is not None and x.dims is not None and text == f":{x.dims[axis]}"


def _sliced_dims(dims: Any, axes: Sequence[int | None], outer: Any) -> Any:
    if dims is None or outer is None:
        return dims
    known = {axis: dim for axis, dim in zip(axes, outer, strict=True) if axis is not None}
    return tuple(known.get(at, dim) for at, dim in enumerate(dims))


def _bound(value: int | str) -> int | None:
    return value if isinstance(value, int) and abs(value) < FAR else None


def _range(begin: int | str, stop: int | str, step: int) -> str:
    first = "" if begin == 0 and step > 0 else begin if _bound(begin) is not None or isinstance(begin, str) else ""
    if step < 0 and begin == -1:
        first = ""
    last = stop if _bound(stop) is not None or isinstance(stop, str) else ""
    return f"{first}:{last}" + (f":{step}" if step != 1 else "")


def _indexed(site: Site, data: Tensor, chosen: dict[Any, str]) -> str:
    ranges = [chosen.get(at, ":") for at in range(max(chosen) + 1)]
    return site.ref(data) if set(ranges) == {":"} else f"{site.ref(data)}[{', '.join(ranges)}]"


@emits("Gather")
def gather(site: Site, data: Operand, indices: Operand, *, axis: int = 0) -> Operand:
    """Elements by index; rows of a constant matrix are an embedding."""
    if isinstance(data, Sizes):
        at = site.known(indices, "the index")
        scalar = isinstance(indices, np.ndarray) and indices.ndim == 0
        return Sizes(tuple(data.items[index] for index in at), is_scalar=scalar)
    if isinstance(data, np.ndarray) and data.dtype.kind == "f" and data.ndim == 2 and axis == 0:
        return _embedding(site, data, indices)
    if isinstance(indices, np.ndarray) and indices.ndim == 0 and isinstance(data, Tensor):
        return _taken(site, data, int(indices), axis % rank_of(site, data))
    return site.emit(f"jnp.take({site.ref(data)}, {site.ref(indices)}, axis={axis})")


def _taken(site: Site, data: Tensor, index: int, axis: int) -> Operand:
    if axis == 0 and data.parts:
        return data.parts[index]
    if data.view is not None:
        base, axes = data.view
        place = axes[axis]
        if place is None:
            return site.code.view(base, [each for at, each in enumerate(axes) if at != axis])
    dims = None if data.dims is None else tuple(dim for at, dim in enumerate(data.dims) if at != axis)
    return site.emit(f"{site.ref(data)}[{':, ' * axis}{index}]", dims)


def _embedding(site: Site, data: np.ndarray, indices: Operand) -> Operand:
    def make() -> object:
        arguments = [str(data.shape[0]), str(data.shape[1]), "rngs=rngs"]
        return site.code.layer(site.layer_name("embed", 0), "nnx.Embed", arguments, {"embedding": data})

    layer: Any = site.code.shared(("nnx.Embed", site.inputs[0]), make)
    return site.emit(f"self.{layer.name}({site.ref(indices)})")


@emits("GatherND")
def gather_nd(site: Site, data: Operand, indices: Operand, *, batch_dims: int = 0) -> Operand:
    """Elements by tuples of indices, which lie along the last axis."""
    if batch_dims == 1 and isinstance(indices, Tensor) and indices.dims is not None and indices.dims[-1] == 1:
        return site.emit(f"jax.vmap(lambda x, at: x[at[..., 0]])({site.ref(data)}, {site.ref(indices)})")
    if batch_dims:
        site.refuse("batch_dims over more than one index")
    return site.emit(f"{site.ref(data)}[tuple(jnp.moveaxis({site.ref(indices)}, -1, 0))]")


@emits("Expand")
def expand(site: Site, input: Operand, shape: Operand) -> Operand:
    """Axes of size 1 repeated."""
    items = site.sizes(shape, "the shape").items
    if isinstance(input, Zeros):
        return Zeros(Sizes(items))
    if isinstance(input, np.ndarray) and input.dtype.kind == "f":
        return _repeated(site, input, items)
    if isinstance(input, Tensor) and input.rank == len(items) and all(isinstance(item, int) for item in items):
        sizes = [size(site, input, at) if item == 1 else item for at, item in enumerate(items)]
        return site.emit(f"jnp.broadcast_to({site.ref(input)}, {shape_text(sizes)})")
    text = site.ref(input)
    return site.emit(f"jnp.broadcast_to({text}, jnp.broadcast_shapes(jnp.shape({text}), {shape_text(items)}))")


def _repeated(site: Site, array: np.ndarray, items: Sequence[int | str]) -> Operand:
    """A constant repeated, not written where a recurrent layer takes it as its learned initial state."""
    if not array.any():
        return Zeros(Sizes(tuple(items)))
    made = site.code.tensor(site.dims(), site.dtype())
    made.constant = array
    made.late = lambda: f"jnp.broadcast_to({site.ref(array)}, {shape_text(items)})"
    return made


@emits("Pad")
def pad(
    site: Site,
    data: Operand,
    pads_input: Operand = None,
    constant_value: Operand = None,
    axes_input: Operand = None,
    *,
    mode: Any = "constant",
    pads: Any = None,
    value: float = 0.0,
) -> Operand:
    """More elements before and behind each axis."""
    if not isinstance(data, Tensor):
        site.refuse("Pad of something that is no tensor")
    amounts = list(pads) if pads is not None else site.known(pads_input, "the amounts")
    rank = rank_of(site, data)
    places = site.known(axes_input, "axes") or list(range(rank))
    around = [(0, 0)] * rank
    for at, axis in enumerate(places):
        around[axis % rank] = (amounts[at], amounts[at + len(places)])
    if min(min(pair) for pair in around) < 0:
        site.refuse("negative padding")
    name = mode.decode() if isinstance(mode, bytes) else mode
    filled = constant_value if constant_value is not None else np.asarray(value, np.float32)
    how = {"constant": "", "reflect": ', mode="reflect"', "edge": ', mode="edge"', "wrap": ', mode="wrap"'}[name]
    if name == "constant" and not (isinstance(filled, np.ndarray) and not filled.any()):
        how = f", constant_values={site.ref(filled)}"
    dims = None if data.dims is None else tuple(
        dim + sum(pair) if isinstance(dim, int) else dim if pair == (0, 0) else "?"
        for dim, pair in zip(data.dims, around, strict=True)
    )  # fmt: skip
    return site.emit(f"jnp.pad({site.ref(data)}, {shape_text([str(pair) for pair in around])}{how})", dims)


@emits("Tile")
def tile(site: Site, input: Operand, repeats: Operand) -> Operand:
    """The whole repeated along each axis."""
    items = site.sizes(repeats, "how often").items
    if isinstance(input, Zeros):
        return input
    return site.emit(f"jnp.tile({site.ref(input)}, {shape_text(items)})")


@emits("Range")
def range_(site: Site, start: Operand, limit: Operand, delta: Operand) -> Operand:
    """Numbers from a start up to a limit."""
    first, last, step = (site.sizes(each, "the range").items[0] for each in (start, limit, delta))
    ends = [last] if (first, step) == (0, 1) else [first, last] if step == 1 else [first, last, step]
    return site.emit(f"jnp.arange({', '.join(unwrapped(str(end)) for end in ends)})")
