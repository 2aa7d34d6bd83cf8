"""Whole graphs into Keras and back: native layers, trainable, the same bits, on every backend."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnx
import pytest
import tensorflow as tf
from onnx import TensorProto, helper

import bridge
from bridge.errors import BadInput, Unsupported, UsageError
from bridge.frameworks import keras as door
from bridge.frameworks.door import ExportOptions
from bridge.graph import Writer, as_model
from bridge.ops.program import evaluate
from tests.cells import random_cell
from tests.frameworks.keras_cases import filled, numpy
from tests.frameworks.keras_return_cases import (
    ROWS,
    STACKS,
    assert_agrees,
    check_row,
    check_stack,
    draw,
    feeds_of,
    initialisers,
    kinds,
    stack,
)
from tests.models import inside, model_file
from tests.tolerances import assert_within_referee_bound

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"  # Keras, as it saves
)


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_a_node_with_weights_is_a_native_layer_where_keras_has_one(row: Any) -> None:
    check_row(row)


@pytest.mark.parametrize("case", STACKS, ids=lambda case: f"{case[0]}, {case[1]}, {' and '.join(case[2]) or 'plain'}")
def test_recurrent_nodes_stand_in_the_model_as_layers(case: Any) -> None:
    check_stack(*case)


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_the_same_holds_on_this_backend(backend: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.frameworks.keras_return_cases"], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "KERAS_BACKEND": backend, "JAX_PLATFORMS": "cpu"}, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.split() == [backend, str(len(ROWS))]


# ---------------------------------------------------------------------- real models


def test_legere_goes_from_torch_to_keras_and_back_bit_for_bit(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="legere is a torch checkpoint")
    from tests.whole_models.real_torch import Legere

    source = Legere().eval()
    source.load_state_dict(torch.load(model_file("legere"), weights_only=True)["model"])
    model = as_model(bridge.to_onnx(source, example=torch.zeros(1, 1, 32, 64)))
    imported = bridge.to_keras(model)
    feeds = {"images": np.random.default_rng(0).standard_normal((2, 1, 32, 64)).astype(np.float32)}
    assert_agrees(model, imported, feeds)
    found = {kind: kinds(imported).count(kind) for kind in set(kinds(imported))}
    assert found == {"Conv2D": 7, "DepthwiseConv2D": 6, "BatchNormalization": 13, "ZeroPadding2D": 5,
                     "Bidirectional": 1, "Dense": 1}  # fmt: skip
    assert {layer.name for layer in imported.layers} >= {"stem.0", "blocks.0.depthwise", "rnn.l0", "head"}
    again = door.export(imported, ExportOptions())
    assert initialisers(again) == initialisers(model)
    lines: list[str] = []
    imported.summary(print_fn=lines.append, line_length=120)
    assert "rnn.l0 (Bidirectional)" in "\n".join(lines)


def test_sleepecg_goes_from_keras_to_onnx_and_back(tmp_path: Path) -> None:
    source = keras.saving.load_model(inside(model_file("sleepecg"), "classifier.keras", tmp_path), compile=False)
    model = as_model(bridge.to_onnx(source))
    imported = bridge.to_keras(model)
    x = np.random.default_rng(0).standard_normal((3, 9, 36)).astype(np.float32)
    x[1, 6:] = -1  # masked at the end, and, below, inside
    assert_agrees(model, imported, {"input_layer": x})
    x[2, 3] = -1
    assert_agrees(model, imported, {"input_layer": x})
    assert initialisers(door.export(imported, ExportOptions())) == initialisers(model)
    held = {numpy(weight).tobytes() for layer in imported.recurrent for weight in layer.weights}
    assert held == {numpy(weight).tobytes() for layer in source.layers if "bidirectional" in layer.name
                    for weight in layer.weights}  # fmt: skip


# ---------------------------------------------------------------------- training, and what it changes


def classifier() -> Any:
    """ids to an embedding, a GRU, its last state, and logits by the same table: a tied weight."""
    w = Writer()
    ids = w.input("ids", "int64", ["batch", "time"])
    table = w.constant(draw(7, 4), "table")
    x = w.op("Gather", table, ids, name="embed.Gather")
    cell = random_cell("GRU", 4, 4, np.random.default_rng(2), linear_before_reset=True)
    _, h, *_ = w.recurrent(cell, w.transpose(x, [1, 0, 2]), name="encoder")
    last = w.op("Mul", w.squeeze(h, 0), w.constant(draw(4), "scale"), name="scaled.Mul")
    w.output(w.op("MatMul", last, w.transpose(table, [1, 0]), name="head.MatMul"), "logits")
    return w.model()


def test_a_fine_tuned_model_exports_its_present_weights(tmp_path: Path) -> None:
    model = classifier()
    imported = bridge.to_keras(model)
    feeds = feeds_of(model)
    assert_agrees(model, imported, feeds)
    before = numpy(imported(**feeds))
    assert [type(layer) for layer in imported.recurrent] == [keras.layers.GRU]
    assert len(imported.trainable_variables) == 5  # the table once, scale, and three of the GRU
    imported.compile(keras.optimizers.SGD(0.5), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    ids = np.random.default_rng(1).integers(0, 7, (8, 5))
    imported.fit(ids, np.arange(8) % 7, epochs=2, verbose=0)
    now = door.export(imported, ExportOptions())
    assert_agrees(now, imported, feeds)
    assert np.abs(numpy(imported(**feeds)) - before).max() > 1e-3
    changed = {name for name, bits in initialisers(now).items() if initialisers(model).get(name) != bits}
    assert len(changed) == 5
    imported.save(tmp_path / "tuned.keras")
    loaded = keras.saving.load_model(tmp_path / "tuned.keras")
    np.testing.assert_array_equal(numpy(loaded(**feeds)), numpy(imported(**feeds)))
    assert bridge.cells(imported) == bridge.cells(now)


def in_another_process(*words: object) -> None:
    """Python with these arguments, on this process' backend of Keras."""
    done = subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, capture_output=True, text=True, timeout=600,
                          env={**os.environ, "KERAS_BACKEND": keras.backend.backend()}, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray], np.ndarray]:
    """An imported model in a file, with other weights than its graph had; inputs, and what it computes of them."""
    imported = bridge.to_keras(classifier())
    for weight in imported.weights:
        weight.assign(numpy(weight) * 0.5 + 0.1)
    path = tmp_path_factory.mktemp("saved") / "imported.keras"
    imported.save(path)
    feeds = feeds_of(classifier())
    return path, feeds, numpy(imported(**feeds))


