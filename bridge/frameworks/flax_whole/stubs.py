"""What both APIs have in common when the primitive stands in for a recurrent layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from bridge.errors import Unsupported
from bridge.frameworks.flax_cells import layout_options, other_activations
from bridge.frameworks.flax_whole.recurrence import Call, CellCall, recurrence_p
from bridge.frameworks.flax_whole.sizes import is_static
from bridge.ops.padding import turned_in

DTYPES = ("float16", "float32", "float64")


@dataclass(frozen=True, kw_only=True)
class Stub:
    """A cell that the primitive can stand for, with its parameters as the trace has them."""

    cell: CellCall
    parameters: Sequence[Any]
    feature_axes: int
    initialize: Callable[[tuple[Any, ...]], Any]
    """initialize(shape of the input without time) -> the native carry."""


def stub(kind: str, cell: Any, path: str, parameters: dict[str, Any], read: Any, initialize: Any) -> Stub | None:
    """The Stub of a native cell; None where its recurrence or its dtype is not carried, and it is traced instead."""
    if not parameters:
        return None
    values = list(parameters.values())
    own = jnp.result_type(*values)
    wanted = own if getattr(cell, "dtype", None) is None else jnp.dtype(cell.dtype)
    if wanted.name not in DTYPES or wanted != own:
        return None
    if kind != "flax.linen.ConvLSTMCell":
        try:
            if other_activations(kind, cell, path) is None:
                layout_options(kind, cell, path)
        except Unsupported:
            return None
    states = 2 if "LSTM" in kind else 1
    width = _width(cell)
    call = CellCall(path=path, kind=kind, cell=cell, names=tuple(parameters), states=states, width=width, read=read)
    return Stub(cell=call, parameters=values, feature_axes=int(cell.num_feature_axes), initialize=initialize)


def _width(cell: Any) -> int:
    for name in ("hidden_features", "features"):
        value = getattr(cell, name, None)
        if isinstance(value, int):
            return value
    return int(cell.hidden_size)


def dtype_fits(stubs: Sequence[Stub], x: Any) -> bool:
    """Whether the cells compute in the dtype of their weights when they are given x."""
    own = {jnp.result_type(*each.parameters).name for each in stubs}
    return len(own) == 1 and all(
        getattr(each.cell.cell, "dtype", None) is not None
        or jnp.result_type(x, *each.parameters).name in own for each in stubs
    )  # fmt: skip


def call_layer(
    stubs: Sequence[Stub], x: Any, carries: Sequence[Any], lengths: Any, *, path: str, time_major: bool,
    reverse: bool = False, keep_order: bool = False, merged: bool = True, zeroed: bool = False,
) -> tuple[list[Any], list[Any]]:  # fmt: skip
    """Bind the primitive for a layer over x [*batch, T, ...] (or [T, *batch, ...]): outputs, and native carries."""
    features = stubs[0].feature_axes
    axis = 0 if time_major else x.ndim - features - 1
    without = (*x.shape[:axis], *x.shape[axis + 1 :])
    started = [each.initialize(without) if carry is None else carry for each, carry in zip(stubs, carries, strict=True)]
    batch = without[: len(without) - features]
    dtype = jnp.result_type(*stubs[0].parameters)

    def flat(array: Any, leading: tuple[Any, ...], rest: int) -> Any:
        return (
            array if len(batch) == 1 else array.reshape(*leading, math.prod(batch), *array.shape[array.ndim - rest :])
        )

    x = flat(x, x.shape[:1], features) if time_major else flat(x, (), features + 1)
    states = [flat(jnp.asarray(state, dtype), (), _rank(state) - len(batch)) for carry in started
              for state in _states(carry)]  # fmt: skip
    counted = [] if lengths is None else [flat(jnp.asarray(lengths, jnp.int32), (), 0)]
    call = Call(path=path, cells=tuple(each.cell for each in stubs), time_major=time_major, reverse=reverse,
                keep_order=keep_order, has_lengths=lengths is not None, zeroed=zeroed,
                given=all(carry is not None for carry in carries), merged=merged)  # fmt: skip
    parameters = [value for each in stubs for value in each.parameters]
    results = recurrence_p.bind(x.astype(dtype), *counted, *states, *parameters, call=call)

    def back(array: Any, at: int) -> Any:
        return array if len(batch) == 1 else array.reshape(*array.shape[:at], *batch, *array.shape[at + 1 :])

    count = 1 if merged else len(stubs)
    ys = [back(y, 1 if time_major else 0) for y in results[:count]]
    return ys, _carries(stubs, [back(state, 0) for state in results[count:]])


def call_rnn(
    module: Any, own: Stub, x: Any, path: str, *, initial_carry: Any = None, seq_lengths: Any = None,
    return_carry: Any = None, time_major: Any = None, reverse: Any = None, keep_order: Any = None,
) -> Any:  # fmt: skip
    """What an RNN of either API returns, by the primitive."""
    (y,), (carry,) = call_layer(
        [own], x, [initial_carry], seq_lengths, path=path, time_major=chosen(time_major, module.time_major),
        reverse=chosen(reverse, module.reverse), keep_order=chosen(keep_order, module.keep_order),
    )  # fmt: skip
    return (carry, y) if chosen(return_carry, module.return_carry) else y


def call_bidirectional(
    module: Any, parts: Sequence[Stub], x: Any, path: str, concatenate: Any, *, initial_carry: Any = None,
    seq_lengths: Any = None, return_carry: Any = None, time_major: Any = None, reverse: Any = None,
    keep_order: Any = None,
) -> Any:  # fmt: skip
    """What a Bidirectional of either API returns; as there, `reverse` and `keep_order` change nothing."""
    del reverse, keep_order
    merged = module.merge_fn is concatenate
    ys, carries = call_layer(parts, x, initial_carry or (None, None), seq_lengths, path=path,
                             time_major=chosen(time_major, module.time_major), merged=merged)  # fmt: skip
    y = ys[0] if merged else module.merge_fn(*ys)
    return (tuple(carries), y) if chosen(return_carry, module.return_carry) else y


def chosen(value: Any, default: Any) -> bool:
    """An option of a call, the module's own where it is None."""
    return bool(default if value is None else value)


