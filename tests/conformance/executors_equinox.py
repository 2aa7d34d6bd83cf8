"""Equinox's own cells with given parameters. Source: equinox 0.13.8, equinox/nn/_rnn.py."""

from __future__ import annotations

from functools import partial

import numpy as np

from tests.conformance.native import Options, Params, Result, States, reject, zeros_or


def layer(kind: str, params: Params, x: np.ndarray, states: States, options: Options) -> Result:
    """equinox.nn.LSTMCell or GRUCell, vmapped over the batch, in a loop over time."""
    import equinox
    import jax
    import jax.numpy as jnp

    reject(options)
    hidden, names = params["weight_hh"].shape[1], sorted(params)
    cell = getattr(equinox.nn, kind)(x.shape[2], hidden, use_bias="bias" in params, key=jax.random.key(0))
    own = sorted(name for name in ("weight_ih", "weight_hh", "bias", "bias_n") if getattr(cell, name, None) is not None)
    if own != names:
        raise KeyError(f"equinox has {own}, given {names}")
    cell = equinox.tree_at(lambda c: [getattr(c, n) for n in names], cell, [jnp.asarray(params[n]) for n in names])
    h, c = (jnp.asarray(zeros_or(state, x.shape[1], hidden)) for state in states)
    state = (h, c) if kind == "LSTMCell" else h
    outputs = []
    for step in x:
        state = jax.vmap(cell)(jnp.asarray(step), state)
        outputs.append(np.asarray(state[0] if kind == "LSTMCell" else state))
    final_h, final_c = state if kind == "LSTMCell" else (state, None)
    return Result(np.stack(outputs), np.asarray(final_h), None if final_c is None else np.asarray(final_c))


EXECUTORS = {f"equinox.{kind}": partial(layer, kind) for kind in ("LSTMCell", "GRUCell")}
