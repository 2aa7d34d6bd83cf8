from __future__ import annotations

import os

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from bridge.errors import BadInput, BridgeError, Unsupported, UsageError
from bridge.graph import as_model, find_cells, load, parse, save, to_proto
from tests.cells import random_cell
from tests.graph.models import cell_model

FAR = 2**40


def proto_of(cell=None):
    return to_proto(
        cell_model(cell or random_cell("LSTM", 3, 5, np.random.default_rng(0), peepholes=True, initial_h=1))
    )


VALID = proto_of().SerializeToString()
SCAN = to_proto(cell_model(random_cell("GRU", 3, 5, np.random.default_rng(0)), form="scan")).SerializeToString()


def survive(data):
    """Reading and searching ends well or in one BridgeError; anything else fails the test."""
    try:
        find_cells(parse(data))
    except BridgeError as error:
        return error
    return None


# ---------------------------------------------------------------------- files


def test_what_is_no_file_is_refused(tmp_path):
    for path, text in ((tmp_path, "folder"), (tmp_path / "none.onnx", "cannot be read"), ("a\0b", "cannot be read")):
        with pytest.raises(BadInput, match=text):
            load(path)


@pytest.mark.parametrize(
    "data",
    [b"", b"\0" * 100, b"PK\x03\x04", b"{}", bytes(range(64)), VALID[:-1], VALID[: len(VALID) // 2]],
    ids=["empty", "zeros", "zip", "json", "noise", "cut by one", "cut in half"],
)
def test_what_is_no_model_is_refused(data, tmp_path):
    (tmp_path / "m.onnx").write_bytes(data)
    with pytest.raises(BadInput):
        load(tmp_path / "m.onnx")


def test_as_model_takes_paths_protos_bytes_and_models(tmp_path):
    (tmp_path / "m.onnx").write_bytes(VALID)
    proto = onnx.ModelProto.FromString(VALID)
    read = parse(VALID)
    for source in (tmp_path / "m.onnx", str(tmp_path / "m.onnx"), proto, VALID, read):
        assert find_cells(as_model(source)) == find_cells(read)
    assert as_model(read) is read
    with pytest.raises(UsageError, match="no ONNX model"):
        as_model(3)


# ---------------------------------------------------------------------- property tests


@settings(max_examples=150, deadline=None)
@given(st.integers(0, len(VALID) - 1))
def test_truncation_is_survived(size):
    assert survive(VALID[:size]) is not None


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([VALID, SCAN]),
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_corruption_is_survived(data, changes):
    damaged = bytearray(data)
    for at, value in changes:
        damaged[at % len(damaged)] = value
    survive(bytes(damaged))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(max_size=400))
def test_random_bytes_are_survived(data):
    survive(data)


# ---------------------------------------------------------------------- tensors


def weights(proto):
    return next(tensor for tensor in proto.graph.initializer if tensor.name == "rnn.W")


DAMAGE = {
    "fewer bytes": lambda t: setattr(t, "raw_data", t.raw_data[:-4]),
    "more bytes": lambda t: setattr(t, "raw_data", t.raw_data + b"\0" * 4),
    "no data": lambda t: t.ClearField("raw_data"),
    "huge": lambda t: t.dims.__setitem__(0, FAR),
    "huge without data": lambda t: (t.ClearField("raw_data"), t.dims.__setitem__(0, FAR)),
    "overflowing": lambda t: t.dims.extend([2**62, 2**62]),
    "overflowing and empty": lambda t: (t.ClearField("raw_data"), t.dims.extend([0, 2**62, 2**62])),
    "negative": lambda t: t.dims.__setitem__(0, -1),
    "typed and raw": lambda t: t.float_data.append(1.0),
    "other field": lambda t: (t.ClearField("raw_data"), t.int64_data.extend([1] * 60)),
    "unknown dtype": lambda t: setattr(t, "data_type", 99),
    "undefined dtype": lambda t: setattr(t, "data_type", 0),
    "strings": lambda t: setattr(t, "data_type", TensorProto.STRING),
    "segment": lambda t: setattr(t.segment, "begin", 1),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_tensor_that_disagrees_with_its_shape_is_refused(name):
    proto = proto_of()
    DAMAGE[name](weights(proto))
    with pytest.raises(BridgeError, match=r"rnn\.W"):
        parse(proto)


def test_a_tensor_inside_a_node_is_checked():
    proto = proto_of()
    value = helper.make_tensor("inner", TensorProto.FLOAT, [2], [1.0, 2.0])
    value.dims[0] = FAR
    proto.graph.node.append(helper.make_node("Constant", [], ["fixed"], value=value))
    with pytest.raises(BadInput, match="does not fill"):
        parse(proto)


@pytest.mark.parametrize(
    "array",
    [np.float16([1, 2]), np.float64([1, 2]), np.int8([1]), np.uint32([7]), np.bool_([True]), np.complex64([1j]),
     np.zeros((0, 3), np.float32), np.asarray("text", object)],
    ids=lambda array: array.dtype.name,
)  # fmt: skip
@pytest.mark.parametrize("raw", [True, False])
def test_sound_tensors_of_every_kind_pass(array, raw):
    proto = proto_of()
    tensor = numpy_helper.from_array(array, "sound")
    if not raw and array.dtype != object:
        tensor = helper.make_tensor("sound", tensor.data_type, array.shape, array.ravel().tolist())
    proto.graph.initializer.append(tensor)
    parse(proto)


@pytest.mark.parametrize("kind", ["INT4", "UINT4", "FLOAT4E2M1", "BFLOAT16", "FLOAT8E4M3FN"])
def test_sound_tensors_of_small_types_pass(kind):
    proto = proto_of()
    proto.graph.initializer.append(helper.make_tensor("sound", getattr(TensorProto, kind), [3], [1, 1, 1]))
    parse(proto)


# ---------------------------------------------------------------------- graphs


def nested(levels):
    """If in If, built from the outside: protobuf copies no more than 33 levels."""
    model = helper.make_model(helper.make_graph([], "outer", [helper.make_tensor_value_info("condition", 9, [])], []))
    graph = model.graph
    for level in range(levels):
        graph.output.add(name=f"out{level}")
        graph.node.add(op_type="If", input=["condition"], output=[f"out{level}"])
        graph.node[0].attribute.add(name="then_branch", type=onnx.AttributeProto.GRAPH)
        graph = graph.node[0].attribute[0].g
    graph.output.add(name="deepest")
    graph.node.add(op_type="Not", input=["condition"], output=["deepest"])
    return model


def test_deep_nesting_is_read_and_very_deep_nesting_refused():
    parse(nested(30))
    parse(nested(30).SerializeToString())
    for model in (nested(40), nested(40).SerializeToString(), nested(2000)):
        with pytest.raises(BadInput):
            parse(model)


def test_a_cycle_is_refused():
    proto = proto_of()
    proto.graph.node.extend([helper.make_node("Neg", ["b"], ["a"]), helper.make_node("Neg", ["a"], ["b"])])
    with pytest.raises(BadInput, match="cycle"):
        parse(proto)


def test_nodes_out_of_order_are_put_in_order():
    proto = proto_of()
    proto.graph.node.extend([helper.make_node("Neg", ["late"], ["early"]), helper.make_node("Neg", ["x"], ["late"])])
    model = parse(proto)
    assert [node.outputs[0].name for node in model.graph][-2:] == ["late", "early"]


@pytest.mark.parametrize("domains", [("ai.onnx",), ("", "ai.onnx"), ("ai.onnx", "")], ids=str)
def test_both_names_of_the_domain_of_onnx_are_read(domains):
    proto = proto_of()
    version = proto.opset_import[0].version
    proto.ClearField("opset_import")
    proto.opset_import.extend(helper.make_opsetid(domain, version) for domain in domains)
    model = parse(proto)
    assert model.opset_imports == {"": version}
    assert find_cells(model) == find_cells(parse(VALID))


@pytest.mark.parametrize("name", [b"rnn.W", b"test", b"rnn-bridge", b"hidden_size", b"batch"])
def test_text_that_is_no_utf8_is_refused(name):
    with pytest.raises(BadInput, match="not UTF-8"):
        parse(VALID.replace(name, b"\xff" + name[1:]))


def calling(name, called):
    node = helper.make_node(called, ["x"], ["y"], domain="own")
    return helper.make_function("own", name, ["x"], ["y"], [node], [helper.make_opsetid("own", 1)])


def choosing():
    """A function that hands an attribute of its own on as a branch."""
    node = helper.make_node("If", ["x"], ["y"])
    node.attribute.add(name="then_branch", ref_attr_name="branch", type=onnx.AttributeProto.GRAPH)
    return helper.make_function("own", "f", ["x"], ["y"], [node], [helper.make_opsetid("", 20)], ["branch"])


GRAPHS = {
    "no graph": lambda p: p.ClearField("graph"),
    "no opset": lambda p: p.ClearField("opset_import"),
    "two opsets": lambda p: p.opset_import.append(helper.make_opsetid("", 20)),
    "two opsets under both names": lambda p: p.opset_import.append(helper.make_opsetid("ai.onnx", 7)),
    "two values of one name": lambda p: p.graph.node.append(helper.make_node("Neg", ["x"], ["Y"])),
    "two initialisers of one name": lambda p: p.graph.initializer.append(weights(p)),
    "two inputs of one name": lambda p: p.graph.input.append(p.graph.input[0]),
    "two attributes of one name": lambda p: p.graph.node[-1].attribute.append(p.graph.node[-1].attribute[0]),
    "undefined input": lambda p: p.graph.node.append(helper.make_node("Neg", ["nowhere"], ["y"])),
    "undefined output": lambda p: p.graph.output.append(onnx.ValueInfoProto(name="nowhere")),
    "sparse": lambda p: p.graph.sparse_initializer.add(),
    "calls itself": lambda p: p.functions.append(calling("f", "f")),
    "graph as an attribute of a function": lambda p: p.functions.append(choosing()),
    "calls too deep": lambda p: p.functions.extend(calling(f"f{at}", f"f{at + 1}") for at in range(3000)),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph_that_cannot_be_right_is_refused(name):
    proto = proto_of()
    GRAPHS[name](proto)
    with pytest.raises((BadInput, Unsupported)):
        parse(proto)


# ---------------------------------------------------------------------- external data


@pytest.fixture
def saved(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    cell = random_cell("LSTM", 12, 16, np.random.default_rng(0))
    save(cell_model(cell), folder / "m.onnx", external=True)
    return folder / "m.onnx"


def change(path, **entries):
    proto = onnx.load(path, load_external_data=False)
    tensor = weights(proto)
    for entry in tensor.external_data:
        entry.value = str(entries.pop(entry.key, entry.value))
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=str(value))
    path.write_bytes(proto.SerializeToString())


@pytest.mark.parametrize(
    "location",
    ["../outside", "/etc/hostname", "sub/../../outside", "..", "C:\\outside", "..\\outside", "\\\\host\\outside", "",
     "none", "folder", "a\0b", "x" * 5000],
)  # fmt: skip
def test_external_data_stays_in_the_folder(location, saved):
    (saved.parent.parent / "outside").write_bytes(b"\0" * 10**5)
    (saved.parent / "folder").mkdir()
    change(saved, location=location)
    with pytest.raises(BadInput, match=r"rnn\.W"):
        load(saved)


def test_a_link_out_of_the_folder_is_refused_and_one_inside_is_followed(saved):
    data = saved.parent / "m.onnx.data"
    inside = saved.parent / "weights"
    data.rename(inside)
    data.symlink_to(inside)
    assert len(find_cells(load(saved))) == 1
    outside = saved.parent.parent / "weights"
    inside.rename(outside)
    data.unlink()
    data.symlink_to(outside)
    with pytest.raises(BadInput, match="leads external data out"):
        load(saved)


def test_a_link_in_a_circle_and_a_pipe_are_refused(saved):
    data = saved.parent / "m.onnx.data"
    data.unlink()
    data.symlink_to(data)
    with pytest.raises(BadInput, match="cannot be found"):
        load(saved)
    data.unlink()
    os.mkfifo(data)
    with pytest.raises(BadInput):
        load(saved)


@pytest.mark.parametrize(
    "entries",
    [{"offset": 10**9}, {"offset": -4}, {"offset": "many"}, {"offset": "9" * 30}, {"length": 4}, {"length": 10**9},
     {"length": -1}, {"unknown": 1}],
    ids=str,
)  # fmt: skip
def test_a_range_that_cannot_be_right_is_refused(entries, saved):
    change(saved, **entries)
    with pytest.raises(BadInput, match=r"rnn\.W"):
        load(saved)


def test_a_truncated_file_of_weights_is_refused(saved):
    data = saved.parent / "m.onnx.data"
    for size in (0, 100, data.stat().st_size - 1):
        os.truncate(data, size)
        with pytest.raises(BadInput, match="ends before"):
            load(saved)
        data.write_bytes(b"\0" * 10**5)


def test_external_data_without_a_folder_is_refused(saved):
    with pytest.raises(BadInput, match="came without a path"):
        parse(onnx.load(saved, load_external_data=False))


def test_an_external_constant_in_a_node_is_mapped(saved):
    proto = onnx.load(saved, load_external_data=False)
    value = TensorProto()
    value.CopyFrom(weights(proto))
    proto.graph.node.append(helper.make_node("Constant", [], ["constant"], value=value))
    saved.write_bytes(proto.SerializeToString())
    model = load(saved)
    (node,) = [node for node in model.graph if node.op_type == "Constant"]
    np.testing.assert_array_equal(node.attributes["value"].value.numpy(), find_cells(model)["rnn"].W)
