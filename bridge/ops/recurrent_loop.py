"""The loop over time around one step, with what lengths mean in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from bridge.ops.backend import Array, Backend
from bridge.ops.recurrent_steps import State

Advance: TypeAlias = Callable[[State, State], tuple[State, State]]
"""(state, inputs of one step) to (new state, outputs of the step)."""


def scan_time(
    backend: Backend, advance: Advance, xs: State, mask: Array | None, start: State, reverse: bool
) -> tuple[State, State]:
    """The outputs, each in the order of time, and the last state.

    A step that `mask` [T, N, 1] leaves out changes no state and yields 0.
    """
    where, zeros = backend.xp.where, backend.xp.zeros_like

    def masked(state: State, x: State) -> tuple[State, State]:
        *inputs, valid = x
        new, outputs = advance(state, tuple(inputs))
        kept = tuple(where(valid, value, old) for value, old in zip(new, state, strict=True))
        return kept, tuple(where(valid, output, zeros(output)) for output in outputs)

    if mask is None:
        final, ys = backend.scan(advance, start, xs, reverse)
    else:
        final, ys = backend.scan(masked, start, (*xs, mask), reverse)
    return ys, final


def ended(backend: Backend, mask: Array | None, final: State) -> State:
    """The final state; zero for a sequence of length 0, which has no first step."""
    if mask is None:
        return final
    where, alive = backend.xp.where, mask[0]
    return tuple(where(alive, value, backend.xp.zeros_like(value)) for value in final)
