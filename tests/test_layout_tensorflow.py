"""The TF1 layouts against TensorFlow's own kernel of the cell."""

from __future__ import annotations

import os

import numpy as np
import pytest

from bridge.layout import read_params, template
from tests.onnx_equations import onnx

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
tf = pytest.importorskip("tensorflow", reason="needs the extra keras")


@pytest.mark.parametrize("options", [{}, {"use_peephole": True}, {"forget_bias": 0.5}], ids=str)
def test_block_lstm_is_what_is_read(options):
    rng, (inputs, hidden, time) = np.random.default_rng(5), (3, 4, 5)
    made = template("tf1.BlockLSTM", inputs, hidden, **options)
    params = {name: rng.uniform(-1, 1, zero.shape).astype(np.float32) for name, zero in made.params.items()}
    x = rng.standard_normal((time, 1, inputs)).astype(np.float32)
    peepholes = {name: params.get(name, np.zeros(hidden, np.float32)) for name in ("wci", "wcf", "wco")}
    zero = np.zeros((1, hidden), np.float32)
    result = tf.raw_ops.BlockLSTM(
        seq_len_max=time, x=x, cs_prev=zero, h_prev=zero, w=params["w"], b=params["b"], **peepholes,
        forget_bias=made.options["forget_bias"], cell_clip=made.options["cell_clip"],
        use_peephole=made.options["use_peephole"],
    )  # fmt: skip
    cell = read_params("tf1.BlockLSTM", params, **made.options)
    # float32 against float64: sums of at most 9 products of numbers below 2, five steps
    np.testing.assert_allclose(result.h.numpy()[:, 0], onnx(cell, x[:, 0].astype(np.float64)), rtol=0, atol=2e-6)
