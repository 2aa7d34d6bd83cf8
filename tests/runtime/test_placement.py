"""The forecast of which recurrent nodes the CUDA provider takes: pure rules, tested without a GPU."""

from __future__ import annotations

import numpy as np
import pytest

from bridge.cell import DEFAULT_ACTIVATIONS
from bridge.errors import DeviceUnavailable
from bridge.graph import Writer, as_model
from bridge.runtime import cuda_obstacles, run_model, session
from bridge.runtime.guards import Guards
from tests.cells import random_cell
from tests.single_node import WEIGHTS, node_model


def node_of(op, attributes=None, *, peepholes=False, constants=WEIGHTS, dtype="float32"):
    cell = random_cell(op, 3, 5, np.random.default_rng(0), peepholes=peepholes, dtype=dtype)
    inputs = {"X": np.zeros((2, 1, 3), dtype), "W": cell.W, "R": cell.R, "B": cell.B}
    if peepholes:
        inputs["P"] = cell.P
    default = {"linear_before_reset": 1} if op == "GRU" else {}
    (node,) = Guards.of(as_model(node_model(op, inputs, default | (attributes or {}), constants=constants))).recurrent
    return node


TAKEN = [
    ("LSTM", {}),
    ("GRU", {}),
    ("RNN", {}),
    ("LSTM", {"activations": ["sigmoid", "TANH", "Tanh"]}),
    ("RNN", {"activations": ["Tanh", "Relu"]}),
    ("LSTM", {"input_forget": 0}),
    ("GRU", {"direction": "reverse"}),
]


@pytest.mark.parametrize(("op", "attributes"), TAKEN, ids=str)
def test_cuda_takes(op, attributes):
    assert cuda_obstacles(node_of(op, attributes)) == ()


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_cuda_takes_every_float_that_cudnn_has(op, dtype):
    assert cuda_obstacles(node_of(op, dtype=dtype)) == ()


LEFT = [
    ("LSTM", {"clip": 1.0}, "clip is given"),
    ("LSTM", {"input_forget": 1}, "input_forget is not 0"),
    ("LSTM", {"activations": ["Sigmoid", "Tanh", "Relu"]}, "the activations are Sigmoid, Tanh, Relu"),
    ("RNN", {"activations": ["Relu"]}, "cuDNN has Tanh only"),
    ("LSTM", {"activation_alpha": [0.1]}, "activation_alpha is given"),
    ("GRU", {"activation_beta": [0.1]}, "activation_beta is given"),
    ("GRU", {"linear_before_reset": 0}, "linear_before_reset is 0"),
    ("GRU", {"linear_before_reset": 2}, "linear_before_reset is 2"),
    ("LSTM", {"layout": 1}, "layout is 1"),
]


@pytest.mark.parametrize(("op", "attributes", "reason"), LEFT, ids=str)
def test_cuda_leaves_with_the_reason(op, attributes, reason):
    (obstacle,) = cuda_obstacles(node_of(op, attributes))
    assert reason in obstacle


def test_cuda_leaves_peepholes():
    assert cuda_obstacles(node_of("LSTM", peepholes=True)) == ("P (peepholes) is given",)


def test_second_direction_counts():
    cell = random_cell("RNN", 3, 5, np.random.default_rng(0), direction="bidirectional", activations=("Tanh", "Relu"))
    inputs = {"X": np.zeros((2, 1, 3), np.float32), "W": cell.W, "R": cell.R, "B": cell.B}
    model = node_model("RNN", inputs, {"direction": "bidirectional", "activations": cell.activations})
    (node,) = Guards.of(as_model(model)).recurrent
    assert cuda_obstacles(node) == ("the activations are Tanh, Relu: cuDNN has Tanh, Tanh only",)


def test_bias_that_the_packed_weights_would_leave_out():
    assert "would leave B out" in cuda_obstacles(node_of("LSTM", constants=("W", "R")))[0]
    assert cuda_obstacles(node_of("LSTM", constants=())) == ()
    assert cuda_obstacles(node_of("LSTM", constants=("B",))) == ()


def test_every_obstacle_is_told():
    attributes = {"clip": 1.0, "linear_before_reset": 0, "activations": ["Relu", "Relu"], "activation_alpha": [0.5]}
    assert len(cuda_obstacles(node_of("GRU", attributes))) == 4


@pytest.mark.parametrize("op", list(DEFAULT_ACTIVATIONS))
def test_nodes_that_bridge_writes_stay_on_cuda(op):
    cell = random_cell(op, 3, 5, np.random.default_rng(0), direction="bidirectional", **attributes_for_cuda(op))
    (node,) = Guards.of(written(cell)).recurrent
    assert cuda_obstacles(node) == ()


def test_cuda_is_refused_naming_node_and_reason_before_a_session_is_made(monkeypatch):
    monkeypatch.setattr(session, "why_no_cuda", lambda: None)
    cell = random_cell("GRU", 3, 5, np.random.default_rng(0), linear_before_reset=False)
    with pytest.raises(DeviceUnavailable, match="GRU 'rnn': linear_before_reset is 0"):
        run_model(written(cell), {}, device="cuda")


def test_forecast_is_checked_against_what_onnxruntime_did(monkeypatch):
    """Were the rules wrong, or CUDA lost: the session that fell back is refused."""
    monkeypatch.setattr(session, "_on_cuda", lambda device, nodes: False)
    cell = random_cell("LSTM", 3, 5, np.random.default_rng(0))
    with pytest.raises(DeviceUnavailable, match="LSTM 'rnn' is on CPUExecutionProvider"):
        run_model(written(cell), {}, device="cuda")


def test_auto_takes_the_cpu_where_cuda_would_not_run_every_recurrent_node(monkeypatch):
    monkeypatch.setattr(session, "why_no_cuda", lambda: None)
    cell = random_cell("LSTM", 3, 5, np.random.default_rng(0), peepholes=True)
    x = np.ones((2, 1, 3), np.float32)
    assert run_model(written(cell), {"x": x}, device="auto").providers == {"rnn": "CPUExecutionProvider"}


def attributes_for_cuda(op):
    return {"linear_before_reset": True} if op == "GRU" else {}


def written(cell):
    w = Writer()
    x = w.input("x", "float32", ["time", "batch", cell.input_size])
    Y, *_ = w.recurrent(cell, x, name="rnn")
    w.output(Y, "y", "float32", ["time", cell.num_directions, "batch", cell.hidden_size])
    return w.model()
