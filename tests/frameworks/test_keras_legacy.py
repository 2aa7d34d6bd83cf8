"""Whole h5 models of Keras 1 and 2, against equations written here; Keras 3 is no judge of what they meant."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import onnxruntime as ort
import pytest

import bridge
from bridge.cell import Cell
from bridge.errors import Unsupported
from bridge.frameworks.keras_files import load, open_file
from bridge.frameworks.keras_h5 import read_h5
from bridge.layout import read_params
from bridge.reference import evaluate
from tests.frameworks.keras_cases import numpy
from tests.frameworks.keras_legacy_files import (
    FIRST,
    INPUTS,
    UNITS,
    Weights,
    entry,
    functional,
    named,
    recurrent,
    ref,
    source,
    uniform,
    write,
)
from tests.models import model_file
from tests.tolerances import assert_within_referee_bound

BATCH, TIME = 2, 5
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"  # Keras, as it saves
)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(11)


# ---------------------------------------------------------------------- the equations, in float64


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def hard_sigmoid(x: np.ndarray) -> np.ndarray:
    return np.clip(0.2 * x + 0.5, 0, 1)


def lstm(x: np.ndarray, weights: dict[str, np.ndarray], gate: Any = sigmoid, h: Any = 0.0, c: Any = 0.0) -> np.ndarray:
    """All h [N, T, H] of x [N, T, I]; gates i, f, c, o."""
    units = weights["recurrent_kernel"].shape[0]
    h, c = np.zeros((len(x), units)) + h, np.zeros((len(x), units)) + c
    outputs = []
    for step in np.moveaxis(x.astype(np.float64), 1, 0):
        z = step @ weights["kernel"] + h @ weights["recurrent_kernel"] + weights["bias"]
        i, f, g, o = np.split(z, 4, axis=1)
        c = gate(f) * c + gate(i) * np.tanh(g)
        h = gate(o) * np.tanh(c)
        outputs.append(h)
    return np.stack(outputs, 1)


def gru(x: np.ndarray, weights: dict[str, np.ndarray], gate: Any = sigmoid, reset_after: bool = False) -> np.ndarray:
    """All h [N, T, H]; gates z, r, h."""
    W, R = (np.split(weights[name].astype(np.float64), 3, axis=1) for name in ("kernel", "recurrent_kernel"))
    given = np.split(weights["bias"][0] if reset_after else weights["bias"], 3)
    own = np.split(weights["bias"][1], 3) if reset_after else [0.0] * 3
    h = np.zeros((len(x), len(R[0])))
    outputs = []
    for step in np.moveaxis(x.astype(np.float64), 1, 0):
        z, r = (gate(step @ W[at] + given[at] + h @ R[at] + own[at]) for at in range(2))
        inner = r * (h @ R[2] + own[2]) if reset_after else (r * h) @ R[2]
        h = z * h + (1 - z) * np.tanh(step @ W[2] + given[2] + inner)
        outputs.append(h)
    return np.stack(outputs, 1)


def dense(x: np.ndarray, weights: dict[str, np.ndarray]) -> np.ndarray:
    return x @ weights["kernel"].astype(np.float64) + weights["bias"]


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def outputs_of(path: str, *inputs: np.ndarray) -> list[np.ndarray]:
    """Keras' own forward pass of the loaded model."""
    model = load(path, None)
    values = [keras.ops.convert_to_tensor(value) for value in inputs]
    return [numpy(value) for value in keras.tree.flatten(model(values[0] if len(values) == 1 else values))]


def folded(cell: Cell) -> Cell:
    """The cell with one bias, where its operator adds the two."""
    if cell.op == "GRU" or cell.B is None:
        return cell
    Wb, Rb = np.split(cell.B, 2, axis=1)
    return replace(cell, B=np.concatenate([Wb + Rb, np.zeros_like(Rb)], 1))


