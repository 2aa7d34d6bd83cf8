"""What files of Keras 1 and 2 are refused for, by name: code, unknown layers and options, weights that do not fit."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest

import bridge
from bridge.cell import Cell
from bridge.errors import BadInput, BridgeError, Unsupported
from bridge.frameworks.keras_files import load
from tests.frameworks.keras_cases import numpy
from tests.frameworks.keras_legacy_files import (
    FIRST,
    UNITS,
    entry,
    functional,
    named,
    recurrent,
    ref,
    source,
    uniform,
    write,
)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(11)


class Scale(keras.layers.Layer):  # type: ignore[misc]
    """A layer of the caller's."""

    def build(self, input_shape: Any) -> None:
        self.factor = self.add_weight(shape=(), name="factor")

    def call(self, x: Any) -> Any:
        return x * self.factor


def test_a_class_of_the_callers_is_used_only_where_it_is_given(rng: np.random.Generator, tmp_path: Path) -> None:
    document = {"class_name": "Sequential", "config": [entry("Scale", "scale", batch_input_shape=[None, 2])]}
    path = write(tmp_path / "m.h5", document, {"scale": {"scale/factor:0": np.float32(3)}})
    with pytest.raises(Unsupported, match="the layer Scale is not carried"):
        load(path, None)
    model = load(path, {"Scale": Scale})
    np.testing.assert_array_equal(numpy(model(np.ones((1, 2), np.float32))), [[3, 3]])


