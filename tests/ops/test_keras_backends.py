"""keras.ops on jax, torch and tensorflow against onnxruntime, each in a process of its own (KERAS_BACKEND)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import numpy as np, sys
from bridge.ops.backend_keras import KerasBackend
from tests.ops.agreement import assert_agrees
from tests.ops.rows import rows

FAMILIES = {"LSTM", "GRU", "RNN", "Scan", "If", "Loop", "Conv", "ConvTranspose", "MaxPool", "Resize", "Gemm", "Einsum",
            "Slice", "Pad", "GatherND", "GatherElements", "ScatterND", "ReverseSequence", "CumSum", "Softmax", "TopK",
            "LayerNormalization", "Max", "Clip", "Where", "Split", "ReduceProd", "ArgMax", "ArgMin", "Cast", "DFT",
            "BitShift", "QuantizeLinear", "Atanh"}
VARIED = ("to", "select_last_index")
last = {(row.op, *map(row.attributes.get, VARIED)): row for row in rows() if row.op in FAMILIES}
chosen = list(last.values())
for row in chosen:
    try:
        assert_agrees(row, KerasBackend())
    except Exception as error:
        sys.exit(f"{row.name}: {type(error).__name__}: {error}")
print(len(chosen), "agree")
"""


@pytest.mark.parametrize("backend", ["jax", "torch", "tensorflow"])
def test_keras_ops_agree_with_onnxruntime(backend: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM],
        env={**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "agree" in done.stdout


GRAPH = """
import numpy as np, tensorflow as tf
from bridge.ops import recurrent
from bridge.ops.backend_keras import KerasBackend

rng = np.random.default_rng(0)
X, W, R = (rng.uniform(-1, 1, shape).astype(np.float32) for shape in ((4, 2, 3), (2, 20, 3), (2, 20, 5)))
lengths = np.array([2, 4], np.int32)
run = lambda X: recurrent.lstm(KerasBackend(), X, W_, R_, None, lengths_, direction="bidirectional")
X_, W_, R_, lengths_ = map(tf.convert_to_tensor, (X, W, R, lengths))
for eager, traced in zip(run(X_), tf.function(run)(X_), strict=True):
    np.testing.assert_allclose(eager, traced, atol=1e-6)
print("agree")
"""


def test_a_tensorflow_graph_computes_what_eager_mode_does() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", GRAPH],
        env={**os.environ, "KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
