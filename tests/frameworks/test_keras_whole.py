"""Whole Keras models: a part of the table of tests/whole_models, and what stays of the model and its names."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnxruntime as ort
import pytest
from keras import layers

import bridge
from bridge.errors import BadInput, Unsupported, UsageError
from bridge.frameworks import keras as door
from bridge.frameworks.keras_read import keras_array
from bridge.graph import as_model
from bridge.ops.program import evaluate
from tests.models import inside, model_file
from tests.tolerances import assert_within_referee_bound
from tests.whole_models import keras_runs
from tests.whole_models.keras_cases import OTHERS, Case, Pair, Tagger, ValueDependent, all_cases, ragged, sequences

SHOWN = (
    "bidirectional LSTM last", "GRU reset before tagger", "three layers with norms", "StackedRNNCells states",
    "two kinds of direction", "Conv1D same and pooling", "shared layer", "encoder and decoder", "model in model, twice",
    "dict of outputs", "subclassed", "TimeDistributed model", "ConvLSTM2D", "masked GRU backwards", "masked stack",
    "mask_zero embedding right", "mask and states", "states of a masked layer", "masked cell of the caller's own",
    "opset 17",
)  # fmt: skip
"""One case of each kind at two sizes: the whole table takes minutes, and scripts/whole-models runs it."""

CASES = {case.name: case for case in all_cases()}


@pytest.mark.parametrize("name", SHOWN)
def test_one_export_is_right_at_other_sizes(name: str) -> None:
    case = CASES[name]
    verdict = keras_runs.run(case, OTHERS[1:3])
    assert (verdict.outcome, verdict.fused, verdict.scans) == ("right", case.fused, case.scans), verdict.detail


class AllStates(keras.Model):
    """A forward layer with one state, and a backward layer with two."""

    def __init__(self) -> None:
        super().__init__()
        backward = layers.LSTM(5, return_state=True, go_backwards=True)
        self.rnn = layers.Bidirectional(layers.GRU(5, return_state=True), backward_layer=backward)

    def call(self, x: Any) -> Any:
        y, *states = self.rnn(x)
        return [2 * y, *states]


def test_directions_of_other_states_give_all_of_them() -> None:
    verdict = keras_runs.run(Case("states", AllStates, sequences, 2, example=True), OTHERS[1:3])
    assert (verdict.outcome, verdict.fused) == ("right", 2), verdict.detail


def test_a_mask_given_to_a_model_of_one_layer_is_carried() -> None:
    def build() -> keras.Model:
        x, mask = keras.Input((None, 3)), keras.Input((None,), dtype="bool")
        return keras.Model([x, mask], layers.LSTM(5, return_sequences=True)(x, mask=mask))

    def with_mask(batch: int, time: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        return (*sequences(batch, time, rng), rng.random((batch, time)) < 0.6)

    verdict = keras_runs.run(Case("mask", build, with_mask, 1, scans=1), OTHERS[1:3])
    assert (verdict.outcome, verdict.fused, verdict.scans) == ("right", 1, 1), verdict.detail


def test_steps_are_counted_where_onnxruntime_alone_knows_how_many() -> None:
    def build() -> keras.Model:
        x = keras.Input((5, 3))
        y = layers.TimeDistributed(layers.Dense(2))(layers.Masking(-1.0)(x))
        forward, backward = layers.GRU(2, activation="log_sigmoid"), layers.LSTM(2, go_backwards=True)
        return keras.Model(x, layers.Bidirectional(forward, backward_layer=backward)(y))

    case = Case("steps", build, ragged, 1, scans=1, options=(("masks", "right"),), fixed_time=5)
    verdict = keras_runs.run(case, OTHERS[1:3])
    assert (verdict.outcome, verdict.scans) == ("right", 1), verdict.detail


@pytest.mark.parametrize("case", [case for case in CASES.values() if case.refused], ids=lambda case: case.name)
def test_what_cannot_be_exported_is_named_and_the_model_stays_as_it_was(case: Case) -> None:
    model = keras_runs.built(case)
    before = [dict(vars(layer)) for layer in model.layers]
    with pytest.raises(Unsupported, match=case.refused) as caught:
        keras_runs.export(case, model)
    assert caught.value.do
    assert [dict(vars(layer)) for layer in model.layers] == before


def tagger(rng: np.random.Generator) -> Any:
    x = keras.Input((None, 3), name="features")
    y = layers.Bidirectional(layers.GRU(4, return_sequences=True), name="encoder")(layers.Masking(name="mask")(x))
    y = layers.RNN([layers.LSTMCell(3), layers.LSTMCell(2)], return_sequences=True, name="stack")(y)
    model = keras.Model(x, layers.Dense(2, name="head")(y), name="tagger")
    for weight in model.weights:
        weight.assign(rng.uniform(-0.6, 0.6, weight.shape))
    return model


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def test_cells_of_the_graph_and_of_the_model_are_the_same_and_go_back(rng: np.random.Generator) -> None:
    model, other = tagger(rng), tagger(rng)
    proto = bridge.to_onnx(model)
    found = bridge.cells(proto)
    assert list(found) == list(bridge.cells(model)) == ["encoder", "stack.0", "stack.1"]
    bridge.assign(other, found)
    for name, cell in bridge.cells(other).items():
        np.testing.assert_array_equal(cell.W, found[name].W)
        np.testing.assert_array_equal(cell.B, found[name].B)


def test_directions_that_are_two_nodes_are_assigned_by_their_own_names() -> None:
    model, other = (keras_runs.built(CASES["two kinds of direction"]) for _ in range(2))
    for weight in other.weights:
        weight.assign(keras.ops.zeros_like(weight))
    found = bridge.cells(bridge.to_onnx(model))
    assert list(found) == list(bridge.cells(model)) == ["bidirectional.forward", "bidirectional.backward"]
    assert bridge.cells(bridge.assign(other, found)) == found


def test_states_are_asked_for_by_their_names(rng: np.random.Generator) -> None:
    model = keras.Sequential([keras.Input((None, 3), name="x"), layers.Dense(3), layers.GRU(4, name="rnn")])
    x, h = rng.standard_normal((2, 5, 3)).astype(np.float32), rng.standard_normal((2, 4)).astype(np.float32)
    found = bridge.run(model, {"x": x, "rnn.initial_h": h})
    assert list(found) == ["rnn", "rnn.h_n"]
    np.testing.assert_array_equal(found["rnn"], found["rnn.h_n"])


def test_names_keep_the_path_of_the_layer(rng: np.random.Generator) -> None:
    proto = bridge.to_onnx(tagger(rng))
    assert [value.name for value in (*proto.graph.input, *proto.graph.output)] == ["features", "head"]
    assert [dim.dim_param for dim in proto.graph.output[0].type.tensor_type.shape.dim[:2]] == ["batch", "time"]
    names = [node.name for node in proto.graph.node]
    assert "head.MatMul" in names
    assert "encoder.padded" in names
    assert all(name.partition(".")[0] in ("mask", "encoder", "stack", "head", "tagger") or "." not in name
               for name in names)  # fmt: skip
    assert {"head.kernel", "encoder.W", "stack.0.R"} <= {value.name for value in proto.graph.initializer}


def test_the_example_gives_a_subclassed_model_its_inputs() -> None:
    model = Pair(name="pair")
    x = np.zeros((2, 4, 3), np.float32)
    model(x, x)
    proto = bridge.to_onnx(model, example={"right": x, "left": x})
    assert [value.name for value in proto.graph.input] == ["right", "left"]
    assert [value.name for value in proto.graph.output] == ["output_0", "output_1"]
    tags = Tagger(name="tags")
    tags(np.ones((2, 4), np.int32))
    proto = bridge.to_onnx(tags, example=np.ones((2, 4), np.int32))
    assert [value.name for value in proto.graph.output] == ["mean", "tags"]


@pytest.mark.parametrize(("policy", "reason"), [
    ("mixed_float16", "where a Transpose goes into a MatMul"),
    ("mixed_bfloat16", "no kernel of onnxruntime computes bfloat16"),
])  # fmt: skip
def test_a_narrow_dtype_is_refused_with_its_own_reason(policy: str, reason: str) -> None:
    model = keras.Sequential([keras.Input((None, 3)), layers.Conv1D(4, 3, dtype=policy), layers.LSTM(2)])
    with pytest.raises(Unsupported, match=f"dtype policy '{policy}'") as caught:
        bridge.to_onnx(model)
    assert reason in str(caught.value)


def test_calls_that_cannot_be_are_refused() -> None:
    model = ValueDependent(name="dependent")
    with pytest.raises(BadInput, match="no weights yet"):
        bridge.to_onnx(model, example=np.zeros((1, 2, 3), np.float32))
    pair = Pair(name="pair")
    x = np.zeros((2, 4, 3), np.float32)
    pair(x, x)
    with pytest.raises(UsageError, match="needs an example"):
        bridge.to_onnx(pair)
    with pytest.raises(UsageError, match="call does not take the example"):
        bridge.to_onnx(pair, example=(x, x, x))
    with pytest.raises(BadInput, match="empty"):
        bridge.to_onnx(pair, example=(x, x[:0]))


def test_options_of_a_whole_model() -> None:
    model = keras.Sequential([keras.Input((None, 3), name="x"), layers.GRU(2), layers.Dense(1)])
    with pytest.raises(UsageError, match="a mask of its own"):
        bridge.to_onnx(model, lengths=True)
    with pytest.raises(UsageError, match="'y' is no input"):
        bridge.to_onnx(model, dynamic={"y": {0: "n"}})
    proto = bridge.to_onnx(model, dynamic={"x": {0: "n", 1: "steps"}})
    assert [dim.dim_param for dim in proto.graph.input[0].type.tensor_type.shape.dim[:2]] == ["n", "steps"]


def test_a_time_that_the_model_fixes_stays_fixed_unless_it_is_asked_for(rng: np.random.Generator) -> None:
    def model(*parts: Any) -> Any:
        y = x = keras.Input((4, 3), name="x")
        for part in (layers.GRU(2, return_sequences=True), *parts):
            y = part(y)
        return keras.Model(x, y)

    def sizes(proto: Any) -> list[Any]:
        return [dim.dim_param or dim.dim_value for dim in proto.graph.input[0].type.tensor_type.shape.dim]

    flat = model(layers.Flatten(), layers.Dense(1, name="head"))
    proto = bridge.to_onnx(flat)
    assert sizes(proto) == ["batch", 4, 3]
    assert "x: axis 1 is fixed at 4 by the model" in "".join(entry.value for entry in proto.metadata_props)
    with pytest.raises(Unsupported, match=r"head: the features have no fixed number"):
        bridge.to_onnx(flat, dynamic={"x": {0: "n", 1: "t"}})
    per_step = model(layers.Dense(1))
    proto = bridge.to_onnx(per_step, dynamic={"x": {0: "n", 1: "t"}})
    assert sizes(proto) == ["n", "t", 3]
    feeds = {"x": rng.standard_normal((2, 9, 3)).astype(np.float32)}
    (got,), (native,) = bridge.run(proto, feeds).values(), door.execute(per_step, feeds).values()
    (referee,) = evaluate(as_model(proto), feeds).values()
    assert_within_referee_bound(got, native, referee)
    with pytest.raises(ValueError, match="incompatible"):
        per_step(feeds["x"])


def test_a_sequential_model_is_open_in_time_where_it_runs_at_other_times() -> None:
    def time(*parts: Any) -> Any:
        model = keras.Sequential([keras.Input((4, 3)), *parts])
        dim = bridge.to_onnx(model).graph.input[0].type.tensor_type.shape.dim[1]
        return dim.dim_param or dim.dim_value

    fixed = np.ones((4, 3), np.float32)
    assert time(layers.GRU(2, return_sequences=True), layers.Dense(1)) == "time"
    assert time(layers.GRU(2, return_sequences=True), layers.Flatten(), layers.Dense(1)) == 4
    assert time(layers.GRU(2, return_sequences=True), layers.Reshape((8,)), layers.Dense(1)) == 4
    assert time(layers.Lambda(lambda x: x + fixed), layers.GRU(2), layers.Dense(1)) == 4


def test_dropout_that_is_always_on_is_refused() -> None:
    x = keras.Input((None, 3))
    with pytest.raises(Unsupported, match=r"rnn: called with training=True"):
        bridge.to_onnx(keras.Model(x, layers.Dense(1)(layers.GRU(2, dropout=0.5, name="rnn")(x, training=True))))
    y = layers.Dropout(0.5, name="always")(layers.GRU(2)(x), training=True)
    with pytest.raises(Unsupported, match="always"):
        bridge.to_onnx(keras.Model(x, layers.Dense(1)(y)))


def test_constants_that_are_no_weights_and_unused_inputs_stay(rng: np.random.Generator) -> None:
    x, unused = keras.Input((None, 3), name="x"), keras.Input((2,), name="unused")
    y = layers.GRU(2, return_sequences=True)(layers.Normalization(mean=[1.0, 2.0, 3.0], variance=[4.0, 5.0, 6.0])(x))
    model = keras.Model([x, unused], [y, keras.ops.argmax(y, -1)])
    proto = bridge.to_onnx(model)
    feeds = {"x": rng.standard_normal((2, 4, 3)).astype(np.float32), "unused": np.zeros((2, 2), np.float32)}
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_inputs()] == ["x", "unused"]
    got, native = session.run(None, feeds), list(door.execute(model, feeds).values())
    referee = list(evaluate(as_model(proto), feeds).values())
    assert_within_referee_bound(got[0], native[0], referee[0])
    np.testing.assert_array_equal(got[1], native[1])


def test_a_stateful_model_step_by_step_is_the_whole_run(rng: np.random.Generator) -> None:
    case = CASES["stateful"]
    model = keras_runs.built(case)
    session = ort.InferenceSession(bridge.to_onnx(model).SerializeToString(), providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    assert names[1:] == ["first.initial_h", "first.initial_c", "second.initial_h"]
    assert [entry.name for entry in session.get_outputs()][1:] == ["first.h_n", "first.c_n", "second.h_n"]
    x = rng.standard_normal((3, 6, 3)).astype(np.float32)
    start = [np.zeros((3, 5), np.float32)] * 3
    whole, *states = session.run(None, dict(zip(names, [x, *start], strict=True)))
    stepped = start
    for step in range(6):
        y, *stepped = session.run(None, dict(zip(names, [x[:, step : step + 1], *stepped], strict=True)))
    for one, other in zip([y, *stepped], [whole, *states], strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)  # one step or six: another order of float32 sums


def test_cells_and_activations_of_the_callers_own_are_the_loop_that_keras_runs() -> None:
    model = keras.Sequential([
        keras.Input((None, 3)), layers.GRU(4, return_sequences=True),
        layers.LSTM(3, activation=lambda x: x / 2, name="own"),
        layers.Dense(2),
    ])  # fmt: skip
    proto = bridge.to_onnx(model)
    assert keras_runs.count(proto)[:2] == (1, 0)
    assert "own: this activation is none that Keras ships" in "".join(entry.value for entry in proto.metadata_props)
    feeds = {proto.graph.input[0].name: np.random.default_rng(0).standard_normal((3, 8, 3)).astype(np.float32)}
    (got,) = bridge.run(proto, feeds).values()
    (referee,) = evaluate(as_model(proto), feeds).values()
    assert_within_referee_bound(got, keras_array(model(*feeds.values())), referee)
    with pytest.raises(Unsupported, match="none that Keras ships"):
        bridge.to_onnx(model, states="inputs")


def test_verify_runs_the_model_itself(rng: np.random.Generator) -> None:
    model = tagger(rng)
    report = bridge.verify(model, bridge.to_onnx(model))
    assert report.passed
    assert [row.side for row in report.pairs[0].rows][1] == "keras Functional"


@pytest.mark.models
def test_sleepecg_agrees_under_every_mask(rng: np.random.Generator, tmp_path: Path) -> None:
    path = inside(model_file("sleepecg"), "classifier.keras", tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras' own, about numpy 2
        model = keras.saving.load_model(path, compile=False)
    proto = bridge.to_onnx(path)
    assert keras_runs.count(proto)[:2] == (2, 4)
    assert list(bridge.cells(proto)) == ["bidirectional", "bidirectional_1"]
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    graph = as_model(proto)
    name = session.get_inputs()[0].name
    for batch, time in OTHERS:
        x = rng.standard_normal((batch, time, 36)).astype(np.float32)
        x[rng.integers(0, 2, (batch, time)) == 0] = -1
        right = np.sort(x.min(-1) == -1)  # the same masks with the padding at the end
        for given in (x, np.where(right[..., None], np.float32(-1), np.abs(x))):
            (got,) = session.run(None, {name: given})
            (truth,) = evaluate(graph, {name: given}).values()
            assert_within_referee_bound(got, keras_array(model(given)), truth)


class OneNameTwice(keras.Model):
    def call(self, x: Any) -> Any:
        return {"a": {"b": x + 1}, "a_b": 2 * x}


def test_two_outputs_of_one_name_are_kept_apart() -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    found = bridge.run(bridge.to_onnx(OneNameTwice(), example=x), {"x": x})
    assert list(found) == ["a_b", "a_b_"]
    np.testing.assert_array_equal(found["a_b"], x + 1)
    np.testing.assert_array_equal(found["a_b_"], 2 * x)


def test_an_export_for_right_padded_masks_is_verified_on_such_inputs() -> None:
    tokens = keras.Input((None,), dtype="int32")
    x = layers.LSTM(5)(layers.Embedding(7, 4, mask_zero=True)(tokens))
    model = keras.Model(tokens, layers.Dense(2)(x))
    report = bridge.verify(model, bridge.to_onnx(model, masks="right"))
    assert report.passed, str(report)
    assert any("right-padded" in note for note in report.notes)
