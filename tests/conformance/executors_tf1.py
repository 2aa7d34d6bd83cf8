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


def _function(options: Options) -> Any:
    name = options.get("activation", "tanh")
    return {"tanh": np.tanh, "relu": lambda x: np.maximum(x, np.float32(0)), "sigmoid": sigmoid}[name]


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
    """tf.raw_ops.BlockLSTM with the cell clip off: what tf.contrib.rnn.LSTMBlockFusedCell runs.

    Variables of LSTMBlockFusedCell: kernel, bias, w_i_diag, w_f_diag, w_o_diag.
    """
    import tensorflow as tf

    reject(options, ("forget_bias",))
    hidden = params["bias"].shape[0] // 4
    left = set(params) - {"kernel", "bias", *PEEPHOLES}
    peepholes = [params.get(name, np.zeros(hidden, np.float32)) for name in PEEPHOLES]
    if left:
        raise KeyError(f"unknown parameters: {sorted(left)}")
    h, c = (zeros_or(state, x.shape[1], hidden) for state in states)
    done = tf.raw_ops.BlockLSTM(
        seq_len_max=np.int64(x.shape[0]), x=x, cs_prev=c, h_prev=h, w=params["kernel"], b=params["bias"],
        wci=peepholes[0], wcf=peepholes[1], wco=peepholes[2], use_peephole=PEEPHOLES[0] in params,
        forget_bias=float(options.get("forget_bias", 1.0)), cell_clip=-1.0,
    )  # fmt: skip
    return Result(done.h.numpy(), done.h.numpy()[-1], done.cs.numpy()[-1])


EXECUTORS = {
    "tf1.LSTMCell": partial(lstm, False),
    "tf1.BasicLSTMCell": partial(lstm, True),
    "tf1.GRUCell": gru,
    "tf1.BlockLSTM": block_lstm,
}
