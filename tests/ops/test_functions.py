"""Functions: those of the model, and operators that ONNX defines by others, are carried where their bodies are."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from bridge.errors import Unsupported
from bridge.ops.backend_numpy import NumpyBackend
from bridge.ops.program import Program
from tests.ops.test_program import model

F32 = np.float32


def test_a_function_of_the_model_is_inlined() -> None:
    source = model([helper.make_node("double", ["x"], ["y"], domain="own")], [("x", 1, [2])], [("y", 1)])
    body = [helper.make_node("Add", ["a", "a"], ["b"])]
    source.functions.append(helper.make_function("own", "double", ["a"], ["b"], body, [helper.make_opsetid("", 20)]))
    source.opset_import.append(helper.make_opsetid("own", 1))
    np.testing.assert_array_equal(Program(source, NumpyBackend())({"x": np.ones(2, F32)})["y"], [2, 2])


def test_attention_is_the_softmax_of_its_definition() -> None:
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((1, 2, 3, 4)).astype(F32) for _ in range(3))
    node = helper.make_node("Attention", ["q", "k", "v"], ["y"], name="attend", is_causal=1)
    program = Program(model([node], [(name, 1, [1, 2, 3, 4]) for name in "qkv"], [("y", 1)], opset=24), NumpyBackend())
    scores = np.where(np.tri(3, dtype=bool), q @ k.swapaxes(-1, -2) / 2, -np.inf)
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    # products of four numbers of size one in float32
    np.testing.assert_allclose(program({"q": q, "k": k, "v": v})["y"], weights @ v, atol=1e-6)


def test_the_body_runs_as_the_opset_it_was_written_for_says() -> None:
    """CenterCropPad-18 is written in opset 18, where Pad and Slice differ from later ones in nothing but version."""
    node = helper.make_node("CenterCropPad", ["x", "shape"], ["y"], axes=[0])
    source = model([node], [("x", 1, [5, 2])], [("y", 1)], {"shape": np.array([3], np.int64)}, opset=22)
    x = np.arange(10, dtype=F32).reshape(5, 2)
    np.testing.assert_array_equal(Program(source, NumpyBackend())({"x": x})["y"], x[1:4])


def test_sizes_declared_wrongly_do_not_stop_a_definition(caplog: pytest.LogCaptureFixture) -> None:
    nodes = [helper.make_node("Neg", ["x"], ["a"]), helper.make_node("SoftmaxCrossEntropyLoss", ["a", "labels"], ["y"])]
    source = model(nodes, [("x", 1, [3, 4]), ("labels", 7, [3])], [("y", 1)])
    source.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", 1, [7, 7]))
    y = Program(source, NumpyBackend())({"x": np.ones((3, 4), F32), "labels": np.zeros(3, np.int64)})["y"]
    np.testing.assert_allclose(y, np.log(4), rtol=1e-6)  # the logarithm in float32
    assert not caplog.records


def test_a_body_that_is_not_carried_is_refused_by_what_is_missing() -> None:
    node = helper.make_node("Bernoulli", ["x"], ["y"], name="coin")
    with pytest.raises(Unsupported, match="RandomUniformLike"):
        Program(model([node], [("x", 1, [2])], [("y", 1)]), NumpyBackend())
