"""The primitive in the place of recurrent nodes whose imported graph is a part of the model that is traced."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp

from bridge.frameworks.flax_import import STAND_IN, RecurrentNode
from bridge.frameworks.flax_whole.recurrence import CellCall
from bridge.frameworks.flax_whole.stubs import Stub, call_layer
from bridge.layout import read_params

if TYPE_CHECKING:
    from bridge.cell import Cell
    from bridge.frameworks.flax_fit import NativeCell


@contextmanager
def nodes_stood_in() -> Iterator[None]:
    """For the time of a trace, recurrent nodes of imported graphs are the primitive."""
    token = STAND_IN.set(_bound)
    try:
        yield
    finally:
        STAND_IN.reset(token)


def _bound(
    node: RecurrentNode, held: Sequence[Mapping[str, Any]], X: Any, lengths: Any, initial_h: Any, initial_c: Any
) -> tuple[Any, ...]:
    """The node's Y, Y_h and, for LSTM, Y_c."""
    stubs = [
        _stub(node, at, native, params) for at, (native, params) in enumerate(zip(node.natives, held, strict=True))
    ]
    carries = [_carry(native, at, X.shape[1], initial_h, initial_c) for at, native in enumerate(node.natives)]
    ys, finals = call_layer(stubs, X, carries, lengths, path=node.where, time_major=True, keep_order=True, zeroed=True,
                            reverse=node.direction == "reverse", merged=len(stubs) == 1)  # fmt: skip
    pairs = [final if isinstance(final, tuple) else (final,) for final in finals]
    states = [jnp.stack(parts, axis=0) for parts in zip(*pairs, strict=True)]
    return jnp.stack(ys, axis=1), *states[::-1]  # a carry is (c, h)


def _stub(node: RecurrentNode, at: int, native: NativeCell, params: Mapping[str, Any]) -> Stub:
    hidden, states = native.cell.hidden_size, 2 if native.cell.op == "LSTM" else 1
    path = node.where if len(node.natives) == 1 else f"{node.where}.{('forward', 'backward')[at]}"
    call = CellCall(path=path, kind=native.layout, cell=native, names=tuple(params), states=states, width=hidden,
                    read=_read)  # fmt: skip
    return Stub(cell=call, parameters=list(params.values()), feature_axes=1, initialize=partial(_zeros, native))


def _read(layout: str, native: NativeCell, arrays: Mapping[str, Any], path: str) -> Cell:  # noqa: ARG001
    return read_params(layout, arrays, **native.options)


def _zeros(native: NativeCell, shape: tuple[Any, ...]) -> Any:
    zeros = jnp.zeros((*shape[:-1], native.cell.hidden_size), native.cell.W.dtype)
    return (zeros, zeros) if native.cell.op == "LSTM" else zeros


def _carry(native: NativeCell, at: int, batch: Any, initial_h: Any, initial_c: Any) -> Any:
    """The native carry of direction `at`, None where the node starts from zeros."""
    if initial_h is None and initial_c is None:
        return None
    shape = (batch, native.cell.hidden_size)
    h, c = (jnp.zeros(shape, native.cell.W.dtype) if state is None else jnp.broadcast_to(state[at], shape)
            for state in (initial_h, initial_c))  # fmt: skip
    return (c, h) if native.cell.op == "LSTM" else h
