"""Keras files: .keras in safe mode, h5 of every age, and hostile ones."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
from keras import layers

from bridge.errors import BadInput, BridgeError, NotRepresentable, Unsupported
from bridge.frameworks import keras as door
from bridge.frameworks.door import ExportOptions
from bridge.frameworks.keras_h5 import read_h5
from bridge.reference import evaluate
from tests.frameworks.keras_cases import INPUTS, assert_export_agrees, filled

UNITS = 3
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"  # Keras, as it saves
)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def stack(rng: np.random.Generator) -> keras.Sequential:
    return filled(keras.Sequential([
        keras.Input((None, INPUTS)),
        layers.Bidirectional(layers.GRU(5, return_sequences=True), name="both"),
        layers.LSTM(UNITS, go_backwards=True, recurrent_activation="hard_sigmoid", name="last"),
    ]), rng)  # fmt: skip


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_cells_of_a_saved_model_are_those_of_the_model(suffix: str, rng: np.random.Generator, tmp_path: Path) -> None:
    model = stack(rng)
    model.save(tmp_path / f"m{suffix}")
    assert door.cells(tmp_path / f"m{suffix}") == door.cells(model)


def test_a_keras_file_exports_like_its_model(rng: np.random.Generator, tmp_path: Path) -> None:
    stack(rng).save(tmp_path / "m.keras")
    assert_export_agrees(str(tmp_path / "m.keras"), rng, (5, 2, 0))


def test_weights_of_keras_3_say_what_is_not_recorded(rng: np.random.Generator, tmp_path: Path) -> None:
    model = stack(rng)
    model.save_weights(tmp_path / "w.weights.h5")
    found = read_h5(str(tmp_path / "w.weights.h5"))
    assert found.cells["bidirectional"] == door.cells(model)["both"]
    assert "bidirectional: activations and direction are not recorded; the defaults of Keras 3" in found.notes[0]


# ---------------------------------------------------------------------- legacy h5, made by hand


def write_legacy(
    path: Path, weights: dict[str, np.ndarray], *, version: str = "2.2.0", config: dict[str, Any] | None = None
) -> str:
    with h5py.File(path, "w") as file:
        root = file if config is None else file.create_group("model_weights")
        file.attrs["keras_version"] = version.encode()
        if config is not None:
            layer = {"class_name": "LSTM", "config": {"name": "layer_1", **config}}
            document = {"class_name": "Sequential", "config": [layer]}
            file.attrs["model_config"] = json.dumps(document).encode()
        for name, array in weights.items():
            root[f"layer_1/layer_1/{name}:0"] = array
    return str(path)


def weights_of(rng: np.random.Generator, gates: int, bias: tuple[int, ...] | None) -> dict[str, np.ndarray]:
    shapes = {"kernel": (INPUTS, gates * UNITS), "recurrent_kernel": (UNITS, gates * UNITS), "bias": bias}
    return {name: rng.uniform(-1, 1, shape).astype(np.float32) for name, shape in shapes.items() if shape is not None}


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def cudnn_lstm(weights: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """The last h, by cuDNN's own equations: gates i, f, c, o, each kernel a transposed buffer, two biases."""
    W = [np.reshape(part, (UNITS, -1)) for part in np.split(weights["kernel"].astype(np.float64), 4, axis=1)]
    R = [np.reshape(part, (UNITS, -1)) for part in np.split(weights["recurrent_kernel"].astype(np.float64), 4, axis=1)]
    b = np.split(weights["bias"].astype(np.float64), 8)
    h = c = np.zeros((x.shape[1], UNITS))
    for step in x:
        i, f, g, o = (step @ W[at].T + b[at] + h @ R[at].T + b[4 + at] for at in range(4))
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
    return h


