"""The primitive that stands for a recurrent layer while a model is traced, and the operators that it becomes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import batching

from bridge.cell import Cell
from bridge.errors import Unsupported
from bridge.frameworks.flax_layers import Direction, Layer
from bridge.frameworks.flax_lengths import Lengths
from bridge.frameworks.flax_scan_activations import ActivatedCell
from bridge.frameworks.flax_whole.sizes import label
from bridge.frameworks.flax_whole.terms import Lowering, Term

if TYPE_CHECKING:
    import onnx_ir as ir

    from bridge.frameworks.flax_layers import ScanCell


@dataclass(frozen=True, eq=False, kw_only=True)
class CellCall:
    """One cell of a call: what of it is no array."""

    path: str
    kind: str
    """The layout or class: "flax.nnx.LSTMCell"."""
    cell: Any
    """The native cell, read for its options only."""
    names: tuple[str, ...]
    """Dotted names of its parameters, in the order of the operands."""
    states: int
    """2 where the carry is (c, h), else 1."""
    width: int
    """Units, or filters."""
    read: Any
    """read(kind, cell, parameters, path) -> what it computes."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Call:
    """One call of a recurrent layer. Operands: x[, lengths], states h[, c] of each direction, parameters of each."""

    path: str
    cells: tuple[CellCall, ...]
    """One, or forward and backward."""
    is_step: bool = False
    """A cell by itself: x is [N, ...]."""
    time_major: bool = False
    reverse: bool = False
    keep_order: bool = False
    has_lengths: bool = False
    zeroed: bool = False
    """Whether what is beyond a length is ONNX's zeros: Flax's layers keep computing on the padding."""
    given: bool = False
    """Whether the caller gave the initial carry."""
    merged: bool = True
    """Whether two directions are joined; else each gives its own output."""

    @property
    def states(self) -> int:
        """How many arrays all carries have."""
        return sum(cell.states for cell in self.cells)


recurrence_p: Final = Primitive("bridge_recurrence")
recurrence_p.multiple_results = True


def _shapes(x: Any, *others: Any, call: Call) -> list[Any]:
    states = others[int(call.has_lengths) :][: call.states]
    widths = [cell.width for cell in call.cells]
    batch = x.shape[0 if call.is_step or not call.time_major else 1]
    if any(each.shape[0] != batch for each in others[: int(call.has_lengths) + call.states]):
        raise TypeError(f"{call.path}: seq_lengths and carry are of another batch than the input")
    _check_features(x, states, others[int(call.has_lengths) + call.states :], call)
    space = states[0].shape[1:-1]
    lead = x.shape[:1] if call.is_step else x.shape[:2]
    widths = [sum(widths)] if call.merged else widths
    ys = [ShapedArray((*lead, *space, width), x.dtype) for width in widths]
    return [*ys, *(ShapedArray(state.shape, state.dtype) for state in states)]


def _check_features(x: Any, states: Sequence[Any], parameters: Sequence[Any], call: Call) -> None:
    """What the products of the cells would check: a symbol is no number of features."""
    wanted = [cell.width for cell in call.cells for _ in range(cell.states)]
    got = [state.shape[-1] for state in states]
    if got != wanted:
        raise TypeError(f"{call.path}: the carry has {got} features and needs {wanted}")
    if not any(x.shape[-1] == size for each in parameters if len(each.shape) > 1 for size in each.shape):
        raise TypeError(f"{call.path}: the input has {x.shape[-1]} features, which no weight of the cell takes")


recurrence_p.def_abstract_eval(_shapes)


def _batched(operands: Sequence[Any], axes: Sequence[Any], *, call: Call) -> tuple[list[Any], list[int]]:
    """Under vmap: a larger batch, or one call for each row of the mapped axis where its weights are its own."""
    rows = next(x.shape[axis] for x, axis in zip(operands, axes, strict=True) if axis is not None)
    moving = 1 + int(call.has_lengths) + call.states
    if all(axis is None for axis in axes[moving:]):
        return _folded(operands, axes, rows, moving, call)
    found = [recurrence_p.bind(*(x if axis is None else lax.index_in_dim(x, at, axis, keepdims=False)
                                 for x, axis in zip(operands, axes, strict=True)), call=call)
             for at in range(int(rows))]  # fmt: skip
    stacked = [jnp.stack(values) for values in zip(*found, strict=True)]
    return stacked, [0] * len(stacked)