def call_step(each: Stub, x: Any, carry: Any) -> tuple[Any, Any]:
    """Bind the primitive for one step of a cell over x [*batch, ...]: the native carry and the output."""
    batch = x.shape[: x.ndim - each.feature_axes]
    dtype = jnp.result_type(*each.parameters)

    def flat(array: Any) -> Any:
        array = jnp.asarray(array, dtype)
        return array if len(batch) == 1 else array.reshape(math.prod(batch), *array.shape[len(batch) :])

    call = Call(path=each.cell.path, cells=(each.cell,), is_step=True, given=True)
    results = recurrence_p.bind(flat(x), *map(flat, _states(carry)), *each.parameters, call=call)
    results = [value if len(batch) == 1 else value.reshape(*batch, *value.shape[1:]) for value in results]
    (new,) = _carries([each], results[1:])
    return new, results[0]


def _rank(value: Any) -> int:
    return len(np.shape(value))


def _states(carry: Any) -> list[Any]:
    """h[, c] of a native carry."""
    return [carry[1], carry[0]] if isinstance(carry, (tuple, list)) else [carry]


def _carries(stubs: Sequence[Stub], states: Sequence[Any]) -> list[Any]:
    found, left = [], list(states)
    for each in stubs:
        own, left = left[: each.cell.states], left[each.cell.states :]
        found.append((own[1], own[0]) if len(own) == 2 else own[0])
    return found


def training(what: str, path: str, line: str) -> Unsupported:
    """The refusal of a layer that computes otherwise in training."""
    return Unsupported(f"the module is in training mode and {what}", where=path, do=line)


DROPS, BATCH = "drops values at random", "takes the statistics of the batch"


@contextmanager
def symbolic_pads() -> Iterator[None]:
    """For the time of a trace, jnp.pad wraps and reflects on axes of symbolic size too, which JAX itself refuses."""
    original = jnp.pad

    def pad(array: Any, pad_width: Any, mode: Any = "constant", **options: Any) -> Any:
        if mode not in ("wrap", "reflect") or is_static(array.shape) or options:
            return original(array, pad_width, mode, **options)
        for axis, (low, high) in enumerate(pad_width):
            if low or high:
                size = array.shape[axis]
                at = turned_in(jnp.arange(size + low + high) - low, size, mode, jnp.maximum)
                array = jnp.take(array, at, axis=axis, mode="clip")
        return array

    jnp.pad = pad
    try:
        yield
    finally:
        jnp.pad = original
