"""Primitives that move elements: shapes, slices, joins, padding."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from bridge.errors import Unsupported
from bridge.frameworks.flax_whole.sizes import Size, is_symbolic
from bridge.frameworks.flax_whole.terms import Lowering, Term

if TYPE_CHECKING:
    import onnx_ir as ir

END: Final = 2**63 - 1
BEFORE_START: Final = -(2**63)


def broadcast_in_dim(c: Lowering, eqn: Any, x: Term, *_sizes: Term) -> Term:
    """Axes are put in place; what they are stretched to stays open."""
    shape, axes = tuple(eqn.outvars[0].aval.shape), eqn.params["broadcast_dimensions"]
    thin: list[Size] = [1] * len(shape)
    for size, axis in zip(x.thin, axes, strict=True):
        thin[axis] = size
    if x.is_constant:
        return replace(x, shape=shape, thin=tuple(thin), array=np.asarray(x.array).reshape(thin), origin=None)
    value = c.narrow(x)
    fresh = [at for at in range(len(shape)) if at not in axes]
    if fresh:
        value = c.op("Unsqueeze", value, c.ints(fresh))
    return c.result(eqn, value, thin=thin, origin=("broadcast_in_dim", (x,))) if fresh else replace(
        x, shape=shape, thin=tuple(thin), origin=("broadcast_in_dim", (x,)))  # fmt: skip


def reshape(c: Lowering, eqn: Any, x: Term, *_sizes: Term) -> Term:
    """The same elements in another shape."""
    if eqn.params.get("dimensions") is not None:
        raise Unsupported("reshape with dimensions", where=c.path)
    new = tuple(eqn.outvars[0].aval.shape)
    if new == x.shape:
        return x
    old = tuple(size for size in x.shape if is_symbolic(size) or size != 1)
    if old == tuple(size for size in new if is_symbolic(size) or size != 1):
        return _ones_moved(c, eqn, x, new)
    return c.result(eqn, c.reshaped(c.full(x), x.shape, new), origin=("reshape", (x,)))


def _ones_moved(c: Lowering, eqn: Any, x: Term, new: tuple[Size, ...]) -> Term:
    """A reshape that only adds or drops axes of size 1."""
    sizes = iter([have for have, full in zip(x.thin, x.shape, strict=True) if is_symbolic(full) or full != 1])
    thin = tuple(next(sizes) if is_symbolic(size) or size != 1 else 1 for size in new)
    if x.is_constant:
        return replace(x, shape=new, thin=thin, array=np.asarray(x.array).reshape(thin), origin=None)
    gone = [at for at, size in enumerate(x.shape) if not is_symbolic(size) and size == 1]
    fresh = [at for at, size in enumerate(new) if not is_symbolic(size) and size == 1]
    value = c.narrow(x)
    value = c.op("Squeeze", value, c.ints(gone)) if gone else value
    value = c.op("Unsqueeze", value, c.ints(fresh)) if fresh else value
    return c.result(eqn, value, thin=thin, origin=("reshape", (x,)))


def squeeze(c: Lowering, eqn: Any, x: Term) -> Term:
    """Axes of size 1 go away."""
    gone = [int(axis) for axis in eqn.params["dimensions"]]
    thin = tuple(size for at, size in enumerate(x.thin) if at not in gone)
    if x.is_constant:
        shape = tuple(eqn.outvars[0].aval.shape)
        return replace(x, shape=shape, thin=thin, array=np.asarray(x.array).reshape(thin), origin=None)
    return c.result(eqn, c.op("Squeeze", c.narrow(x), c.ints(gone)), thin=thin, origin=("squeeze", (x,)))


def transpose(c: Lowering, eqn: Any, x: Term) -> Term:
    """Axes in another order."""
    order = [int(axis) for axis in eqn.params["permutation"]]
    thin = tuple(x.thin[axis] for axis in order)
    if x.is_constant:
        shape = tuple(eqn.outvars[0].aval.shape)
        return replace(x, shape=shape, thin=thin, array=np.asarray(x.array).transpose(order), origin=None)
    return c.result(eqn, c.op("Transpose", c.narrow(x), perm=order), thin=thin)


def reverse(c: Lowering, eqn: Any, x: Term) -> Term:
    """Axes back to front."""
    axes = [int(axis) for axis in eqn.params["dimensions"]]
    if not axes:
        return x
    return c.result(eqn, sliced(c, c.full(x), axes, [-1] * len(axes), [BEFORE_START] * len(axes), [-1] * len(axes)))


def sliced(
    c: Lowering, x: ir.Value, axes: Sequence[int], starts: Sequence[Any], stops: Sequence[Any],
    steps: Sequence[int] | None = None,
) -> ir.Value:  # fmt: skip
    """x[starts:stops:steps] along `axes`; bounds are sizes, or int64 [1] values."""
    bounds = [_joined(c, starts), _joined(c, stops), c.ints(list(axes))]
    if steps is not None and any(step != 1 for step in steps):
        bounds.append(c.ints(list(steps)))
    found: ir.Value = c.op("Slice", x, *bounds)
    return found


def _joined(c: Lowering, bounds: Sequence[Any]) -> ir.Value:
    if not any(hasattr(bound, "producer") for bound in bounds):
        return c.shape(bounds)
    return c.w.concat([bound if hasattr(bound, "producer") else c.sizes.value(bound) for bound in bounds], 0)


def slice_(c: Lowering, eqn: Any, x: Term) -> Term:
    """A slice whose bounds are sizes."""
    starts, stops = eqn.params["start_indices"], eqn.params["limit_indices"]
    steps = eqn.params["strides"] or (1,) * len(starts)
    axes = [at for at in range(len(starts)) if not (
        not is_symbolic(starts[at]) and starts[at] == 0 and stops[at] == x.shape[at] and steps[at] == 1)]  # fmt: skip
    if any(is_symbolic(steps[at]) for at in axes):
        raise Unsupported("a slice whose step is a size", where=c.path, got=steps)
    picked = [[each[at] for at in axes] for each in (starts, stops)]
    return c.result(eqn, sliced(c, c.full(x), axes, picked[0], picked[1], [int(steps[at]) for at in axes]))


def clamped_start(c: Lowering, start: Term, size: Size, length: Size) -> Any:
    """Where JAX begins a dynamic slice: start clamped to [0, size - length]. A number, or an int64 [1] value."""
    if start.is_constant and not is_symbolic(size) and not is_symbolic(length):
        return int(np.clip(int(np.asarray(start.array).reshape(())), 0, size - length))
    if start.is_constant and int(np.asarray(start.array).reshape(())) == 0:
        return 0
    value = c.op("Reshape", c.w.cast(c.narrow(start), "int64"), c.ints([1]))
    last = c.sizes.value(size - length)
    return c.op("Min", c.op("Max", value, c.ints([0])), last)


def dynamic_slice(c: Lowering, eqn: Any, x: Term, *starts: Term) -> Term:
    """A slice of known size from anywhere."""
    lengths = eqn.params["slice_sizes"]
    starts = starts[: len(lengths)]
    axes = [at for at, length in enumerate(lengths) if length != x.shape[at]]
    if not axes:
        return x
    begin = [clamped_start(c, starts[at], x.shape[at], lengths[at]) for at in axes]
    end = [plus(c, start, lengths[at]) for start, at in zip(begin, axes, strict=True)]
    return c.result(eqn, sliced(c, c.full(x), axes, begin, end))


def plus(c: Lowering, start: Any, length: Size) -> Any:
    """Where a slice from `start`, which `clamped_start` gave, ends."""
    return c.op("Add", start, c.sizes.value(length)) if hasattr(start, "producer") else start + length


def dynamic_update_slice(c: Lowering, eqn: Any, x: Term, update: Term, *starts: Term) -> Term:
    """Replace a slice of `x`: what lies before and after it on each axis is joined around it again."""
    value = replaced(c, c.full(x), x.shape, c.full(update), update.shape, list(starts[: len(x.shape)]))
    return c.result(eqn, c.op("Identity", value) if not update.is_constant and value is update.value else value)


def replaced(
    c: Lowering, x: ir.Value, shape: Sequence[Size], update: ir.Value, sizes: Sequence[Size], starts: Sequence[Term]
) -> ir.Value:
    """`x` with the box of `sizes` at `starts` replaced by `update`."""
    at = next((at for at, size in enumerate(sizes) if size != shape[at]), None)
    if at is None:
        return update
    begin = clamped_start(c, starts[at], shape[at], sizes[at])
    end = plus(c, begin, sizes[at])
    before = sliced(c, x, [at], [0], [begin])
    middle = sliced(c, x, [at], [begin], [end])
    after = sliced(c, x, [at], [end], [END])
    inner = [*shape[:at], sizes[at], *shape[at + 1 :]]
    middle = replaced(c, middle, inner, update, sizes, starts)
    return c.typed(c.w.concat([before, middle, after], at), shape)


def concatenate(c: Lowering, eqn: Any, *terms: Term) -> Term:
    """One after another."""
    if len(terms) == 1:
        return terms[0]
    value = c.op("Concat", *(c.full(term) for term in terms), axis=int(eqn.params["dimension"]))
    return c.result(eqn, value, origin=("concatenate", terms))


def stack(c: Lowering, eqn: Any, *terms: Term) -> Term:
    """One after another along a new axis."""
    axis = int(eqn.params["axis"])
    values = [c.op("Unsqueeze", c.full(term), c.ints([axis])) for term in terms]
    return c.result(eqn, c.w.concat(values, axis))


def split(c: Lowering, eqn: Any, x: Term) -> list[Term]:
    """The parts of one axis."""
    sizes, axis = eqn.params["sizes"], int(eqn.params["axis"])
    if len(sizes) == 1:
        return [x]
    found = c.op("Split", c.full(x), c.shape(sizes), axis=axis, outputs=len(sizes))
    return [c.result(eqn, value, at=at) for at, value in enumerate(found)]


def pad(c: Lowering, eqn: Any, x: Term, filling: Term) -> Term:
    """lax.pad: borders that grow or shrink, and elements in between."""
    config = eqn.params["padding_config"]
    pads = [(low, high) for low, high, _ in config]
    value, shape, fill = c.full(x), list(x.shape), c.narrow(filling)
    for axis, (_, _, between) in enumerate(config):
        if between:
            value = _spread(c, value, shape, axis, int(between), fill)
    value = padded(c, value, pads, fill)
    return x if value is x.value else c.result(eqn, value)


def _spread(c: Lowering, x: ir.Value, shape: list[Size], axis: int, between: int, fill: ir.Value) -> ir.Value:
    """Put `between` elements behind each but the last of an axis; `shape` follows."""
    value = c.op("Unsqueeze", x, c.ints([axis + 1]))
    value = padded(c, value, [(0, between if at == axis + 1 else 0) for at in range(len(shape) + 1)], fill)
    grown = [*shape[: axis + 1], between + 1, *shape[axis + 1 :]]
    shape[axis] = shape[axis] * (between + 1)
    value = c.reshaped(value, grown, shape)
    shape[axis] = shape[axis] - between
    return c.typed(sliced(c, value, [axis], [0], [-between]), shape)


def padded(c: Lowering, x: ir.Value, pads: Sequence[tuple[Size, Size]], filling: ir.Value | None) -> ir.Value:
    """`x` with borders of sizes that may be negative where they are numbers. Sizes that a run decides are >= 0."""

    def positive(size: Size) -> Size:
        return size if is_symbolic(size) else max(int(size), 0)

    grown = [(positive(low), positive(high)) for low, high in pads]
    if any(is_symbolic(size) or size for pair in grown for size in pair):
        flat = [low for low, _ in grown] + [high for _, high in grown]
        x = c.op("Pad", x, c.shape(flat), filling)
    cut = [at for at, pair in enumerate(pads) if any(not is_symbolic(size) and size < 0 for size in pair)]
    if cut:
        starts = [max(-int(pads[at][0]), 0) if not is_symbolic(pads[at][0]) else 0 for at in cut]
        stops = [int(pads[at][1]) if not is_symbolic(pads[at][1]) and pads[at][1] < 0 else END for at in cut]
        x = sliced(c, x, cut, starts, stops)
    return x


def iota(c: Lowering, eqn: Any, *_sizes: Term) -> Term:
    """Count along one axis."""
    shape, axis = tuple(eqn.outvars[0].aval.shape), int(eqn.params["dimension"])
    dtype = np.dtype(eqn.params["dtype"])
    thin = [size if at == axis else 1 for at, size in enumerate(shape)]
    if not is_symbolic(shape[axis]):
        counted = np.arange(int(shape[axis])).astype(dtype).reshape([int(size) for size in thin])
        return Term(shape=shape, dtype=dtype, thin=tuple(thin), array=counted)
    count = c.op("Squeeze", c.sizes.value(shape[axis]), c.ints([0]))
    value = c.w.cast(c.op("Range", c.number(0, np.int64), count, c.number(1, np.int64)), dtype.name)
    fresh = [at for at in range(len(shape)) if at != axis]
    return c.result(eqn, c.op("Unsqueeze", value, c.ints(fresh)) if fresh else value, thin=thin)


def dim_as_value(c: Lowering, eqn: Any) -> Term:
    """A size as a number of the program."""
    value = c.op("Squeeze", c.sizes.value(eqn.params["dim"]), c.ints([0]))
    value = c.w.cast(value, np.dtype(eqn.outvars[0].aval.dtype).name)
    return c.result(eqn, value, origin=(f"size {eqn.params['dim']}", ()))


def tile(c: Lowering, eqn: Any, x: Term) -> Term:
    """The array again and again along each axis."""
    return c.result(eqn, c.op("Tile", c.full(x), c.shape(eqn.params["reps"])))


RULES: Final[Mapping[str, Callable[..., Any]]] = MappingProxyType(
    {"broadcast_in_dim": broadcast_in_dim, "reshape": reshape, "squeeze": squeeze, "transpose": transpose,
     "rev": reverse, "slice": slice_, "dynamic_slice": dynamic_slice, "dynamic_update_slice": dynamic_update_slice,
     "concatenate": concatenate, "stack": stack, "split": split, "pad": pad, "iota": iota,
     "dim_as_value": dim_as_value, "tile": tile}
)  # fmt: skip
