"""Every row of schemas/deviations.toml, shown on onnxruntime and on the referee."""

from __future__ import annotations

import subprocess
import sys
import tomllib

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto

from bridge import reference, runtime
from bridge.cell import Cell
from bridge.errors import BadInput, Unsupported
from bridge.schema_files import schema_files

from .cells import OPS, random_cell
from .single_node import OUTPUTS, node_model, run_node, session

RUN = {"LSTM": reference.lstm, "GRU": reference.gru, "RNN": reference.rnn}
CLOSE, FAR = 1e-5, 1e-2
"""float32 rounding of these small nodes is below the one, every deviation shown here is above the other."""
COUNT = {"LSTM": 3, "GRU": 2, "RNN": 1}


def deviations() -> list[dict[str, object]]:
    return tomllib.loads((schema_files() / "deviations.toml").read_text(encoding="utf-8"))["deviation"]


@pytest.mark.parametrize("row", deviations(), ids=lambda row: row["case"])
def test_row_is_complete_and_names_a_test(row):
    assert set(row) == {"case", "operators", "text", "onnxruntime", "rule", "test"}
    assert row["rule"] in ("onnxruntime", "text", "refused", "listed")
    assert set(row["operators"]) <= set(OPS)
    assert callable(globals()[row["test"]])


def test_every_test_here_is_a_row():
    named = {row["test"] for row in deviations()}
    own = {name for name in globals() if name.startswith("test_")}
    assert own - named == {"test_row_is_complete_and_names_a_test", "test_every_test_here_is_a_row"}


def operands(op: str, *, bias: bool = True, time: int = 5, dtype: str = "float32", **more) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    cell = random_cell(op, 3, 4, rng, bias=bias, dtype=dtype)
    arrays = {"X": 3 * rng.standard_normal((time, 2, 3)).astype(dtype), "W": cell.W, "R": cell.R, "B": cell.B}
    return {name: value for name, value in {**arrays, **more}.items() if value is not None}


def distances(op: str, inputs: dict[str, np.ndarray], attributes: dict[str, object]) -> tuple[float, float]:
    """How far onnxruntime is from the referee with spec="onnxruntime", and with spec="text"."""
    actual = run_node(node_model(op, inputs, attributes), inputs)
    found = []
    for spec in ("onnxruntime", "text"):
        expected = dict(zip(OUTPUTS[op], RUN[op](**inputs, **attributes, spec=spec), strict=True))
        found.append(max(float(np.abs(actual[name] - expected[name]).max()) for name in actual))
    return found[0], found[1]


def assert_follows_onnxruntime_and_not_the_text(op, inputs, attributes):
    runtime_distance, text_distance = distances(op, inputs, attributes)
    assert runtime_distance < CLOSE
    assert text_distance > FAR


def test_lstm_clip_leaves_the_input_of_h_alone():
    inputs = operands("LSTM", initial_c=np.full((1, 2, 4), 2.0, np.float32), initial_h=np.zeros((1, 2, 4), np.float32))
    assert_follows_onnxruntime_and_not_the_text("LSTM", inputs, {"clip": 0.2})


@pytest.mark.parametrize("op", OPS)
def test_thresholded_relu_starts_at_0_by_default(op):
    attributes = {"activations": ["ThresholdedRelu"] * COUNT[op]}
    assert_follows_onnxruntime_and_not_the_text(op, operands(op, time=3), attributes)


@pytest.mark.parametrize("op", OPS)
def test_thresholded_relu_is_0_at_alpha(op):
    """The candidate (RNN: the output) is ThresholdedRelu of an input that is exactly alpha."""
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[op]
    inputs = {"X": np.full((1, 1, 1), 0.5, np.float32), "W": np.ones((1, gates, 1), np.float32)}
    inputs["R"] = np.zeros((1, gates, 1), np.float32)
    names = {"LSTM": ["Sigmoid", "ThresholdedRelu", "Tanh"], "GRU": ["Sigmoid", "ThresholdedRelu"],
             "RNN": ["ThresholdedRelu"]}[op]  # fmt: skip
    attributes = {"activations": names, "activation_alpha": [0.5]}
    assert_follows_onnxruntime_and_not_the_text(op, inputs, attributes)
    assert not run_node(node_model(op, inputs, attributes), inputs)["Y"].any()


@pytest.mark.parametrize("name", ["Affine", "ScaledTanh"])
@pytest.mark.parametrize("op", OPS)
def test_affine_and_scaled_tanh_are_0_by_default(op, name):
    inputs, attributes = operands(op), {"activations": [name] * COUNT[op]}
    assert not run_node(node_model(op, inputs, attributes), inputs)["Y"].any()
    assert not RUN[op](**inputs, **attributes)[0].any()


