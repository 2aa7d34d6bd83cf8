"""Hostile and broken Keras files through the public API."""

from __future__ import annotations

import json
import warnings
import zipfile
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import bridge
from tests.refusals import reads, refused

if TYPE_CHECKING:
    from pathlib import Path

SUFFIXES = (".keras", ".h5")
FIXTURE = HealthCheck.function_scoped_fixture  # the folder is overwritten by every example
quick = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[FIXTURE])


@pytest.fixture(scope="module")
def samples(tmp_path_factory) -> dict[str, bytes]:
    """A sound model as .keras and as legacy .h5."""
    import keras

    folder = tmp_path_factory.mktemp("samples")
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4, 3)), keras.layers.LSTM(5, return_sequences=True), keras.layers.GRU(2)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras's own, about numpy 2 and about HDF5
        model.save(folder / "m.keras")
        model.save(folder / "m.h5")
    return {suffix: (folder / f"m{suffix}").read_bytes() for suffix in SUFFIXES}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "folder"
    path.mkdir()
    return path


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_sound_file_is_read(suffix, samples, folder):
    (folder / f"m{suffix}").write_bytes(samples[suffix])
    assert [cell.op for cell in bridge.cells(folder / f"m{suffix}").values()] == ["LSTM", "GRU"]


@pytest.mark.parametrize("suffix", SUFFIXES)
@quick
@given(data=st.binary(max_size=300))
def test_random_bytes_are_refused(suffix, data, folder):
    (folder / f"m{suffix}").write_bytes(data)
    assert reads(folder / f"m{suffix}", folder) is not None


@pytest.mark.parametrize("suffix", SUFFIXES)
@quick
@given(part=st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_is_refused(suffix, part, samples, folder):
    data = samples[suffix]
    (folder / f"m{suffix}").write_bytes(data[: int(part * len(data))])
    assert reads(folder / f"m{suffix}", folder) is not None


@pytest.mark.parametrize("suffix", SUFFIXES)
@quick
@given(flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=6))
def test_a_corrupted_file_gives_an_error_of_ours_or_a_whole_model(suffix, flips, samples, folder):
    data = bytearray(samples[suffix])
    for place, change in flips:
        data[int(place * len(data))] ^= change
    (folder / f"m{suffix}").write_bytes(bytes(data))
    reads(folder / f"m{suffix}", folder)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_missing_file_and_a_folder_are_refused(suffix, folder):
    refused(lambda: bridge.cells(folder / f"m{suffix}"), bridge.BadInput, folder)
    (folder / f"m{suffix}").mkdir()
    refused(lambda: bridge.cells(folder / f"m{suffix}"), bridge.BadInput, folder)


def changed_config(source: bytes, path: Path, change: Any) -> None:
    """The .keras file with its configuration changed."""
    whole = path.with_name("whole.zip")
    whole.write_bytes(source)
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name == "config.json":
                config = json.loads(data)
                change(config)
                data = json.dumps(config).encode()
            new.writestr(name, data)
    whole.unlink()


def test_code_in_a_lambda_layer_is_never_run(samples, folder, tmp_path):
    import keras

    proof = tmp_path / "proof"
    function = eval(f"lambda x: (__import__('os').mkdir({str(proof)!r}), x)[1]")
    layer = keras.saving.serialize_keras_object(keras.layers.Lambda(function))
    changed_config(samples[".keras"], folder / "m.keras", lambda config: config["config"]["layers"].append(layer))
    refused(lambda: bridge.cells(folder / "m.keras"), bridge.BridgeError, folder)
    refused(lambda: bridge.to_onnx(folder / "m.keras", folder / "out.onnx"), bridge.BridgeError, folder)
    assert not proof.exists()


def test_a_class_that_nothing_knows_is_refused(samples, folder):
    def rename(config: dict[str, Any]) -> None:
        config["config"]["layers"][1].update(class_name="Popen", module="subprocess", registered_name=None)

    changed_config(samples[".keras"], folder / "m.keras", rename)
    refused(lambda: bridge.cells(folder / "m.keras"), bridge.BridgeError, folder)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(value, samples, folder):
    path = folder / "m.h5"
    path.write_bytes(samples[".h5"])
    with h5py.File(path, "r+") as file:
        names: list[str] = []
        file.visit(names.append)
        kernel = next(name for name in names if name.endswith(("recurrent_kernel", "recurrent_kernel:0")))
        file[kernel][0, 0] = value
    refused(lambda: bridge.cells(path), bridge.BadInput, folder)


def test_a_link_out_of_an_h5_file_is_refused(samples, folder, tmp_path):
    other = tmp_path / "other.h5"
    with h5py.File(other, "w") as file:
        file["secret"] = np.ones((5, 20), np.float32)
    path = folder / "m.h5"
    path.write_bytes(samples[".h5"])
    with h5py.File(path, "r+") as file:
        names: list[str] = []
        file.visit(names.append)
        kernel = next(name for name in names if "lstm" in name and "recurrent_kernel" in name)
        del file[kernel]
        file[kernel] = h5py.ExternalLink(str(other), "secret")
    refused(lambda: bridge.cells(path), bridge.BadInput, folder)


def test_a_model_that_is_more_than_its_cells_is_not_written_as_a_bare_stack(folder):
    import keras

    from bridge.frameworks.files import convert_file

    layers = [
        keras.layers.LSTM(3, return_sequences=True),
        keras.layers.Dense(3, activation="relu"),
        keras.layers.LSTM(3),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras's own, about numpy 2
        keras.Sequential([keras.Input((4, 3)), *layers]).save(folder / "m.keras")
    options = {"layout": "", "overwrite": False, "external_data": None, "export": {}}
    refused(lambda: convert_file(str(folder / "m.keras"), folder / "out.keras", **options), bridge.Refused, folder)


def test_the_cells_of_an_h5_file_stand_in_the_order_of_the_model(folder):
    import keras

    layers = [keras.layers.LSTM(3, return_sequences=True, name=name) for name in ("zeta", "alpha", "mu")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras's own, about HDF5
        keras.Sequential([keras.Input((4, 3)), *layers]).save(folder / "m.h5")
    assert list(bridge.cells(folder / "m.h5")) == ["zeta", "alpha", "mu"]