def cudnn_gru(weights: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """The last h of CuDNNGRU: gates z, r, h in Keras' order, the reset gate after the product."""
    W = [np.reshape(part, (UNITS, -1)) for part in np.split(weights["kernel"].astype(np.float64), 3, axis=1)]
    R = [np.reshape(part, (UNITS, -1)) for part in np.split(weights["recurrent_kernel"].astype(np.float64), 3, axis=1)]
    b = np.split(weights["bias"].astype(np.float64), 6)
    h = np.zeros((x.shape[1], UNITS))
    for step in x:
        given, own = ([v @ M[at].T + b[at + shift] for at in range(3)] for v, M, shift in ((step, W, 0), (h, R, 3)))
        z, r = sigmoid(given[0] + own[0]), sigmoid(given[1] + own[1])
        h = z * h + (1 - z) * np.tanh(given[2] + r * own[2])
    return h


@pytest.mark.parametrize(
    ("gates", "bias", "independent"), [(4, 8, cudnn_lstm), (3, 6, cudnn_gru)], ids=["CuDNNLSTM", "CuDNNGRU"]
)
def test_cudnn_weights_mean_what_cudnn_computes(
    gates: int, bias: int, independent: Callable[..., np.ndarray], rng: np.random.Generator, tmp_path: Path
) -> None:
    weights = weights_of(rng, gates, (bias * UNITS,))
    cell = door.cells(write_legacy(tmp_path / "c.h5", weights))["layer_1"]
    x = rng.standard_normal((5, 2, INPUTS)).astype(np.float32)
    _, Y_h, _ = evaluate(cell, x)
    np.testing.assert_allclose(Y_h[0], independent(weights, x), rtol=0, atol=1e-12)  # float64 both


@pytest.mark.parametrize(
    ("version", "activation"), [("2.2.0", "HardSigmoid(0.2, 0.5)"), ("2.3.1", "Sigmoid"), ("2.8.0", "Sigmoid")]
)
def test_weights_alone_take_the_defaults_of_their_version(
    version: str, activation: str, rng: np.random.Generator, tmp_path: Path
) -> None:
    path = write_legacy(tmp_path / "w.h5", weights_of(rng, 4, (4 * UNITS,)), version=version)
    found = read_h5(path)
    assert str(found.cells["layer_1"].activation_table()[0][0]) == activation
    assert f"the defaults of Keras {version}" in found.notes[0]


@pytest.mark.parametrize("version", ["2.2.4-tf", "2.1.6-tf", ""])
def test_a_version_that_does_not_tell_is_refused(version: str, rng: np.random.Generator, tmp_path: Path) -> None:
    path = write_legacy(tmp_path / "w.h5", weights_of(rng, 4, (4 * UNITS,)), version=version)
    with pytest.raises(Unsupported, match="does not record recurrent_activation"):
        door.cells(path)


def test_a_recorded_configuration_decides(rng: np.random.Generator, tmp_path: Path) -> None:
    config = {"activation": "relu", "recurrent_activation": "hard_sigmoid", "go_backwards": True}
    old = write_legacy(tmp_path / "old.h5", weights_of(rng, 3, (3 * UNITS,)), version="2.2.4-tf", config=config)
    new = write_legacy(tmp_path / "new.h5", weights_of(rng, 3, (2, 3 * UNITS)), version="3.4.0", config=config)
    (before,), (after,) = (list(door.cells(path).values()) for path in (old, new))
    assert [str(one) for one in before.activation_table()[0]] == ["HardSigmoid(0.2, 0.5)", "Relu"]
    assert [str(one) for one in after.activation_table()[0]] == ["HardSigmoid(0.166667, 0.5)", "Relu"]
    assert (before.direction, before.linear_before_reset, after.linear_before_reset) == ("reverse", False, True)


def test_a_gru_without_bias_needs_its_configuration(rng: np.random.Generator, tmp_path: Path) -> None:
    weights = weights_of(rng, 3, None)
    with pytest.raises(Unsupported, match="whether reset_after"):
        door.cells(write_legacy(tmp_path / "w.h5", weights, version="2.3.0"))
    config = {"activation": "tanh", "recurrent_activation": "sigmoid"}
    found = read_h5(write_legacy(tmp_path / "m.h5", weights, version="2.3.0", config=config))
    assert found.cells["layer_1"].linear_before_reset is False
    assert found.notes == ("layer_1: reset_after is not recorded, so it is False; Keras 3 would take True",)


def test_an_activation_that_the_operator_lacks_is_refused(rng: np.random.Generator, tmp_path: Path) -> None:
    config = {"activation": "selu", "recurrent_activation": "sigmoid"}
    path = write_legacy(tmp_path / "m.h5", weights_of(rng, 4, (4 * UNITS,)), config=config)
    with pytest.raises(NotRepresentable, match="'selu'"):
        door.cells(path)


def test_weights_alone_export_as_their_stack(rng: np.random.Generator, tmp_path: Path) -> None:
    path = write_legacy(tmp_path / "m.h5", weights_of(rng, 4, (4 * UNITS,)))
    model = assert_export_agrees(path, rng)
    assert [output.name for output in model.graph.outputs] == ["layer_1", "layer_1.1", "layer_1.2"]
    assert "the defaults of Keras 2.2.0" in model.metadata_props["bridge.notes"]


# ---------------------------------------------------------------------- hostile files


def _random_bytes(path: Path, rng: np.random.Generator) -> None:
    path.write_bytes(rng.bytes(500))


def _empty(path: Path, rng: np.random.Generator) -> None:
    path.write_bytes(b"")


def _truncated(path: Path, rng: np.random.Generator) -> None:
    whole = path.with_name("whole.keras")
    stack(rng).save(whole)
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])


