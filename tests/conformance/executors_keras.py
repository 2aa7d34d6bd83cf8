"""Keras's own layers with given parameters. Source: keras 3.15.1, keras/src/layers/rnn/{lstm,gru,simple_rnn}.py.

CuDNNLSTM and CuDNNGRU are layers of TF 1 and Keras 2 that need a GPU. Their weights are turned into those of LSTM and
GRU(reset_after=True) the way those versions loaded them into the portable layers: tf-keras
tf_keras/saving/legacy/hdf5_format.py, _convert_rnn_weights (written anew here from what it says).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from tests.conformance.native import Options, Params, Result, States, reject, zeros_or

OPTIONS = {
    "LSTM": ("activation", "recurrent_activation"),
    "GRU": ("activation", "recurrent_activation", "reset_after"),
    "SimpleRNN": ("activation",),
}


def layer(kind: str, params: Params, x: np.ndarray, states: States, options: Options) -> Result:
    """keras.layers.LSTM, GRU or SimpleRNN, weights set by variable name."""
    import keras

    reject(options, OPTIONS[kind])
    hidden, (time, batch, inputs) = params["recurrent_kernel"].shape[0], x.shape
    chosen = {name: _activation(value) for name, value in options.items()}
    module = getattr(keras.layers, kind)(hidden, use_bias="bias" in params, return_sequences=True, return_state=True,
                                         **chosen)  # fmt: skip
    module.build((batch, time, inputs))
    variables = {variable.name: variable for variable in module.trainable_variables}
    if set(variables) != set(params):
        raise KeyError(f"Keras has {sorted(variables)}, given {sorted(params)}")
    for name, value in params.items():
        variables[name].assign(value)
    start = [zeros_or(state, batch, hidden) for state in states][: 2 if kind == "LSTM" else 1]
    output, *final = module(np.swapaxes(x, 0, 1), initial_state=[keras.ops.convert_to_tensor(s) for s in start])
    output, *final = (keras.ops.convert_to_numpy(value) for value in (output, *final))
    return Result(np.swapaxes(output, 0, 1), *final)


def _activation(value: Any) -> Any:
    if value == "keras2_hard_sigmoid":
        import keras

        return lambda x: keras.ops.clip(0.2 * x + 0.5, 0.0, 1.0)  # keras 2.2.0 keras/backend: hard_sigmoid
    return value


def cudnn(kind: str, params: Params, x: np.ndarray, states: States, options: Options) -> Result:
    """CuDNNLSTM or CuDNNGRU by way of the portable layer.

    cuDNN reads each gate's block of memory as [H, I] and [H, H], whatever shape Keras gave it.
    """
    reject(options)
    hidden, inputs, gates = params["recurrent_kernel"].shape[0], x.shape[2], 4 if kind == "LSTM" else 3
    portable = {
        name: np.concatenate(
            [block.flatten(order="C").reshape(hidden, rows).T for block in np.split(params[name], gates, axis=1)],
            axis=1,
        )
        for name, rows in (("kernel", inputs), ("recurrent_kernel", hidden))
    }
    halves = params["bias"].reshape(2, gates * hidden)
    portable["bias"] = halves[0] + halves[1] if kind == "LSTM" else halves
    return layer(kind, portable, x, states, {})


EXECUTORS = {
    **{f"keras.{kind}": partial(layer, kind) for kind in ("LSTM", "GRU", "SimpleRNN")},
    **{f"keras.CuDNN{kind}": partial(cudnn, kind) for kind in ("LSTM", "GRU")},
}
