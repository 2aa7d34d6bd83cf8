"""An imported model is exported once by jax.export for every batch and time, and called at several."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest
from flax import nnx
from jax import export
from onnx import TensorProto, helper, numpy_helper

import bridge
from bridge.errors import Unsupported
from tests.cells import random_cell
from tests.single_node import node_model

SIZES = ((2, 5), (3, 1), (1, 9))
"""(batch, time) of the calls."""
EPS = float(np.finfo(np.float32).eps)
INT64_MAX = np.iinfo(np.int64).max


def exported(net: nnx.Module, shapes: dict[str, tuple[str, object]], vjp_order: int = 0):
    """`net` as one artefact for all sizes, called as (inputs...) -> outputs; and the same called directly."""
    graphdef, state = nnx.split(net)
    leaves, tree = jax.tree.flatten(state)  # nnx's own containers cannot be serialised
    run = jax.jit(lambda leaves, *inputs: nnx.merge(graphdef, jax.tree.unflatten(tree, leaves))(*inputs))
    scope = export.SymbolicScope()
    specs = [jax.ShapeDtypeStruct(export.symbolic_shape(shapes[name][0], scope=scope), shapes[name][1])
             for name in net.input_names]  # fmt: skip
    artefact = export.deserialize(export.export(run)(leaves, *specs).serialize(vjp_order=vjp_order))
    return lambda *inputs: artefact.call(leaves, *inputs), lambda *inputs: run(leaves, *inputs)


def assert_same(actual: object, expected: object, tolerance: float = 0.0) -> None:
    for left, right in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(left, right, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("op", "direction"), [("LSTM", "bidirectional"), ("GRU", "reverse"), ("GRU", "bidirectional"), ("RNN", "forward")]
)
def test_layer_with_lengths_and_states(op, direction):
    rng = np.random.default_rng(3)
    cell = random_cell(op, 3, 4, rng, direction=direction)
    directions, states = cell.num_directions, ("initial_h", "initial_c") if op == "LSTM" else ("initial_h",)
    inputs = {"X": np.zeros((2, 2, 3), np.float32), "W": cell.W, "R": cell.R, "B": cell.B,
              "sequence_lens": np.zeros(2, np.int32),
              **{name: np.zeros((directions, 2, 4), np.float32) for name in states}}  # fmt: skip
    net = bridge.to_flax(onnx.load_from_string(node_model(op, inputs, {"direction": direction})))
    shapes = {"X": ("t, b, 3", jnp.float32), "sequence_lens": ("b", jnp.int32),
              **dict.fromkeys(states, (f"{directions}, b, 4", jnp.float32))}  # fmt: skip
    symbolic, direct = exported(net, shapes)
    for batch, time in SIZES:
        feeds = {"X": rng.standard_normal((time, batch, 3)).astype(np.float32),
                 "sequence_lens": rng.integers(0, time + 1, batch).astype(np.int32),
                 **{name: rng.standard_normal((directions, batch, 4)).astype(np.float32)
                    for name in states}}  # fmt: skip
        given = [jnp.asarray(feeds[name]) for name in net.input_names]
        # The exported loop takes its products in every step, the direct call may take them for all: each of up to 9
        # steps rounds sums of 3 + 4 terms and two biases, of size 1, otherwise.
        assert_same(symbolic(*given), direct(*given), time * 9 * EPS)


def test_large_layer_and_its_gradient():
    rng = np.random.default_rng(4)
    cell = random_cell("LSTM", 3, 192, rng)  # above the size from which a call has a form of its own
    net = bridge.to_flax(cell)
    symbolic, direct = exported(net, {net.input_names[0]: ("t, b, 3", jnp.float32)}, vjp_order=1)
    x = jnp.asarray(rng.standard_normal((20, 2, 3)), jnp.float32)
    assert_same(symbolic(x), direct(x), 20 * 195 * EPS)  # in each of 20 steps sums of 3 + 192 terms below 1
    gradients = [jax.grad(lambda x, run=run: sum((y**2).sum() for y in jax.tree.leaves(run(x))))(x)
                 for run in (symbolic, direct)]  # fmt: skip
    assert_same(gradients[0], gradients[1], 2 * 20 * 195 * EPS)  # the same sums forward and back


def graph_of_shapes() -> onnx.ModelProto:
    """x [b, t, 4] through every way in which exporters reckon with sizes."""
    numbers = {"0": 0, "1": 1, "2": 2, "zero": [0], "one": [1], "four": [4], "minus": [-1],
               "end": [INT64_MAX], "back": [-INT64_MAX], "free": [-1, 4], "pads": [0, 1, 0, 0, 2, 0]}  # fmt: skip
    n = helper.make_node
    nodes = [
        n("Shape", ["x"], ["shape"]),
        n("Gather", ["shape", "0"], ["batch"]), n("Gather", ["shape", "1"], ["time"]),
        n("Unsqueeze", ["batch", "zero"], ["batch_"]), n("Unsqueeze", ["time", "zero"], ["time_"]),
        # zeros of a size that the batch decides, as a state
        n("Concat", ["one", "batch_", "four"], ["state_shape"], axis=0),
        n("ConstantOfShape", ["state_shape"], ["h"]),
        n("Transpose", ["x"], ["x_t"], perm=[1, 0, 2]),
        n("RNN", ["x_t", "W", "R", "", "", "h"], ["", "last"], hidden_size=4),
        # places in time, halves and ends
        n("Range", ["0", "time", "1"], ["places"]), n("Cast", ["places"], ["floats"], to=TensorProto.FLOAT),
        n("Reshape", ["floats", "column_"], ["column"]),
        n("Add", ["x", "column"], ["placed"]),
        n("Div", ["time", "2"], ["half"]), n("Unsqueeze", ["half", "zero"], ["half_"]),
        n("Slice", ["placed", "half_", "end", "one"], ["later"]),
        n("Slice", ["placed", "minus", "back", "one", "minus"], ["backwards"]),
        n("Sub", ["time", "1"], ["last_place"]), n("Unsqueeze", ["last_place", "zero"], ["last_place_"]),
        n("Slice", ["placed", "last_place_", "time_", "one"], ["at_end"]),
        # shapes made of others
        n("Mul", ["batch", "time"], ["rows"]), n("Unsqueeze", ["rows", "zero"], ["rows_"]),
        n("Concat", ["rows_", "minus"], ["flat_shape"], axis=0),
        n("Reshape", ["placed", "flat_shape"], ["flat"]), n("Reshape", ["placed", "free"], ["flat_too"]),
        n("Expand", ["at_end", "shape"], ["wide"]),
        n("Concat", ["one", "time_", "one"], ["repeats"], axis=0), n("Tile", ["at_end", "repeats"], ["tiled"]),
        n("Pad", ["placed", "pads"], ["padded"]),
        n("Cast", ["time"], ["time_f"], to=TensorProto.INT64), n("Size", ["x"], ["count"]),
        n("Equal", ["state_shape", "minus"], ["is_free"]), n("Where", ["is_free", "one", "state_shape"], ["settled"]),
        n("Expand", ["first", "settled"], ["states"]),
        n("ReduceMean", ["placed"], ["mean"], axes=[1]), n("Softmax", ["placed"], ["soft"], axis=1),
        n("ArgMax", ["placed"], ["best"], axis=1, keepdims=0),
        n("ReduceProd", ["shape"], ["product"], keepdims=0),
    ]  # fmt: skip
    outputs = {"last": 1, "later": 1, "backwards": 1, "flat": 1, "flat_too": 1, "wide": 1, "tiled": 1, "padded": 1,
               "states": 1, "mean": 1, "soft": 1, "best": 7, "count": 7, "product": 7, "time_f": 7}  # fmt: skip
    rng = np.random.default_rng(5)
    weights = {name: rng.standard_normal((1, 4, 4)).astype(np.float32) for name in "WR"}
    constants = {name: np.asarray(value, np.int64) for name, value in numbers.items()}
    constants["column_"] = np.asarray([1, -1, 1], np.int64)
    constants |= {"first": np.ones((1, 1, 4), np.float32), **weights}
    graph = helper.make_graph(
        nodes, "shapes", [helper.make_tensor_value_info("x", 1, ["b", "t", 4])],
        [helper.make_tensor_value_info(name, element, None) for name, element in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_shape_arithmetic():
    model, rng = graph_of_shapes(), np.random.default_rng(6)
    net = bridge.to_flax(model)
    symbolic, _ = exported(net, {"x": ("b, t, 4", jnp.float32)})
    for batch, time in SIZES:
        x = rng.standard_normal((batch, time, 4)).astype(np.float32)
        expected = bridge.run(model, {"x": x})
        actual = dict(zip(net.output_names, symbolic(jnp.asarray(x)), strict=True))
        assert set(actual) == set(expected)
        for name, array in actual.items():
            assert array.shape == expected[name].shape, name
            # The longest sums are over 9 steps and the 4 + 4 terms of a state; numbers go up to 9 + 4.
            np.testing.assert_allclose(array, expected[name], rtol=0, atol=9 * 8 * 13 * EPS, err_msg=name)


def sliced(start: int, end: int, step: int) -> onnx.ModelProto:
    names = ("starts", "ends", "axes", "steps")
    graph = helper.make_graph(
        [helper.make_node("Slice", ["x", *names], ["y"])], "g", [helper.make_tensor_value_info("x", 1, ["t", 2])],
        [helper.make_tensor_value_info("y", 1, None)],
        [numpy_helper.from_array(np.array([value]), name)
         for name, value in zip(names, (start, end, 0, step), strict=True)],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("step", [1, -2])
@pytest.mark.parametrize("end", [-4, INT64_MAX, -INT64_MAX])
@pytest.mark.parametrize("start", [5, -1, -2, INT64_MAX, -INT64_MAX])
def test_slices_of_an_axis_of_any_size(start: int, end: int, step: int):
    model = sliced(start, end, step)
    net = bridge.to_flax(model)
    if step < 0 and start < -1:  # Slice-13 has it start at the first element at least, which JAX has not
        with pytest.raises(Unsupported, match="runs backwards"):
            exported(net, {"x": ("t, 2", jnp.float32)})
        return
    symbolic, _ = exported(net, {"x": ("t, 2", jnp.float32)})
    for time in (1, 3, 6):
        x = np.arange(2 * time, dtype=np.float32).reshape(time, 2)
        np.testing.assert_array_equal(symbolic(jnp.asarray(x)), bridge.run(model, {"x": x})["y"])


def test_size_that_would_be_a_float_is_refused():
    nodes = [helper.make_node("Shape", ["x"], ["shape"]),
             helper.make_node("Cast", ["shape"], ["y"], to=TensorProto.FLOAT)]  # fmt: skip
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", 1, ["n"])],
                              [helper.make_tensor_value_info("y", 1, [1])])  # fmt: skip
    net = bridge.to_flax(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    with pytest.raises(Unsupported, match="a size that only a call knows"):
        exported(net, {"x": ("n", jnp.float32)})


@pytest.mark.parametrize("mode", ["reflect", "edge", "wrap"])
def test_ends_that_repeat_an_axis_of_any_size(mode):
    pads = numpy_helper.from_array(np.array([0, 4, 1, 0, 5, 2]), "pads")
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", None, None]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Pad", ["x", "pads"], ["y"], mode=mode)], "g", [x], [y], [pads])
    net = bridge.to_flax(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10))
    symbolic, direct = exported(net, {"x": ("b, t, 3", jnp.float32)})
    for batch, time in ((2, 7), (1, 3), (1, 1)):  # the ends are longer than the axis, and it is one element
        x = jnp.arange(batch * time * 3, dtype=jnp.float32).reshape(batch, time, 3)
        assert_same(symbolic(x), direct(x))
        assert_same(symbolic(x), np.pad(x, ((0, 0), (4, 5), (1, 2)), mode=mode))
