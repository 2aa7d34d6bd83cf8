"""Hostile and broken input through the public API: files of arrays and ONNX files, parameters, options, targets."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors.numpy import save_file

import bridge
from tests.cells import random_cell
from tests.conformance.rows import needed
from tests.refusals import listing, reads, refused

SUFFIXES = (".onnx", ".npz", ".safetensors", ".pt")

FIXTURE = HealthCheck.function_scoped_fixture  # the folder is emptied or overwritten by every example
quick = settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[FIXTURE])


def parameters(inputs: int = 3, hidden: int = 5, kind: str = "LSTM") -> dict[str, np.ndarray]:
    """One torch layer as flat arrays."""
    params = bridge.write_params(f"torch.{kind}", random_cell(kind, inputs, hidden, np.random.default_rng(0), **(
        {"linear_before_reset": True} if kind == "GRU" else {})))  # fmt: skip
    return {f"rnn.{name}_l0": value for name, value in params.items()}


def write(path: Path, params: dict[str, np.ndarray]) -> Path:
    """The arrays as a file of the kind that the suffix says."""
    if path.suffix == ".npz":
        np.savez(path, **params)
    elif path.suffix == ".safetensors":
        save_file(params, path)
    else:
        import torch

        torch.save({name: torch.from_numpy(value) for name, value in params.items()}, path)
    return path


@pytest.fixture(scope="module")
def samples(tmp_path_factory) -> dict[str, bytes]:
    """A sound file of every kind."""
    folder = tmp_path_factory.mktemp("samples")
    files = {suffix: write(folder / f"m{suffix}", parameters()) for suffix in SUFFIXES[1:]}
    bridge.to_onnx(files[".npz"], folder / "m.onnx")
    return {suffix: (folder / f"m{suffix}").read_bytes() for suffix in SUFFIXES}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "folder"
    path.mkdir()
    return path


# ---------------------------------------------------------------------- bytes


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_sound_file_is_read(suffix, samples, folder):
    (folder / f"m{suffix}").write_bytes(samples[suffix])
    assert reads(folder / f"m{suffix}", folder) is None


@pytest.mark.parametrize("suffix", SUFFIXES)
@quick
@given(data=st.binary(max_size=300))
def test_random_bytes_are_refused(suffix, data, folder):
    path = folder / f"m{suffix}"
    path.write_bytes(data)
    assert reads(path, folder) is not None


@pytest.mark.parametrize("suffix", SUFFIXES)
@quick
@given(part=st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_is_refused(suffix, part, samples, folder):
    path = folder / f"m{suffix}"
    path.write_bytes(samples[suffix][: int(part * len(samples[suffix]))])
    assert reads(path, folder) is not None


@pytest.mark.parametrize("suffix", SUFFIXES)
@quick
@given(flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=6))
def test_a_corrupted_file_gives_an_error_of_ours_or_whole_cells(suffix, flips, samples, folder):
    data = bytearray(samples[suffix])
    for place, change in flips:
        data[int(place * len(data))] ^= change
    path = folder / f"m{suffix}"
    path.write_bytes(bytes(data))
    reads(path, folder)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_folder_in_place_of_a_file_is_refused(suffix, folder):
    (folder / f"m{suffix}").mkdir()
    refused(lambda: bridge.cells(folder / f"m{suffix}"), bridge.BadInput, folder)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_missing_file_is_refused(suffix, folder):
    refused(lambda: bridge.cells(folder / f"m{suffix}"), bridge.BadInput, folder)


# ---------------------------------------------------------------------- code in files


class Code:
    """A pickle that makes a folder where it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("form", ["plain", "zip", "npz"])
def test_code_in_a_pickle_is_never_run(form, folder, tmp_path):
    proof = tmp_path / "proof"
    code = pickle.dumps({"rnn.weight_ih_l0": Code(proof)})
    if form == "npz":
        path = folder / "m.npz"
        np.savez(path, **{"rnn.weight_ih_l0": np.array([Code(proof)], dtype=object)})
    elif form == "plain":
        path = folder / "m.pt"
        path.write_bytes(code)
    else:
        path = folder / "m.pt"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("m/data.pkl", code)
            archive.writestr("m/version", "3\n")
    refused(lambda: bridge.cells(path), bridge.BadInput, folder)
    refused(lambda: bridge.to_onnx(path, folder / "out.onnx"), bridge.BadInput, folder)
    assert not proof.exists()