def _other_archive(path: Path, rng: np.random.Generator) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", "[" * 10)
        archive.writestr("model.weights.h5", b"")


def test_a_configuration_nested_without_end_is_bad_input(rng: np.random.Generator, tmp_path: Path) -> None:
    nested = "[" * 100_000 + "]" * 100_000
    with zipfile.ZipFile(tmp_path / "deep.keras", "w") as archive:
        archive.writestr("config.json", nested)
        archive.writestr("model.weights.h5", b"")
    with pytest.raises(BadInput, match="not a readable"):
        door.cells(tmp_path / "deep.keras")
    path = write_legacy(tmp_path / "deep.h5", weights_of(rng, 4, (4 * UNITS,)))
    with h5py.File(path, "a") as file:
        file.attrs["model_config"] = nested[:30_000] + nested[-30_000:]
    with pytest.raises(BadInput, match="no JSON"):
        door.cells(path)


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize("damage", [_random_bytes, _empty, _truncated, _other_archive])
def test_malformed_files_end_in_one_error(
    damage: Callable[..., None], suffix: str, rng: np.random.Generator, tmp_path: Path
) -> None:
    path = tmp_path / f"bad{suffix}"
    damage(path, rng)
    with pytest.raises(BadInput, match="not a readable"):
        door.cells(path)
    with pytest.raises(BridgeError):
        door.export(path, ExportOptions())


def test_a_file_that_is_not_there_is_bad_input(tmp_path: Path) -> None:
    for suffix in (".keras", ".h5"):
        with pytest.raises(BadInput):
            door.cells(tmp_path / f"none{suffix}")


def test_code_and_foreign_classes_in_a_keras_file_are_refused(rng: np.random.Generator, tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((None, INPUTS)), layers.LSTM(2), layers.Lambda(lambda x: x + 1)])
    model.save(tmp_path / "lambda.keras")
    with pytest.raises(Unsupported, match="Lambda, which is code"):
        door.cells(tmp_path / "lambda.keras")
    stack(rng).save(tmp_path / "m.keras")
    with zipfile.ZipFile(tmp_path / "m.keras") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["config.json"] = members["config.json"].replace(b'"keras.layers"', b'"os.path"')
    with zipfile.ZipFile(tmp_path / "foreign.keras", "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    with pytest.raises(Unsupported, match=r"names the class os\.path"):
        door.cells(tmp_path / "foreign.keras")


def test_links_and_impossible_sizes_in_h5_are_refused(rng: np.random.Generator, tmp_path: Path) -> None:
    linked = write_legacy(tmp_path / "link.h5", weights_of(rng, 4, None))
    with h5py.File(linked, "a") as file:
        file["layer_1/layer_1/bias:0"] = h5py.ExternalLink("/etc/passwd", "x")
    with pytest.raises(BadInput, match="a link"):
        door.cells(linked)
    huge = write_legacy(tmp_path / "huge.h5", weights_of(rng, 4, (4 * UNITS,)))
    with h5py.File(huge, "a") as file:
        del file["layer_1/layer_1/kernel:0"]
        file.create_dataset("layer_1/layer_1/kernel:0", (10**9, 4 * UNITS), "float32", chunks=(1000, 12))
    with pytest.raises(BadInput, match="larger than the file can hold"):
        door.cells(huge)


@pytest.mark.parametrize("shape", [(3, 13), (3, 15), (0, 12)], ids=str)
def test_a_recurrent_kernel_of_no_layer_is_refused(shape: tuple[int, int], tmp_path: Path) -> None:
    weights = {"kernel": np.ones((4, 12), np.float32), "recurrent_kernel": np.ones(shape, np.float32)}
    with pytest.raises(BadInput):
        door.cells(write_legacy(tmp_path / "w.h5", weights))