def _folded(operands: Sequence[Any], axes: Sequence[Any], rows: Any, moving: int, call: Call
            ) -> tuple[list[Any], list[int]]:  # fmt: skip
    """The mapped axis before the batch, and one with it."""
    places = [1 if call.time_major else 0, *[0] * (moving - 1)]
    folded = []
    for x, axis, place in zip(operands[:moving], axes, places, strict=False):
        if axis is None:
            spread = jnp.broadcast_to(jnp.expand_dims(x, place), (*x.shape[:place], rows, *x.shape[place:]))
        else:
            spread = jnp.moveaxis(x, axis, place)
        shape = spread.shape
        folded.append(spread.reshape(*shape[:place], shape[place] * shape[place + 1], *shape[place + 2 :]))
    found = recurrence_p.bind(*folded, *operands[moving:], call=call)
    outputs = len(found) - call.states
    ends = [places[0]] * outputs + [0] * call.states
    split = [y.reshape(*y.shape[:at], rows, -1, *y.shape[at + 1 :]) for y, at in zip(found, ends, strict=True)]
    return split, ends


batching.primitive_batchers[recurrence_p] = _batched


def lower_recurrence(c: Lowering, eqn: Any, *terms: Term) -> list[Term]:
    """The fused node or nodes, or the Scan, of one call."""
    from bridge.frameworks.flax_export import write_counted, write_layer

    call: Call = eqn.params["call"]
    x, *rest = terms
    lengths = rest.pop(0) if call.has_lengths else None
    states, rest = rest[: call.states], rest[call.states :]
    w, value = c.w, c.full(x)
    rank = len(value.shape or ())
    if call.is_step:
        c.steps.append(call.path)
        value = w.unsqueeze(value, 0)
    elif not call.time_major:
        value = w.transpose(value, [1, 0, *range(2, rank)])
    value = w.typed(value, value.shape)
    directions, given = _directions(c, call, states, rest, value)
    layer = Layer(path=call.path, module=None, directions=directions, reverse=call.reverse, keep_order=call.keep_order)
    if layer.is_bidirectional and lengths is None:
        layer = replace(layer, pair=_pair(c, layer))
    counts = None if lengths is None else w.cast(c.full(lengths), "int32")
    if counts is not None and call.zeroed:
        y, finals = write_counted(w, layer, value, counts, given, c.options)
    else:
        counted = None if counts is None else Lengths(w, counts)
        y, finals = write_layer(w, layer, value, counted, given, c.options)
    for each, final in zip(layer.directions, finals, strict=True):
        _show(c, call, each, final)
    ys = [y] if call.merged else _parts(c, y, [cell.width for cell in call.cells])
    if call.is_step:
        ys = [w.squeeze(each, 0) for each in ys]
    elif not call.time_major:
        ys = [w.transpose(each, [1, 0, *range(2, rank)]) for each in ys]
    results = [*ys, *(state for final in finals for state in final)]
    return [c.result(eqn, each if each.producer() is not None else c.op("Identity", each), at=at)
            for at, each in enumerate(results)]  # fmt: skip


def _pair(c: Lowering, layer: Layer) -> Cell | None:
    bodies = tuple(direction.body for direction in layer.directions)
    key = ("pair", *map(id, bodies))
    if key not in c.cells:
        c.cells[key] = layer.joined(), bodies  # which keeps the bodies alive, and their ids theirs
    found: Cell | None = c.cells[key][0]
    return found


def _body(c: Lowering, cell: CellCall, params: Sequence[Term]) -> Any:
    """What a cell computes; read once."""
    key = (cell.kind, cell.path, *(id(term.array) for term in params))
    if key not in c.cells:
        arrays = {name: np.asarray(term.array) for name, term in zip(cell.names, params, strict=True)}
        c.cells[key] = cell.read(cell.kind, cell.cell, arrays, cell.path), params
    return c.cells[key][0]


