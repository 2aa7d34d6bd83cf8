"""Loop and If under jit: scan, while loop, steps written out, and what a compiled function cannot be."""

from __future__ import annotations

import jax
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from bridge.errors import Unsupported
from bridge.ops.backend_jax import JaxBackend
from bridge.ops.backend_numpy import NumpyBackend
from bridge.ops.program import Program
from tests.ops.rows_signal import loop_body
from tests.ops.test_program import model

F32, I64 = np.float32, np.int64
X = np.array([0.5, -1, 2], F32)


def loop(body: onnx.GraphProto, outputs: list[str], steps: int | None = None) -> onnx.ModelProto:
    """A Loop over x, whose trip count M is an input where `steps` does not fix it."""
    node = helper.make_node("Loop", ["M", "", "x"], outputs, name="loop", body=body)
    inputs = [("M", 7, []), ("x", 1, [3])] if steps is None else [("x", 1, [3])]
    constants = {} if steps is None else {"M": np.array(steps, I64)}
    return model([node], inputs, [(name, 1) for name in outputs], constants)


def test_a_trip_count_that_is_traced_makes_a_while_loop() -> None:
    source = loop(loop_body(rows=False), ["y"])
    run, referee = jax.jit(Program(source, JaxBackend())), Program(source, NumpyBackend())
    for steps in (0, 1, 5, 200):
        feeds = {"M": np.array(steps, I64), "x": X}
        np.testing.assert_allclose(run(feeds)["y"], referee(feeds)["y"], rtol=1e-6)
    assert "while" in str(jax.make_jaxpr(Program(source, JaxBackend()))({"M": np.array(3), "x": X}))


def test_a_condition_that_is_traced_ends_the_loop() -> None:
    source = loop(loop_body(limit=5.0, rows=False), ["y"], steps=2**31 - 1)
    run, referee = jax.jit(Program(source, JaxBackend())), Program(source, NumpyBackend())
    for start in (X, X - 20, X + 20):
        np.testing.assert_allclose(run({"x": start})["y"], referee({"x": start})["y"], rtol=1e-6)


def test_rows_of_a_loop_whose_steps_are_traced_are_refused_with_the_reason() -> None:
    program = Program(loop(loop_body(), ["y", "rows"]), JaxBackend())
    feeds = {"M": np.array(3, I64), "x": X}
    assert program(feeds)["rows"].shape == (3, 3)  # known outside a transformation
    with pytest.raises(Unsupported, match=r"Loop node 'loop'[\s\S]*known only at run time[\s\S]*static="):
        jax.jit(program)(feeds)


@pytest.mark.parametrize("steps", [3, 60])
def test_rows_and_gradient_of_a_fixed_number_of_steps(steps: int) -> None:
    source = loop(loop_body(), ["y", "rows"], steps)
    program = Program(source, JaxBackend())
    np.testing.assert_allclose(
        jax.jit(program)({"x": X})["rows"], Program(source, NumpyBackend())({"x": X})["rows"], rtol=1e-6
    )
    slope = jax.jit(jax.grad(lambda x: program({"x": x})["rows"].sum()))(X)
    np.testing.assert_allclose(slope, np.full(3, sum(2 * 0.5**at for at in range(1, steps + 1))), rtol=1e-6)
    assert ("scan" in str(jax.make_jaxpr(program)({"x": X}))) == (steps == 60)


def test_a_state_that_grows_is_written_out_step_by_step() -> None:
    nodes = [helper.make_node("Concat", ["s", "x"], ["s_next"], axis=0),
             helper.make_node("Identity", ["going"], ["on"])]  # fmt: skip
    infos = [helper.make_tensor_value_info(*entry) for entry in (("step", 7, []), ("going", 9, []), ("s", 1, [None]))]
    results = [helper.make_tensor_value_info(*entry) for entry in (("on", 9, []), ("s_next", 1, [None]))]
    source = loop(helper.make_graph(nodes, "body", infos, results), ["y"], steps=20)
    assert jax.jit(Program(source, JaxBackend()))({"x": X})["y"].shape == (63,)
    source = loop(helper.make_graph(nodes, "body", infos, results), ["y"])
    with pytest.raises(Unsupported, match="changes the shape"):
        jax.jit(Program(source, JaxBackend()))({"M": np.array(2, I64), "x": X})