def test_a_saved_import_loads_where_bridge_keras_is_imported(saved: Any, tmp_path: Path) -> None:
    path, feeds, expected = saved
    np.savez(tmp_path / "feeds.npz", **feeds)
    in_another_process(
        "-c",
        "import sys, keras, numpy, bridge.keras\n"
        "model = keras.saving.load_model(sys.argv[1])\n"
        "numpy.save(sys.argv[3], keras.ops.convert_to_numpy(model(**numpy.load(sys.argv[2]))))",
        path, tmp_path / "feeds.npz", tmp_path / "outputs.npy",
    )  # fmt: skip
    np.testing.assert_array_equal(np.load(tmp_path / "outputs.npy"), expected)


def test_a_model_of_an_imports_native_layers_loads_without_bridge(tmp_path: Path) -> None:
    imported = bridge.to_keras(stack("LSTM", "bidirectional"))
    keras.Model(imported.inputs, imported.outputs).save(tmp_path / "native.keras")
    in_another_process(
        "-c",
        "import sys, keras\nkeras.saving.load_model(sys.argv[1])\nassert 'bridge' not in sys.modules",
        tmp_path / "native.keras",
    )


def test_the_command_reads_a_saved_import(saved: Any, tmp_path: Path) -> None:
    path, feeds, expected = saved
    in_another_process("-m", "bridge", "convert", path, tmp_path / "model.onnx")
    model = as_model(str(tmp_path / "model.onnx"))
    (actual,) = bridge.run(tmp_path / "model.onnx", feeds).values()
    (referee,) = evaluate(model, feeds).values()
    assert_within_referee_bound(expected, actual, referee)


