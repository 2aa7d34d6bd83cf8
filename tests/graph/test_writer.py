from __future__ import annotations

import numpy as np
import pytest

from bridge.errors import UsageError
from bridge.graph import Writer, to_proto
from tests.graph.models import run


@pytest.mark.parametrize("opset", [16, 23, 0, -1])
def test_an_opset_out_of_range_is_refused(opset):
    with pytest.raises(UsageError, match="not written"):
        Writer(opset=opset)


def test_an_unknown_dtype_is_refused():
    with pytest.raises(UsageError, match="unknown dtype"):
        Writer(dtype="bfloat16")


def test_outputs_know_dtype_and_shape_as_soon_as_they_are_made():
    w = Writer()
    x = w.input("x", "float32", ["time", "batch", 3])
    y = w.reshape(w.transpose(x, (1, 0, 2)), (0, 0, 3, 1))
    assert str(y.shape) == "[batch,time,3,1]"
    assert y.dtype.numpy() == np.float32


def test_a_node_that_onnx_refuses_fails_where_it_is_written():
    w = Writer()
    x = w.input("x", "float32", ["time", 3])
    with pytest.raises(UsageError, match="MatMul 'product'"):
        w.op("MatMul", x, w.constant(np.ones((4, 2), np.float32)), name="product")


def test_small_constants_are_shared_and_arrays_are_not_copied():
    w = Writer()
    weights = np.ones((8, 8), np.float32)
    assert w.constant([0, 1]) is w.constant([0, 1])
    assert w.constant([0, 1]) is not w.constant(np.asarray([0, 1], np.int32))
    assert w.constant(weights, "W") is w.constant(weights)
    assert w.constant(weights, "W").const_value.numpy() is weights
    assert w.constant(weights.copy(), "W").name == "W_1"


def test_python_floats_take_the_dtype_of_the_writer():
    w = Writer(dtype="float64")
    assert w.constant(0.1).dtype.numpy() == np.float64
    assert w.constant(1).dtype.numpy() == np.int64


def test_names_stay_unique_and_an_output_gets_its_name():
    w = Writer()
    x = w.input("x", "float32", ["batch"])
    inner = w.op("Neg", x, name="y")
    w.output(w.op("Abs", inner, name="y"), "y")
    feeds = {"x": np.float32([-1.0, 2.0])}
    np.testing.assert_array_equal(run(w.model(), feeds)["y"], [1.0, 2.0])
    with pytest.raises(UsageError, match="two outputs"):
        w.output(inner, "y")
    with pytest.raises(UsageError, match="taken by an input"):
        w.output(inner, "x")


def test_inputs_constants_and_repeated_values_can_be_outputs():
    w = Writer()
    x = w.input("x", "float32", ["batch"])
    y = w.op("Neg", x)
    for name, value in {"same": x, "first": y, "second": y, "fixed": w.constant([1.0, 2.0, 3.0], "weights")}.items():
        w.output(value, name)
    results = run(w.model(), {"x": np.float32([1.0])})
    assert {name: value.tolist() for name, value in results.items()} == {
        "same": [1.0], "first": [-1.0], "second": [-1.0], "fixed": [1.0, 2.0, 3.0],
    }  # fmt: skip


def test_metadata_reaches_model_and_nodes():
    w = Writer()
    w.output(w.op("Neg", w.input("x", "float32", ["batch"]), metadata={"bridge.path": "a.b"}), "y")
    proto = to_proto(w.model({"bridge.source": "docs"}))
    assert [(entry.key, entry.value) for entry in proto.metadata_props] == [("bridge.source", "docs")]
    assert [(entry.key, entry.value) for entry in proto.graph.node[0].metadata_props] == [("bridge.path", "a.b")]


@pytest.mark.parametrize("reverse", [False, True])
def test_scan_carries_states_and_stacks_outputs(reverse, rng):
    w = Writer()
    x = w.input("x", "float32", ["time", "batch", 3])
    start = w.input("start", "float32", ["batch", 3])
    scale = w.constant([1.0, 2.0, 4.0])

    def body(b, states, steps):
        total = b.op("Add", states[0], b.op("Mul", steps[0], scale))
        return [total], [total, states[0]]

    (final,), (sums, before) = w.scan(body, [start], [x], reverse=reverse, name="cumulate")
    for name, value in {"final": final, "sums": sums, "before": before}.items():
        w.output(value, name)
    feeds = {"x": rng.standard_normal((4, 2, 3)).astype("f"), "start": rng.standard_normal((2, 3)).astype("f")}
    actual = run(w.model(), feeds)
    terms = feeds["x"].astype("d") * [1.0, 2.0, 4.0]
    order = slice(None, None, -1 if reverse else 1)
    expected = (feeds["start"] + terms[order].cumsum(0))[order]
    np.testing.assert_allclose(actual["sums"], expected, atol=1e-6)
    np.testing.assert_allclose(actual["before"], expected - terms, atol=1e-6)
    np.testing.assert_allclose(actual["final"], expected[0 if reverse else -1], atol=1e-6)


def test_scan_refuses_a_state_that_changes():
    w = Writer()
    x = w.input("x", "float32", ["time", "batch", 3])
    start = w.input("start", "float32", ["batch", 3])
    with pytest.raises(UsageError, match="another dtype"):
        w.scan(lambda b, s, xs: ([b.cast(s[0], "float64")], []), [start], [x], name="scan")
    with pytest.raises(UsageError, match="another shape"):
        w.scan(lambda b, s, xs: ([b.unsqueeze(s[0], 0)], []), [start], [x], name="scan")


def test_choose_runs_one_branch():
    w = Writer()
    x = w.input("x", "float32", ["batch"])
    positive = w.op("Greater", w.op("ReduceSum", x, keepdims=0), w.constant(0.0))
    (y,) = w.choose(positive, lambda b: [b.op("Mul", x, b.constant(2.0))], lambda b: [x], name="branch")
    w.output(y, "y")
    for value, expected in ((1.0, 2.0), (-1.0, -1.0)):
        np.testing.assert_array_equal(run(w.model(), {"x": np.float32([value])})["y"], [expected])
