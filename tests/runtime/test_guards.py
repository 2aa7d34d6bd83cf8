"""What a model must be before onnxruntime loads it, and which inputs reach a recurrent node."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bridge.errors import BadInput
from bridge.graph import as_model
from bridge.reference import evaluate
from bridge.runtime import cuda_obstacles, run_model
from bridge.runtime.guards import Guards
from tests.cells import random_cell
from tests.single_node import node_model


def model_of(nodes, inputs, outputs, weights) -> onnx.ModelProto:
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()]
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "guarded", infos, results, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def blocks(cell) -> dict[str, np.ndarray]:
    return {"W": cell.W, "R": cell.R, "B": cell.B}


@pytest.fixture
def gru():
    return random_cell("GRU", 3, 5, np.random.default_rng(0), linear_before_reset=True)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize("name", ["W", "R", "B"])
def test_weights_that_are_not_finite_are_refused_by_name(name, value, gru):
    weights = {key: array.copy() for key, array in blocks(gru).items()}
    weights[name].flat[3] = value
    model = node_model("GRU", {"X": np.zeros((2, 1, 3), np.float32), **weights}, {})
    with pytest.raises(BadInput, match=f"initialiser '{name}' of GRU 'cell': a weight holds NaN or inf"):
        run_model(model, {"X": np.zeros((2, 1, 3), np.float32)})


def test_a_mask_of_inf_is_no_weight_and_runs():
    model = model_of([helper.make_node("Max", ["x", "mask"], ["y"])], {"x": [2]}, ["y"],
                     {"mask": np.array([-np.inf, 0.5], np.float32)})  # fmt: skip
    outputs = run_model(model, {"x": np.array([-3.0, -3.0], np.float32)}).outputs
    np.testing.assert_array_equal(outputs["y"], np.array([-3.0, 0.5], np.float32))


def test_nan_in_any_constant_is_refused():
    model = model_of([helper.make_node("Max", ["x", "mask"], ["y"])], {"x": [2]}, ["y"],
                     {"mask": np.array([np.nan, 0.5], np.float32)})  # fmt: skip
    with pytest.raises(BadInput, match=r"initialiser 'mask' of Max .*: a constant holds NaN"):
        run_model(model, {"x": np.zeros(2, np.float32)})


def test_only_inputs_that_reach_a_recurrent_node_must_not_be_empty(gru):
    nodes = [
        helper.make_node("Neg", ["x"], ["negative"]),
        helper.make_node("GRU", ["negative", "W", "R", "B"], ["y"], name="gru", hidden_size=5, linear_before_reset=1),
        helper.make_node("Neg", ["aside"], ["other"]),
    ]
    model = model_of(nodes, {"x": ["t", "n", 3], "aside": ["k"]}, ["y", "other"], blocks(gru))
    assert Guards.of(as_model(model)).reaching == {"x"}
    full, none = np.ones((2, 1, 3), np.float32), np.zeros(0, np.float32)
    assert run_model(model, {"x": full, "aside": none}).outputs["other"].shape == (0,)
    with pytest.raises(BadInput, match="input 'x': a dimension of 0"):
        run_model(model, {"x": full[:0], "aside": none})


def test_inputs_of_a_body_reach_the_recurrent_node_in_it(gru):
    def branch(name, source):
        node = helper.make_node("GRU", [source, "W", "R"], [f"y_{name}"], hidden_size=5, name=name)
        return helper.make_graph([node], name, [], [helper.make_tensor_value_info(f"y_{name}", 1, None)])

    nodes = [
        helper.make_node("Identity", ["x"], ["same"]),
        helper.make_node("ReduceSum", ["choice"], ["sum"], keepdims=0),
        helper.make_node("Cast", ["sum"], ["condition"], to=TensorProto.BOOL),
        helper.make_node(
            "If", ["condition"], ["y"], then_branch=branch("then", "same"), else_branch=branch("else", "z")
        ),
        helper.make_node("Neg", ["aside"], ["other"]),
    ]  # fmt: skip
    inputs = {"x": ["t", "n", 3], "z": ["t", "n", 3], "choice": [1], "aside": ["k"]}
    guards = Guards.of(as_model(model_of(nodes, inputs, ["y", "other"], blocks(gru))))
    assert guards.reaching == {"x", "z", "choice"}
    assert {node.name for node in guards.recurrent} == {"then", "else"}


def test_values_captured_by_a_body_before_the_recurrent_node_reach_it(gru):
    def branch(name, source):
        return helper.make_graph(
            [helper.make_node("Neg", [source], [f"n_{name}"])], name, [],
            [helper.make_tensor_value_info(f"n_{name}", 1, ["t", "n", 3])],
        )  # fmt: skip

    nodes = [
        helper.make_node("Cast", ["choice"], ["condition"], to=TensorProto.BOOL),
        helper.make_node("If", ["condition"], ["chosen"], then_branch=branch("a", "x"), else_branch=branch("b", "z")),
        helper.make_node("GRU", ["chosen", "W", "R"], ["y"], hidden_size=5),
    ]
    inputs = {"x": ["t", "n", 3], "z": ["t", "n", 3], "choice": []}
    guards = Guards.of(as_model(model_of(nodes, inputs, ["y"], blocks(gru))))
    assert guards.reaching == {"x", "z", "choice"}


def test_all_inputs_are_guarded_where_a_function_holds_the_node(gru):
    body = helper.make_function(
        "own", "Encode", ["x", "w", "r"], ["y"], [helper.make_node("GRU", ["x", "w", "r"], ["y"], hidden_size=5)],
        [helper.make_opsetid("", 20)],
    )  # fmt: skip
    nodes = [helper.make_node("Encode", ["x", "W", "R"], ["y"], domain="own"), helper.make_node("Neg", ["k"], ["m"])]
    model = model_of(nodes, {"x": [2, 1, 3], "k": [1]}, ["y", "m"], blocks(gru))
    model.functions.append(body)
    model.opset_import.append(helper.make_opsetid("own", 1))
    guards = Guards.of(as_model(model))
    assert guards.reaching == {"x", "k"}
    assert len(guards.recurrent) == 1


def quantised(cell) -> onnx.ModelProto:
    """What onnxruntime.quantization.quantize_dynamic makes of an LSTM, by hand: scales per tensor, zero points 0."""
    arrays: dict[str, np.ndarray] = {"B": cell.B}
    for name in ("W", "R"):
        scale = np.abs(getattr(cell, name)).max(axis=(1, 2)) / 127
        arrays |= {f"{name}_scale": scale.astype(np.float32), f"{name}_zero": np.zeros(1, np.int8)}
        arrays[name] = np.round(getattr(cell, name).transpose(0, 2, 1) / scale).astype(np.int8)
    names = ["x", "W", "R", "B", "", "", "", "", "W_scale", "W_zero", "R_scale", "R_zero"]
    node = helper.make_node("DynamicQuantizeLSTM", names, ["y"], name="q", domain="com.microsoft", hidden_size=5)
    model = model_of([node], {"x": ["t", "n", 3]}, ["y"], arrays)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return model


def test_quantised_lstm_is_guarded_and_never_on_cuda():
    cell = random_cell("LSTM", 3, 5, np.random.default_rng(0))
    x = np.random.default_rng(1).standard_normal((4, 2, 3)).astype(np.float32)
    result = run_model(quantised(cell), {"x": x})
    np.testing.assert_allclose(result.outputs["y"], evaluate(cell, x)[0], rtol=0, atol=0.05)
    assert list(result.providers) == ["q"]
    (node,) = Guards.of(as_model(quantised(cell))).recurrent
    assert cuda_obstacles(node) == ("the CUDA provider has no kernel for DynamicQuantizeLSTM",)
    with pytest.raises(BadInput, match="input 'x': a dimension of 0"):
        run_model(quantised(cell), {"x": x[:, :0]})


def test_empty_weights_of_a_recurrent_node_are_refused():
    weights = {"W": np.zeros((1, 15, 0), np.float32), "R": np.zeros((1, 15, 5), np.float32)}
    model = model_of(
        [helper.make_node("GRU", ["x", "W", "R"], ["y"], hidden_size=5)], {"x": [2, 1, "i"]}, ["y"], weights
    )
    with pytest.raises(BadInput, match="initialiser 'W' of GRU"):
        run_model(model, {"x": np.zeros((2, 1, 0), np.float32)})


def test_lengths_are_bounded_by_the_time_axis(gru):
    nodes = [
        helper.make_node("GRU", ["x", "W", "R", "", "lens"], ["y"], hidden_size=5),
        helper.make_node("GRU", ["x", "W", "R", "", "lens"], ["z"], hidden_size=5, direction="reverse"),
    ]
    model = model_of(nodes, {"x": ["t", 2, 3]}, ["y", "z"], blocks(gru))
    model.graph.input.append(helper.make_tensor_value_info("lens", TensorProto.INT32, [2]))
    assert Guards.of(as_model(model)).lengths == (("lens", "t"),)
    x = np.ones((4, 2, 3), np.float32)
    assert run_model(model, {"x": x, "lens": np.array([4, 0], np.int32)}).outputs["y"].shape == (4, 1, 2, 5)
    with pytest.raises(BadInput, match=r"input 'lens': a length is out of range\n  got: \[5, 1\]\n  expected: 0 to 4"):
        run_model(model, {"x": x, "lens": np.array([5, 1], np.int32)})
