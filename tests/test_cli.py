"""The command line by what a user sees of it: exit code, stdout and stderr."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import onnx
import pytest
from jsonschema import Draft202012Validator

import bridge
from bridge.cli import main
from bridge.ops.program import evaluate
from tests.cells import random_cell
from tests.tolerances import assert_within_referee_bound

ROOT = Path(__file__).parents[1]


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def call(*words: object) -> Done:
    """The command in this process: a process for each call would cost a second."""
    out, err = io.StringIO(), io.StringIO()
    argv = mock.patch.object(sys, "argv", ["rnn-bridge", *map(str, words)])
    with argv, redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as stop:
        main()
    return Done(int(stop.value.code or 0), out.getvalue(), err.getvalue())


def document(done: Done, schema: str) -> dict[str, Any]:
    """What --json printed, accepted by its schema; stdout holds that and nothing else."""
    found: dict[str, Any] = json.loads(done.stdout)
    Draft202012Validator(json.loads((ROOT / "schemas" / f"{schema}.schema.json").read_text())).validate(found)
    return found


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "gru.onnx"
    cell = random_cell("GRU", 3, 4, np.random.default_rng(0), linear_before_reset=True)
    bridge.to_onnx(cell, path, lengths=True, states="inputs")
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A torch GRU's parameters in an .npz, with the names of its state_dict."""
    path = tmp_path_factory.mktemp("weights") / "gru.npz"
    params = bridge.write_params("torch.GRU", random_cell("torch.GRU", 3, 4, np.random.default_rng(1)))
    np.savez(path, **{f"{name}_l0": array for name, array in params.items()})
    return path


def test_inspect_says_what_each_target_would_hold(model: Path) -> None:
    found = document(call("inspect", model, "--json"), "inspection")
    (layer,) = found["layers"]
    assert (layer["name"], layer["op"], layer["input_size"], layer["hidden_size"]) == ("l0", "GRU", 3, 4)
    targets = {target["layout"]: target for target in layer["targets"]}
    # 3 gates of 4 units: 12 * (3 + 4) weights, and two biases, one and a half, or one of 12.
    assert targets["torch.GRU"]["parameters"] == 12 * 7 + 24
    assert targets["flax.linen.GRUCell"]["parameters"] == 12 * 7 + 16
    assert not targets["flax.nnx.GRUCell"]["holds"]
    assert "Rb" in targets["flax.nnx.GRUCell"]["reason"]


def test_inspect_as_text_names_the_layer(model: Path) -> None:
    done = call("inspect", model)
    assert done.returncode == 0
    assert "l0: GRU 3 -> 4, forward, float32" in done.stdout


def test_convert_writes_a_model_and_reads_its_own_file_back(weights: Path, tmp_path: Path) -> None:
    target = tmp_path / "model.onnx"
    done = call("convert", weights, target, "--json")
    assert done.returncode == 0, done.stderr
    assert document(done, "convert")["bytes"] == target.stat().st_size
    assert list(bridge.cells(target)) == ["l0"]


def test_convert_to_arrays_of_another_framework(model: Path, tmp_path: Path) -> None:
    target = tmp_path / "linen.npz"
    done = call("convert", model, target, "--to", "flax.linen", "--json")
    assert document(done, "convert")["layouts"] == ["flax.linen.GRUCell"]
    with np.load(target) as arrays:
        params = {name.removeprefix("l0."): arrays[name] for name in arrays}
    cell = bridge.read_params("flax.linen.GRUCell", params)
    assert np.array_equal(cell.W, bridge.cells(model)["l0"].W)


