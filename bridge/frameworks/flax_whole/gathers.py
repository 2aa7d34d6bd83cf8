"""gather and scatter: JAX's general forms as Gather, GatherND, Slice and ScatterND.

Where JAX fills or drops what lies outside the array, an index that JAX itself wrapped (`i + n` where `i < 0`) goes to
ONNX unwrapped: onnxruntime wraps it alike, and stops with an error on an index outside instead of giving NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from bridge.errors import Unsupported
from bridge.frameworks.flax_whole.shapes import clamped_start, padded, plus, replaced, sliced
from bridge.frameworks.flax_whole.sizes import Size, is_static, is_symbolic
from bridge.frameworks.flax_whole.terms import Lowering, Term, constant

if TYPE_CHECKING:
    import onnx_ir as ir

SCATTERS: Final = MappingProxyType({"scatter": "none", "scatter-add": "add", "scatter-mul": "mul",
                                    "scatter-min": "min", "scatter-max": "max"})  # fmt: skip


COMBINED: Final = MappingProxyType({"scatter-add": "Add", "scatter-mul": "Mul", "scatter-min": "Min",
                                    "scatter-max": "Max"})  # fmt: skip


def gather(c: Lowering, eqn: Any, x: Term, indices: Term) -> Term:
    """lax.gather of whole slices; of one window of any size."""
    p = eqn.params
    numbers, sizes = p["dimension_numbers"], p["slice_sizes"]
    mode = p["mode"].name
    every = _axes(numbers.start_index_map)
    starts = [at for at in every if sizes[at] != x.shape[at] or _is_one(x.shape[at])]
    parts = _components(c, indices, every, starts)
    if len(indices.shape) == 1 and (mode != "FILL_OR_DROP" or all(part.is_constant for part in parts)):
        return _window(c, eqn, x, parts, starts, mode)
    for axis, size in enumerate(sizes):
        if size != x.shape[axis] and (axis not in (*starts, *numbers.operand_batching_dims) or size != 1):
            raise Unsupported("a gather of windows smaller than the array", where=c.path, got=f"sizes {sizes}",
                              expected="1, or the whole axis", do="use lax.dynamic_slice for each window")  # fmt: skip
    if mode == "FILL_OR_DROP" and not (p["fill_value"] is None or np.isnan(p["fill_value"])):
        mode = "FILL"  # somebody counts on what lies outside
    found = [_index(c, part, x.shape[axis], mode) for part, axis in zip(parts, starts, strict=True)]
    value = _gathered(c, eqn, x, indices, [index for index, _ in found], starts)
    inside = _all(c, [mask for _, mask in found if mask is not None])
    if inside is None:
        return c.result(eqn, value)
    rank, offsets = len(eqn.outvars[0].aval.shape), list(numbers.offset_dims)
    inside = c.op("Unsqueeze", inside, c.ints(offsets)) if offsets and rank else inside
    return c.result(eqn, c.op("Where", inside, value, _filling(c, p["fill_value"], x.dtype)))


def _axes(numbers: Sequence[Any]) -> list[int]:
    """Axes as Python's integers, which attributes are made of: under vmap JAX counts some in numpy's."""
    return [int(axis) for axis in numbers]


def _filling(c: Lowering, value: Any, dtype: Any) -> ir.Value:
    kind = np.dtype(dtype)
    if value is None:
        smallest = np.iinfo(kind).min if kind.kind == "i" else np.iinfo(kind).max if kind.kind == "u" else True
        value = np.nan if kind.kind == "f" else smallest
    return c.number(value, kind)


def _is_one(size: Size) -> bool:
    return not is_symbolic(size) and size == 1


def _components(c: Lowering, indices: Term, every: Sequence[int], wanted: Sequence[int]) -> list[Term]:
    """One Term [...] for each wanted axis, from indices [..., k]."""
    if indices.origin is not None and indices.origin[0] == "concatenate":
        columns = list(indices.origin[1])
        if all(_is_one(column.shape[-1]) for column in columns) and len(columns) == len(every):
            return [columns[every.index(axis)] for axis in wanted]
    if len(every) == 1:
        return [indices] * len(wanted)
    return [_column(c, indices, every.index(axis)) for axis in wanted]


def _column(c: Lowering, indices: Term, at: int) -> Term:
    """Column `at` of the last axis, which stays with size 1."""
    shape = (*indices.shape[:-1], 1)
    if indices.is_constant and not indices.is_thin:
        return constant(np.asarray(indices.array)[..., at : at + 1])
    value = c.typed(sliced(c, c.full(indices), [len(shape) - 1], [at], [at + 1]), shape)
    return Term(shape=shape, dtype=indices.dtype, thin=shape, value=value)


def _index(c: Lowering, part: Term, size: Size, mode: str) -> tuple[ir.Value, ir.Value | None]:
    """The index as ONNX takes it, of the shape of the indices, and where it lies inside if that has to be asked."""
    shape = part.shape[:-1]
    if part.is_constant and not is_symbolic(size) and is_static(part.shape):
        array = np.broadcast_to(np.asarray(part.array), part.shape).reshape(shape).astype(np.int64)
        if array.size and array.min() >= 0 and array.max() < size:
            return c.known(array), None
    raw = unwrapped(part, size)
    if raw is not None and mode not in ("CLIP", "FILL"):
        value = c.reshaped(c.full(raw), raw.shape, shape)
        return c.w.cast(value, "int64"), None
    value = c.w.cast(c.reshaped(c.full(part), part.shape, shape), "int64")
    if mode == "PROMISE_IN_BOUNDS":
        return value, None
    last = c.op("Squeeze", c.sizes.value(size - 1), c.ints([0]))
    clipped = c.op("Min", c.op("Max", value, c.number(0, np.int64)), last)
    return clipped, None if mode == "CLIP" else c.op("Equal", clipped, value)


def unwrapped(part: Term, size: Size) -> Term | None:
    """The index before JAX made negative ones positive; None where it did not."""
    term = part
    while term.origin is not None and term.origin[0] in ("broadcast_in_dim", "reshape", "squeeze"):
        if _longer(term.shape) != _longer(term.origin[1][0].shape):
            return None
        term = term.origin[1][0]
    if term.origin is None or term.origin[0] != "select_n":
        return None
    test, same, moved = term.origin[1]
    if test.origin is None or moved.origin is None or (test.origin[0], moved.origin[0]) != ("lt", "add"):
        return None
    fits = test.origin[1][0] is same and test.origin[1][1].is_zeros and moved.origin[1][0] is same
    return same if fits and _is_size(moved.origin[1][1], size) else None


def _longer(shape: Sequence[Size]) -> list[Size]:
    return [size for size in shape if not _is_one(size)]


def _is_size(term: Term, size: Size) -> bool:
    if term.is_constant:
        return not is_symbolic(size) and term.array.size == 1 and int(term.array.reshape(())) == size
    while term.origin is not None and term.origin[0] in ("convert_element_type", "broadcast_in_dim"):
        term = term.origin[1][0]
    return term.origin is not None and term.origin[0] == f"size {size}"


def _window(c: Lowering, eqn: Any, x: Term, parts: Sequence[Term], starts: Sequence[int], mode: str) -> Term:
    """One window that begins where a single index says: a Slice."""
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    axes = [axis for axis in starts if sizes[axis] != x.shape[axis]]
    begins = [clamped_start(c, parts[starts.index(axis)], x.shape[axis], sizes[axis]) for axis in axes]
    collapsed = _axes(numbers.collapsed_slice_dims)
    value = c.full(x)
    if len(axes) == 1 and collapsed == axes and sizes[axes[0]] == 1:
        (begin,) = begins
        index = c.number(begin, np.int64) if isinstance(begin, int) else c.op("Squeeze", begin, c.ints([0]))
        value = c.op("Gather", value, index, axis=axes[0])
    else:
        if axes:
            ends = [plus(c, begin, sizes[axis]) for begin, axis in zip(begins, axes, strict=True)]
            value = sliced(c, value, axes, begins, ends)
        value = c.op("Squeeze", value, c.ints(collapsed)) if collapsed else value
    inside = None if mode != "FILL_OR_DROP" else _all_inside(c, [
        (parts[starts.index(axis)], sizes[axis], x.shape[axis]) for axis in axes])  # fmt: skip
    if inside is not None:
        value = c.op("Where", inside, value, _filling(c, eqn.params["fill_value"], x.dtype))
    return c.result(eqn, value if value is not x.value else c.op("Identity", value))


def _all_inside(c: Lowering, windows: Sequence[tuple[Term, Size, Size]]) -> ir.Value | None:
    """Whether a window lies inside the array, a bool []; None where it does for sure.

    Args:
        c: the model.
        windows: along each axis: the constant at which it begins, its length, and the size of the axis.
    """
    found: list[ir.Value] = []
    for start, length, size in windows:
        first = int(np.asarray(start.array).reshape(()))
        if first == 0 and (length == size or _is_one(length)):  # no axis is empty
            continue
        if is_static((length, size)) and 0 <= first <= size - length:
            continue
        fits = c.op("LessOrEqual", c.sizes.value(first + length), c.sizes.value(size))
        found.append(c.op("Squeeze", fits, c.ints([0])) if first >= 0 else c.number(False, np.bool_))
    return _all(c, found)


def _all(c: Lowering, masks: Sequence[ir.Value]) -> ir.Value | None:
    """Where every mask is true; None for no masks."""
    found = masks[0] if masks else None
    for mask in masks[1:]:
        found = c.op("And", found, mask)
    return found


def _gathered(c: Lowering, eqn: Any, x: Term, indices: Term, found: Sequence[ir.Value], starts: Sequence[int]
              ) -> ir.Value:  # fmt: skip
    """Gather, or GatherND over [batch axes, indexed axes, the rest]; then axes in JAX's order."""
    numbers = eqn.params["dimension_numbers"]
    batch = _axes(numbers.operand_batching_dims)
    rest = [axis for axis in range(len(x.shape)) if axis not in (*batch, *starts)]
    count = len(indices.shape) - 1
    labels: list[tuple[str, int]]
    if len(starts) == 1 and not batch:
        value = c.op("Gather", c.full(x), found[0], axis=starts[0])
        labels = [("x", axis) for axis in rest if axis < starts[0]] + [("i", at) for at in range(count)]
        labels += [("x", axis) for axis in rest if axis > starts[0]]
    else:
        order = _axes(numbers.start_indices_batching_dims)
        order += [at for at in range(count) if at not in order]
        turned = [c.w.transpose(index, order) for index in found]
        stacked = c.w.concat([c.op("Unsqueeze", index, c.ints([count])) for index in turned], count)
        data = c.w.transpose(c.full(x), [*batch, *starts, *rest])
        value = c.op("GatherND", data, stacked, batch_dims=len(batch))
        labels = [("i", at) for at in order] + [("x", axis) for axis in rest]
    return _arranged(c, eqn, value, labels)