def test_no_step_gives_the_states_and_rows_of_the_declared_shape() -> None:
    outputs = Program(loop(loop_body(), ["y", "rows"], steps=0), NumpyBackend())({"x": X})
    np.testing.assert_array_equal(outputs["y"], X)
    assert outputs["rows"].shape == (0, 3)


def test_branches_of_other_shapes_are_refused_while_the_condition_is_traced() -> None:
    def branch(value: np.ndarray) -> onnx.GraphProto:
        node = helper.make_node("Constant", [], ["b"], value=numpy_helper.from_array(value))
        return helper.make_graph([node], "branch", [], [helper.make_tensor_value_info("b", 1, None)])

    node = helper.make_node("If", ["p"], ["y"], name="fork", then_branch=branch(X), else_branch=branch(X[:2]))
    program = Program(model([node], [("p", 9, [])], [("y", 1)]), JaxBackend())
    assert program({"p": np.array(False)})["y"].shape == (2,)
    with pytest.raises(Unsupported, match=r"branches differ[\s\S]*static=") as caught:
        jax.jit(program)({"p": np.array(True)})
    assert "fork" in "".join(caught.value.__notes__)


def test_how_many_elements_are_not_zero_is_refused_under_jit_with_the_reason() -> None:
    node = helper.make_node("NonZero", ["x"], ["y"], name="where")
    program = Program(model([node], [("x", 1, [3])], [("y", 7)]), JaxBackend())
    np.testing.assert_array_equal(program({"x": X * np.array([1, 0, 1], F32)})["y"], [[0, 2]])
    with pytest.raises(Unsupported, match=r"NonZero node 'where'[\s\S]*depends on the values[\s\S]*static=\{'x'"):
        jax.jit(program)({"x": X})


def test_a_recurrent_state_built_from_shape_jits_for_every_batch_and_time() -> None:
    """As nsnet2 and torch's older exporter write it: Shape, Gather, Unsqueeze, Concat, ConstantOfShape, Reshape."""
    rng = np.random.default_rng(0)
    weights = {"W": rng.uniform(-1, 1, (1, 12, 3)), "R": rng.uniform(-1, 1, (1, 12, 4))}
    constants = {name: value.astype(F32) for name, value in weights.items()}
    constants |= {"one": np.array([1], I64), "hidden": np.array([4], I64), "zero": np.array(0, I64),
                  "axis": np.array([0], I64), "minus": np.array([-1], I64)}  # fmt: skip
    nodes = [
        helper.make_node("Shape", ["x"], ["sizes"]),
        helper.make_node("Gather", ["sizes", "zero"], ["batch"]),
        helper.make_node("Unsqueeze", ["batch", "axis"], ["batches"]),
        helper.make_node("Concat", ["one", "batches", "hidden"], ["state"], axis=0),
        helper.make_node("ConstantOfShape", ["state"], ["h0"]),
        helper.make_node("Transpose", ["x"], ["major"], perm=[1, 0, 2]),
        helper.make_node("GRU", ["major", "W", "R", "", "", "h0"], ["Y"], hidden_size=4),
        helper.make_node("Concat", ["minus", "hidden"], ["flat"], axis=0),
        helper.make_node("Reshape", ["Y", "flat"], ["y"]),
    ]
    source = model(nodes, [("x", 1, ["batch", "time", 3])], [("y", 1)], constants)
    run, referee = jax.jit(Program(source, JaxBackend())), Program(source, NumpyBackend(double=True))
    for batch, time in ((1, 1), (2, 5), (3, 2)):
        x = rng.standard_normal((batch, time, 3)).astype(F32)
        # a GRU of float32 over five steps: 16 units of 1
        np.testing.assert_allclose(run({"x": x})["y"], referee({"x": x})["y"], atol=16 * 2**-23)
