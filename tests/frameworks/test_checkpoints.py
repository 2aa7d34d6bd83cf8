"""Weight files: stacks found by name in every format, exported and run, and hostile files refused."""

from __future__ import annotations

import io
import os
import pickle
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from bridge.cell import Cell
from bridge.errors import BadInput, BridgeError, NotRepresentable, Unsupported, UsageError
from bridge.frameworks import checkpoint_files, checkpoints
from bridge.frameworks import torch as door
from bridge.frameworks.checkpoint_stacks import LAYOUTS
from bridge.frameworks.checkpoints import read_arrays, save_params
from bridge.frameworks.door import ExportOptions
from bridge.graph import to_proto
from bridge.layout import write_params
from tests.cells import random_cell
from tests.models import model_file

SUFFIXES = (".npz", ".safetensors", ".pt", ".pth")
X = np.random.default_rng(0).standard_normal((4, 2, 3)).astype(np.float32)


def arrays_of(module: nn.Module, prefix: str = "") -> dict[str, np.ndarray]:
    return {prefix + name: value.numpy() for name, value in module.state_dict().items()}


def lstm(**options: Any) -> Any:
    torch.manual_seed(0)
    return nn.LSTM(3, 5, **options)


def write(folder: Path, suffix: str, arrays: dict[str, np.ndarray]) -> Path:
    return save_params(folder / f"weights{suffix}", arrays)


def onnxruntime_outputs(source: Any, feeds: dict[str, np.ndarray], **options: Any) -> dict[str, np.ndarray]:
    proto = to_proto(checkpoints.export(source, ExportOptions(**options)))
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip([output.name for output in session.get_outputs()], session.run(None, feeds), strict=True))


# ---------------------------------------------------------------------- reading and writing


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_arrays_come_back_bit_for_bit(suffix: str, tmp_path: Path) -> None:
    arrays = {
        "a.b": np.array([[1.5, -0.0, np.pi]], np.float32),
        "half": np.arange(6, dtype=np.float16).reshape(2, 3),
        "wide.x": np.arange(3.0),
        "count": np.array(7, np.int64),
    }
    back = read_arrays(write(tmp_path, suffix, arrays))
    assert set(back) == set(arrays)
    for name, array in arrays.items():
        assert back[name].dtype == array.dtype
        assert back[name].shape == array.shape
        assert back[name].tobytes() == array.tobytes()
    assert [file.name for file in tmp_path.iterdir()] == [f"weights{suffix}"]


@pytest.mark.parametrize("write_npz", [np.savez, np.savez_compressed])
def test_npz_in_fortran_order_big_endian_and_compressed(write_npz: Any, tmp_path: Path) -> None:
    array = np.arange(6.0).reshape(2, 3)
    write_npz(tmp_path / "a.npz", f=np.asfortranarray(array), b=array.astype(">f8"))
    back = read_arrays(tmp_path / "a.npz")
    assert np.array_equal(back["f"], array)
    assert np.array_equal(back["b"], array)
    assert back["b"].dtype.isnative


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_nested_torch_files_are_flattened_and_other_things_left_out(zipped: bool, tmp_path: Path) -> None:
    content = {"step": 3, "model_state": {"rnn": lstm().state_dict(), "scale": torch.ones(1)}, "opt": [torch.ones(2)]}
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    names = set(read_arrays(tmp_path / "a.pt"))
    assert names == {"model_state.scale", *(f"model_state.rnn.{name}" for name in lstm().state_dict())}


def test_an_existing_file_is_kept_unless_told_otherwise(tmp_path: Path) -> None:
    path = write(tmp_path, ".npz", {"a": np.ones(1)})
    with pytest.raises(UsageError, match="exists"):
        save_params(path, {"a": np.zeros(1)})
    assert read_arrays(path)["a"] == 1
    assert read_arrays(save_params(path, {"a": np.zeros(1)}, overwrite=True))["a"] == 0


def test_a_failed_write_leaves_nothing_and_the_old_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, ".npz", {"a": np.ones(1)})

    def full_disk(stream: io.BufferedWriter, *_: Any) -> None:
        stream.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_files, "_write", full_disk)
    with pytest.raises(BadInput, match="No space left"):
        save_params(path, {"a": np.zeros(1)}, overwrite=True)
    assert read_arrays(path)["a"] == 1
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("target", ["weights.bin", "nowhere/a.npz", "folder.npz"])
def test_places_that_are_none_are_refused(target: str, tmp_path: Path) -> None:
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(UsageError):
        save_params(tmp_path / target, {"a": np.ones(1)})


