"""ONNX to Keras: native layers, bridge's own cell, training, and Keras to ONNX to Keras bit for bit."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import bridge
from bridge.cell import Cell
from bridge.errors import BadInput, NotRepresentable, Unsupported, UsageError
from bridge.frameworks import keras as door
from bridge.frameworks.conversion import to_ir
from bridge.frameworks.door import ExportOptions
from bridge.graph import Writer
from bridge.ops.program import evaluate
from tests.cells import random_cell
from tests.frameworks.keras_cases import (
    INPUTS,
    UNITS,
    WITH_EMPTY,
    assert_export_agrees,
    feeds_of,
    filled,
    numpy,
    onnxruntime_outputs,
)
from tests.tolerances import assert_within_referee_bound

SHAPE_2D = (None, None, 4, 5, 2)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(11)


def assert_import_agrees(model: Any, rng: np.random.Generator, lengths: tuple[int, ...] = WITH_EMPTY) -> Any:
    feeds = feeds_of(model, rng, lengths)
    expected, referee = onnxruntime_outputs(model, feeds), evaluate(model, feeds)
    imported = door.import_model(model)
    outputs = imported(*feeds.values())
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    assert imported.input_names == tuple(feeds)
    assert imported.output_names == tuple(expected)
    for name, output in zip(expected, outputs, strict=True):
        assert_within_referee_bound(numpy(output), expected[name], referee[name])
    return imported


def one_node(cell: Cell, *, lengths: bool = False, states: bool = False) -> Any:
    w = Writer()
    x = w.input("X", "float32", ["time", "batch", cell.input_size])
    given = {}
    if lengths:
        given["lengths"] = w.input("lengths", "int32", ["batch"])
    if states:
        given["initial_h"] = w.input("initial_h", "float32", [cell.num_directions, "batch", cell.hidden_size])
    for name, value in zip(("Y", "Y_h", "Y_c"), w.recurrent(cell, x, name="n", **given), strict=True):
        if value is not None:
            w.output(value, name)
    return w.model()


def node_feeds(model: Any, cell: Cell, rng: np.random.Generator) -> dict[str, np.ndarray]:
    sizes = {"X": (5, 3, cell.input_size), "initial_h": (cell.num_directions, 3, cell.hidden_size)}
    return {
        value.name: np.array(WITH_EMPTY, np.int32)
        if value.name == "lengths"
        else rng.standard_normal(sizes[value.name]).astype(np.float32)
        for value in model.graph.inputs
    }


NATIVE = {
    "LSTM": lambda: layers.LSTM(UNITS, return_sequences=True),
    "GRU": lambda: layers.GRU(UNITS, return_sequences=True, recurrent_activation="hard_sigmoid"),
    "GRU reset before": lambda: layers.GRU(UNITS, reset_after=False),
    "SimpleRNN backwards": lambda: layers.SimpleRNN(UNITS, go_backwards=True, return_sequences=True, activation="relu"),
    "without bias": lambda: layers.LSTM(UNITS, use_bias=False),
    "Bidirectional": lambda: layers.Bidirectional(layers.LSTM(UNITS, return_sequences=True)),
    "Bidirectional GRU": lambda: layers.Bidirectional(layers.GRU(UNITS), merge_mode="mul"),
    "LSTM gelu": lambda: layers.LSTM(UNITS, activation="gelu", go_backwards=True, return_sequences=True),
    "GRU silu": lambda: layers.GRU(UNITS, activation="silu", return_sequences=True),
    "GRU silu reset before": lambda: layers.GRU(UNITS, activation="silu", reset_after=False, return_sequences=True),
    "ConvLSTM2D": lambda: layers.ConvLSTM2D(3, 2, padding="same", return_sequences=True),
    "ConvLSTM2D softmax": lambda: layers.ConvLSTM2D(3, 2, strides=2, activation="softmax", go_backwards=True),
}


def source_of(case: str, rng: np.random.Generator) -> Any:
    return filled(NATIVE[case](), rng, SHAPE_2D) if "Conv" in case else filled(NATIVE[case](), rng)


@pytest.mark.parametrize("case", NATIVE)
def test_keras_to_onnx_to_keras_is_native_and_bit_identical(case: str, rng: np.random.Generator) -> None:
    source = source_of(case, rng)
    imported = door.import_model(door.export(source, ExportOptions()))
    (layer,) = imported.recurrent
    assert type(layer) is type(source)
    assert len(imported.trainable_variables) == len(source.trainable_variables)
    for first, second in zip(imported.trainable_variables, source.trainable_variables, strict=True):
        assert first.name == second.name
        assert numpy(first).tobytes() == numpy(second).tobytes()


@pytest.mark.parametrize("case", NATIVE)
def test_the_imported_model_computes_what_onnxruntime_computes(case: str, rng: np.random.Generator) -> None:
    source = source_of(case, rng)
    assert_import_agrees(door.export(source, ExportOptions()), rng)
    assert_import_agrees(door.export(source, ExportOptions(lengths=True, states="inputs")), rng)


OWN: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "peepholes": ("LSTM", {"peepholes": True}, {"lengths": True}),
    "clip, both ways": ("LSTM", {"clip": 0.3, "direction": "bidirectional"}, {"lengths": True, "states": True}),
    "coupled gates": ("LSTM", {"input_forget": True, "direction": "reverse"}, {}),
    "clipped GRU": ("GRU", {"clip": 0.4, "linear_before_reset": True}, {"lengths": True, "states": True}),
    "activations": ("GRU", {"activations": ("HardSigmoid", "LeakyRelu"), "activation_alpha": (0.3, 0.1),
                            "activation_beta": (0.4,)}, {"states": True}),
    "activations per direction": ("RNN", {"activations": ("Relu", "ScaledTanh"), "activation_alpha": (0.7,),
                                          "activation_beta": (0.4,), "direction": "bidirectional"}, {}),
}  # fmt: skip


@pytest.mark.parametrize("case", OWN)
def test_what_no_native_layer_holds_runs_in_bridges_own_cell(case: str, rng: np.random.Generator) -> None:
    op, attributes, inputs = OWN[case]
    cell = random_cell(op, 4, 3, rng, **attributes)
    model = one_node(cell, **inputs)
    feeds = node_feeds(model, cell, rng)
    expected, referee = onnxruntime_outputs(model, feeds), evaluate(model, feeds)
    imported = door.import_model(model)
    for name, output in zip(expected, imported(**feeds), strict=True):
        assert_within_referee_bound(numpy(output), expected[name], referee[name])
    halves = imported.recurrent[0]
    halves = (halves.forward_layer, halves.backward_layer) if cell.num_directions == 2 else (halves,)
    assert "RecurrentCell" in {type(half.cell).__name__ for half in halves}


@pytest.mark.parametrize("own", [False, True], ids=["native", "own"])
@pytest.mark.parametrize("lengths", [(4, 6, 2), (-1, 2, 5), (3, 3)], ids=str)
def test_lengths_outside_the_sequence_are_refused(
    lengths: tuple[int, ...], own: bool, rng: np.random.Generator
) -> None:
    """onnxruntime refuses them; as a mask they would be all steps or none."""
    imported = door.import_model(one_node(random_cell("LSTM", 4, 3, rng, peepholes=own), lengths=True))
    x = rng.standard_normal((5, 3, 4)).astype(np.float32)
    with pytest.raises(BadInput, match="length"):
        imported(x, np.asarray(lengths, np.int32))


def test_a_constant_initial_state_is_trainable(rng: np.random.Generator) -> None:
    cell = random_cell("LSTM", 4, 3, rng, initial_h=1, initial_c=1)
    model = one_node(cell, lengths=True)
    feeds = node_feeds(model, cell, rng)
    expected, referee = onnxruntime_outputs(model, feeds), evaluate(model, feeds)
    imported = door.import_model(model)
    for name, output in zip(expected, imported(feeds), strict=True):
        assert_within_referee_bound(numpy(output), expected[name], referee[name])
    assert {"n.initial_h", "n.initial_c"} <= {variable.name for variable in imported.trainable_variables}
    assert type(imported.recurrent[0]) is layers.LSTM


def test_a_float64_model_is_refused_before_it_is_called(rng: np.random.Generator) -> None:
    model = to_ir(random_cell("LSTM", 4, 3, rng, dtype="float64"))
    with pytest.raises(Unsupported, match="float64 silently") as caught:
        door.import_model(model)
    assert caught.value.got == "input 'input' in float64"


def test_two_nodes_on_the_same_weights_stay_one_layer(rng: np.random.Generator) -> None:
    x = keras.Input((None, UNITS), name="x")
    shared = layers.GRU(UNITS, return_sequences=True)
    model = filled(keras.Model(x, shared(shared(x))), rng)
    exported = door.export(model, ExportOptions())
    imported = assert_import_agrees(exported, rng)
    # The export writes the layer once per call; equal bits are not the same weights, so the import has two layers.
    assert len(imported.recurrent) == 2


def test_an_imported_model_is_called_by_name_or_in_order(rng: np.random.Generator) -> None:
    imported = door.import_model(door.export(source_of("LSTM", rng), ExportOptions(states="inputs")))
    x, h, c = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, 4, INPUTS), (2, UNITS), (2, UNITS)))
    first, second = imported(x, h, c), imported(initial_c=c, input=x, initial_h=h)
    assert all(np.array_equal(numpy(a), numpy(b)) for a, b in zip(first, second, strict=True))
    with pytest.raises(BadInput, match="missing inputs"):
        imported(x)
    with pytest.raises(BadInput, match="given twice"):
        imported(x, input=x)
    with pytest.raises(BadInput, match="too many"):
        imported(x, h, c, c)


def test_fit_trains_the_native_weights(rng: np.random.Generator) -> None:
    source = keras.Sequential([keras.Input((None, INPUTS)), layers.LSTM(UNITS, return_sequences=True), layers.GRU(3)])
    imported = door.import_model(door.export(filled(source, rng), ExportOptions()))
    x, y = rng.standard_normal((6, 5, INPUTS)).astype(np.float32), rng.standard_normal((6, 3)).astype(np.float32)
    before = [numpy(variable).copy() for variable in imported.trainable_variables]
    for model in (source, imported):
        model.compile("sgd", "mse")
        model.fit(x, y, epochs=2, batch_size=4, verbose=0, shuffle=False)
    assert len(before) == 6
    assert all((numpy(now) != was).any() for now, was in zip(imported.trainable_variables, before, strict=True))
    for first, second in zip(imported.trainable_variables, source.trainable_variables, strict=True):
        # Two epochs of two steps on the same gradients: float32 sums in another order.
        np.testing.assert_allclose(numpy(first), numpy(second), rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------------- build and assign


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
def test_build_makes_the_native_layer(op: str, direction: str, rng: np.random.Generator) -> None:
    attributes = {"linear_before_reset": True} if op == "GRU" else {}
    cell = random_cell(op, 4, 3, rng, direction=direction, **attributes)
    layer = door.build([cell], False)
    x = rng.standard_normal((5, 3, 4)).astype(np.float32)
    model = one_node(cell)
    expected, referee = onnxruntime_outputs(model, {"X": x})["Y"], evaluate(model, {"X": x})["Y"]

    def keras_order(Y: np.ndarray) -> np.ndarray:
        y = Y.transpose(2, 0, 1, 3).reshape(3, 5, -1)
        return y[:, ::-1] if direction == "reverse" else y

    assert_within_referee_bound(numpy(layer(x.swapaxes(0, 1))), keras_order(expected), keras_order(referee))
    assert layer.name not in ("", None)
    (read,) = door.cells(layer).values()
    assert read.direction == direction
    assert np.array_equal(read.W, cell.W)


def test_build_of_several_cells_is_a_stack(rng: np.random.Generator) -> None:
    first, second = random_cell("LSTM", 4, 3, rng, direction="bidirectional"), random_cell("GRU", 6, 2, rng)
    stack = door.build([first, second], False)
    assert [type(layer) for layer in stack.layers] == [layers.Bidirectional, layers.GRU]
    assert np.array_equal(list(door.cells(stack).values())[1].W, second.W)
    with pytest.raises(NotRepresentable, match="do not chain"):
        door.build([second, first], False)
    with pytest.raises(UsageError, match="no cells"):
        door.build([], False)


@pytest.mark.parametrize("attributes", [{"clip": 1.0}, {"peepholes": True}, {"initial_h": 1}], ids=str)
def test_build_refuses_what_the_native_layer_lacks_unless_own_cells(
    attributes: dict[str, Any], rng: np.random.Generator
) -> None:
    cell = random_cell("LSTM", 4, 3, rng, **attributes)
    with pytest.raises(NotRepresentable):
        door.build([cell], False)
    layer = door.build([cell], True)
    x = rng.standard_normal((5, 3, 4)).astype(np.float32)
    model = one_node(cell)
    expected, referee = onnxruntime_outputs(model, {"X": x})["Y"], evaluate(model, {"X": x})["Y"]
    swap = (1, 0, 2)
    assert_within_referee_bound(
        numpy(layer(x.swapaxes(0, 1))), expected[:, 0].transpose(swap), referee[:, 0].transpose(swap)
    )


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")  # Keras, as it saves
def test_bridges_own_cell_is_saved_with_the_model(rng: np.random.Generator, tmp_path: Path) -> None:
    layer = door.build([random_cell("LSTM", 4, 3, rng, clip=0.3, peepholes=True, initial_h=1)], True)
    x = keras.Input((None, 4))
    model = keras.Model(x, layer(x))
    model.save(tmp_path / "own.keras")
    again = keras.saving.load_model(tmp_path / "own.keras")
    value = rng.standard_normal((2, 5, 4)).astype(np.float32)
    assert np.array_equal(numpy(model(value)), numpy(again(value)))


def test_assign_puts_cells_into_the_callers_model(rng: np.random.Generator) -> None:
    model = keras.Sequential([
        keras.Input((None, 4)),
        layers.Bidirectional(layers.LSTM(3, return_sequences=True), name="both"),
        layers.GRU(2, name="last"),
        layers.Dense(1),
    ])  # fmt: skip
    both = random_cell("LSTM", 4, 3, rng, direction="bidirectional")
    last = random_cell("GRU", 6, 2, rng, linear_before_reset=True)
    assert door.assign(model, {"both": both, "last": last}) is model
    found = door.cells(model)
    assert found["last"] == last
    assert np.array_equal(found["both"].R, both.R)
    door.assign(model, {"": [*both.split(), last]})


def keras_lstm(rng: np.random.Generator, **attributes: Any) -> Cell | Sequence[Cell]:
    return random_cell("LSTM", 4, 3, rng, **attributes)


WRONG = {
    "path": ("nope", lambda rng: keras_lstm(rng), UsageError, "no recurrent layer"),
    "count": ("", lambda rng: [keras_lstm(rng)] * 2, UsageError, "another number of cells"),
    "operator": ("", lambda rng: random_cell("GRU", 4, 3, rng), NotRepresentable, "another op"),
    "size": ("", lambda rng: random_cell("LSTM", 5, 3, rng), NotRepresentable, "another input_size"),
    "dtype": ("", lambda rng: keras_lstm(rng, dtype="float64"), NotRepresentable, "another dtype"),
    "direction": ("", lambda rng: keras_lstm(rng, direction="reverse"), NotRepresentable, "runs the other way"),
    "clip": ("", lambda rng: keras_lstm(rng, clip=1.0), NotRepresentable, "clip"),
    "activation": (
        "",
        lambda rng: keras_lstm(rng, activations=("Relu", "Tanh", "Tanh")),
        NotRepresentable,
        "'f' is Relu",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_assign_refuses_what_the_layer_cannot_hold(case: str, rng: np.random.Generator) -> None:
    path, make, error, text = WRONG[case]
    layer = filled(layers.LSTM(3), rng, (None, None, 4))
    before = [numpy(weight).copy() for weight in layer.weights]
    with pytest.raises(error, match=text):
        door.assign(layer, {path: make(rng)})
    assert all(np.array_equal(numpy(now), was) for now, was in zip(layer.weights, before, strict=True))


@pytest.mark.parametrize("case", [*OWN, "initial state"])
def test_bridges_own_cell_exports_as_the_node_that_it_is(case: str, rng: np.random.Generator) -> None:
    op, attributes, _ = OWN.get(case, ("LSTM", {"clip": 0.5, "initial_h": 1, "initial_c": 1}, {}))
    cell = random_cell(op, INPUTS, 3, rng, **attributes)
    layer = door.build([cell], True)
    assert list(door.cells(layer).values()) == [cell]
    assert_export_agrees(layer, rng)
    assert_export_agrees(layer, rng, WITH_EMPTY)
    assert_export_agrees(layer, rng, WITH_EMPTY, states="inputs")


@pytest.mark.parametrize("options", [{"activation": {"class_name": "Lambda"}}, {"units": None}, {"nope": 1}], ids=str)
def test_metadata_cannot_make_objects(options: dict[str, Any], rng: np.random.Generator) -> None:
    model = door.export(source_of("LSTM gelu", rng), ExportOptions())
    (node,) = [node for node in model.graph if node.op_type == "Scan"]
    document = json.loads(node.metadata_props["bridge.layer"])
    document["options"] |= options
    node.metadata_props["bridge.layer"] = json.dumps(document)
    with pytest.raises(BadInput, match=r"describes no LSTM"):
        door.import_model(model)


def test_a_refusal_in_a_call_is_told_in_bridges_words_alone(rng: np.random.Generator) -> None:
    net = bridge.to_keras(bridge.to_onnx(random_cell("LSTM", 3, 4, rng), lengths=True))
    feeds = [np.zeros((5, 2, 3), np.float32), np.array([9, 1], np.int32)]
    with pytest.raises(BadInput) as told:
        net(feeds)
    assert str(told.value).startswith("lengths: a length is out of range")
