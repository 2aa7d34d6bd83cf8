"""The equations of TF 1's cells that the executors write down, held to TensorFlow's own kernels for the same cells."""

from __future__ import annotations

import numpy as np
import pytest

from tests.conformance.executors_tf1 import PEEPHOLES, block_lstm, gru, lstm
from tests.conformance.native import States

INPUTS, HIDDEN, TIME, BATCH = 3, 5, 6, 2
ROUNDING = 1e-6
"""Absolute, float32, values below 1: two orders of the same sums over 8 products, worst seen 1.5e-7 (TF 2.21)."""

ARGUMENTS = {"kernel": "w", "bias": "b", "w_i_diag": "wci", "w_f_diag": "wcf", "w_o_diag": "wco"}
"""The kernel's arguments by the names of LSTMCell's variables."""


def uniform(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.6, 0.6, shape).astype(np.float32)


X, STATES = uniform(1, TIME, BATCH, INPUTS) * 2, States(uniform(2, BATCH, HIDDEN), uniform(3, BATCH, HIDDEN))


@pytest.mark.parametrize("peepholes", [False, True])
@pytest.mark.parametrize("forget_bias", [1.0, 0.25])
def test_lstm_is_what_the_kernel_block_lstm_computes(peepholes, forget_bias):
    params = {"kernel": uniform(4, INPUTS + HIDDEN, 4 * HIDDEN), "bias": uniform(5, 4 * HIDDEN)}
    params |= {name: uniform(6 + at, HIDDEN) for at, name in enumerate(PEEPHOLES)} if peepholes else {}
    options = {"forget_bias": forget_bias}
    arguments = {ARGUMENTS[name]: value for name, value in params.items()}
    kernel = block_lstm(arguments, X, STATES, {**options, "cell_clip": -1.0})
    for ours, theirs in zip(lstm(False, params, X, STATES, options), kernel, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=ROUNDING)


def test_gru_is_what_the_kernel_gru_block_cell_computes():
    import tensorflow as tf

    params = {
        "gates.kernel": uniform(4, INPUTS + HIDDEN, 2 * HIDDEN),
        "gates.bias": uniform(5, 2 * HIDDEN),
        "candidate.kernel": uniform(6, INPUTS + HIDDEN, HIDDEN),
        "candidate.bias": uniform(7, HIDDEN),
    }
    h, outputs = STATES.h, []
    for step in X:
        h = tf.raw_ops.GRUBlockCell(
            x=step, h_prev=h, w_ru=params["gates.kernel"], w_c=params["candidate.kernel"], b_ru=params["gates.bias"],
            b_c=params["candidate.bias"],
        ).h.numpy()  # fmt: skip
        outputs.append(h)
    np.testing.assert_allclose(gru(params, X, STATES, {}).Y, np.stack(outputs), rtol=0, atol=ROUNDING)