@pytest.mark.parametrize("op", OPS)
def test_short_lists_fall_back_and_long_lists_are_ignored(op):
    inputs = operands(op)
    short = {"activations": ["LeakyRelu"] * (COUNT[op] - 1) + ["HardSigmoid"], "activation_alpha": [0.3] * COUNT[op]}
    long = {**short, "activation_beta": [0.1, 0.7, 0.9], "activation_alpha": [0.3] * (COUNT[op] + 2)}
    for attributes in (short, {**short, "activation_alpha": [0.3]}, long):
        actual = run_node(node_model(op, inputs, attributes), inputs)
        expected = RUN[op](**inputs, **attributes)
        assert np.abs(actual["Y"] - expected[0]).max() < CLOSE


@pytest.mark.parametrize("op", OPS)
def test_length_0_loses_the_initial_state(op):
    state = np.full((1, 2, 4), 0.5, np.float32)
    inputs = operands(op, sequence_lens=np.array([5, 0], np.int32), initial_h=state)
    if op == "LSTM":
        inputs["initial_c"] = state
    assert_follows_onnxruntime_and_not_the_text(op, inputs, {})
    assert not run_node(node_model(op, inputs, {}), inputs)["Y_h"][:, 1].any()
    assert (RUN[op](**inputs, spec="text")[1][:, 1] == 0.5).all()


@pytest.mark.parametrize("op", OPS)
def test_y_is_0_past_the_length_and_reverse_starts_at_the_last_valid_step(op):
    inputs, attributes = operands(op, sequence_lens=np.array([5, 2], np.int32)), {"direction": "reverse"}
    actual = run_node(node_model(op, inputs, attributes), inputs)["Y"]
    alone = {**operands(op), "X": inputs["X"][:2]}
    expected = run_node(node_model(op, alone, attributes), alone)["Y"]
    assert not actual[2:, :, 1].any()
    assert np.abs(actual[:2, :, 1] - expected[:, :, 1]).max() < CLOSE
    assert np.abs(actual - RUN[op](**inputs, **attributes)[0]).max() < CLOSE


@pytest.mark.parametrize("lengths", [[5, 6], [-1, 2]], ids=str)
@pytest.mark.parametrize("op", OPS)
def test_lengths_out_of_range_are_refused(op, lengths):
    inputs = operands(op, sequence_lens=np.array(lengths, np.int32))
    model = node_model(op, inputs, {})
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument):
        run_node(model, inputs)
    with pytest.raises(BadInput):
        RUN[op](**inputs)
    with pytest.raises(BadInput):
        runtime.run_model(model, {name: inputs[name] for name in ("X", "sequence_lens")})


@pytest.mark.parametrize("op", OPS)
def test_softplus_overflows(op):
    inputs, attributes = operands(op, bias=False), {"activations": ["Softplus"] * COUNT[op]}
    inputs["W"], inputs["X"] = np.abs(inputs["W"]) + 1, np.full((1, 2, 3), 40.0, np.float32)
    with np.errstate(invalid="ignore"):
        assert not np.isfinite(run_node(node_model(op, inputs, attributes), inputs)["Y"]).all()
    assert np.isfinite(RUN[op](**inputs, **attributes)[0]).all()


@pytest.mark.parametrize("op", ["LSTM", "GRU"])
@pytest.mark.parametrize("name", ["X", "W", "R", "B"])
def test_nan_is_hidden_where_a_bias_is_given(op, name):
    inputs = {key: array.copy() for key, array in operands(op).items()}
    inputs[name].flat[0] = np.nan
    model = node_model(op, inputs, {})
    assert np.isfinite(run_node(model, inputs)["Y"]).all()
    with pytest.raises(BadInput, match="NaN or inf"):
        runtime.run_model(model, {"X": inputs["X"]})


EMPTY = """
import sys
import numpy as np
from tests.test_deviations import operands
from tests.single_node import node_model, run_node
op, time, batch = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
inputs = operands(op)
model = node_model(op, inputs, {})
run_node(model, {**inputs, "X": np.zeros((time, batch, 3), np.float32)})
"""


@pytest.mark.skipif(sys.platform == "win32", reason="the abort is seen by its signal")
@pytest.mark.parametrize(("op", "time", "batch"), [("LSTM", 5, 0), ("GRU", 5, 0), ("GRU", 0, 2)], ids=str)
def test_empty_shapes_abort_the_process(op, time, batch):
    done = subprocess.run([sys.executable, "-c", EMPTY, op, str(time), str(batch)], capture_output=True, text=True)
    assert done.returncode == -6, done.stderr
    inputs = operands(op)
    with pytest.raises(BadInput, match="aborts the process"):
        runtime.run_model(node_model(op, inputs, {}), {"X": np.zeros((time, batch, 3), np.float32)})
    with pytest.raises(BadInput):
        RUN[op](**{**inputs, "X": np.zeros((time, batch, 3), np.float32)})