REFUSED = {
    "code": (entry("Lambda", "f", function=["x"], **FIRST), Unsupported, "Lambda, which is code"),
    "unknown layer": (entry("TFOpLambda", "f", function="math.add", **FIRST), Unsupported, "TFOpLambda"),
    "unknown option": (entry("Dense", "d", units=2, quantum=True, **FIRST), Unsupported, "'quantum'"),
    "Keras 1": (entry("LSTM", "d", output_dim=2, inner_activation="sigmoid", **FIRST), Unsupported, "'output_dim'"),
    "activation": (entry("Dense", "d", units=2, activation="leaky_relu", **FIRST), Unsupported, "'leaky_relu'"),
    "object": (entry("Dense", "d", units=2, bias={"class_name": "X"}, **FIRST), Unsupported, "no option 'bias'"),
    "hostile size": (entry("Dense", "d", units=10**12, **FIRST), BadInput, "larger than any"),
    "no such axis": (entry("Dense", "d", units=977, **FIRST), BadInput, "no stored array"),
    "no weights": (entry("Dense", "d", units=2, **FIRST), BadInput, "stored weights"),
    "hostile input": (entry("Flatten", "d", batch_input_shape=[None, 10**12]), BadInput, "no shape"),
    "no input shape": (entry("Flatten", "d"), Unsupported, "does not record the shape"),
    "options of no kind": (entry("Dense", "d", units="two", **FIRST), BadInput, "units"),
    "unset version": (entry("LSTM", "d", units=2, activation="tanh", **FIRST), Unsupported, "recurrent_activation"),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_what_is_not_carried_is_refused_by_name(case: str, rng: np.random.Generator, tmp_path: Path) -> None:
    layer, error, match = REFUSED[case]
    path = write(tmp_path / "m.h5", {"class_name": "Sequential", "config": [layer]},
                 {"other": uniform(rng, a=(2, 8))}, "2.2.4-tf")  # fmt: skip
    with pytest.raises(error, match=match):
        load(path, None)


def test_weights_that_do_not_fit_are_refused(rng: np.random.Generator, tmp_path: Path) -> None:
    layer = entry("LSTM", "lstm", units=UNITS, activation="tanh", recurrent_activation="sigmoid", **FIRST)
    document = {"class_name": "Sequential", "config": [layer]}
    sound = named("lstm", recurrent(rng, 4))
    damaged = {
        "missing": {key: value for key, value in sound.items() if "bias" not in key},
        "left over": {**sound, "lstm/peephole:0": np.zeros(3, np.float32)},
        "shape": {**sound, "lstm/kernel:0": np.zeros((5, 12), np.float32)},
        "dtype": {**sound, "lstm/kernel:0": sound["lstm/kernel:0"].astype(np.float64)},
    }
    for name, weights in damaged.items():
        with pytest.raises(BadInput, match=r"lstm: the (stored )?weight"):
            load(write(tmp_path / f"{name}.h5", document, {"lstm": weights}), None)
    extra = {"lstm": sound, "gone": uniform(rng, kernel=(2, 2))}
    with pytest.raises(BadInput, match="gone: the stored weights"):
        load(write(tmp_path / "extra.h5", document, extra), None)


def test_calls_that_go_nowhere_are_refused(rng: np.random.Generator, tmp_path: Path) -> None:
    circle = [source("x", 2), entry("Activation", "a", [[ref("b")]], activation="relu"),
              entry("Activation", "b", [[ref("a")]], activation="relu")]  # fmt: skip
    with pytest.raises(BadInput, match="wait for one another"):
        load(write(tmp_path / "a.h5", functional(circle, ["x"], ["b"]), {}), None)
    beyond = [source("x", 2), entry("Activation", "a", [[ref("x", 0, 3)]], activation="relu")]
    with pytest.raises(BadInput, match="an output that is not there"):
        load(write(tmp_path / "b.h5", functional(beyond, ["x"], ["a"]), {}), None)
    argument = [source("x", 2), entry("Dropout", "a", [[ref("x", training={"class_name": "X"})]], rate=0.5)]
    with pytest.raises(Unsupported, match="'training'"):
        load(write(tmp_path / "c.h5", functional(argument, ["x"], ["a"]), {}), None)


def test_a_mask_over_time_major_is_refused(rng: np.random.Generator, tmp_path: Path) -> None:
    layers = [
        entry("Masking", "m", mask_value=0.0, **FIRST),
        entry("LSTM", "lstm", units=UNITS, activation="tanh", recurrent_activation="sigmoid", time_major=True),
    ]
    path = write(tmp_path / "m.h5", {"class_name": "Sequential", "config": layers},
                 {"lstm": named("lstm", recurrent(rng, 4))})  # fmt: skip
    with pytest.raises(Unsupported, match="a mask over a time_major layer"):
        load(path, None)


def test_weights_alone_of_other_layers_are_refused(rng: np.random.Generator, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file.attrs["keras_version"] = b"2.3.0"
        for name, arrays in {"lstm": recurrent(rng, 4), "dense": uniform(rng, kernel=(UNITS, 2), bias=(2,))}.items():
            for key, array in arrays.items():
                file[f"{name}/{name}/{key}:0"] = array
    with pytest.raises(Unsupported, match="weights alone, and not what lies between"):
        load(str(tmp_path / "w.h5"), None)
    assert isinstance(bridge.cells(tmp_path / "w.h5")["lstm"], Cell)


def test_a_configuration_without_end_is_bad_input(rng: np.random.Generator, tmp_path: Path) -> None:
    layer: dict[str, Any] = entry("Dense", "d", units=2, **FIRST)
    for _ in range(150):
        layer = {"class_name": "Sequential", "config": [layer]}
    with pytest.raises(BadInput):
        load(write(tmp_path / "m.h5", {"class_name": "Sequential", "config": {"name": "s", "layers": [
            {**layer, "config": {"name": "x", "layers": [layer]}}]}}, {}), None)  # fmt: skip


ODD: list[Any] = [None, -1, 0, 2**40, 1.5, 1e300, "x", [], {}, [[]], [None], {"class_name": "Lambda", "config": {}},
                  True, [["x", 0, 0, {}]], {"config": 3}]  # fmt: skip


def places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of everything in a configuration."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [path, *(place for key, value in items for place in places(value, (*path, key)))]


def test_a_configuration_with_anything_in_it_ends_in_one_error_or_a_model(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    inner = entry("GRU", "g", units=UNITS, activation="tanh", recurrent_activation="hard_sigmoid")
    layers = [source("x", None, 4), entry("Bidirectional", "both", [[ref("x")]], layer=inner, merge_mode="concat"),
              entry("Dense", "out", [[ref("both")]], units=2, activation="relu")]  # fmt: skip
    weights = {"both": {**named("both/forward_g", recurrent(rng, 3)), **named("both/backward_g", recurrent(rng, 3))},
               "out": named("out", uniform(rng, kernel=(2 * UNITS, 2), bias=(2,)))}  # fmt: skip
    document = functional(layers, ["x"], ["out"])
    refusals = 0
    for *above, last in [place for place in places(document) if place]:
        changed = copy.deepcopy(document)
        node: Any = changed
        for key in above:
            node = node[key]
        node[last] = ODD[rng.integers(len(ODD))]
        try:
            load(write(tmp_path / "m.h5", changed, weights, names=["both", "out"]), None)
        except BridgeError:
            refusals += 1
    assert refusals > 30  # of some 60 places; the others hold options that mean nothing to the numbers