@pytest.mark.parametrize("location", ["../secret.bin", "sub/../../secret.bin", "{absolute}", "link.bin"])
def test_external_data_outside_the_folder_is_refused(location, folder, tmp_path):
    secret = tmp_path / "secret.bin"
    secret.write_bytes(bytes(4096))
    (folder / "link.bin").symlink_to(secret)
    bridge.to_onnx(random_cell("LSTM", 3, 5, np.random.default_rng(0)), folder / "m.onnx", external_data=True)
    model = onnx.load(folder / "m.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location.format(absolute=secret)
    onnx.save(model, folder / "m.onnx")
    refused(lambda: bridge.cells(folder / "m.onnx"), bridge.BadInput, folder)
    refused(lambda: bridge.to_onnx(folder / "m.onnx", folder / "out.onnx"), bridge.BadInput, folder)


# ---------------------------------------------------------------------- parameters


@quick
@given(
    missing=st.sets(st.sampled_from(["weight_ih", "weight_hh", "bias_ih", "bias_hh"])),
    unexpected=st.sets(st.sampled_from(["kernel", "bias", "weight_hr", "Weight_ih"])),
)
def test_missing_and_unexpected_names_are_both_listed(missing, unexpected, folder):
    params = bridge.write_params("torch.LSTM", random_cell("LSTM", 3, 5, np.random.default_rng(0)))
    if missing == {"bias_ih", "bias_hh"}:
        missing = missing | {"weight_ih"}  # a layer without biases is whole
    changed = {name: value for name, value in params.items() if name not in missing}
    changed |= {name: np.ones((2, 2), np.float32) for name in unexpected}
    if not missing and not unexpected:
        return
    error = str(refused(lambda: bridge.read_params("torch.LSTM", changed), bridge.BadInput, folder))
    for name in unexpected | (missing - {"bias_ih", "bias_hh"}):
        assert name in error


@pytest.mark.parametrize("layout", bridge.layouts())
def test_no_parameters_at_all_are_refused_by_every_layout(layout, folder):
    assert "missing" in str(refused(lambda: bridge.read_params(layout, {}, **needed(layout)), bridge.BadInput, folder))


@quick
@given(
    name=st.sampled_from(["weight_ih", "weight_hh", "bias_ih", "bias_hh"]),
    shape=st.lists(st.integers(0, 6), max_size=3).map(tuple),
)
def test_shapes_that_disagree_are_refused(name, shape, folder):
    params = bridge.write_params("torch.LSTM", random_cell("LSTM", 3, 5, np.random.default_rng(0)))
    if shape == params[name].shape or (name == "weight_ih" and shape[:1] == (20,) and len(shape) == 2):
        return
    params[name] = np.zeros(shape, np.float32)
    refused(lambda: bridge.read_params("torch.LSTM", params), bridge.BadInput, folder)


@pytest.mark.parametrize("suffix", SUFFIXES[1:])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused(suffix, value, folder):
    params = parameters()
    params["rnn.weight_hh_l0"][3, 2] = value
    path = write(folder / f"m{suffix}", params)
    refused(lambda: bridge.cells(path), bridge.BadInput, folder)
    refused(lambda: bridge.to_onnx(path, folder / "out.onnx"), bridge.BadInput, folder)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_model_with_weights_that_are_not_finite_is_refused(value, folder):
    bridge.to_onnx(random_cell("GRU", 3, 5, np.random.default_rng(0)), folder / "m.onnx")
    model = onnx.load(folder / "m.onnx")
    for tensor in model.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor).copy()
        if array.ndim == 3:
            array.flat[0] = value
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    onnx.save(model, folder / "m.onnx")
    refused(lambda: bridge.cells(folder / "m.onnx"), bridge.BadInput, folder)
    feeds = {"input": np.zeros((2, 1, 3), np.float32)}
    refused(lambda: bridge.run(folder / "m.onnx", feeds), bridge.BadInput, folder)


@quick
@given(shape=st.sampled_from([(0, 1, 3), (2, 0, 3), (2, 1, 0)]), op=st.sampled_from(["LSTM", "GRU", "RNN"]))
def test_an_empty_input_never_reaches_onnxruntime(shape, op, folder):
    cell = random_cell(op, 3, 5, np.random.default_rng(0))
    refused(lambda: bridge.run(cell, {"input": np.zeros(shape, np.float32)}), bridge.BadInput, folder)


