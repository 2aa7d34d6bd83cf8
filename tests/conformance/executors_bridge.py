"""Bridge's own Flax cells inside nn.RNN and nnx.RNN, as a user would hold them, with given parameters."""

from __future__ import annotations

from functools import partial

import numpy as np

from tests.conformance.executors_flax_linen import compiled
from tests.conformance.executors_flax_nnx import fill, zeros
from tests.conformance.native import Options, Params, Result, States, reject, zeros_or

OPTIONS = {
    "LSTMCell": ("activations", "clip", "input_forget"),
    "GRUCell": ("activations", "clip", "linear_before_reset"),
    "RNNCell": ("activations", "clip"),
}


def _start(kind: str, params: Params, x: np.ndarray, states: States, options: Options) -> tuple[dict, int, object]:
    reject(options, OPTIONS[kind])
    hidden = params["recurrent_kernel"].shape[0]
    h, c = (zeros_or(state, x.shape[1], hidden) for state in states)
    stored = {"use_bias": "input_bias" in params, "use_peepholes": "peephole" in params}
    return {**options, **stored}, hidden, (c, h) if kind == "LSTMCell" else h


def _result(kind: str, carry: object, output: object) -> Result:
    final_c, final_h = carry if kind == "LSTMCell" else (None, carry)
    return Result(np.asarray(output), np.asarray(final_h), None if final_c is None else np.asarray(final_c))


def linen(kind: str, params: Params, x: np.ndarray, states: States, options: Options) -> Result:
    """flax.linen.RNN over the cell."""
    import flax.linen as nn

    from bridge.frameworks import flax_linen_cells

    arguments, hidden, start = _start(kind, params, x, states, options)
    cell = getattr(flax_linen_cells, kind)(features=hidden, **arguments)
    rnn = nn.RNN(cell, time_major=True, return_carry=True)
    return _result(kind, *compiled(rnn)({"params": {"cell": dict(params)}}, x, initial_carry=start))


def nnx(kind: str, params: Params, x: np.ndarray, states: States, options: Options) -> Result:
    """flax.nnx.RNN over the cell."""
    from flax import nnx as library

    from bridge.frameworks import flax_nnx_cells

    arguments, hidden, start = _start(kind, params, x, states, options)
    cell = getattr(flax_nnx_cells, kind)(x.shape[2], hidden, rngs=library.Rngs(0), **zeros(), **arguments)
    fill(cell, params)
    rnn = library.RNN(cell, time_major=True, return_carry=True, rngs=library.Rngs(0))
    return _result(kind, *rnn(x, initial_carry=start))


LINEN = {f"bridge.{kind}": partial(linen, kind) for kind in OPTIONS}
NNX = {f"bridge.{kind}": partial(nnx, kind) for kind in OPTIONS}
