"""Flax linen's own cells in nn.RNN with given parameters. Source: flax 0.12.8, flax/linen/recurrent.py."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import numpy as np

from tests.conformance.native import Options, Params, Result, States, nested, reject, zeros_or

OPTIONS = {
    "LSTMCell": ("gate_fn", "activation_fn"),
    "OptimizedLSTMCell": ("gate_fn", "activation_fn"),
    "GRUCell": ("gate_fn", "activation_fn"),
    "MGUCell": ("gate_fn", "activation_fn", "reset_gate"),
    "SimpleCell": ("activation_fn", "residual"),
}


def function(value: Any) -> Any:
    """A jax function by the name it has in jax.nn (tanh, sigmoid, relu, ...)."""
    import jax

    return getattr(jax.nn, value) if isinstance(value, str) else value


@cache
def compiled(rnn: Any) -> Any:
    """jit(rnn.apply), once for equal modules: reading and writing run the same layer."""
    import jax

    return jax.jit(rnn.apply)


def layer(kind: str, params: Params, x: np.ndarray, states: States, options: Options) -> Result:
    """nn.RNN over the cell."""
    import flax.linen as nn

    reject(options, OPTIONS[kind])
    hidden = next(value for name, value in params.items() if name.startswith("h")).shape[-1]
    cell = getattr(nn, kind)(features=hidden, **{name: function(value) for name, value in options.items()})
    h, c = (zeros_or(state, x.shape[1], hidden) for state in states)
    has_memory = "LSTM" in kind
    rnn = nn.RNN(cell, time_major=True, return_carry=True)
    carry, output = compiled(rnn)({"params": {"cell": nested(params)}}, x, initial_carry=(c, h) if has_memory else h)
    final_c, final_h = carry if has_memory else (None, carry)
    return Result(np.asarray(output), np.asarray(final_h), None if final_c is None else np.asarray(final_c))


EXECUTORS = {f"flax.linen.{kind}": partial(layer, kind) for kind in OPTIONS}
