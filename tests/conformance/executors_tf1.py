"""The cells of TensorFlow 1 with given parameters.

BlockLSTM is TensorFlow's own kernel. LSTMCell, BasicLSTMCell and GRUCell do not exist beside Keras 3: their published
equations are written down here in float32 numpy (keras-team/tf-keras, tf_keras/layers/rnn/legacy_cells.py, call() of
each class), and `test_tf1.py` holds them to TensorFlow's kernels for the same cells, BlockLSTM and GRUBlockCell.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from tests.conformance.native import Options, Params, Result, States, reject, zeros_or

PEEPHOLES = ("w_i_diag", "w_f_diag", "w_o_diag")


def sigmoid(x: np.ndarray) -> np.ndarray:
    return (np.float32(1) / (np.float32(1) + np.exp(-x))).astype(np.float32)


ACTIVATIONS = {
    "tanh": np.tanh,
    "sigmoid": sigmoid,
    "linear": lambda x: x,
    "relu": lambda x: np.maximum(x, np.float32(0)),
    "elu": lambda x: np.where(x > 0, x, np.expm1(x)),
    "softplus": lambda x: np.logaddexp(x, np.float32(0)),
    "softsign": lambda x: x / (np.abs(x) + np.float32(1)),
    "hard_sigmoid": lambda x: np.clip(np.float32(0.2) * x + np.float32(0.5), np.float32(0), np.float32(1)),
}
"""tf-keras tf_keras/activations.py, which the cells take their activation from by name."""


def _function(options: Options) -> Any:
    return ACTIVATIONS[options.get("activation", "tanh")]


def lstm(basic: bool, params: Params, x: np.ndarray, states: States, options: Options) -> Result:
    """LSTMCell (with the peepholes among `params`) or BasicLSTMCell: gates i, j, f, o of one product."""
    reject(options, ("forget_bias", "activation"))
    peepholes = {} if basic else {name[2]: params[name] for name in PEEPHOLES if name in params}
    left = set(params) - {"kernel", "bias", *(PEEPHOLES if not basic else ())}
    if left or len(peepholes) not in (0, 3):
        raise KeyError(f"unknown or incomplete parameters: {sorted(params)}")
    forget, act = np.float32(options.get("forget_bias", 1.0)), _function(options)
    hidden = params["bias"].shape[0] // 4
    h, c = (zeros_or(state, x.shape[1], hidden) for state in states)
    outputs = []
    for step in x:
        product = np.concatenate([step, h], axis=1) @ params["kernel"] + params["bias"]
        i, j, f, o = (product[:, at * hidden : (at + 1) * hidden] for at in range(4))
        before = c
        c = sigmoid(f + forget + peepholes.get("f", np.float32(0)) * before) * before
        c = c + sigmoid(i + peepholes.get("i", np.float32(0)) * before) * act(j)
        h = sigmoid(o + peepholes.get("o", np.float32(0)) * c) * act(c)
        outputs.append(h)
    return Result(np.stack(outputs), h, c)


def gru(params: Params, x: np.ndarray, states: States, options: Options) -> Result:
    """GRUCell: gates r, u of one product, the candidate of another on [x, r * h]."""
    reject(options, ("activation",))
    expected = {"gates.kernel", "gates.bias", "candidate.kernel", "candidate.bias"}
    if set(params) != expected:
        raise KeyError(f"TensorFlow has {sorted(expected)}, given {sorted(params)}")
    act, hidden = _function(options), params["candidate.bias"].shape[0]
    h = zeros_or(states.h, x.shape[1], hidden)
    outputs = []
    for step in x:
        value = sigmoid(np.concatenate([step, h], axis=1) @ params["gates.kernel"] + params["gates.bias"])
        r, u = value[:, :hidden], value[:, hidden:]
        c = act(np.concatenate([step, r * h], axis=1) @ params["candidate.kernel"] + params["candidate.bias"])
        h = u * h + (np.float32(1) - u) * c
        outputs.append(h)
    return Result(np.stack(outputs), h)


def block_lstm(params: Params, x: np.ndarray, states: States, options: Options) -> Result:
    """tf.raw_ops.BlockLSTM, parameters by the names of its arguments; peepholes are used where they are given."""
    import tensorflow as tf

    reject(options, ("forget_bias", "cell_clip"))
    hidden = params["b"].shape[0] // 4
    h, c = (zeros_or(state, x.shape[1], hidden) for state in states)
    arguments = {**{name: np.zeros(hidden, np.float32) for name in ("wci", "wcf", "wco")}, **params, **options}
    done = tf.raw_ops.BlockLSTM(
        seq_len_max=np.int64(x.shape[0]), x=x, cs_prev=c, h_prev=h, use_peephole="wci" in params, **arguments
    )
    return Result(done.h.numpy(), done.h.numpy()[-1], done.cs.numpy()[-1])


EXECUTORS = {
    "tf1.LSTMCell": partial(lstm, False),
    "tf1.BasicLSTMCell": partial(lstm, True),
    "tf1.GRUCell": gru,
    "tf1.BlockLSTM": block_lstm,
}
