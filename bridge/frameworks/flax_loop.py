"""The time loop of Flax layers on native parameters: bridge.layout turns them into ONNX blocks while JAX traces.

Bridge's own cells take one step of the same kernels: there is no second set of equations.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from bridge.cell import Op

KERNELS: Final = MappingProxyType({"LSTM": "lstm", "GRU": "gru", "RNN": "rnn"})
"""The functions of bridge.ops.recurrent."""


def one_direction(
    layout: str,
    params: Mapping[str, Any],
    options: Mapping[str, Any],
    x: Any,
    lengths: Any = None,
    initial_h: Any = None,
    initial_c: Any = None,
    direction: str = "forward",
) -> tuple[Any, ...]:
    """Run one direction of native `params` on x [T, N, I]: Y [T, 1, N, H], Y_h and, for LSTM, Y_c [1, N, H].

    `params` and `options` are those of `layout`. Works under jit, grad and vmap; the product of the input with its
    kernel is taken once, outside the loop.
    """
    from bridge.layout import read_blocks
    from bridge.ops import recurrent
    from bridge.ops.backend_jax import JaxBackend

    blocks = read_blocks(layout, params, **options)
    own: dict[str, dict[str, Any]] = {
        "LSTM": {"initial_c": initial_c, "P": blocks.P, "input_forget": int(blocks.input_forget)},
        "GRU": {"linear_before_reset": int(blocks.linear_before_reset)},
    }
    results: tuple[Any, ...] = getattr(recurrent, KERNELS[blocks.op])(
        JaxBackend(), x, blocks.W, blocks.R, blocks.B, lengths, initial_h, activations=blocks.activations,
        activation_alpha=blocks.alpha, activation_beta=blocks.beta, clip=blocks.clip, direction=direction,
        **own.get(blocks.op, {}),
    )  # fmt: skip
    return results


def one_step(op: Op, params: Mapping[str, Any], options: Mapping[str, Any], carry: Any, x: Any) -> tuple[Any, Any]:
    """One step of bridge's own cell: (new carry, output) of x [..., I] and the carry (c, h) or h, each [..., H]."""
    c, h = carry if op == "LSTM" else (None, carry)
    batch, hidden = x.shape[:-1], h.shape[-1]
    h, c = (None if state is None else state.reshape(1, -1, hidden) for state in (h, c))
    _, *finals = one_direction(f"bridge.{op}Cell", params, options, x.reshape(1, -1, x.shape[-1]), None, h, c)
    output, *cell_state = (final.reshape(*batch, hidden) for final in finals)
    return ((cell_state[0], output) if op == "LSTM" else output), output