@pytest.mark.parametrize("dtype", ["bfloat16", "complex64", "int32", "bool"])
def test_a_dtype_that_is_not_carried_is_refused(dtype, folder):
    import ml_dtypes

    chosen = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    W, R = np.ones((1, 20, 3), chosen), np.ones((1, 20, 5), chosen)
    refused(lambda: bridge.Cell("LSTM", W=W, R=R), bridge.Unsupported, folder)
    params = {name: value.astype(chosen) for name, value in parameters().items()}
    refused(lambda: bridge.read_params("torch.LSTM", {name[4:-3]: v for name, v in params.items()}), bridge.Unsupported,
            folder)  # fmt: skip


@quick
@given(
    array=arrays(np.float32, st.lists(st.integers(0, 4), max_size=4).map(tuple), elements=st.floats(-1, 1, width=32))
)
def test_a_cell_of_any_other_shape_is_refused(array, folder):
    whole = random_cell("RNN", 3, 5, np.random.default_rng(0))
    for name in ("W", "R", "B", "initial_h"):
        given_ = {"W": whole.W, "R": whole.R, name: array}
        if name == "initial_h" and array.ndim == 3 and array.shape[0] == 1 and array.shape[2] == 5 and array.shape[1]:
            continue
        refused(lambda given_=given_: bridge.Cell("RNN", **given_), bridge.BadInput, folder)


# ---------------------------------------------------------------------- options


def test_an_unknown_layout_is_answered_with_the_nearest_names(folder):
    params = {"kernel": np.ones((3, 3), np.float32)}
    for wrong, meant in {
        "torch.lstm": "torch.LSTM",
        "keras.GRUs": "keras.GRU",
        "flax.nnx.LSTM": "flax.nnx.LSTMCell",
    }.items():
        error = refused(lambda wrong=wrong: bridge.read_params(wrong, params), bridge.UsageError, folder)
        assert meant in str(error)


@quick
@given(
    opset=st.one_of(st.integers(-3, 16), st.integers(23, 60), st.just(True), st.just("20"), st.just(20.0), st.none())
)
def test_an_opset_out_of_range_is_refused(opset, folder):
    cell = random_cell("LSTM", 3, 5, np.random.default_rng(0))
    refused(lambda: bridge.to_onnx(cell, folder / "m.onnx", opset=opset), bridge.UsageError, folder)


@pytest.mark.parametrize(
    "option", [{"states": "none"}, {"form": "loop"}, {"masks": "left"}, {"states": True}, {"form": None}], ids=str
)
def test_an_unknown_value_of_an_option_is_refused(option, folder):
    cell = random_cell("LSTM", 3, 5, np.random.default_rng(0))
    refused(lambda: bridge.to_onnx(cell, folder / "m.onnx", **option), bridge.UsageError, folder)


@pytest.mark.parametrize("source", [3, None, [], {}, b"bytes", object, "model.bin", "model", ""], ids=repr)
def test_what_is_no_source_is_refused(source, folder):
    for call in (bridge.cells, bridge.to_onnx, bridge.to_flax):
        refused(lambda call=call: call(source), bridge.UsageError, folder)


@pytest.mark.parametrize("framework", ["tensorflow", "flax", "", None, 3], ids=repr)
def test_an_unknown_framework_is_refused(framework, folder):
    cell = random_cell("LSTM", 3, 5, np.random.default_rng(0))
    refused(lambda: bridge.build(cell, framework), bridge.UsageError, folder)


def wrong_calls() -> dict[str, Callable[[], object]]:
    """Calls with something that is no mapping, no path, no Cell."""
    cell, x = random_cell("LSTM", 3, 5, np.random.default_rng(0)), np.zeros((2, 3, 3), np.float32)
    return {
        "run, an array": lambda: bridge.run(cell, x), "run, None": lambda: bridge.run(cell, None),
        "verify, an array": lambda: bridge.verify(cell, "torch", inputs=x),
        "verify, arrays": lambda: bridge.verify(cell, "torch", inputs=[x]),
        "verify, no inputs": lambda: bridge.verify(cell, "torch", inputs=[]),
        "example of a graph": lambda: bridge.to_onnx(bridge.to_onnx(cell), example=x),
        "join, None": lambda: bridge.Cell.join(cell, None),
        "static": lambda: bridge.to_torch(cell, static=[1]), "path": lambda: bridge.to_onnx(cell, x),
        "read_params": lambda: bridge.read_params("torch.LSTM", None),
        "write_params": lambda: bridge.write_params("torch.LSTM", {"W": cell.W}),
    }  # fmt: skip