def _arranged(c: Lowering, eqn: Any, value: ir.Value, labels: list[tuple[str, int]]) -> ir.Value:
    numbers = eqn.params["dimension_numbers"]
    gone = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    offsets = iter([axis for axis in range(len(eqn.invars[0].aval.shape)) if axis not in gone])
    places = iter(range(len(labels) + 1))
    rank = len(eqn.outvars[0].aval.shape)
    wanted = [("x", next(offsets)) if at in numbers.offset_dims else ("i", next(places)) for at in range(rank)]
    value = c.w.transpose(value, [labels.index(label) for label in wanted if label in labels])
    fresh = [at for at, label in enumerate(wanted) if label not in labels]
    return c.op("Unsqueeze", value, c.ints(fresh)) if fresh else value


def scatter(c: Lowering, eqn: Any, x: Term, indices: Term, updates: Term) -> Term:
    """Put slices into an array, or add, multiply, take extremes: ScatterND; a single window by joining around it."""
    p = eqn.params
    numbers, kind = p["dimension_numbers"], SCATTERS[eqn.primitive.name]
    targets = _axes(numbers.scatter_dims_to_operand_dims)
    if numbers.operand_batching_dims:
        raise Unsupported("a scatter with batch axes", where=c.path)
    if kind == "none" and p["update_jaxpr"] is not None:  # a plain scatter has none
        raise Unsupported("a function applied at places of an array", where=c.path, got="at[...].apply",
                          do="x.at[at].set(function(x[at]))")  # fmt: skip
    parts = _components(c, indices, targets, targets)
    inserted = _axes(numbers.inserted_window_dims)
    if len(indices.shape) == 1 and all(part.is_constant for part in parts):
        return _set_window(c, eqn, x, updates, parts, targets, inserted)
    if sorted(inserted) != sorted(targets):
        raise Unsupported("a scatter of windows at computed places", where=c.path, got=numbers,
                          do="use lax.dynamic_update_slice")  # fmt: skip
    rest = [axis for axis in range(len(x.shape)) if axis not in targets]
    mode = "FILL" if p["mode"].name == "FILL_OR_DROP" else p["mode"].name
    found, spare = _places(c, [(part, x.shape[axis]) for part, axis in zip(parts, targets, strict=True)], mode)
    count = len(indices.shape) - 1
    stacked = c.w.concat([c.op("Unsqueeze", index, c.ints([count])) for index in found], count)
    order = [*targets, *rest]
    data = c.w.transpose(c.full(x), order)
    if spare:  # a row for what JAX drops
        data = padded(c, data, [(0, int(at == 0)) for at in range(len(order))], None)
    window = _axes(numbers.update_window_dims)
    turned = [at for at in range(len(updates.shape)) if at not in window] + window
    values = c.w.transpose(c.full(updates), turned)
    value = c.op("ScatterND", data, stacked, values, reduction=None if kind == "none" else kind)
    value = sliced(c, value, [0], [0], [-1]) if spare else value
    value = c.typed(value, [x.shape[at] for at in order])
    return c.result(eqn, c.w.transpose(value, [order.index(at) for at in range(len(order))]))


