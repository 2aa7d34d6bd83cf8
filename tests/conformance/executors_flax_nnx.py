"""Flax nnx's own cells in nnx.RNN with given parameters. Source: flax 0.12.8, flax/nnx/nn/recurrent.py."""

from __future__ import annotations

from functools import partial, reduce
from typing import Any

import numpy as np

from tests.conformance.executors_flax_linen import function
from tests.conformance.native import Options, Params, Result, States, reject, zeros_or

OPTIONS = {
    "LSTMCell": ("gate_fn", "activation_fn"),
    "OptimizedLSTMCell": ("gate_fn", "activation_fn"),
    "GRUCell": ("gate_fn", "activation_fn"),
    "SimpleCell": ("activation_fn", "residual"),
}


def layer(kind: str, params: Params, x: np.ndarray, states: States, options: Options) -> Result:
    """nnx.RNN over the cell, every Param set by its path."""
    from flax import nnx

    reject(options, OPTIONS[kind])
    chosen = {name: function(value) for name, value in options.items()}
    hidden = next(value for name, value in params.items() if name in ("hi.kernel", "dense_h.kernel")).shape[0]
    cell = getattr(nnx, kind)(x.shape[2], hidden, rngs=nnx.Rngs(0), **zeros(), **chosen)
    if "hn_bias" in params and not hasattr(cell, "hn_bias"):
        params = _give_candidate_bias(cell, params)
    fill(cell, params)
    h, c = (zeros_or(state, x.shape[1], hidden) for state in states)
    has_memory = "LSTM" in kind
    rnn = nnx.RNN(cell, time_major=True, return_carry=True, rngs=nnx.Rngs(0))
    carry, output = rnn(x, initial_carry=(c, h) if has_memory else h)
    final_c, final_h = carry if has_memory else (None, carry)
    return Result(np.asarray(output), np.asarray(final_h), None if final_c is None else np.asarray(final_c))


def _give_candidate_bias(cell: Any, params: Params) -> Params:
    """GRUCell of google/flax pull request 5595, r * (dense_h(h) + hn_bias), out of flax 0.12.8's."""
    from flax import nnx

    hidden = cell.hidden_features
    cell.dense_h = nnx.Linear(hidden, 3 * hidden, rngs=nnx.Rngs(0))
    others = {name: value for name, value in params.items() if name != "hn_bias"}
    return {**others, "dense_h.bias": np.concatenate([np.zeros(2 * hidden, np.float32), params["hn_bias"]])}


def zeros() -> dict[str, Any]:
    """Initialisers that cost nothing: every parameter is set afterwards."""
    from flax import nnx

    return dict.fromkeys(("kernel_init", "recurrent_kernel_init"), nnx.initializers.zeros_init())


def fill(cell: Any, params: Params) -> None:
    """Set every Param of `cell`, none left over on either side."""
    import jax.numpy as jnp
    from flax import nnx

    paths = {".".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(cell, nnx.Param))}
    if paths != set(params):
        raise KeyError(f"nnx has {sorted(paths)}, given {sorted(params)}")
    for name, value in params.items():
        parameter = reduce(getattr, name.split("."), cell)
        if parameter.shape != value.shape:
            raise ValueError(f"{name}: nnx has shape {parameter.shape}, given {value.shape}")
        parameter[...] = jnp.asarray(value)


EXECUTORS = {f"flax.nnx.{kind}": partial(layer, kind) for kind in OPTIONS}
