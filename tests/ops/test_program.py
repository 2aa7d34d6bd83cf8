"""Program: one refusal for everything, static values, parameters, layers, checked calls."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from bridge.errors import BadInput, Unsupported, UsageError
from bridge.ops.backend_numpy import NumpyBackend
from bridge.ops.program import Program, evaluate
from bridge.ops.registry import NEWEST_OPSET

F32 = np.float32


def model(nodes, inputs, outputs, initialisers=None, opset=20) -> onnx.ModelProto:
    infos = [helper.make_tensor_value_info(name, element, shape) for name, element, shape in inputs]
    results = [helper.make_tensor_value_info(name, element, None) for name, element in outputs]
    weights = [numpy_helper.from_array(array, name) for name, array in (initialisers or {}).items()]
    graph = helper.make_graph(nodes, "g", infos, results, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def linear(weight: np.ndarray) -> onnx.ModelProto:
    return model([helper.make_node("MatMul", ["x", "w"], ["y"], name="linear")],
                 [("x", 1, ["batch", 3])], [("y", 1)], {"w": weight})  # fmt: skip


def test_all_unsupported_nodes_are_listed_in_one_error() -> None:
    body = helper.make_graph([helper.make_node("StringNormalizer", ["x"], ["b"], name="deep")], "b", [],
                             [helper.make_tensor_value_info("b", 1, None)])  # fmt: skip
    nodes = [
        helper.make_node("Foo", ["x"], ["a"], name="first", domain="custom"),
        helper.make_node("Foo", ["a"], ["c"], name="second", domain="custom"),
        helper.make_node("If", ["p"], ["d"], name="choice", then_branch=body, else_branch=body),
    ]
    with pytest.raises(Unsupported) as caught:
        Program(model(nodes, [("x", 1, [2]), ("p", 9, [])], [("c", 1), ("d", 1)]), NumpyBackend())
    text = str(caught.value)
    assert "4 nodes" in text
    assert "custom::Foo x2 (first, second)" in text
    assert "StringNormalizer x2 (deep, deep)" in text


def test_an_attribute_that_the_schema_lacks_is_refused() -> None:
    node = helper.make_node("Relu", ["x"], ["y"], name="act", slope=0.5)
    with pytest.raises(Unsupported, match=r"Relu node 'act': attributes that are not carried[\s\S]*slope"):
        Program(model([node], [("x", 1, [2])], [("y", 1)]), NumpyBackend())


def test_an_opset_that_onnxruntime_refuses_is_refused_where_a_layer_takes_the_node_too() -> None:
    module = model([helper.make_node("MatMul", ["x", "w"], ["y"], name="linear")], [("x", 1, ["n", 2])], [("y", 1)],
                   {"w": np.ones((2, 3), F32)}, opset=NEWEST_OPSET + 1)  # fmt: skip
    with pytest.raises(Unsupported, match=rf"newer than what onnxruntime runs\n  got: opset {NEWEST_OPSET + 1}"):
        Program(module, NumpyBackend(), layers={"linear": lambda x: x})


def test_a_cast_to_a_type_that_is_not_carried_is_refused_before_any_work() -> None:
    node = helper.make_node("Cast", ["x"], ["y"], name="narrow", to=onnx.TensorProto.BFLOAT16)
    with pytest.raises(Unsupported, match="narrow"):
        Program(model([node], [("x", 1, [2])], [("y", 16)]), NumpyBackend())


def test_parameters_are_the_floats_that_reach_an_output_differentiably() -> None:
    nodes = [
        helper.make_node("Shape", ["only_shape"], ["s"]),
        helper.make_node("Reshape", ["x", "s"], ["r"]),
        helper.make_node("Greater", ["r", "threshold"], ["mask"]),
        helper.make_node("Mul", ["r", "w"], ["scaled"]),
        helper.make_node("Mul", ["scaled", "scalar"], ["z"]),
        helper.make_node("Where", ["mask", "z", "r"], ["y"]),
    ]
    weights = {
        "only_shape": np.zeros((2, 2), F32), "threshold": np.ones(2, F32), "w": np.ones(2, F32),
        "scalar": np.array(2, F32), "unused": np.ones(3, F32),
    }  # fmt: skip
    program = Program(model(nodes, [("x", 1, [4])], [("y", 1)], weights), NumpyBackend())
    assert list(program.parameters) == ["w"]


def test_running_statistics_are_no_parameters() -> None:
    names = ["scale", "B", "mean", "var"]
    node = helper.make_node("BatchNormalization", ["x", *names], ["y"])
    source = model([node], [("x", 1, [2, 3])], [("y", 1)], {name: np.ones(3, F32) for name in names})
    assert list(Program(source, NumpyBackend()).parameters) == ["scale", "B"]


def test_a_call_computes_with_the_parameters_it_is_given() -> None:
    program = Program(linear(np.ones((3, 2), F32)), NumpyBackend())
    x = np.ones((1, 3), F32)
    np.testing.assert_array_equal(program({"x": x})["y"], [[3, 3]])
    np.testing.assert_array_equal(program({"x": x}, {"w": np.full((3, 2), 2, F32)})["y"], [[6, 6]])


@pytest.mark.parametrize(
    ("feeds", "text"),
    [
        ({}, "missing inputs[\\s\\S]*x"),
        ({"x": np.ones((1, 3), F32), "z": 1}, "unexpected names[\\s\\S]*z"),
        ({"x": np.ones((1, 4), F32)}, "input 'x': wrong shape[\\s\\S]*batch"),
        ({"x": np.ones(3, F32)}, "input 'x': wrong shape"),
        ({"x": np.ones((1, 3), np.int32)}, "input 'x': wrong dtype[\\s\\S]*float32"),
    ],
)
def test_a_wrong_call_names_the_input(feeds, text) -> None:
    with pytest.raises(BadInput, match=text):
        Program(linear(np.ones((3, 2), F32)), NumpyBackend())(feeds)


def test_a_layer_takes_the_node_over_with_its_weights() -> None:
    rng = np.random.default_rng(1)
    weights = {"W": rng.standard_normal((1, 8, 3)).astype(F32), "R": rng.standard_normal((1, 8, 2)).astype(F32),
               "h0": np.ones((1, 4, 2), F32)}  # fmt: skip
    node = helper.make_node("LSTM", ["x", "W", "R", "", "", "h0"], ["y", "h"], name="rnn", hidden_size=2)
    source = model([node], [("x", 1, [5, 4, 3])], [("y", 1), ("h", 1)], weights)
    seen = {}

    def layer(X, **states):
        seen.update(states, X=X)
        return np.zeros((5, 1, 4, 2), F32), np.ones((1, 4, 2), F32), np.ones((1, 4, 2), F32)

    program = Program(source, NumpyBackend(), layers={"rnn": layer})
    outputs = program({"x": np.ones((5, 4, 3), F32)})
    assert set(seen) == {"X", "initial_h"}
    assert outputs["h"].sum() == 8
    assert list(program.parameters) == ["h0"]  # the initial state stays the program's, the weights are the layer's
    with pytest.raises(UsageError, match="nobody"):
        Program(source, NumpyBackend(), layers={"nobody": layer})


def test_the_referee_does_not_round_at_a_cast() -> None:
    nodes = [helper.make_node("Cast", ["x"], ["h"], to=onnx.TensorProto.FLOAT16),
             helper.make_node("Cast", ["h"], ["y"], to=onnx.TensorProto.FLOAT)]  # fmt: skip
    x = np.array([0.1], F32)
    source = model(nodes, [("x", 1, [1])], [("y", 1)])
    assert evaluate(source, {"x": x})["y"][0] == np.float64(x[0])
    assert Program(source, NumpyBackend())({"x": x})["y"][0] == F32(np.float16(x[0]))


def test_a_static_input_leaves_the_signature() -> None:
    node = helper.make_node("Reshape", ["x", "shape"], ["y"])
    source = model([node], [("x", 1, [6]), ("shape", 7, [2])], [("y", 1)])
    program = Program(source, NumpyBackend(), static={"shape": [2, 3]})
    assert program.input_names == ("x",)
    assert program({"x": np.arange(6, dtype=F32)})["y"].shape == (2, 3)


@pytest.mark.parametrize(("domain", "advised"), [("com.microsoft", True), ("mine", False)])
def test_operators_of_onnxruntimes_own_are_told_from_others(domain: str, advised: bool) -> None:
    node = helper.make_node("BiasGelu", ["x", "b"], ["y"], domain=domain)
    source = model([node], [("x", 1, [3]), ("b", 1, [3])], [("y", 1)])
    source.opset_import.append(helper.make_opsetid(domain, 1))
    with pytest.raises(Unsupported, match=f"{domain}::BiasGelu x1") as refused:
        Program(source, NumpyBackend())
    assert ("before onnxruntime's optimiser" in str(refused.value)) == advised
