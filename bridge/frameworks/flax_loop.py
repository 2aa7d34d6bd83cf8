"""The time loop of Flax layers on native parameters, which bridge.layout reads while JAX traces, moving little.

Bridge's own cells take one step of the same kernels: there is no second set of equations.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from bridge.cell import Op
    from bridge.ops.backend_jax import JaxBackend


def one_direction(
    layout: str,
    params: Mapping[str, Any],
    options: Mapping[str, Any],
    x: Any,
    lengths: Any = None,
    initial_h: Any = None,
    initial_c: Any = None,
    direction: Literal["forward", "reverse"] = "forward",
    backend: JaxBackend | None = None,
) -> tuple[Any, ...]:
    """Run one direction of native `params` on x [T, N, I]: Y [T, 1, N, H], Y_h and, for LSTM, Y_c [1, N, H].

    `params` and `options` are those of `layout`. Works under jit, grad and vmap; the product of the input with its
    kernel is taken once, outside the loop.
    """
    from bridge.layout import read_columns
    from bridge.ops.backend_jax import JaxBackend
    from bridge.ops.recurrent import run_columns

    columns = read_columns(layout, params, **options)
    return run_columns(backend or JaxBackend(), columns, x, lengths, initial_h, initial_c, direction)


def one_step(op: Op, params: Mapping[str, Any], options: Mapping[str, Any], carry: Any, x: Any) -> tuple[Any, Any]:
    """One step of bridge's own cell: (new carry, output) of x [..., I] and the carry (c, h) or h, each [..., H]."""
    c, h = carry if op == "LSTM" else (None, carry)
    batch, hidden = x.shape[:-1], h.shape[-1]
    h, c = (None if state is None else state.reshape(1, -1, hidden) for state in (h, c))
    _, *finals = one_direction(f"bridge.{op}Cell", params, options, x.reshape(1, -1, x.shape[-1]), None, h, c)
    output, *cell_state = (final.reshape(*batch, hidden) for final in finals)
    return ((cell_state[0], output) if op == "LSTM" else output), output