STACKS = [
    (".pt", "LSTM", {}), (".onnx", "LSTM", {}), (".pt", "LSTM", {"num_layers": 2, "bidirectional": True}),
    (".pt", "LSTM", {"bias": False}), (".pt", "GRU", {}), (".pt", "RNN", {}),
    (".onnx", "RNN", {"nonlinearity": "relu", "num_layers": 2, "bidirectional": True}),
    (".onnx", "LSTM", {"dtype": "float64", "num_layers": 2}), (".onnx", "GRU", {"dtype": "float16"}),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")  # Keras, as it saves
@pytest.mark.parametrize(("suffix", "kind", "options"), STACKS, ids=str)
def test_convert_of_a_bare_stack_gives_native_keras_layers(
    suffix: str, kind: str, options: dict[str, Any], tmp_path: Path
) -> None:
    """Keras' LSTM and SimpleRNN have one bias and torch's have two: their rounded sum is no other function."""
    import keras
    import torch

    source, target = tmp_path / f"stack{suffix}", tmp_path / "stack.keras"
    torch.manual_seed(0)
    dtype = options.get("dtype", "float32")
    layer = getattr(torch.nn, kind)(4, 5, batch_first=True, **{**options, "dtype": getattr(torch, dtype)})
    if suffix == ".pt":
        torch.save(layer.state_dict(), source)
    else:
        bridge.to_onnx(layer, source)
    done = call("convert", source, target)
    assert done.returncode == 0, done.stderr
    found = keras.saving.load_model(target)
    assert all(type(one).__module__.startswith("keras.") for one in found.layers)
    x = np.random.default_rng(0).standard_normal((3, 6, 4)).astype(dtype)
    model = bridge.to_onnx(layer)
    expected, referee = bridge.run(model, {"input": x})["output"], evaluate(model, {"input": x})["output"]
    assert_within_referee_bound(found(x), expected, referee)


def test_convert_says_what_takes_a_model_that_is_no_stack(model: Path, tmp_path: Path) -> None:
    refused = document(call("convert", model, tmp_path / "model.keras", "--json"), "error")
    assert (refused["error"], refused["exit_code"]) == ("NotRepresentable", 3)
    assert "several inputs" in refused["message"]
    assert "bridge.to_keras(source)" in refused["do"]


@pytest.mark.parametrize(
    ("suffix", "option"),
    [(".keras", "--to flax.nnx"), (".keras", "--to nonsense"), (".keras", "--opset 21"), (".npz", "--lengths"),
     (".safetensors", "--form scan"), (".pt", "--states inputs"), (".pth", "--external-data"),
     ("", "--external-data --to flax-code")], ids=str,
)  # fmt: skip
def test_an_option_that_the_target_would_drop_is_refused(
    suffix: str, option: str, weights: Path, tmp_path: Path
) -> None:
    target = tmp_path / f"target{suffix}"
    refused = document(call("convert", weights, target, *option.split(), "--json"), "error")
    assert (refused["error"], refused["exit_code"]) == ("UsageError", 2)
    assert option.split()[0] in f"{refused['where']} {refused['got']}"
    assert not target.exists()


def test_a_model_that_cannot_be_read_leaves_no_target(model: Path, tmp_path: Path) -> None:
    wrong, target = onnx.load(model), tmp_path / "target.onnx"
    (gru,) = (node for node in wrong.graph.node if node.op_type == "GRU")
    (size,) = (attribute for attribute in gru.attribute if attribute.name == "hidden_size")
    size.i += 1
    onnx.save(wrong, tmp_path / "wrong.onnx")
    refused = document(call("convert", tmp_path / "wrong.onnx", target, "--json"), "error")
    assert (refused["error"], refused["exit_code"]) == ("BadInput", 4)
    assert not target.exists()


def test_explain_says_that_its_own_argument_is_wrong(model: Path) -> None:
    refused = document(call("explain", model, "nonsense", "--json"), "error")
    assert (refused["error"], refused["where"]) == ("UsageError", "explain")


def test_an_existing_target_is_kept_unless_overwrite_is_said(weights: Path, tmp_path: Path) -> None:
    target = tmp_path / "model.onnx"
    target.write_text("precious")
    refused = call("convert", weights, target)
    assert refused.returncode == 2
    assert target.read_text() == "precious"
    assert call("convert", weights, target, "--overwrite").returncode == 0
    assert target.read_bytes() != b"precious"
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_verify_passes_on_equal_models_and_prints_the_report(model: Path) -> None:
    done = call("verify", model, model, "--json")
    assert done.returncode == 0, done.stderr
    report = document(done, "report")
    assert report["passed"]
    assert {pair["time"] for pair in report["pairs"]} == {7, 5, 24}
    assert report["providers"] == {"l0": "CPUExecutionProvider"}


def test_verify_exits_1_where_the_models_differ(model: Path, tmp_path: Path) -> None:
    cell = bridge.cells(model)["l0"]
    broken = np.array(cell.W)
    broken[:, :4], broken[:, 4:8] = cell.W[:, 4:8], cell.W[:, :4]
    other = tmp_path / "swapped.onnx"
    changed = bridge.Cell("GRU", W=broken, R=cell.R, B=cell.B, linear_before_reset=True)
    bridge.to_onnx(changed, other, lengths=True, states="inputs")
    done = call("verify", model, other, "--json")
    assert done.returncode == 1
    assert not document(done, "report")["passed"]


def test_explain_goes_through_onnx_gate_by_gate() -> None:
    found = document(call("explain", "torch.GRU", "keras.GRU", "--json"), "explanation")
    steps = {(step["block"], step["gate"]): step for step in found["layers"][0]["steps"]}
    # torch stores r, z, n; ONNX and Keras z, r, h.
    assert steps["W", "z"]["source"] == {"key": "weight_ih", "slice": "[H:2H, :]", "note": ""}
    assert steps["W", "z"]["onnx"] == "W[0, 0:H]"
    assert steps["W", "z"]["target"] == {"key": "kernel", "slice": "[:, 0:H]", "note": "transposed"}


def test_explain_of_a_file_uses_its_own_sizes_and_options(weights: Path) -> None:
    found = document(call("explain", weights, "flax.linen", "--json"), "explanation")
    assert found["layers"][0]["target"] == "flax.linen.GRUCell"
    assert found["layers"][0]["sizes"] == "H = 4, I = 3"


def test_layouts_lists_every_layout() -> None:
    found = document(call("layouts", "--json"), "layouts")
    assert [row["layout"] for row in found["layouts"]] == list(bridge.layouts())


def test_doctor_names_providers_that_load_and_what_is_missing() -> None:
    found = document(call("doctor", "--json"), "doctor")
    assert "CPUExecutionProvider" in found["providers"]
    assert all(library["version"] or "pip install" in library["install"] for library in found["libraries"])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no device that is always full")
@pytest.mark.parametrize("flags", [(), ("--json",)], ids=str)
def test_a_full_disk_behind_stdout_is_one_error_without_a_traceback(flags: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "bridge", "layouts", *flags]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 3
    assert done.stderr.startswith("BridgeError: stdout: the result cannot be written")
    assert "Traceback" not in done.stderr


def test_a_reader_that_closes_early_has_what_it_wanted() -> None:
    command = [sys.executable, "-m", "bridge", "layouts", "--json"]
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_module_is_the_command_in_a_process_of_its_own() -> None:
    done = subprocess.run([sys.executable, "-m", "bridge", "layouts"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == len(bridge.layouts())
    failed = subprocess.run([sys.executable, "-m", "bridge", "explain", "a", "b"], capture_output=True, check=False)
    assert failed.returncode == 2


FAILURES = [
    (("inspect", "missing.onnx"), 4),
    (("inspect", "file.unknown"), 2),
    (("explain", "torch.LSTN", "keras.LSTM"), 2),
    (("convert", "missing.npz", "out.onnx", "--opset", "3"), 2),
    (("convert",), 2),
    (("verify", "missing.onnx", "nowhere"), 4),
    (("frobnicate",), 2),
]


@pytest.mark.parametrize(("words", "code"), FAILURES, ids=lambda value: str(value))
def test_a_failure_is_one_error_with_its_code_and_no_traceback(words: tuple[str, ...], code: int) -> None:
    done = call(*words)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(("words", "code"), FAILURES, ids=lambda value: str(value))
def test_under_json_a_failure_is_one_document(words: tuple[str, ...], code: int) -> None:
    assert document(call(*words, "--json"), "error")["exit_code"] == code


def test_a_near_miss_names_the_layout_that_was_meant() -> None:
    assert "torch.LSTM" in call("explain", "torch.LSTN", "keras.LSTM").stderr