def test_an_imported_model_is_copied_as_a_whole_and_not_layer_by_layer() -> None:
    imported, feeds = bridge.to_keras(classifier()), feeds_of(classifier())
    with pytest.raises(Unsupported, match="cannot be made again by itself") as caught:
        keras.models.clone_model(imported)
    assert "type(model).from_config(model.get_config())" in str(caught.value)
    imported.weights[0].assign(numpy(imported.weights[0]) + 1)
    copied = type(imported).from_config(imported.get_config())
    expected = numpy(imported(**feeds))
    np.testing.assert_array_equal(numpy(copied(**feeds)), expected)
    copied.weights[0].assign(numpy(copied.weights[0]) + 1)
    np.testing.assert_array_equal(numpy(imported(**feeds)), expected)
    assert not np.array_equal(numpy(copied(**feeds)), expected)
    x = keras.Input((None,), dtype="int64")
    nested = keras.models.clone_model(keras.Model(x, imported(x)))
    np.testing.assert_array_equal(numpy(nested(feeds["ids"])), expected)


def test_a_weight_that_two_nodes_read_stays_one() -> None:
    w = Writer()
    x = w.input("x", "float32", ["batch", 3])
    shared = w.constant(draw(3), "shared")
    w.output(w.op("Add", w.op("Tanh", w.op("Mul", x, shared)), shared), "y")
    imported = bridge.to_keras(w.model())
    assert_agrees(w.model(), imported, feeds_of(w.model()))
    (variable,) = imported.trainable_variables
    variable.assign(numpy(variable) + 1)
    now = door.export(imported, ExportOptions())
    assert_agrees(now, imported, feeds_of(now))


def test_branches_that_use_one_name_keep_their_own_weights() -> None:
    def branch(value: float) -> onnx.GraphProto:
        weight = helper.make_tensor("w", TensorProto.FLOAT, [2], [value, -value])
        node = helper.make_node("Mul", ["x", "w"], ["out"])
        return helper.make_graph([node], "branch", [], [helper.make_tensor_value_info("out", 1, ["n", 2])], [weight])

    node = helper.make_node("If", ["c"], ["y"], then_branch=branch(2), else_branch=branch(3))
    inputs = [helper.make_tensor_value_info("c", TensorProto.BOOL, []), helper.make_tensor_value_info("x", 1, ["n", 2])]
    graph = helper.make_graph([node], "g", inputs, [helper.make_tensor_value_info("y", 1, ["n", 2])])
    model = as_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))
    imported = bridge.to_keras(model)
    for chosen in (True, False):
        assert_agrees(model, imported, {"c": np.array(chosen), "x": np.ones((1, 2), np.float32)})
    assert len(imported.trainable_variables) == 2
    door.export(imported, ExportOptions())


# ---------------------------------------------------------------------- shapes, states, control flow


def test_shape_arithmetic_runs_inside_the_layer_that_needs_it() -> None:
    w = Writer()
    x = w.input("x", "float32", ["batch", "time", 6])
    sizes = w.op("Concat", w.dim(x, 0), w.dim(x, 1), w.constant(np.array([2, 3])), axis=0)
    y = w.op("Reshape", x, sizes)
    w.output(w.op("ReduceSum", w.op("Expand", y, w.op("Shape", y)), w.constant(np.array([2])), keepdims=0), "y")
    model = w.model()
    imported = bridge.to_keras(model)
    for time in (5, 3):
        assert_agrees(model, imported, feeds_of(model, time))
    assert [layer.__class__.__name__ for layer in imported.layers] == ["InputLayer", "Reshape", "Expand", "ReduceSum"]
    assert imported.predict(feeds_of(model)["x"], verbose=0).shape == (2, 5, 3)


def test_states_of_zeros_leave_no_trace_and_others_are_trained() -> None:
    for start in (0.0, 0.3):
        w = Writer()
        x = w.input("x", "float32", ["time", "batch", 4])
        h = w.op(
            "Expand",
            w.constant(np.full((1, 1, 3), start, np.float32), "h0"),
            w.op("Concat", w.constant(np.array([1])), w.dim(x, 1), w.constant(np.array([3])), axis=0),
        )
        cell = random_cell("GRU", 4, 3, np.random.default_rng(2))
        w.output(w.recurrent(cell, x, name="rnn", initial_h=h)[0], "y")
        imported = bridge.to_keras(w.model())
        assert_agrees(w.model(), imported, feeds_of(w.model()))
        assert len(imported.trainable_variables) == 3 + bool(start)


