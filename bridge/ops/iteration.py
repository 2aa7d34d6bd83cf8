"""Loop: step by step while its values are known or its steps are few, else the backend's own scan or while loop."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from bridge.errors import Unsupported
from bridge.ops.backend import Array, Values, is_static
from bridge.ops.dtypes import numpy_dtype
from bridge.ops.node import Body, Node
from bridge.ops.registry import handles
from bridge.ops.shape import LAYOUT_VERSIONS

FEW: Final = 16
"""Steps that a traced Loop is written out for without trying a scan: static values stay static in them."""

MOST_WRITTEN_OUT: Final = 1024
"""Steps that a traced Loop is written out for where no scan can hold it: its states grow, or it needs static values."""

UNBOUNDED: Final = 2**31 - 1
"""Trip counts from here on are none: exporters write the largest integer for a while loop."""


@handles("Loop", versions={1, 11, 13, 16, 19} | LAYOUT_VERSIONS, raw=True)
def loop(
    node: Node, M: Array | None = None, cond: Array | None = None, *v_initial: Array, body: Body
) -> tuple[Array, ...]:
    """Run `body(step, cond, *states) -> (cond, *states, *rows)` while cond holds, M times at most.

    Raises:
        Unsupported: rows whose number is known only at run time; states that change shape in such a loop.

    Source: onnx/defs/controlflow/defs.cc, Loop-25.
    """
    most, going = _known(node, M, UNBOUNDED), _known(node, cond, True)
    if most is None or going is None:
        return _while(node, 0, M if most is None else most, cond if going is None else going, v_initial, body)
    if not going or most <= 0:
        return *v_initial, *_no_rows(node, body, len(v_initial))
    return _stepped(node, most, v_initial, body)


def _known(node: Node, value: Array | None, default: int) -> int | None:
    """A flag or a number where it is known, None while it is traced."""
    if value is None:
        return default
    known = value if is_static(value) else node.backend.concrete(value)
    return None if known is None else int(known.reshape(()))


def _stepped(node: Node, most: int, states: Values, body: Body) -> tuple[Array, ...]:
    """Step by step. The first step shows what the others are like: many alike become a scan."""
    count = len(states)
    rows: list[Values] = []
    alike = True
    for at in range(most):
        if at == 1 and most > FEW and alike and _traced(node, states):
            scanned = _scanned(node, most, states, body)
            if scanned is not None:
                return *scanned[:count], *_joined(node, rows, scanned[count:])
        if at == MOST_WRITTEN_OUT and _traced(node, states):
            return _while(node, at, most, np.True_, states, body)
        going, *results = body(np.asarray(at, np.int64), np.True_, *states)
        alike = _alike(node, states, tuple(results[:count]))
        states = tuple(results[:count])
        rows.append(tuple(results[count:]))
        known = _known(node, going, True)
        if known is None:
            return _while(node, at + 1, most, going, states, body)
        if not known:
            break
    return *states, *_joined(node, rows, ())


def _scanned(node: Node, most: int, states: Values, body: Body) -> Values | None:
    """Steps 1 to `most` as a scan: final states and rows. None where a step needs static values or may be the last."""
    count, like = len(states), next(value for value in states if not is_static(value))
    steps = node.backend.asarray(np.arange(1, most, dtype=np.int64), like=like)

    def step(carry: Values, at: Values) -> tuple[Values, Values]:
        going, *results = body(at[0], np.True_, *carry)
        if not is_static(going) or not bool(np.all(going)):
            raise Unsupported("a step may be the last", where=node.where)
        arrays = tuple(node.backend.asarray(value, like=like) for value in results)
        return arrays[:count], arrays[count:]

    carry = tuple(node.backend.asarray(value, like=like) for value in states)
    try:
        final, rows = node.backend.scan(step, carry, (steps,))
    except Unsupported:
        return None
    return *final, *rows


def _while(node: Node, start: int, most: Any, going: Any, states: Values, body: Body) -> tuple[Array, ...]:
    """The backend's while loop from step `start` on."""
    count = len(states)
    if len(body.declared) > 1 + count:
        node.refuse("has rows to stack, and how many is known only at run time",
                    do="call the model without jit, or fix the inputs that its trip count or its "
                       "condition hangs on at import: static={...}")  # fmt: skip
    like = next(
        (value for value in (*states, most, going) if not isinstance(value, int) and not is_static(value)), None
    )

    def place(value: Array) -> Array:
        return node.backend.asarray(value, like=like)

    at = place(np.asarray(start, np.int64))
    if isinstance(most, int):
        most = np.asarray(min(most, UNBOUNDED), np.int64)
    limit = node.backend.astype(node.xp.reshape(place(most), ()), node.backend.dtype(at))
    flag = node.xp.reshape(place(np.asarray(going) if isinstance(going, int) else going), ())

    def holds(carry: Values) -> Array:
        return node.xp.logical_and(carry[1] != 0, carry[0] < limit)

    def step(carry: Values) -> Values:
        on, *results = body(carry[0], carry[1], *carry[2:])
        return carry[0] + 1, node.xp.reshape(place(on), ()) != 0, *(place(value) for value in results)

    _, _, *final = node.backend.while_loop(holds, step, (at, flag != 0, *(place(value) for value in states)))
    return tuple(final)


def _joined(node: Node, rows: list[Values], more: Values) -> Values:
    """Rows of single steps stacked, in front of those that a scan has stacked."""
    stacked = tuple(_stack(node, column) for column in zip(*rows, strict=True))
    if not more:
        return stacked
    first = more[0]
    return tuple(node.xp.concat([node.backend.asarray(a, like=first), b], axis=0)
                 for a, b in zip(stacked, more, strict=True))  # fmt: skip


def _stack(node: Node, column: Values) -> Array:
    like = next((value for value in column if not is_static(value)), None)
    if like is None:
        return np.stack(column)
    return node.xp.stack([node.backend.asarray(value, like=like) for value in column], axis=0)


def _no_rows(node: Node, body: Body, count: int) -> Values:
    """What is stacked where no step runs: empty arrays of the declared shapes."""
    empty = []
    for dtype, shape in body.declared[1 + count :]:
        sizes = [size for size in shape or () if size is not None]
        if dtype is None or shape is None or len(sizes) != len(shape):
            node.refuse("runs no step, and the body does not declare the shape of its rows")
        empty.append(np.zeros((0, *sizes), numpy_dtype(dtype, node.where)))
    return tuple(empty)


def _alike(node: Node, before: Values, after: Values) -> bool:
    """Whether a step left every state its shape and dtype."""
    return all(
        tuple(old.shape) == tuple(new.shape) and _dtype(node, old) == _dtype(node, new)
        for old, new in zip(before, after, strict=True)
    )


def _dtype(node: Node, value: Array) -> np.dtype[Any]:
    """The dtype that the backend gives the value."""
    return node.backend.dtype(node.backend.asarray(value) if is_static(value) else value)


def _traced(node: Node, states: Values) -> bool:
    return any(not is_static(value) and node.backend.concrete(value) is None for value in states)