def assert_computes(path: str, expected: list[np.ndarray], *inputs: np.ndarray, **options: Any) -> None:
    """The loaded model and onnxruntime on its export compute `expected` (float64), under one bound.

    The cells of the file are those of its export, too.
    """
    actual = outputs_of(path, *inputs)
    proto = bridge.to_onnx(path, **options)
    of_file, of_export = bridge.cells(path), bridge.cells(proto)
    assert list(of_file) == list(of_export)
    # An LSTM of Keras 3 has one bias where CuDNN's has two.
    assert {name: folded(cell) for name, cell in of_file.items()} == {
        name: folded(cell) for name, cell in of_export.items()}  # fmt: skip
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    run = session.run(None, dict(zip(names, inputs, strict=True)))
    assert len(actual) == len(run) == len(expected)
    for one, other, wanted in zip(actual, run, expected, strict=True):
        assert_within_referee_bound(one, other, wanted)
        assert_within_referee_bound(other, one, wanted)


def sequence(rng: np.random.Generator, features: int = INPUTS) -> np.ndarray:
    return rng.standard_normal((BATCH, TIME, features)).astype(np.float32)


# ---------------------------------------------------------------------- real files


def embedded(weights: Any, ids: np.ndarray) -> np.ndarray:
    return np.asarray(weights["embedding"])[ids].astype(np.float64)


def stored(path: str) -> dict[str, dict[str, np.ndarray]]:
    """Weights by layer and last name, read here."""
    with h5py.File(path) as file:
        root = file["model_weights"]
        return {layer: {name.decode().split("/")[-1].split(":")[0]: root[layer][name.decode()][()]
                        for name in root[layer].attrs["weight_names"]} for layer in root}  # fmt: skip


def test_dgaintel_computes_what_its_equations_say(rng: np.random.Generator) -> None:
    path = str(model_file("dgaintel"))
    weights = stored(path)
    ids = rng.integers(0, 39, (3, 82)).astype(np.int32)
    x = weights["embedding_4"]["embeddings"][ids].astype(np.float64)
    kernel, padded = weights["conv1d_4"]["kernel"].astype(np.float64), np.pad(x, ((0, 0), (1, 1), (0, 0)))
    x = np.maximum(sum(padded[:, at : at + 82] @ kernel[at] for at in range(3)) + weights["conv1d_4"]["bias"], 0)
    x = x.reshape(3, 41, 2, 128).max(2)
    expected = sigmoid(dense(lstm(x, weights["lstm_4"])[:, -1], weights["dense_4"]))
    assert_computes(path, [expected], ids)


def test_shakkala_computes_what_keras_2_computed(rng: np.random.Generator) -> None:
    path = str(model_file("shakkala"))
    weights = stored(path)
    ids = rng.integers(0, 149, (1, 495))
    x = weights["embedding_2"]["embeddings"][ids].astype(np.float64)
    x = np.maximum(dense(gru(x, weights["gru_1"], hard_sigmoid), weights["dense_1"]), 0)
    assert_computes(path, [softmax(dense(x, weights["dense_2"]))], ids.astype(np.float32))
    notes = open_file(path, None).notes
    assert any("hard_sigmoid" in note and "Keras 3 would" in note for note in notes)
    assert any("reset_after" in note and "Keras 3 would" in note for note in notes)


def test_chars2vec_is_the_stack_of_its_layers(rng: np.random.Generator) -> None:
    path = str(model_file("chars2vec"))
    x = np.eye(59, dtype=np.float32)[rng.integers(0, 59, (3, 12))]
    first, second = (read_h5(path).cells[name] for name in ("lstm_1", "lstm_2"))
    Y, _, _ = evaluate(first, np.moveaxis(x, 1, 0))
    Y, Y_h, Y_c = evaluate(second, Y[:, 0])
    assert_computes(path, [np.moveaxis(Y[:, 0], 0, 1), Y_h[0], Y_c[0]], x)
    assert any("recurrent_activation hard_sigmoid" in note for note in open_file(path, None).notes)


# ---------------------------------------------------------------------- made here