def _parts(c: Lowering, y: ir.Value, widths: Sequence[int]) -> list[ir.Value]:
    return list(c.op("Split", y, c.ints(list(widths)), axis=-1, outputs=len(widths)))


def _directions(
    c: Lowering, call: Call, states: Sequence[Term], rest: Sequence[Term], x: ir.Value
) -> tuple[tuple[Direction, ...], list[Any]]:  # fmt: skip
    found: list[Direction] = []
    given: list[Any] = []
    for cell in call.cells:
        own, states = states[: cell.states], states[cell.states :]
        params, rest = rest[: len(cell.names)], rest[len(cell.names) :]
        if not all(term.is_constant for term in params):
            raise Unsupported("the weights of a recurrent layer are computed from the inputs", where=cell.path)
        body = _body(c, cell, params)
        body, values = _started(c, call, cell, body, own)
        found.append(Direction(path=cell.path, kind=cell.kind, body=body))
        given.append(values)
    if len(given) == 2 and (given[0] is None) != (given[1] is None):
        return _both_given(c, found, given, x)
    return tuple(found), given


def _both_given(
    c: Lowering, found: list[Direction], given: list[Any], x: ir.Value
) -> tuple[tuple[Direction, ...], list[Any]]:
    """One direction starts from constants and the other does not: both become values."""
    at = 0 if given[0] is None else 1
    body: Any = found[at].body
    w = c.w
    if not isinstance(body, Cell):
        return tuple(found), given
    values = []
    for name in ("initial_h", "initial_c")[: len(found[at].states)]:
        array = getattr(body, name)
        held = np.zeros((1, body.hidden_size), body.dtype) if array is None else array[0]
        target = w.concat([w.dim(x, 1), c.ints([body.hidden_size])], 0)
        values.append(w.typed(w.op("Expand", c.known(held), target), ((x.shape or (None, None))[1], body.hidden_size)))
    given[at] = values
    found[at] = replace(found[at], body=replace(body, initial_h=None, initial_c=None))
    return tuple(found), given


def _started(c: Lowering, call: Call, cell: CellCall, body: Cell | ScanCell, own: Sequence[Term]) -> Any:
    """The body with its constant initial states, or the states as values; neither where they are zeros."""
    if c.options.states == "inputs" and not call.given:
        if f"{cell.path}.initial_h" in c.w.names[0]:
            raise Unsupported("a layer that is called twice has no one initial state", where=cell.path,
                              do='pass initial_carry to its calls, or export with states="zero"')  # fmt: skip
        names = ("initial_h", "initial_c")[: cell.states]
        return body, [c.w.root.input(f"{cell.path}.{name}", np.dtype(term.dtype).name, _declared(term))
                      for name, term in zip(names, own, strict=True)]  # fmt: skip
    if all(term.is_zeros for term in own):
        return body, None
    if all(term.is_constant and term.thin[0] == 1 for term in own) and isinstance(body, (Cell, ActivatedCell)):
        rows = [np.broadcast_to(term.array, (1, *term.shape[1:])) for term in own]
        arrays = [row[None].astype(body.dtype) for row in rows]
        initial = {"initial_h": arrays[0], "initial_c": arrays[1] if len(arrays) == 2 else None}
        if isinstance(body, Cell):
            return replace(body, **initial), None  # type: ignore[arg-type]
        return replace(body, cell=replace(body.cell, **initial)), None  # type: ignore[arg-type]
    return body, [c.full(term) for term in own]


def _declared(term: Term) -> list[Any]:
    return [label(size) for size in term.shape]


def _show(c: Lowering, call: Call, direction: Direction, final: Sequence[ir.Value]) -> None:
    """Final states of a layer whose initial states are inputs of the graph are outputs."""
    if c.options.states != "inputs" or call.given:
        return
    for name, value in zip(("h_n", "c_n"), final, strict=False):
        c.outputs.append((value, f"{direction.path}.{name}"))


RULES: Final[Mapping[str, Any]] = MappingProxyType({"bridge_recurrence": lower_recurrence})
