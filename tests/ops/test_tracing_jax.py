"""Static and traced values: shape arithmetic under jit, conditionals, and the error that names static=."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from onnx import helper

from bridge.errors import Unsupported
from bridge.ops.backend_jax import JaxBackend
from bridge.ops.program import Program
from tests.ops.test_program import model


def test_shape_arithmetic_is_static_for_every_batch_and_time() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["batch"], start=0, end=1),
        helper.make_node("Constant", [], ["rest"], value_ints=[-1]),
        helper.make_node("Concat", ["batch", "rest"], ["target"], axis=0),
        helper.make_node("Reshape", ["x", "target"], ["y"]),
    ]
    run = jax.jit(Program(model(nodes, [("x", 1, ["batch", "time", 2])], [("y", 1)]), JaxBackend()))
    for batch, time in ((1, 5), (3, 2)):
        assert run({"x": np.ones((batch, time, 2), np.float32)})["y"].shape == (batch, time * 2)


def test_a_traced_value_that_must_be_static_names_the_node_and_the_input() -> None:
    nodes = [helper.make_node("Identity", ["sizes"], ["target"]),
             helper.make_node("Reshape", ["x", "target"], ["y"], name="fold")]  # fmt: skip
    source = model(nodes, [("x", 1, [6]), ("sizes", 7, [2])], [("y", 1)])
    feeds = {"x": np.ones(6, np.float32), "sizes": np.array([2, 3], np.int64)}
    program = Program(source, JaxBackend())
    assert program(feeds)["y"].shape == (2, 3)  # known outside a transformation
    with pytest.raises(Unsupported, match=r"Reshape node 'fold'[\s\S]*static=\{'sizes': value\}"):
        jax.jit(program)(feeds)


def test_if_under_jit_takes_either_branch_and_its_gradient() -> None:
    def branch(op: str) -> object:
        return helper.make_graph(
            [helper.make_node(op, ["x"], ["b"])], op, [], [helper.make_tensor_value_info("b", 1, [2])]
        )

    node = helper.make_node("If", ["p"], ["y"], then_branch=branch("Exp"), else_branch=branch("Neg"))
    program = Program(model([node], [("p", 9, []), ("x", 1, [2])], [("y", 1)]), JaxBackend())
    x = np.array([0.5, 1.5], np.float32)
    loss = jax.jit(jax.grad(lambda x, p: program({"p": p, "x": x})["y"].sum()))
    np.testing.assert_allclose(loss(x, True), np.exp(x), rtol=1e-6)
    np.testing.assert_array_equal(loss(x, False), [-1, -1])


@pytest.mark.parametrize("index", [-5, 4, 100, -100, -4, 3])
@pytest.mark.parametrize("op", ["Gather", "GatherElements", "GatherND", "ScatterElements", "ScatterND"])
def test_an_index_out_of_range_reads_nan_and_writes_nothing(op: str, index: int) -> None:
    """onnxruntime refuses it, which traced code cannot; no framework may count it from an end once more."""
    data, inside = np.arange(12, dtype=np.float32).reshape(4, 3), -4 <= index <= 3
    shape = {"Gather": [1], "GatherND": [1, 1], "ScatterND": [1, 1]}.get(op, [1, 3])
    indices = np.full(shape, index, np.int64)
    updates = [("updates", 1, [1, 3])] if op.startswith("Scatter") else []
    node = helper.make_node(op, ["data", "indices", *(name for name, *_ in updates)], ["y"])
    source = model([node], [("data", 1, [4, 3]), ("indices", 7, shape), *updates], [("y", 1)])
    feeds = {"data": data, "indices": indices} | {name: np.full((1, 3), 9, np.float32) for name, *_ in updates}
    found = np.asarray(jax.jit(Program(source, JaxBackend()))(feeds)["y"])
    if not updates:
        np.testing.assert_array_equal(found, data[index : index + 1 or None] if inside else np.full((1, 3), np.nan))
    else:
        expected = data.copy()
        expected[index if inside else slice(0)] = 9
        np.testing.assert_array_equal(found, expected)