def test_a_masked_layer_inside_an_if_keeps_its_weights() -> None:
    rng = np.random.default_rng(4)
    source = filled(
        keras.Sequential(
            [
                keras.Input((None, 4)),
                keras.layers.Masking(),
                keras.layers.GRU(3, return_sequences=True),
                keras.layers.Dense(2),
            ]
        ),
        rng,
    )
    imported = bridge.to_keras(source)
    x = rng.standard_normal((2, 5, 4)).astype(np.float32)
    x[0, 3:] = x[1, 1] = 0
    np.testing.assert_allclose(numpy(imported(x)), numpy(source(x)), rtol=0, atol=2e-6)  # float32, values below 2
    (layer,) = imported.recurrent
    for one, other in zip(layer.weights, source.layers[1].weights, strict=True):
        assert numpy(one).tobytes() == numpy(other).tobytes()


# ---------------------------------------------------------------------- refusals


def test_wrong_calls_and_unknown_operators_are_refused_by_name() -> None:
    imported = bridge.to_keras(stack("GRU", "forward"))
    x = np.zeros((2, 5, 4), np.float32)
    for call, error, match in (
        (lambda: imported(), BadInput, "missing inputs"),
        (lambda: imported(x=x, z=x), BadInput, "unexpected names"),
        (lambda: imported(x[:, :, :3]), BadInput, "wrong shape"),
        (lambda: imported(x.astype(np.float64)), BadInput, "wrong dtype"),
        (lambda: bridge.to_onnx(imported, opset=18), UsageError, "without options"),
    ):
        with pytest.raises(error, match=match):
            call()
    node = helper.make_node("StringConcat", ["x", "x"], ["y"], name="glue")
    value = helper.make_tensor_value_info("x", TensorProto.STRING, ["n"])
    graph = helper.make_graph([node], "g", [value], [helper.make_tensor_value_info("y", TensorProto.STRING, ["n"])])
    with pytest.raises(Unsupported, match="StringConcat"):
        bridge.to_keras(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))


def test_hard_sigmoid_of_keras_2_comes_back_as_a_native_layer(tmp_path: Path) -> None:
    cell = random_cell("GRU", 4, 3, np.random.default_rng(1), activations=("HardSigmoid", "Tanh"))
    w = Writer()
    w.output(w.recurrent(cell, w.input("x", "float32", ["time", "batch", 4]), name="gru")[0], "y")
    imported = bridge.to_keras(w.model())
    assert_agrees(w.model(), imported, feeds_of(w.model()))
    assert [type(layer) for layer in imported.recurrent] == [keras.layers.GRU]
    assert initialisers(door.export(imported, ExportOptions())) == initialisers(w.model())


def test_an_index_before_the_first_row_is_never_counted_from_the_end_again() -> None:
    w = Writer()
    w.output(w.op("Gather", w.constant(draw(4, 3), "table"), w.input("at", "int64", ["batch"])), "y")
    model = bridge.to_keras(w.model())
    np.testing.assert_array_equal(numpy(model(np.array([-4, -1]))), numpy(model(np.array([0, 3]))))
    with pytest.raises(tf.errors.InvalidArgumentError, match="not in"):
        model(np.array([-5]))


def test_a_graph_of_tensorflow_whose_batch_is_not_known() -> None:
    w = Writer()
    x = w.input("x", "float32", ["batch", 4, 2])
    w.output(w.op("Exp", w.op("Reshape", w.op("Abs", x), w.constant([-1, 8]))), "y")
    model, given = bridge.to_keras(w.model()), draw(3, 4, 2)
    traced = tf.function(model, input_signature=[tf.TensorSpec([None, 4, 2], tf.float32)])
    np.testing.assert_array_equal(numpy(traced(given)), numpy(model(given)))