@pytest.mark.parametrize("op", OPS)
def test_layout_1_has_no_kernel(op):
    inputs = operands(op)
    first, turned = RUN[op](**inputs)[0], {**inputs, "X": inputs["X"].transpose(1, 0, 2)}
    model = node_model(op, turned, {"layout": 1})
    with pytest.raises(Exception, match=r"layout == 1\) are not supported"):
        session(model)
    np.testing.assert_array_equal(RUN[op](**turned, layout=1)[0], first.transpose(2, 0, 1, 3))
    plain = runtime.run_model(node_model(op, inputs, {}), {"X": inputs["X"]}).outputs["Y"]
    ours = runtime.run_model(model, {"X": turned["X"]}).outputs["Y"]  # turned over, so that it runs
    np.testing.assert_array_equal(ours, plain.transpose(2, 0, 1, 3))


@pytest.mark.parametrize("op", OPS)
def test_float64_has_no_kernel(op):
    inputs = operands(op, dtype="float64")
    with pytest.raises(Unsupported):
        runtime.run_model(node_model(op, inputs, {}), {"X": inputs["X"]})
    assert RUN[op](**inputs)[0].dtype == np.float64


@pytest.mark.parametrize("op", OPS)
def test_bfloat16_has_no_kernel(op):
    model = onnx.load_from_string(node_model(op, operands(op), {}, opset=22))
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        tensor.CopyFrom(onnx.helper.make_tensor(tensor.name, TensorProto.BFLOAT16, values.shape, values.ravel()))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.BFLOAT16
    with pytest.raises(Unsupported):
        runtime.Session(model, device="cpu")
    with pytest.raises(Unsupported, match="bfloat16"):
        Cell(op, **{name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer
                    if (name := tensor.name) in ("W", "R")})  # fmt: skip


@pytest.mark.parametrize(("op", "clip"), [("LSTM", 0.0), ("LSTM", -1.0), ("GRU", 0.0), ("GRU", -1.0), ("RNN", 0.0)])
def test_clip_of_0_or_less_is_refused(op, clip):
    inputs = operands(op)
    model = node_model(op, inputs, {"clip": clip})
    if op == "RNN":
        assert not run_node(model, inputs)["Y"].any()
    else:
        with pytest.raises(Unsupported):
            runtime.Session(model, device="cpu")
    with pytest.raises(BadInput, match="clip is a finite number above 0"):
        RUN[op](**inputs, clip=clip)


def test_negative_clip_of_rnn_is_none():
    inputs = operands("RNN")
    actual = run_node(node_model("RNN", inputs, {"clip": -1.0}), inputs)["Y"]
    expected = reference.rnn(**inputs, clip=-1.0)[0]
    assert np.abs(actual - expected).max() < CLOSE
    np.testing.assert_array_equal(expected, reference.rnn(**inputs)[0])


@pytest.mark.parametrize("op", OPS)
def test_initial_state_is_not_broadcast(op):
    state = np.full((1, 1, 4), 0.5, np.float32)
    inputs = operands(op, initial_h=state)
    feeds = {name: inputs[name] for name in ("X", "initial_h")}
    with pytest.raises(BadInput, match=r"Input initial_h must have shape \{1,2,4\}"):
        runtime.run_model(node_model(op, inputs, {}), feeds)
    full = {**inputs, "initial_h": np.repeat(state, 2, axis=1)}
    np.testing.assert_array_equal(RUN[op](**inputs)[0], RUN[op](**full)[0])


@pytest.mark.parametrize("op", OPS)
def test_case_of_activation_names(op):
    inputs, default = operands(op), {"LSTM": "sigmoid TANH tanh", "GRU": "sigmoid TANH", "RNN": "TANH"}[op]
    model = node_model(op, inputs, {"activations": default.split()})
    expected = RUN[op](**inputs)[0]
    np.testing.assert_array_equal(RUN[op](**inputs, activations=default.split())[0], expected)
    if op == "RNN":
        with pytest.raises(Unsupported):
            runtime.Session(model, device="cpu")
    else:
        assert np.abs(run_node(model, inputs)["Y"] - expected).max() < CLOSE


def test_rnn_reads_the_first_of_two_activations():
    inputs, attributes = operands("RNN"), {"activations": ["Relu", "Sigmoid"]}
    actual = run_node(node_model("RNN", inputs, attributes), inputs)["Y"]
    assert np.abs(actual - reference.rnn(**inputs, **attributes)[0]).max() < CLOSE
    np.testing.assert_array_equal(reference.rnn(**inputs, **attributes)[0],
                                  reference.rnn(**inputs, activations=["Relu"])[0])  # fmt: skip


@pytest.mark.parametrize("op", OPS)
def test_hidden_size_is_required(op):
    model = onnx.load_from_string(node_model(op, operands(op), {}))
    node = model.graph.node[0]
    kept = [attribute for attribute in node.attribute if attribute.name != "hidden_size"]
    del node.attribute[:]
    node.attribute.extend(kept)
    with pytest.raises(Exception, match="hidden_size"):
        session(model.SerializeToString())
    assert RUN[op](**operands(op))[0].shape == (5, 1, 2, 4)