def test_a_sequential_written_as_a_list_keeps_its_meaning(rng: np.random.Generator, tmp_path: Path) -> None:
    layers = [
        entry("GRU", "gru_1", units=UNITS, activation="tanh", recurrent_activation="hard_sigmoid", implementation=0,
              batch_input_shape=[None, None, INPUTS], return_sequences=True, dropout=0.2, dtype="float32"),
        entry("TimeDistributed", "time_distributed_1",
              layer=entry("Dense", "dense_1", units=2, activation="linear")),
        entry("Dropout", "dropout_1", rate=0.5, noise_shape=None, seed=None),
        entry("Activation", "activation_1", activation="hard_sigmoid"),
    ]  # fmt: skip
    weights: Weights = {
        "gru_1": named("gru_1", recurrent(rng, 3)),
        "time_distributed_1": named("time_distributed_1", uniform(rng, kernel=(UNITS, 2), bias=(2,))),
    }
    path = write(tmp_path / "m.h5", {"class_name": "Sequential", "config": layers}, weights, "2.0.8")
    x = sequence(rng)
    plain = {name: {key.split("/")[-1][:-2]: value for key, value in one.items()} for name, one in weights.items()}
    expected = hard_sigmoid(dense(gru(x, plain["gru_1"], hard_sigmoid), plain["time_distributed_1"]))
    assert_computes(path, [expected], x)


CUDNN = [("CuDNNLSTM", 4, 8), ("CuDNNGRU", 3, 6)]