# ---------------------------------------------------------------------- finding stacks


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_torch_stack_is_found_exported_and_run(kind: Any, suffix: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = kind(3, 5, num_layers=2, bidirectional=True)
    head = {"head.weight": np.ones((2, 10), np.float32)}
    path = write(tmp_path, suffix, arrays_of(module, "net.encoder.rnn.") | head)
    assert checkpoints.owns(path)
    named = {f"net.encoder.rnn.{name}": cell for name, cell in door.cells(module).items()}
    assert checkpoints.cells(path) == named
    feeds = {"input": X, "lengths": np.array([4, 2], np.int32)}
    native = door.execute(module, feeds)
    for results in (onnxruntime_outputs(path, feeds, lengths=True), checkpoints.execute(path, feeds)):
        assert list(results) == list(native)
        for name, value in results.items():
            assert np.abs(value - native[name]).max() < 1e-6  # float32, values below 1


@pytest.mark.parametrize("options", [{"bias": False}, {"proj_size": 2}, {"proj_size": 2, "bias": False}], ids=str)
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")
def test_options_of_torch_are_read_off_the_names(options: dict[str, Any], tmp_path: Path) -> None:
    module = lstm(num_layers=2, bidirectional=True, **options)
    path = write(tmp_path, ".safetensors", arrays_of(module))
    native = door.execute(module, {"input": X})
    for name, value in onnxruntime_outputs(path, {"input": X}).items():
        assert np.abs(value - native[name]).max() < 1e-6  # float32, values below 1
        assert np.abs(value - checkpoints.execute(path, {"input": X})[name]).max() < 1e-6


@pytest.mark.parametrize("spelling", ["{}", "cell.{}", "enc_{}", "params/rnn/{}", "lstm/lstm_cell/{}:0"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_listed_layout_is_told_by_names_and_shapes(layout: str, spelling: str, tmp_path: Path) -> None:
    cell = random_cell(layout, 3, 5, np.random.default_rng(0))
    params = write_params(layout, cell)
    path = write(tmp_path, ".npz", {spelling.format(name): array for name, array in params.items()})
    ((name, found),) = checkpoints.cells(path).items()
    assert found == cell
    assert name == {"{}": "cell", "enc_{}": "enc", "cell.{}": "cell"}.get(
        spelling, spelling[:-3].replace("/", ".").rstrip(".{")
    )


def test_short_torch_names_are_found(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.GRU(3, 5)
    short = {"weight_ih_l0": "w_ih", "weight_hh_l0": "w_hh", "bias_ih_l0": "b_ih", "bias_hh_l0": "b_hh"}
    path = write(tmp_path, ".npz", {f"enc_{short[name]}": array for name, array in arrays_of(module).items()})
    assert checkpoints.cells(path) == {"enc": door.cells(module)["l0"]}


def test_of_several_stacks_one_is_chosen_by_prefix(tmp_path: Path) -> None:
    path = write(tmp_path, ".pt", arrays_of(lstm(), "enc.") | arrays_of(nn.GRU(5, 2), "dec."))
    assert list(checkpoints.cells(path)) == ["enc.l0", "dec.l0"]
    assert list(checkpoints.cells(f"{path}::dec")) == ["dec.l0"]
    with pytest.raises(UsageError, match="'enc', 'dec'"):
        checkpoints.export(path, ExportOptions())
    with pytest.raises(UsageError, match="'enc', 'dec'"):
        checkpoints.export(f"{path}::middle", ExportOptions())
    model = checkpoints.export(f"{path}::enc", ExportOptions())
    assert [node.name for node in model.graph if node.op_type == "LSTM"] == ["enc.l0"]


def test_what_names_cannot_tell_is_noted_or_given(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.RNN(3, 5, nonlinearity="relu")
    path = write(tmp_path, ".npz", arrays_of(module, "rnn."))
    assert "nonlinearity=tanh" in checkpoints.export(path, ExportOptions()).metadata_props["bridge.notes"]
    chosen = f"{path}::rnn?nonlinearity=relu"
    assert checkpoints.cells(chosen)["rnn.l0"].activations == ("Relu",)
    assert "bridge.notes" not in checkpoints.export(chosen, ExportOptions()).metadata_props
    native = door.execute(module, {"input": X})
    for results in (onnxruntime_outputs(chosen, {"input": X}), checkpoints.execute(chosen, {"input": X})):
        for name, value in results.items():
            assert np.abs(value - native[name]).max() < 1e-6  # float32, values below 3
    with pytest.raises(UsageError, match="residual"):
        checkpoints.cells(f"{path}::rnn?residual=true")


def test_a_keras_layer_exports_and_runs_in_torch_where_torch_can(tmp_path: Path) -> None:
    cell = random_cell("keras.LSTM", 3, 5, np.random.default_rng(0))
    path = write(tmp_path, ".npz", write_params("keras.LSTM", cell))
    native = checkpoints.execute(path, {"input": X})
    for name, value in onnxruntime_outputs(path, {"input": X}).items():
        assert np.abs(value - native[name]).max() < 1e-6  # float32, values below 1
    reset_before = random_cell("GRU", 3, 5, np.random.default_rng(0), linear_before_reset=False)
    bias = np.concatenate([reset_before.Wb, np.zeros_like(reset_before.Rb)], axis=1)
    folded = Cell("GRU", W=reset_before.W, R=reset_before.R, B=bias)
    path = save_params(tmp_path / "gru.npz", write_params("keras.GRU", folded))
    assert checkpoints.cells(path)["cell"] == folded
    assert "reset_after" not in checkpoints.export(path, ExportOptions()).metadata_props["bridge.notes"]
    with pytest.raises(NotRepresentable):
        checkpoints.execute(path, {"input": X})


def test_a_big_file_is_not_read_to_list_its_stacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = arrays_of(lstm(), "rnn.") | {"embedding": np.zeros((1000, 100), np.float32)}
    loaded: list[str] = []
    original = checkpoint_files._load_npz

    def load(file: Path, member: str) -> np.ndarray:
        loaded.append(member)
        return original(file, member)

    monkeypatch.setattr(checkpoint_files, "_load_npz", load)
    checkpoints.cells(write(tmp_path, ".npz", arrays))
    assert sorted(loaded) == sorted(f"rnn.{name}.npy" for name in arrays_of(lstm()))


BROKEN: dict[str, tuple[Callable[[dict[str, np.ndarray]], Any], type[Exception], str]] = {
    "no layer 0": (lambda a: {n.replace("_l0", "_l1"): v for n, v in a.items()}, BadInput, "l0"),
    "layer left out": (lambda a: a | {n.replace("_l0", "_l2"): v for n, v in a.items()}, BadInput, "l1"),
    "no weight_hh": (lambda a: {n: v for n, v in a.items() if "weight_hh" not in n}, BadInput, "weight_hh"),
    "one bias": (lambda a: {n: v for n, v in a.items() if "bias_hh" not in n}, BadInput, "bias_hh"),
    "shape of no gate": (lambda a: a | {"weight_hh_l0": np.ones((10, 4), np.float32)}, BadInput, "shape"),
    "bias too short": (lambda a: a | {"bias_ih_l0": np.ones(3, np.float32)}, BadInput, "bias_ih"),
    "empty": (lambda a: a | {"weight_ih_l0": np.ones((20, 0), np.float32)}, BadInput, "0"),
    "NaN": (lambda a: a | {"bias_ih_l0": np.full(20, np.nan, np.float32)}, BadInput, "NaN"),
    "integers": (lambda a: {n: v.astype(np.int32) for n, v in a.items()}, Unsupported, "int32"),
    "complex": (lambda a: {n: v.astype(np.complex64) for n, v in a.items()}, Unsupported, "complex64"),
    "mixed": (lambda a: a | {"bias_ih_l0": np.ones(20, np.float64)}, BadInput, "float64"),
    "weight norm": (lambda a: a | {"weight_hh_l0_g": np.ones((20, 1), np.float32)}, Unsupported, "weight norm"),
    "other half norm": (lambda a: a | {"rnn.parametrizations.weight_hh_l0.original0": np.ones(2)}, Unsupported, "norm"),
    "layers do not fit": (lambda a: a | {n.replace("_l0", "_l1"): v for n, v in a.items()}, BadInput, "l1"),
    "two spellings": (lambda a: a | {n.removesuffix("_l0"): v for n, v in a.items()}, BadInput, "two spellings"),
    "nothing recurrent": (lambda a: {"weight": np.ones(3)}, BadInput, "no recurrent"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken_stacks_are_refused(name: str, tmp_path: Path) -> None:
    change, error, text = BROKEN[name]
    path = write(tmp_path, ".npz", change(arrays_of(lstm())))
    with pytest.raises(error, match=text):
        checkpoints.export(path, ExportOptions())


def test_bfloat16_is_refused_with_the_reason(tmp_path: Path) -> None:
    torch.save(lstm().bfloat16().state_dict(), tmp_path / "a.pt")
    with pytest.raises(Unsupported, match="no kernel of onnxruntime"):
        checkpoints.cells(tmp_path / "a.pt")


def test_a_file_is_only_a_source() -> None:
    for refuse in (lambda: checkpoints.assign("a.npz", {}), lambda: checkpoints.build([], False),
                   lambda: checkpoints.import_model(None, None)):  # type: ignore[arg-type]  # fmt: skip
        with pytest.raises(UsageError, match="source only"):
            refuse()


# ---------------------------------------------------------------------- hostile files


class Attack:
    """What a pickle would run."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.witness),)


@pytest.mark.parametrize("form", ["zip", "legacy", "plain pickle", "whole module"])
def test_a_pickle_with_code_is_refused_and_not_run(form: str, tmp_path: Path) -> None:
    path, witness = tmp_path / "a.pt", tmp_path / "ran"
    if form == "plain pickle":
        path.write_bytes(pickle.dumps({"a": Attack(witness)}))
    elif form == "whole module":
        torch.save(lstm(), path)
    else:
        torch.save({"a": Attack(witness)}, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(BadInput, match="safe to read") as caught:
        checkpoints.cells(path)
    assert "in an environment that trusts it" in caught.value.do
    assert form == "plain pickle" or re.search("asks for (os|posix|nt).mkdir|asks for torch.nn", caught.value.got)
    assert not witness.exists()


def saved(zipped: bool) -> bytes:
    stream = io.BytesIO()
    torch.save(lstm().state_dict(), stream, _use_new_zipfile_serialization=zipped)
    return stream.getvalue()


def zip_of(name: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(name, "text")
    return stream.getvalue()


NO_TORCH_FILES = {
    "half a zip": lambda: saved(True)[: len(saved(True)) // 2],
    "the beginning of a zip": lambda: saved(True)[:3],
    "half a legacy file": lambda: saved(False)[: len(saved(False)) // 2],
    "a legacy file without its end": lambda: saved(False)[:-20],
    "the beginning of a legacy file": lambda: saved(False)[:5],
    "text": lambda: b"hello, this is text\n" * 5,
    "nothing": lambda: b"",
    "another zip": lambda: zip_of("a.txt"),
    "a zip without a pickle in its pickle": lambda: zip_of("a/data.pkl"),
}


@pytest.mark.parametrize("name", NO_TORCH_FILES)
def test_a_file_that_is_cut_or_none_of_torch_s_is_not_to_be_trusted_but_to_be_replaced(
    name: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(NO_TORCH_FILES[name]())
    with pytest.raises(BadInput, match="truncated, damaged or no torch file") as caught:
        checkpoints.cells(path)
    assert "trust" not in str(caught.value)
    assert f"{path.stat().st_size} bytes" in caught.value.got


def test_an_npz_with_objects_is_refused_and_not_unpickled(tmp_path: Path) -> None:
    witness = tmp_path / "ran"
    np.savez(tmp_path / "a.npz", a=np.array([Attack(witness)], object), allow_pickle=True)
    with pytest.raises(BadInput, match="objects"):
        checkpoints.cells(tmp_path / "a.npz")
    assert not witness.exists()


def npy(shape: str, descr: str = "<f4", data: bytes = b"") -> bytes:
    header = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


@pytest.mark.parametrize(
    ("member", "text"),
    [
        (npy("(10**9,)"), "malformed"),
        (npy("(1000000000, 1000000000)"), "size"),
        (npy("(-1,)"), "malformed"),
        (npy("(True,)", data=bytes(4)), "malformed"),
        (npy("(2,)", data=bytes(4)), "size"),
        (npy("(2,)", descr="nothing"), "malformed"),
        (npy("[" * 900), "malformed"),
        (b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**31), "too long"),
        (b"junk", "no .npy header"),
        (b"", "no .npy header"),
    ],
)
def test_npy_headers_are_not_believed(member: bytes, text: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", member)
    with pytest.raises(BadInput, match=text):
        checkpoints.cells(tmp_path / "a.npz")


def test_a_zip_bomb_is_not_unpacked(tmp_path: Path) -> None:
    size = 100 * 2**20
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("weight_hh_l0.npy", npy(f"({size},)", "|u1", bytes(size)))
    with pytest.raises(BadInput, match="honestly"):
        checkpoints.cells(tmp_path / "a.npz")


def test_a_tensor_larger_than_its_file_is_refused(tmp_path: Path) -> None:
    torch.save({"weight_hh_l0": torch.zeros(1).expand(10**6, 10**6)}, tmp_path / "a.pt")
    with pytest.raises(BadInput, match="larger than the file"):
        checkpoints.cells(tmp_path / "a.pt")


def test_a_compressed_torch_archive_is_refused(tmp_path: Path) -> None:
    torch.save(lstm().state_dict(), tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as archive, \
            zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as packed:  # fmt: skip
        for info in archive.infolist():
            packed.writestr(info.filename, archive.read(info))
    with pytest.raises(BadInput, match="compressed"):
        checkpoints.cells(tmp_path / "b.pt")


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("content", [b"", b"\x00" * 64, b"PK\x03\x04junk", b"\x80\x02}q\x00.", b"\xff" * 16])
def test_files_of_junk_are_refused(content: bytes, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    with pytest.raises(BadInput):
        checkpoints.export(path, ExportOptions())


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_missing_file_or_a_folder_is_refused(suffix: str, tmp_path: Path) -> None:
    (tmp_path / f"folder{suffix}").mkdir()
    for name in ("nothing", "folder"):
        with pytest.raises(BadInput, match="no such file"):
            checkpoints.cells(tmp_path / f"{name}{suffix}")


def _whole(suffix: str, tmp: Path) -> bytes:
    arrays = arrays_of(lstm(), "rnn.")
    if suffix == ".legacy":
        torch.save(
            {name: torch.tensor(a) for name, a in arrays.items()}, tmp / "x.pt", _use_new_zipfile_serialization=False
        )
        return (tmp / "x.pt").read_bytes()
    return save_params(tmp / f"x{suffix}", arrays, overwrite=True).read_bytes()


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".pt", ".legacy"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_give_one_error_of_ours_or_valid_arrays(suffix: str, data: st.DataObject, tmp_path: Path) -> None:
    content = bytearray(_whole(suffix, tmp_path))
    cut = data.draw(st.one_of(st.none(), st.integers(0, len(content) - 1)))
    near_an_end = st.one_of(st.integers(0, 400), st.integers(-800, -1), st.integers(0, len(content) - 1))
    for at, byte in data.draw(st.lists(st.tuples(near_an_end, st.integers(0, 255)), min_size=1, max_size=6)):
        content[at % len(content)] = byte
    path = tmp_path / f"damaged{'.pt' if suffix == '.legacy' else suffix}"
    path.write_bytes(bytes(content if cut is None else content[:cut]))
    try:
        found = checkpoints.cells(path)
    except BridgeError:
        return
    assert all(np.isfinite(cell.R).all() for cell in found.values())


# ---------------------------------------------------------------------- real weights


@pytest.mark.models
@pytest.mark.parametrize(
    ("package", "file", "expected"),
    [
        ("Resemblyzer", None, {f"model_state.lstm.l{at}": ("LSTM", 40 if at == 0 else 256, 256) for at in range(3)}),
        ("g2p-en", None, {"enc": ("GRU", 256, 256), "dec": ("GRU", 256, 256)}),
        ("legere", None, {"model.rnn.l0": ("GRU", 192, 128)}),
        ("silero-vad", "silero_vad_16k.safetensors", {"lstm_cell": ("LSTM", 128, 128)}),
    ],
)
def test_real_files_hold_what_they_are_known_to_hold(package: str, file: str | None, expected: Any) -> None:
    path = model_file(package, file)
    found = {name: (cell.op, cell.input_size, cell.hidden_size) for name, cell in checkpoints.cells(path).items()}
    assert found == expected
    prefix = next(iter(expected)).removesuffix(".l0")
    x = np.random.default_rng(0).standard_normal((5, 2, next(iter(expected.values()))[1])).astype(np.float32)
    native = checkpoints.execute(f"{path}::{prefix}", {"input": x})
    for name, value in onnxruntime_outputs(f"{path}::{prefix}", {"input": x}).items():
        assert np.abs(value - native[name]).max() < 1e-5  # float32, sums of 256 terms, trained weights up to 3