def _set_window(
    c: Lowering, eqn: Any, x: Term, updates: Term, parts: Sequence[Term], targets: Sequence[int],
    inserted: Sequence[int],
) -> Term:  # fmt: skip
    value = c.full(updates)
    value = c.op("Unsqueeze", value, c.ints(sorted(inserted))) if inserted else value
    window = iter([updates.shape[at] for at in eqn.params["dimension_numbers"].update_window_dims])
    sizes = [1 if axis in inserted else next(window) for axis in range(len(x.shape))]
    zero = constant(np.zeros(1, np.int64))
    starts = [parts[targets.index(axis)] if axis in targets else zero for axis in range(len(x.shape))]
    inside = None if eqn.params["mode"].name == "CLIP" else _all_inside(c, [
        (starts[axis], sizes[axis], x.shape[axis]) for axis in targets])  # fmt: skip
    if eqn.primitive.name != "scatter":
        axes = [axis for axis in range(len(x.shape)) if sizes[axis] != x.shape[axis]]
        begins = [clamped_start(c, starts[axis], x.shape[axis], sizes[axis]) for axis in axes]
        ends = [plus(c, begin, sizes[axis]) for begin, axis in zip(begins, axes, strict=True)]
        value = c.op(COMBINED[eqn.primitive.name], sliced(c, c.full(x), axes, begins, ends), value)
    result = replaced(c, c.full(x), x.shape, value, sizes, starts)
    if inside is not None:  # elsewhere JAX drops the update
        result = c.op("Where", inside, result, c.full(x))
    return c.result(eqn, c.op("Identity", result) if result is updates.value else result)


def _places(c: Lowering, parts: Sequence[tuple[Term, Size]], mode: str) -> tuple[list[ir.Value], bool]:
    """The indices; where JAX would drop an update, the first of them points at a row behind the last."""
    indices = [_index(c, part, size, mode) for part, size in parts]
    found, inside = [value for value, _ in indices], _all(c, [mask for _, mask in indices if mask is not None])
    if inside is None:
        return found, False
    behind = c.op("Squeeze", c.sizes.value(parts[0][1]), c.ints([0]))
    return [c.op("Where", inside, found[0], behind), *found[1:]], True


RULES: Final[Mapping[str, Callable[..., Any]]] = MappingProxyType(
    {"gather": gather, **dict.fromkeys(SCATTERS, scatter)}
)
