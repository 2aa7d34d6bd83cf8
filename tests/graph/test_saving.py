from __future__ import annotations

import errno

import numpy as np
import onnx
import pytest

from bridge.errors import BridgeError, UsageError
from bridge.graph import find_cells, load, parse, save, saving, to_proto
from tests.cells import random_cell
from tests.graph.models import cell_model, feeds_of, run

FAILURES = (OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt(), MemoryError())


@pytest.fixture
def cell(rng):
    return random_cell("LSTM", 12, 16, rng, direction="bidirectional")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("external", [None, False, True])
def test_what_is_saved_is_what_was_written(external, cell, rng, tmp_path):
    model = cell_model(cell)
    returned = save(model, tmp_path / "m.onnx", external=external)
    assert names(tmp_path) == (["m.onnx", "m.onnx.data"] if external else ["m.onnx"])
    onnx.checker.check_model(str(tmp_path / "m.onnx"), full_check=True)
    assert onnx.load(tmp_path / "m.onnx", load_external_data=False) == returned
    loaded = load(tmp_path / "m.onnx")
    assert find_cells(loaded) == {"rnn": cell}
    feeds = feeds_of(cell, rng)
    expected = run(model, feeds)
    for name, value in run(loaded, feeds).items():
        np.testing.assert_array_equal(value, expected[name])


def test_onnxruntime_opens_external_data(cell, rng, tmp_path):
    import onnxruntime

    save(cell_model(cell), tmp_path / "m.onnx", external=True)
    onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    assert (tmp_path / "m.onnx").stat().st_size < 4000
    assert (tmp_path / "m.onnx.data").stat().st_size == sum(a.nbytes for a in (cell.W, cell.R, cell.B))


def test_large_weights_go_beside_the_model(cell, tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "LARGEST_INLINE", 1000)
    save(cell_model(cell), tmp_path / "m.onnx")
    assert names(tmp_path) == ["m.onnx", "m.onnx.data"]


def test_a_consumed_model_gives_the_same_message_and_lets_its_tensors_go(cell):
    model, again = cell_model(cell), cell_model(cell)
    assert to_proto(model, consume=True).SerializeToString() == to_proto(again).SerializeToString()
    assert all(value.const_value is None for value in model.graph.initializers.values())
    assert all(value.const_value is not None for value in again.graph.initializers.values())


def test_saving_leaves_the_model_as_it_was(cell, tmp_path):
    model = cell_model(cell)
    before = to_proto(model)
    save(model, tmp_path / "m.onnx", external=True)
    assert to_proto(model) == before


@pytest.mark.parametrize("existing", ["m.onnx", "m.onnx.data"])
def test_an_existing_target_is_kept(existing, cell, tmp_path):
    (tmp_path / existing).write_text("mine")
    with pytest.raises(UsageError, match="exists"):
        save(cell_model(cell), tmp_path / "m.onnx", external=True)
    assert names(tmp_path) == [existing]
    assert (tmp_path / existing).read_text() == "mine"
    save(cell_model(cell), tmp_path / "m.onnx", external=True, overwrite=True)
    assert find_cells(load(tmp_path / "m.onnx")) == {"rnn": cell}


def test_a_model_may_overwrite_the_file_it_is_mapped_from(cell, tmp_path):
    save(cell_model(cell), tmp_path / "m.onnx", external=True)
    save(load(tmp_path / "m.onnx"), tmp_path / "m.onnx", external=True, overwrite=True)
    assert find_cells(load(tmp_path / "m.onnx")) == {"rnn": cell}


def test_a_folder_that_is_missing_or_a_file_is_refused(cell, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    refused = {"none/m.onnx": "does not exist", "file/m.onnx": "not a folder", "folder": "is a folder"}
    for target, text in refused.items():
        with pytest.raises(UsageError, match=text):
            save(cell_model(cell), tmp_path / target, overwrite=True)
    assert names(tmp_path) == ["file", "folder"]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("step", ["_write_tensor", "serialize", "replace"])
def test_a_failure_leaves_nothing_behind(step, error, overwrite, cell, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise error

    if overwrite:
        (tmp_path / "m.onnx").write_text("mine")
    if step == "_write_tensor":
        monkeypatch.setattr(saving, "_write_tensor", fail)
    elif step == "serialize":
        monkeypatch.setattr("onnx_ir.serde.serialize_model", fail)
    else:
        real = saving.Path.replace

        def late(self, target):
            return fail() if target.suffix == ".onnx" else real(self, target)

        monkeypatch.setattr(saving.Path, "replace", late)
    with pytest.raises(BridgeError if isinstance(error, OSError) else type(error)) as caught:
        save(cell_model(cell), tmp_path / "m.onnx", external=True, overwrite=overwrite)
    if isinstance(error, OSError):
        assert "disk is full" in str(caught.value)
    assert names(tmp_path) == (["m.onnx"] if overwrite else [])
    if overwrite:
        assert (tmp_path / "m.onnx").read_text() == "mine"


def test_more_than_a_message_holds_is_refused(cell, monkeypatch):
    monkeypatch.setattr(saving, "LARGEST_PROTO", 1000)
    with pytest.raises(UsageError, match="do not fit"):
        to_proto(cell_model(cell))


@pytest.mark.parametrize("external", [False, True])
def test_notes_on_tensors_and_typed_data_survive(external, tmp_path):
    typed = onnx.helper.make_tensor("typed", onnx.TensorProto.FLOAT, [100], np.arange(100, dtype="f"))
    typed.doc_string = "why"
    typed.metadata_props.add(key="unit", value="m")
    packed = onnx.helper.make_tensor("packed", onnx.TensorProto.INT4, [600], [1, -2] * 300)
    nodes = [onnx.helper.make_node("Neg", ["typed"], ["y"])]
    graph = onnx.helper.make_graph(nodes, "g", [], [onnx.helper.make_tensor_value_info("y", 1, [100])], [typed, packed])
    proto = onnx.helper.make_model(graph, ir_version=10, opset_imports=[onnx.helper.make_opsetid("", 21)])
    save(parse(proto), tmp_path / "m.onnx", external=external)
    tensors = {name: value.const_value for name, value in load(tmp_path / "m.onnx").graph.initializers.items()}
    np.testing.assert_array_equal(tensors["typed"].numpy(), np.arange(100))
    np.testing.assert_array_equal(tensors["packed"].numpy().astype(int), [1, -2] * 300)
    assert (tensors["typed"].doc_string, dict(tensors["typed"].metadata_props)) == ("why", {"unit": "m"})