@pytest.mark.parametrize("name", wrong_calls())
def test_what_is_no_mapping_path_or_cell_is_refused(name, folder):
    refused(wrong_calls()[name], bridge.UsageError, folder)


# ---------------------------------------------------------------------- targets


def test_an_existing_target_is_kept_unless_overwrite_is_said(folder):
    cell, target = random_cell("LSTM", 3, 5, np.random.default_rng(0)), folder / "m.onnx"
    target.write_bytes(b"mine")
    refused(lambda: bridge.to_onnx(cell, target), bridge.UsageError, folder)
    bridge.to_onnx(cell, target, overwrite=True)
    assert bridge.cells(target)["l0"] == cell


def test_a_file_where_a_folder_is_needed_is_refused(folder):
    (folder / "file").write_bytes(b"mine")
    cell = random_cell("LSTM", 3, 5, np.random.default_rng(0))
    for target in ("file/m.onnx", "absent/m.onnx"):
        with pytest.raises(bridge.BridgeError) as caught:
            bridge.to_onnx(cell, folder / target)
        assert caught.value.exit_code in (2, 4)
    assert list(listing(folder)) == ["file"]


FULL = """
import resource, sys
import numpy as np
import bridge
from tests.cells import random_cell
cell = random_cell("LSTM", 64, 128, np.random.default_rng(0))
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
try:
    bridge.to_onnx(cell, sys.argv[1], external_data=sys.argv[2] == "external", overwrite=True)
except bridge.BridgeError as error:
    print("refused with", error.exit_code)
"""


@pytest.mark.parametrize("form", ["inline", "external"])
@pytest.mark.skipif(sys.platform == "win32", reason="limits on the size of a file are POSIX")
def test_a_disk_that_fills_in_the_middle_of_a_write_leaves_the_old_file(form, folder):
    """The kernel refuses every byte after the first 20,000."""
    target = folder / "m.onnx"
    target.write_bytes(b"mine")
    before = listing(folder)
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, "-c", FULL, target, form], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.stdout.startswith("refused with "), done.stderr
    assert listing(folder) == before
    assert target.read_bytes() == b"mine"


@pytest.mark.parametrize("form", ["inline", "external"])
def test_an_interrupt_in_the_middle_of_a_write_leaves_the_old_file(form, folder, monkeypatch):
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    cell, target = random_cell("LSTM", 64, 128, np.random.default_rng(0)), folder / "m.onnx"
    target.write_bytes(b"mine")
    before = listing(folder)
    monkeypatch.setattr(os, "replace", interrupt)
    monkeypatch.setattr(Path, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        bridge.to_onnx(cell, target, external_data=form == "external", overwrite=True)
    assert listing(folder) == before


@pytest.mark.parametrize("given", [None, 3, "x", [None]], ids=repr)
def test_what_is_no_cell_is_not_assigned(given, folder):
    import torch

    module = torch.nn.LSTM(3, 2)
    assert "one Cell or a sequence" in str(
        refused(lambda: bridge.assign(module, {"": given}), bridge.UsageError, folder)
    )


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_torchscript_file_is_told_from_a_state_dict(folder):
    import torch

    torch.jit.script(torch.nn.LSTM(3, 2)).save(str(folder / "jit.pt"))
    assert "state_dict()" in str(refused(lambda: bridge.cells(folder / "jit.pt"), bridge.BadInput, folder))


def test_bytes_that_are_no_text_end_in_an_error_of_ours(folder):
    model = bridge.to_onnx(random_cell("LSTM", 3, 2, np.random.default_rng(0)))
    (node,) = [node for node in model.graph.node if node.op_type == "LSTM"]
    kept = [attribute for attribute in node.attribute if attribute.name != "direction"]
    del node.attribute[:]
    node.attribute.extend([*kept, onnx.AttributeProto(name="direction", type=onnx.AttributeProto.STRING, s=b"rev\xe6")])
    onnx.save(model, folder / "m.onnx")
    x = np.ones((4, 2, 3), np.float32)
    refused(lambda: bridge.run(folder / "m.onnx", {"input": x}), bridge.BadInput, folder)
