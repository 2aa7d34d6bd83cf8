"""Operators that cut, pick and repeat: indexing."""

# ruff: noqa: A002  (an emitter's signature is the ONNX schema)
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bridge.frameworks.flax_code.code import shape_text, unwrapped
from bridge.frameworks.flax_code.emit_shape import rank_of, rows, size
from bridge.frameworks.flax_code.operands import Operand, Sizes, Tensor, Zeros
from bridge.frameworks.flax_code.registry import emits
from bridge.frameworks.flax_code.site import Site
from bridge.ops.shape import FAR, bounds, open_end


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
        return _sliced_sizes(site, data, begin[0], stop[0], steps[0])
    if not isinstance(data, Tensor):
        site.refuse("Slice of something that is no tensor")
    if data.view is not None and all(data.view[1][axis] is not None for axis in places):
        base, around = data.view
        inner = {around[axis]: _range(site, _known_size(base, around[axis]), *each)
                 for axis, *each in zip(places, begin, stop, steps, strict=True)}  # fmt: skip
        inner = {axis: text for axis, text in inner.items() if text != ":" and not _whole(base, axis, text)}
        if not inner:
            return data
        dims = base.dims if base.dims is None else tuple("?" if at in inner else d for at, d in enumerate(base.dims))
        dims = _sliced_dims(dims, around, site.dims())
        return site.code.view(site.code.assign(_indexed(site, base, inner), dims, site.dtype()), around)
    rank = rank_of(site, data)
    chosen = {axis % rank: _range(site, _known_size(data, axis % rank), *each)
              for axis, *each in zip(places, begin, stop, steps, strict=True)}  # fmt: skip
    chosen = {axis: text for axis, text in chosen.items() if text != ":" and not _whole(data, axis, text)}
    if not chosen:
        return data
    if [*chosen] == [0] and isinstance(begin[0], int) and isinstance(stop[0], int) and 0 <= begin[0] < stop[0] < 2**10:
        return rows(site, data, begin[0], stop[0])
    return site.emit(_indexed(site, data, chosen))


def _whole(x: Tensor, axis: int | None, text: str) -> bool:
    """Whether a range is all of an axis."""
    return axis is not None and x.dims is not None and text == f":{x.dims[axis]}"


def _sliced_dims(dims: Any, axes: Sequence[int | None], outer: Any) -> Any:
    if dims is None or outer is None:
        return dims
    known = {axis: dim for axis, dim in zip(axes, outer, strict=True) if axis is not None}
    return tuple(known.get(at, dim) for at, dim in enumerate(dims))


def _sliced_sizes(site: Site, data: Sizes, begin: int | str, stop: int | str, step: int) -> Sizes:
    if not isinstance(begin, int) or not isinstance(stop, int):
        site.refuse("a part of sizes that sizes decide")
    return Sizes(tuple(data.items[at] for at in bounds(begin, open_end(stop, step), len(data.items), step)))


def _known_size(x: Tensor, axis: int | None) -> int | None:
    found = None if axis is None or x.dims is None else x.dims[axis]
    return found if isinstance(found, int) else None


def _range(site: Site, size: int | None, begin: int | str, stop: int | str, step: int) -> str:
    """A range of an axis, of `size` where that is known, as Python writes it."""
    stop = open_end(stop, step)
    if step < 0 and isinstance(begin, int) and isinstance(stop, int) and size is not None:
        places = bounds(begin, stop, size, step)
        begin, stop = places.start, -FAR if places.stop < 0 else places.stop
        begin = -1 if begin == size - 1 else begin
    elif step < 0 and begin != -1 and not (isinstance(begin, int) and begin >= 0):
        # Python takes no element where such a range starts before the first, and Slice-13 the first.
        site.refuse("a range backwards from a place counted from the end", got=begin)
    first, last = (-1, -FAR) if step < 0 else (0, FAR)
    is_all = isinstance(begin, int) and (begin == first or (begin <= -FAR if step > 0 else begin >= FAR))
    to_end = isinstance(stop, int) and (stop >= last if step > 0 else stop <= last)
    return f"{'' if is_all else begin}:{'' if to_end else stop}" + (f":{step}" if step != 1 else "")


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