def cudnn_equations(kind: str, arrays: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """cuDNN keeps each gate's kernel as a buffer in the other order of axes, and one bias for each product."""
    gates = 4 if kind == "CuDNNLSTM" else 3
    kernels = {name: np.concatenate([part.reshape(part.shape[1], -1).T
                                     for part in np.split(arrays[name], gates, axis=1)], 1)
               for name in ("kernel", "recurrent_kernel")}  # fmt: skip
    both = arrays["bias"].astype(np.float64).reshape(2, -1)
    if gates == 4:
        return lstm(x, {**kernels, "bias": both.sum(0)})
    return gru(x, {**kernels, "bias": both}, reset_after=True)


@pytest.mark.parametrize(("kind", "gates", "biases"), CUDNN, ids=[row[0] for row in CUDNN])
def test_cudnn_layers_alone_and_in_both_directions(
    kind: str, gates: int, biases: int, rng: np.random.Generator, tmp_path: Path
) -> None:
    config = {"units": UNITS, "return_sequences": True, "return_state": False, "stateful": False}
    layers = [
        entry("Bidirectional", "bidirectional_1", layer=entry(kind, "rnn_1", **config), merge_mode="concat",
              batch_input_shape=[None, None, INPUTS]),
        entry(kind, "rnn_2", **{**config, "return_sequences": False, "go_backwards": True}),
    ]  # fmt: skip
    halves = [recurrent(rng, gates, bias=(biases * UNITS,)) for _ in range(2)]
    last = recurrent(rng, gates, 2 * UNITS, bias=(biases * UNITS,))
    weights = {"bidirectional_1": {**named("bidirectional_1/forward_rnn_1", halves[0]),
                                   **named("bidirectional_1/backward_rnn_1", halves[1])},
               "rnn_2": named("rnn_2", last)}  # fmt: skip
    document = {"class_name": "Sequential", "config": {"name": "s", "layers": layers}}
    path = write(tmp_path / "m.h5", document, weights, "2.1.6-tf")
    x = sequence(rng)
    forward = cudnn_equations(kind, halves[0], x)
    backward = cudnn_equations(kind, halves[1], x[:, ::-1])[:, ::-1]
    expected = cudnn_equations(kind, last, np.concatenate([forward, backward], -1)[:, ::-1])[:, -1]
    assert_computes(path, [expected], x)


@pytest.mark.parametrize("reset_after", [None, False, True], ids=["absent", "false", "true"])
def test_reset_after_is_what_the_file_says(reset_after: bool | None, rng: np.random.Generator, tmp_path: Path) -> None:
    recorded = {} if reset_after is None else {"reset_after": reset_after}
    layer = entry("GRU", "gru", units=UNITS, activation="tanh", recurrent_activation="sigmoid", time_major=False,
                  batch_input_shape=[None, None, INPUTS], return_sequences=True, **recorded)  # fmt: skip
    arrays = recurrent(rng, 3, bias=(2, 3 * UNITS) if reset_after else (3 * UNITS,))
    document = {"class_name": "Sequential", "config": {"name": "s", "layers": [layer]}}
    path = write(tmp_path / "m.h5", document, {"gru": named("gru/gru_cell", arrays)}, "2.4.0")
    x = sequence(rng)
    assert_computes(path, [gru(x, arrays, reset_after=bool(reset_after))], x)
    assert [note.split(";")[0] for note in open_file(path, None).notes] == (
        ["gru: reset_after is not recorded, so it is False"] if reset_after is None else []
    )


def encoder_decoder(rng: np.random.Generator, nested: int | None) -> tuple[dict[str, Any], Weights, Any]:
    """Two inputs, states handed over, a shared layer called twice, `/` in names; perhaps in a model inside a model."""
    common = {"units": UNITS, "activation": "tanh", "recurrent_activation": "sigmoid", "use_bias": True}
    layers = [
        source("left", None, INPUTS), source("right", None, INPUTS),
        entry("LSTM", "enc/lstm", [[ref("left")]], return_state=True, return_sequences=False, **common),
        entry("LSTM", "dec/lstm", [[ref("right"), ref("enc/lstm", 0, 1), ref("enc/lstm", 0, 2)]],
              return_sequences=True, **common),
        entry("Dense", "shared", [[ref("dec/lstm")], [ref("enc/lstm")]], units=2, activation="tanh"),
    ]  # fmt: skip
    arrays = {
        "enc/lstm": recurrent(rng, 4),
        "dec/lstm": recurrent(rng, 4),
        "shared": uniform(rng, kernel=(UNITS, 2), bias=(2,)),
    }
    weights = {name: named(name, one) for name, one in arrays.items()}
    document = functional(layers, ["left", "right"], ["shared", ["shared", 1, 0]])

    def expected(left: np.ndarray, right: np.ndarray) -> list[np.ndarray]:
        h = lstm(left, arrays["enc/lstm"])[:, -1]
        c = final_c(left, arrays["enc/lstm"])
        decoded = lstm(right, arrays["dec/lstm"], h=h, c=c)
        return [np.tanh(dense(decoded, arrays["shared"])), np.tanh(dense(h, arrays["shared"]))]

    if nested is None:
        return document, weights, expected
    document["config"]["name"] = "inner"
    outer = [source("a", None, INPUTS), source("b", None, INPUTS),
             {**document, "name": "inner", "inbound_nodes": [[ref("a"), ref("b")]]}]  # fmt: skip
    held = {key: value for one in weights.values() for key, value in one.items()}
    return functional(outer, ["a", "b"], [["inner", nested, 0], ["inner", nested, 1]]), {"inner": held}, expected


def final_c(x: np.ndarray, arrays: dict[str, np.ndarray]) -> np.ndarray:
    cell = read_params("keras.LSTM", arrays)
    return evaluate(cell, np.moveaxis(x, 1, 0))[2][0]


@pytest.mark.parametrize("nested", [None, 0, 1], ids=["flat", "nested", "nested, counted from 1"])
def test_a_functional_model_with_states_handed_over(
    nested: int | None, rng: np.random.Generator, tmp_path: Path
) -> None:
    document, weights, expected = encoder_decoder(rng, nested)
    path = write(tmp_path / "m.h5", document, weights)
    left, right = sequence(rng), sequence(rng)
    assert_computes(path, expected(left, right), left, right)


def test_weights_of_a_nested_model_go_where_their_names_say(rng: np.random.Generator, tmp_path: Path) -> None:
    # Keras stores what trains before what does not, over all layers of a model inside.
    inner = [
        entry("BatchNormalization", "norm_1", axis=[-1], momentum=0.9, epsilon=1e-3, center=True, scale=True,
              fused=True, batch_input_shape=[None, None, INPUTS]),
        entry("Dense", "dense_1", units=INPUTS, activation="relu"),
        entry("BatchNormalization", "norm_2", axis=2, epsilon=1e-2),
    ]  # fmt: skip
    norms = [uniform(rng, gamma=(INPUTS,), beta=(INPUTS,), moving_mean=(INPUTS,)) for _ in range(2)]
    for norm in norms:
        norm["moving_variance"] = rng.uniform(0.5, 2, INPUTS).astype(np.float32)
    fc = uniform(rng, kernel=(INPUTS, INPUTS), bias=(INPUTS,))
    trained = [named("norm_1", {key: norms[0][key] for key in ("gamma", "beta")}), named("dense_1", fc),
               named("norm_2", {key: norms[1][key] for key in ("gamma", "beta")})]  # fmt: skip
    fixed = [named(f"norm_{at}", {key: norms[at - 1][key] for key in ("moving_mean", "moving_variance")})
             for at in (1, 2)]  # fmt: skip
    held = {key: value for one in (*trained, *fixed) for key, value in one.items()}
    document = {"class_name": "Sequential", "config": {"name": "outer", "layers": [
        {"class_name": "Sequential", "config": {"name": "inner", "layers": inner}}]}}  # fmt: skip
    path = write(tmp_path / "m.h5", document, {"inner": held})
    x = sequence(rng)

    def norm(x: np.ndarray, held: dict[str, np.ndarray], epsilon: float) -> np.ndarray:
        return (x - held["moving_mean"]) / np.sqrt(held["moving_variance"] + epsilon) * held["gamma"] + held["beta"]

    hidden = np.maximum(dense(norm(x.astype(np.float64), norms[0], 1e-3), fc), 0)
    (actual,) = outputs_of(path, x)
    np.testing.assert_allclose(actual, norm(hidden, norms[1], 1e-2), rtol=0, atol=2e-6)  # float32, values below 8


def test_time_major_layers_take_time_first(rng: np.random.Generator, tmp_path: Path) -> None:
    config = {"units": UNITS, "activation": "tanh", "recurrent_activation": "sigmoid", "time_major": True}
    layers = [entry("LSTM", "first", return_sequences=True, batch_input_shape=[None, None, INPUTS], **config),
              entry("LSTM", "second", return_sequences=False, **config)]  # fmt: skip
    arrays = {"first": recurrent(rng, 4), "second": recurrent(rng, 4, UNITS)}
    document = {"class_name": "Sequential", "config": {"name": "s", "layers": layers}}
    path = write(tmp_path / "m.h5", document, {name: named(name, one) for name, one in arrays.items()}, "2.4.0")
    x = sequence(rng)  # [time, batch, features] here
    expected = lstm(lstm(np.moveaxis(x, 1, 0), arrays["first"]), arrays["second"])[:, -1]
    assert_computes(path, [expected], x)


@pytest.mark.parametrize(("version", "repeats"), [("2.2.4", True), ("2.2.4-tf", False), ("2.8.0", False)])
def test_masked_outputs_of_both_directions_follow_the_version(
    version: str, repeats: bool, rng: np.random.Generator, tmp_path: Path
) -> None:
    inner = entry("LSTM", "lstm_1", units=UNITS, activation="tanh", recurrent_activation="sigmoid",
                  return_sequences=True)  # fmt: skip
    layers = [entry("Masking", "masking_1", mask_value=0.0, batch_input_shape=[None, None, INPUTS]),
              entry("Bidirectional", "both", layer=inner, merge_mode="concat")]  # fmt: skip
    halves = [recurrent(rng, 4), recurrent(rng, 4)]
    weights = {"both": {**named("both/forward_lstm_1", halves[0]), **named("both/backward_lstm_1", halves[1])}}
    path = write(tmp_path / "m.h5", {"class_name": "Sequential", "config": {"name": "s", "layers": layers}}, weights,
                 version)  # fmt: skip
    x = sequence(rng)
    x[0, 3:] = 0
    (actual,) = outputs_of(path, x)
    ahead = lstm(x[:1, :3], halves[0])
    np.testing.assert_allclose(actual[0, :3, :UNITS], ahead[0], rtol=0, atol=1e-6)
    padding = ahead[0, -1] if repeats else np.zeros(UNITS)
    np.testing.assert_allclose(actual[0, 3:, :UNITS], [padding] * 2, rtol=0, atol=1e-6)


def test_layers_around_the_recurrence_keep_their_options(rng: np.random.Generator, tmp_path: Path) -> None:
    layers = [
        source("ids", None, dtype="int32"),
        entry("Embedding", "embed", [[ref("ids")]], input_dim=7, output_dim=INPUTS, mask_zero=False,
              batch_input_shape=[99, None], input_length=12),
        entry("SeparableConv1D", "conv", [[ref("embed")]], filters=5, kernel_size=[3], strides=[1], padding="same",
              dilation_rate=[1], depth_multiplier=1, groups=1, activation="linear", use_bias=True),
        entry("LeakyReLU", "leaky", [[ref("conv")]], alpha=0.25),
        entry("SimpleRNN", "rnn", [[ref("leaky")]], units=UNITS, activation="relu", return_sequences=True),
        entry("GlobalMaxPooling1D", "pool", [[ref("rnn")]], data_format="channels_last"),
        entry("GlobalAveragePooling1D", "mean", [[ref("rnn")]]),
        entry("Concatenate", "join", [[ref("pool"), ref("mean")]], axis=-1),
    ]  # fmt: skip
    arrays = {"embed": uniform(rng, embeddings=(7, INPUTS)),
              "conv": uniform(rng, depthwise_kernel=(3, INPUTS, 1), pointwise_kernel=(1, INPUTS, 5), bias=(5,)),
              "rnn": recurrent(rng, 1, 5)}  # fmt: skip
    path = write(tmp_path / "m.h5", functional(layers, ["ids"], ["join"]),
                 {name: named(name, one) for name, one in arrays.items()})  # fmt: skip
    ids = rng.integers(0, 7, (BATCH, TIME)).astype(np.int32)
    x = arrays["embed"]["embeddings"][ids].astype(np.float64)
    padded, depth = np.pad(x, ((0, 0), (1, 1), (0, 0))), arrays["conv"]["depthwise_kernel"][:, :, 0]
    x = sum(padded[:, at : at + TIME] * depth[at] for at in range(3))
    x = x @ arrays["conv"]["pointwise_kernel"][0].astype(np.float64) + arrays["conv"]["bias"]
    x = np.where(x > 0, x, 0.25 * x)
    cell = read_params("keras.SimpleRNN", arrays["rnn"], activation="relu")
    y = np.moveaxis(evaluate(cell, np.moveaxis(x, 1, 0))[0][:, 0], 0, 1)
    assert_computes(path, [np.concatenate([y.max(1), y.mean(1)], -1)], ids)


@pytest.mark.parametrize("backwards", [False, True], ids=["forwards", "backwards"])
def test_cells_and_stacked_cells_under_rnn(backwards: bool, rng: np.random.Generator, tmp_path: Path) -> None:
    common = {"units": UNITS, "activation": "tanh", "recurrent_activation": "hard_sigmoid"}
    cells = [entry("LSTMCell", "z", **common), entry("GRUCell", "b", **common)]
    options = {"return_sequences": True, "go_backwards": backwards}
    layers = [entry("RNN", "rnn", cell=entry("StackedRNNCells", "cells", cells=cells), **options, **FIRST),
              entry("RNN", "one/more", cell=entry("LSTMCell", "c", **common), **options)]  # fmt: skip
    first, second, third = recurrent(rng, 4), recurrent(rng, 3, UNITS), recurrent(rng, 4, UNITS)
    weights = {"rnn": {**named("rnn/cells/z", first), **named("rnn/cells/b", second)},
               "one/more": named("one/more/c", third)}  # fmt: skip
    document = {"class_name": "Sequential", "config": {"name": "s", "layers": layers}}
    x, way = sequence(rng), slice(None, None, -1 if backwards else 1)
    inner = gru(lstm(x[:, way], first, hard_sigmoid), second, hard_sigmoid)
    expected = lstm(inner[:, way], third, hard_sigmoid)
    path = write(tmp_path / "m.h5", document, weights, "2.8.0")
    assert_computes(path, [expected], x)
    assert list(bridge.cells(path)) == ["rnn.0", "rnn.1", "one_more"]


def test_wrapped_layers_have_the_activations_that_are_recorded(rng: np.random.Generator, tmp_path: Path) -> None:
    inner = entry("LSTM", "lstm", units=UNITS, activation="tanh", recurrent_activation="hard_sigmoid",
                  return_sequences=True, zero_output_for_mask=True)  # fmt: skip
    layers = [entry("TimeDistributed", "each", layer=inner, batch_input_shape=[None, 2, TIME, INPUTS]),
              entry("Reshape", "flat", target_shape=[2 * TIME, UNITS]),
              entry("Bidirectional", "both", layer=inner, merge_mode="ave")]  # fmt: skip
    once, halves = recurrent(rng, 4), [recurrent(rng, 4, UNITS), recurrent(rng, 4, UNITS)]
    weights = {"each": named("each", once), "both": {**named("both/forward_lstm/lstm_cell_1", halves[0]),
                                                    **named("both/backward_lstm/lstm_cell_2", halves[1])}}  # fmt: skip
    document = {"class_name": "Sequential", "config": {"name": "s", "layers": layers}}
    x = rng.standard_normal((BATCH, 2, TIME, INPUTS)).astype(np.float32)
    y = lstm(x.reshape(-1, TIME, INPUTS), once, hard_sigmoid).reshape(BATCH, 2 * TIME, UNITS)
    expected = (lstm(y, halves[0], hard_sigmoid) + lstm(y[:, ::-1], halves[1], hard_sigmoid)[:, ::-1]) / 2
    path = write(tmp_path / "m.h5", document, weights, "2.8.0")
    assert_computes(path, [expected], x)
    assert list(bridge.cells(path)) == ["each.lstm", "both"]


@pytest.mark.parametrize(("version", "gate"), [("2.2.4", hard_sigmoid), ("2.3.1", sigmoid)])
def test_an_activation_that_is_not_recorded_follows_the_version(
    version: str, gate: Any, rng: np.random.Generator, tmp_path: Path
) -> None:
    layer = entry("LSTM", "lstm", units=UNITS, return_sequences=True, batch_input_shape=[None, None, INPUTS])
    document = {"class_name": "Sequential", "config": {"name": "s", "layers": [layer]}}
    arrays = recurrent(rng, 4)
    path = write(tmp_path / "m.h5", document, {"lstm": named("lstm", arrays)}, version)
    x = sequence(rng)
    assert_computes(path, [lstm(x, arrays, gate)], x)


# ---------------------------------------------------------------------- what it says


def shakkala_like(tmp_path: Path, rng: np.random.Generator) -> str:
    layer = entry("GRU", "gru", units=UNITS, activation="tanh", recurrent_activation="hard_sigmoid",
                  batch_input_shape=[None, None, INPUTS])  # fmt: skip
    document = {"class_name": "Sequential", "config": [layer]}
    return write(tmp_path / "m.h5", document, {"gru": named("gru", recurrent(rng, 3))}, "2.0.8")


def test_notes_reach_the_export_and_the_report(rng: np.random.Generator, tmp_path: Path) -> None:
    path = shakkala_like(tmp_path, rng)
    proto = bridge.to_onnx(path)
    notes = json.loads(next(one.value for one in proto.metadata_props if one.key == "bridge.notes"))
    assert len(notes) == 2
    assert all("Keras 3 would" in note for note in notes)
    assert set(notes) <= set(bridge.verify(path, "keras").notes)
    assert set(notes) == set(bridge.inspect(path).notes)
    assert bridge.cells(path) == {"gru": bridge.cells(proto)["gru"]}


def test_the_function_of_keras_2_is_saved_and_loaded(rng: np.random.Generator, tmp_path: Path) -> None:
    path = shakkala_like(tmp_path, rng)
    load(path, None).save(tmp_path / "m.keras")
    x = sequence(rng)
    np.testing.assert_array_equal(outputs_of(path, x)[0], outputs_of(str(tmp_path / "m.keras"), x)[0])
    assert bridge.cells(tmp_path / "m.keras") == bridge.cells(path)


def test_inspect_imports_no_keras(rng: np.random.Generator, tmp_path: Path) -> None:
    code = "import sys, bridge; bridge.inspect(sys.argv[1]); raise SystemExit('keras' in sys.modules)"
    subprocess.run([sys.executable, "-c", code, shakkala_like(tmp_path, rng)], check=True, timeout=120)


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
def test_h5_files_of_keras_3_keep_its_own_meaning(rng: np.random.Generator, tmp_path: Path) -> None:
    model = keras.Sequential(
        [
            keras.Input((None, INPUTS)),
            keras.layers.GRU(UNITS, recurrent_activation="hard_sigmoid"),
            keras.layers.Dense(2),
        ]
    )
    model.save(tmp_path / "m.h5")
    x = sequence(rng)
    np.testing.assert_array_equal(outputs_of(str(tmp_path / "m.h5"), x)[0], numpy(model(x)))
    keras.Sequential([keras.Input((2,)), keras.layers.Lambda(lambda x: x)]).save(tmp_path / "code.h5")
    with pytest.raises(Unsupported, match="Lambda, which is code"):
        load(str(tmp_path / "code.h5"), None)
