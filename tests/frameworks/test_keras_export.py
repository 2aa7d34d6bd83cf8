"""Keras layers and models to ONNX: every option, Keras' own forward pass against onnxruntime."""

from __future__ import annotations

import json
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import bridge
from bridge.errors import BadInput, NotRepresentable, Unsupported, UsageError
from bridge.frameworks import conversion, keras_save
from bridge.frameworks import keras as door
from bridge.frameworks.door import ExportOptions
from bridge.frameworks.files import check_same_function, with_biases
from bridge.graph import find_cells
from tests.cells import random_cell
from tests.frameworks.keras_cases import (
    INPUTS,
    RAGGED,
    UNITS,
    WITH_EMPTY,
    assert_export_agrees,
    filled,
    operators,
)

KINDS = {"LSTM": layers.LSTM, "GRU": layers.GRU, "SimpleRNN": layers.SimpleRNN}
MERGES = ("concat", "sum", "ave", "mul", None)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.mark.parametrize("sequences", [False, True], ids=["last", "sequences"])
@pytest.mark.parametrize("backwards", [False, True], ids=["forward", "backwards"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_agrees_with_onnxruntime(kind: str, backwards: bool, sequences: bool, rng: np.random.Generator) -> None:
    layer = filled(KINDS[kind](UNITS, go_backwards=backwards, return_sequences=sequences), rng)
    model = assert_export_agrees(layer, rng)
    assert_export_agrees(layer, rng, states="inputs")
    assert operators(model).count("RNN" if kind == "SimpleRNN" else kind) == 1
    assert [output.name for output in model.graph.outputs] == ["output", "h_n", *(["c_n"] if kind == "LSTM" else [])]


@pytest.mark.parametrize("states", ["zero", "inputs"])
@pytest.mark.parametrize("zeros", [False, True], ids=["repeat", "zero"])
@pytest.mark.parametrize("sequences", [False, True], ids=["last", "sequences"])
@pytest.mark.parametrize("backwards", [False, True], ids=["forward", "backwards"])
def test_lengths_mean_a_right_padded_mask(
    backwards: bool, sequences: bool, zeros: bool, states: str, rng: np.random.Generator
) -> None:
    options = {"go_backwards": backwards, "return_sequences": sequences, "zero_output_for_mask": zeros}
    for kind in (layers.LSTM, layers.GRU):
        assert_export_agrees(filled(kind(UNITS, **options), rng), rng, WITH_EMPTY, states=states)


@pytest.mark.parametrize("sequences", [False, True], ids=["last", "sequences"])
@pytest.mark.parametrize("merge", MERGES, ids=str)
def test_bidirectional_is_one_node_for_every_merge_mode(
    merge: str | None, sequences: bool, rng: np.random.Generator
) -> None:
    layer = filled(layers.Bidirectional(layers.LSTM(UNITS, return_sequences=sequences), merge_mode=merge), rng)
    model = assert_export_agrees(layer, rng)
    assert operators(model).count("LSTM") == 1
    assert_export_agrees(layer, rng, WITH_EMPTY, states="inputs")
    names = [output.name for output in model.graph.outputs]
    outputs = ["output", "output_backward"] if merge is None else ["output"]
    assert names == [*outputs, "h_n_forward", "c_n_forward", "h_n_backward", "c_n_backward"]


def test_the_common_bidirectional_layer_needs_three_nodes_for_its_output(rng: np.random.Generator) -> None:
    model = keras.Sequential([keras.Input((None, INPUTS)), layers.Bidirectional(layers.LSTM(3, return_sequences=True))])
    assert operators(assert_export_agrees(filled(model, rng), rng)) == ["Transpose", "LSTM", "Transpose", "Reshape"]


@pytest.mark.parametrize(
    ("forward", "backward", "nodes"),
    [
        (layers.LSTM(UNITS, return_sequences=True), layers.GRU(3, return_sequences=True, go_backwards=True), 2),
        (layers.LSTM(UNITS, return_sequences=True), layers.LSTM(3, return_sequences=True, go_backwards=True), 2),
        (layers.GRU(UNITS), layers.GRU(UNITS, go_backwards=True, activation="relu"), 1),
        (layers.GRU(UNITS, go_backwards=True, return_sequences=True), layers.GRU(UNITS, return_sequences=True), 2),
    ],
    ids=["other operator", "other size", "other activation", "first one backwards"],
)
def test_a_backward_layer_of_another_kind_is_a_second_node(
    forward: Any, backward: Any, nodes: int, rng: np.random.Generator
) -> None:
    layer = filled(layers.Bidirectional(forward, backward_layer=backward, name="both"), rng)
    model = assert_export_agrees(layer, rng, WITH_EMPTY)
    found = list(door.cells(layer))
    assert found == list(find_cells(model)) == (["both"] if nodes == 1 else ["both.forward", "both.backward"])


@pytest.mark.parametrize("reset_after", [False, True])
@pytest.mark.parametrize("bias", [False, True], ids=["bare", "bias"])
def test_gru_keeps_where_it_resets(reset_after: bool, bias: bool, rng: np.random.Generator) -> None:
    layer = filled(layers.GRU(UNITS, reset_after=reset_after, use_bias=bias), rng)
    model = assert_export_agrees(layer, rng)
    (cell,) = find_cells(model).values()
    assert cell.linear_before_reset is reset_after
    assert (cell.B is not None) is bias


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("activation", ["hard_sigmoid", "leaky_relu", "elu", "linear", "softsign"])
def test_activations_of_the_operator_stay_one_node(activation: str, kind: str, rng: np.random.Generator) -> None:
    model = assert_export_agrees(filled(KINDS[kind](UNITS, activation=activation), rng), rng)
    assert "Scan" not in operators(model)


@pytest.mark.parametrize(
    "activation",
    ["gelu", "silu", "relu6", "selu", "mish", "softmax", "hard_silu", "hard_tanh", "log_sigmoid", "celu", "tanh_shrink",
     "soft_shrink", "squareplus", "sparse_plus", "sparse_sigmoid", "log_softmax"],
)  # fmt: skip
def test_other_activations_become_an_exact_scan(activation: str, rng: np.random.Generator) -> None:
    for kind in (layers.LSTM, layers.GRU):
        layer = filled(kind(UNITS, activation=activation, return_sequences=True), rng)
        model = assert_export_agrees(layer, rng, WITH_EMPTY, states="inputs")
        assert operators(model).count("Scan") == 1
        with pytest.raises(NotRepresentable, match="no Cell"):
            door.cells(layer)


def test_exponential_is_carried_where_it_stays_finite(rng: np.random.Generator) -> None:
    layer = filled(layers.SimpleRNN(UNITS, activation="exponential"), rng)
    for weight in layer.weights:
        weight.assign(0.1 * weight)
    assert_export_agrees(layer, rng)


@pytest.mark.parametrize("cell", [layers.LSTMCell, layers.GRUCell, layers.SimpleRNNCell])
def test_cells_alone_and_inside_rnn(cell: type, rng: np.random.Generator) -> None:
    alone = filled(cell(UNITS), rng, (None, INPUTS))
    assert_export_agrees(alone, rng)
    model = assert_export_agrees(alone, rng, states="inputs")
    assert model.graph.inputs[0].shape[1] == INPUTS
    assert_export_agrees(filled(layers.RNN(cell(UNITS), return_sequences=True), rng), rng, RAGGED)


def test_a_cell_has_no_lengths(rng: np.random.Generator) -> None:
    with pytest.raises(UsageError, match="one step and has no lengths"):
        door.export(filled(layers.LSTMCell(2), rng, (None, 3)), ExportOptions(lengths=True))


def test_stateful_layers_have_state_inputs_and_are_left_alone(rng: np.random.Generator) -> None:
    layer = filled(layers.LSTM(UNITS, stateful=True, return_sequences=True), rng)
    model = assert_export_agrees(layer, rng)
    assert [value.name for value in model.graph.inputs] == ["input", "initial_h", "initial_c"]
    assert not any(np.asarray(state).any() for state in layer.states)


@pytest.mark.parametrize("zeros", [False, True])
def test_unroll_changes_nothing(zeros: bool, rng: np.random.Generator) -> None:
    layer = filled(layers.LSTM(UNITS, unroll=True, return_sequences=True, zero_output_for_mask=zeros), rng)
    assert_export_agrees(layer, rng, WITH_EMPTY, states="inputs")


@pytest.mark.parametrize("form", ["fused", "scan"])
@pytest.mark.parametrize("kind", KINDS)
def test_float64_is_an_exact_scan(kind: str, form: str, rng: np.random.Generator) -> None:
    recurrent = {} if kind == "SimpleRNN" else {"recurrent_activation": "hard_sigmoid"}
    layer = filled(KINDS[kind](UNITS, dtype="float64", return_sequences=True, **recurrent), rng)
    assert "Scan" in operators(assert_export_agrees(layer, rng, WITH_EMPTY, states="inputs", form=form))


def test_float16_is_the_operator(rng: np.random.Generator) -> None:
    # Keras rounds every product to float16, onnxruntime rounds once: compared by value and not against the referee.
    from tests.frameworks.keras_cases import feeds_of, onnxruntime_outputs

    layer = filled(layers.LSTM(UNITS, dtype="float16"), rng)
    model = door.export(layer, ExportOptions())
    feeds = feeds_of(model, rng)
    expected, native = onnxruntime_outputs(model, feeds), door.execute(layer, feeds)
    worst = max(float(np.abs(expected[name].astype(np.float64) - native[name]).max()) for name in expected)
    assert worst < 8 * float(np.finfo(np.float16).eps)  # a few roundings per step, five steps; seen: 2e-3


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize(("strides", "dilation"), [(1, 1), (2, 1), (1, 2)])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_conv_lstm_is_an_exact_scan(
    rank: int, strides: int, dilation: int, padding: str, rng: np.random.Generator
) -> None:
    kind = (layers.ConvLSTM1D, layers.ConvLSTM2D, layers.ConvLSTM3D)[rank - 1]
    layer = kind(3, (3, 2, 2)[:rank], padding=padding, strides=strides, dilation_rate=dilation, return_sequences=True,
                 go_backwards=rank == 2)  # fmt: skip
    layer = filled(layer, rng, (None, None, *(7, 6, 5)[:rank], 2))
    assert_export_agrees(layer, rng, WITH_EMPTY, states="inputs")


def test_conv_lstm_in_bidirectional_and_with_softmax(rng: np.random.Generator) -> None:
    shape = (None, None, 4, 6, 2)
    assert_export_agrees(filled(layers.ConvLSTM2D(3, 2, activation="softmax"), rng, shape), rng)
    both = layers.Bidirectional(layers.ConvLSTM2D(3, 2, return_sequences=True, use_bias=False))
    assert_export_agrees(filled(both, rng, shape), rng, RAGGED)


# ---------------------------------------------------------------------- models


def stack() -> keras.Sequential:
    return keras.Sequential([
        keras.Input((None, INPUTS), name="frames"),
        layers.LSTM(UNITS, return_sequences=True, name="first", dropout=0.1),
        layers.Dropout(0.2, name="drop"),
        layers.Bidirectional(layers.GRU(5, return_sequences=True), name="second"),
        layers.SimpleRNN(3, go_backwards=True, name="third"),
    ])  # fmt: skip


def test_a_sequential_model_keeps_its_names(rng: np.random.Generator) -> None:
    source = filled(stack(), rng)
    model = assert_export_agrees(source, rng)
    assert [value.name for value in model.graph.inputs] == ["frames"]
    assert [value.name for value in model.graph.outputs] == ["third"]
    assert list(find_cells(model)) == list(door.cells(source)) == ["first", "second", "third"]
    notes = json.loads(model.metadata_props["bridge.notes"])
    assert notes == ["first: dropout=0.1 does nothing in inference", "drop: Dropout does nothing in inference"]


def test_masks_and_states_go_through_a_sequential_model(rng: np.random.Generator) -> None:
    source = filled(stack(), rng)
    assert_export_agrees(source, rng, WITH_EMPTY)
    model = assert_export_agrees(source, rng, WITH_EMPTY, states="inputs")
    assert [value.name for value in model.graph.outputs][:3] == ["third", "first.h_n", "first.c_n"]


def test_encoder_and_decoder_share_states_and_not_masks(rng: np.random.Generator) -> None:
    source, target = keras.Input((None, INPUTS), name="source"), keras.Input((None, 2), name="target")
    encoded, h, c = layers.LSTM(UNITS, return_state=True, name="encoder")(source)
    decoded, last, _ = layers.LSTM(UNITS, return_sequences=True, return_state=True, name="decoder")(
        target, initial_state=[h, c]
    )
    model = filled(keras.Model([source, target], [decoded, last, encoded]), rng)
    assert_export_agrees(model, rng)
    written = assert_export_agrees(model, rng, WITH_EMPTY)
    assert [value.name for value in written.graph.inputs] == ["source", "target", "source.lengths", "target.lengths"]
    assert [value.name for value in written.graph.outputs] == ["decoder", "decoder.1", "encoder"]
    assert_export_agrees(model, rng, WITH_EMPTY, states="inputs")


def test_a_shared_layer_and_a_dict_of_outputs(rng: np.random.Generator) -> None:
    x, h0 = keras.Input((5, INPUTS), name="x"), keras.Input((UNITS,), name="h0")
    shared = layers.GRU(UNITS, return_sequences=True, name="shared")
    model = filled(keras.Model([x, h0], {"b": shared(x, initial_state=h0), "a": shared(x)}), rng)
    written = assert_export_agrees(model, rng)
    assert [value.name for value in written.graph.outputs] == ["a", "b"]
    assert list(find_cells(written)) == ["shared", "shared:2"]


def test_models_inside_models(rng: np.random.Generator) -> None:
    inner = keras.Sequential([keras.Input((None, INPUTS)), layers.LSTM(4, return_sequences=True, name="l")], name="in")
    source = filled(keras.Sequential([keras.Input((None, INPUTS)), inner, layers.GRU(2, name="g")]), rng)
    model = assert_export_agrees(source, rng, RAGGED, states="inputs")
    assert list(find_cells(model)) == list(door.cells(source)) == ["in.l", "g"]


# ---------------------------------------------------------------------- refusals


def own_tanh(x: Any) -> Any:
    return 2 * x


own_tanh.__name__ = "tanh"


class Changed(layers.LSTM):
    def call(self, *args: Any, **kwargs: Any) -> Any:
        return super().call(*args, **kwargs)


class Renamed(layers.LSTM):
    """Overrides nothing that computes."""


REFUSALS = {
    "a function called tanh": (lambda: layers.LSTM(2, activation=own_tanh), Unsupported, "none that Keras ships"),
    "an overridden call": (lambda: Changed(2), Unsupported, "overrides call"),
    "stacked cells": (lambda: layers.RNN([layers.LSTMCell(2)]), Unsupported, "StackedRNNCells"),
    "mixed precision": (lambda: layers.LSTM(2, dtype="mixed_float16"), Unsupported, "mixes dtypes"),
    "mixed bfloat16": (lambda: layers.LSTM(2, dtype="mixed_bfloat16"), Unsupported, "computes bfloat16"),
    "no expression": (lambda: layers.LSTM(2, activation="sparsemax"), Unsupported, "'sparsemax' has no ONNX"),
    "gelu in float64": (lambda: layers.GRU(2, activation="gelu", dtype="float64"), Unsupported, "Erf"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_could_not_be_exact_is_refused(case: str, rng: np.random.Generator) -> None:
    make, error, text = REFUSALS[case]
    with pytest.raises(error, match=text):
        door.export(filled(make(), rng), ExportOptions())


def test_a_subclass_that_changes_nothing_is_native(rng: np.random.Generator) -> None:
    assert_export_agrees(filled(Renamed(UNITS), rng), rng)


def test_an_unbuilt_layer_or_model_says_so() -> None:
    with pytest.raises(BadInput, match="no weights yet"):
        door.export(layers.LSTM(2, name="l"), ExportOptions())
    with pytest.raises(BadInput, match="not built"):
        door.export(keras.Sequential([layers.LSTM(2)]), ExportOptions())


def test_states_for_two_kinds_of_direction_are_refused(rng: np.random.Generator) -> None:
    layer = layers.Bidirectional(layers.LSTM(2), backward_layer=layers.GRU(2, go_backwards=True))
    with pytest.raises(Unsupported, match="splits them in two halves"):
        door.export(filled(layer, rng), ExportOptions(states="inputs"))


def test_dynamic_is_refused(rng: np.random.Generator) -> None:
    with pytest.raises(Unsupported, match="symbolic batch and time"):
        door.export(filled(layers.LSTM(2), rng), ExportOptions(dynamic={"input": {0: "n"}}))


def test_wrong_feeds_are_named(rng: np.random.Generator) -> None:
    with pytest.raises(BadInput, match=r"missing \['input'\], unexpected \['inputs'\]"):
        door.execute(filled(layers.GRU(2), rng), {"inputs": np.zeros((1, 2, INPUTS), np.float32)})


def test_owns_layers_models_and_paths() -> None:
    assert all(door.owns(source) for source in (layers.LSTM(2), keras.Sequential(), "x.keras", "x.H5"))
    assert not any(door.owns(source) for source in (np.zeros(1), "x.onnx", object()))


@pytest.mark.parametrize(("op", "options"), [("LSTM", {}), ("RNN", {}), ("GRU", {"linear_before_reset": True}),
                                             ("GRU", {"linear_before_reset": False})], ids=str)  # fmt: skip
def test_a_stack_with_another_bias_is_no_rounding_of_it(op: str, options: dict[str, bool]) -> None:
    cell = random_cell(op, 3, 4, np.random.default_rng(0), **options)
    model, source = keras_save.sequential([cell]), bridge.to_onnx(cell)
    check_same_function(conversion.to_ir(source), with_biases(conversion.to_ir(model), [cell]), "stack")
    bias = next(weight for weight in model.weights if "bias" in weight.path)
    bias.assign(bias.numpy() + np.float32(1e-3))
    with pytest.raises(NotRepresentable, match="more than a stack"):
        check_same_function(conversion.to_ir(source), with_biases(conversion.to_ir(model), [cell]), "stack")


def test_a_stack_with_a_layer_that_only_runs_backwards_is_refused(rng: np.random.Generator) -> None:
    cells = [random_cell("LSTM", 3, 4, rng), random_cell("LSTM", 4, 5, rng, direction="reverse")]
    with pytest.raises(NotRepresentable, match=r"layer 1, LSTM: a layer of Keras that only runs backwards"):
        keras_save.sequential(cells)
