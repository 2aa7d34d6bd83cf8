"""Every kind of source runs, and what onnxruntime refuses ends in one error of bridge with its message."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from bridge.errors import BadInput, DeviceUnavailable, Unsupported, UsageError
from bridge.graph import as_model
from bridge.runtime import CPU, Session, run_model, why_no_cuda
from tests.cells import random_cell
from tests.single_node import node_model

X = np.random.default_rng(1).standard_normal((4, 2, 3)).astype(np.float32)


def lstm_bytes(dtype="float32", attributes=None, **options) -> bytes:
    cell = random_cell("LSTM", 3, 5, np.random.default_rng(0), dtype=dtype)
    inputs = {"X": X.astype(dtype), "W": cell.W, "R": cell.R, "B": cell.B}
    return node_model("LSTM", inputs, attributes or {}, **options)


def sources(folder) -> dict[str, object]:
    data = lstm_bytes()
    (folder / "model.onnx").write_bytes(data)
    external = folder / "external.onnx"
    onnx.save_model(onnx.load_from_string(data), external, save_as_external_data=True, location="w.bin",
                    size_threshold=0)  # fmt: skip
    return {
        "bytes": data,
        "ModelProto": onnx.load_from_string(data),
        "onnx_ir.Model": as_model(data),
        "path": folder / "model.onnx",
        "path as text": str(folder / "model.onnx"),
        "external data": external,
    }


def test_every_kind_of_source_gives_the_same(tmp_path):
    results = {kind: run_model(source, {"X": X}) for kind, source in sources(tmp_path).items()}
    for kind, result in results.items():
        for name, array in results["bytes"].outputs.items():
            np.testing.assert_array_equal(result.outputs[name], array, err_msg=kind)


def test_session_is_loaded_once_and_run_often():
    session = Session(lstm_bytes(), device="cpu")
    first, second = session.run({"X": X}), session.run({"X": X[:2]})
    np.testing.assert_array_equal(first.outputs["Y"][:2], second.outputs["Y"])


def test_provider_is_named_for_every_node():
    assert run_model(lstm_bytes(), {"X": X}, device="cpu").providers == {"cell": CPU}


def test_nodes_without_a_name_are_named_by_operator():
    graph = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["y"])], "g", [helper.make_tensor_value_info("x", 1, [1])],
        [helper.make_tensor_value_info("y", 1, [1])],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    (name,) = run_model(model, {"x": np.ones(1, np.float32)}).providers
    assert name.startswith("Neg")


def test_product_with_dequantised_weights_is_one_of_floats():
    rng, inputs, units = np.random.default_rng(3), 64, 96
    weights, scale = rng.integers(-127, 128, (inputs, units), np.int8), np.float32(0.01)
    graph = helper.make_graph(
        [helper.make_node("DequantizeLinear", ["w", "scale"], ["floats"]),
         helper.make_node("MatMul", ["x", "floats"], ["y"])],
        "g", [helper.make_tensor_value_info("x", 1, ["n", inputs])],
        [helper.make_tensor_value_info("y", 1, ["n", units])],
        [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(scale, "scale")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    x, exact = rng.standard_normal((4, inputs)).astype(np.float32), weights * np.float64(scale)
    error = np.abs(run_model(model, {"x": x}).outputs["y"] - x.astype(np.float64) @ exact)
    # A sum of n products is off by at most (n + 1) eps of the sum of their sizes, whatever its order.
    assert (error <= (inputs + 1) * np.finfo(np.float32).eps * (np.abs(x) @ np.abs(exact))).all()


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
def test_output_that_is_quantised_further_down_is_not_quantised_itself(op):
    cell, rng = random_cell(op, 6, 3, np.random.default_rng(4)), np.random.default_rng(5)
    x = 9 * rng.standard_normal((7, 2, 6)).astype(np.float32)  # Y over all of (-1, 1), of which uint8 holds a part
    alone = onnx.load_from_string(node_model(op, {"X": x, "W": cell.W, "R": cell.R, "B": cell.B}, {}, outputs=["Y"]))
    model = onnx.ModelProto()
    model.CopyFrom(alone)
    model.graph.node.append(helper.make_node("Transpose", ["Y"], ["moved"], perm=[0, 2, 1, 3]))
    model.graph.node.append(helper.make_node("Reshape", ["moved", "shape"], ["flat"]))
    model.graph.node.append(helper.make_node("QuantizeLinear", ["flat", "scale", "zero"], ["z"]))
    model.graph.initializer.append(numpy_helper.from_array(np.array([0, 0, -1]), "shape"))
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0.05), "scale"))
    model.graph.initializer.append(numpy_helper.from_array(np.uint8(3), "zero"))
    model.graph.output.append(helper.make_tensor_value_info("z", 2, None))
    np.testing.assert_array_equal(run_model(model, {"X": x}).outputs["Y"], run_model(alone, {"X": x}).outputs["Y"])


BYTES = {
    "one": "y = MatMulInteger (a, b)",
    "two of the same weights": "y = MatMulInteger (a, b)  z = MatMulInteger (a, b)",
    "behind a node": "c = Identity (b)  y = MatMulInteger (a, c)  z = MatMulInteger (a, c)",
    "dequantised": "c = DequantizeLinear (b, one)  d = Cast <to = 1> (a)  y = MatMul (d, c)  z = MatMul (d, c)",
}
"""Products of uint8 and int8, the second of the same weights."""


@pytest.mark.parametrize("constant", [False, True], ids=["initialiser", "Constant"])
@pytest.mark.parametrize("nodes", BYTES.values(), ids=BYTES)
def test_product_of_bytes_does_not_saturate(nodes, constant):
    left, right = np.full((1, 64), 255, np.uint8), np.full((64, 8), 127, np.int8)
    kind = "float" if "MatMul (" in nodes else "int32"
    outputs = ", ".join(f"{kind}[n, 8] {name}" for name in "yz" if f"{name} = " in nodes)
    model = onnx.parser.parse_model(f"""<ir_version: 8, opset_import: ["" : 17]>
        g (uint8[n, 64] a) => ({outputs}) {{ one = Constant <value = float {{1.0}}> ()  {nodes} }}""")
    weights = numpy_helper.from_array(right, "b")
    if constant:
        model.graph.node.insert(0, helper.make_node("Constant", [], ["b"], value=weights))
    else:
        model.graph.initializer.append(weights)
    for array in run_model(model, {"a": left}).outputs.values():  # whole numbers below 2 ** 24: exact in float32 too
        np.testing.assert_array_equal(array, np.full((1, 8), 64 * 255 * 127))


def test_weights_of_bytes_behind_many_nodes_are_followed_once():
    nodes = " ".join(f"w{at + 1} = Unsqueeze(w{at}, w{at})" for at in range(2000))  # twice a node: 2**2000 ways
    text = f"""<ir_version: 10, opset_import: ["": 21]>
        g () => (float y) <int8[1, 1] w0 = {{0}}> {{ {nodes}  y = Cast <to = 1> (w2000) }}"""
    with pytest.raises(BadInput, match="onnxruntime calls this wrong"):
        run_model(onnx.parser.parse_model(text), {})


@pytest.mark.skipif(why_no_cuda() is None, reason="a GPU is present")
def test_cuda_without_a_gpu_is_refused_and_auto_is_the_cpu():
    with pytest.raises(DeviceUnavailable, match="CUDA is not available"):
        run_model(lstm_bytes(), {"X": X}, device="cuda")
    assert run_model(lstm_bytes(), {"X": X}, device="auto").providers == {"cell": CPU}


def test_unknown_device_is_a_usage_error():
    with pytest.raises(UsageError, match="'tpu'"):
        run_model(lstm_bytes(), {"X": X}, device="tpu")


def test_something_else_is_a_usage_error():
    with pytest.raises(UsageError, match="no ONNX model"):
        run_model(3, {})


def stamped(opset: int, ir_version: int) -> onnx.ModelProto:
    model = onnx.load_from_string(lstm_bytes())
    model.opset_import[0].version, model.ir_version = opset, ir_version
    return model


@pytest.mark.parametrize(("opset", "ir_version", "told"), [(27, 10, "opset 27"), (20, 14, "IR version 14"),
                                                           (6, 10, "opset 6")])  # fmt: skip
def test_opset_or_ir_version_that_onnxruntime_does_not_run(opset, ir_version, told):
    with pytest.raises(Unsupported) as caught:
        run_model(stamped(opset, ir_version), {"X": X})
    assert "ONNXRuntimeError" in str(caught.value.got)
    assert told in caught.value.do
    assert "opset 17 to 22 and IR 10 or less" in caught.value.do


def test_layout_1_is_run_turned_over():
    plain = run_model(lstm_bytes(), {"X": X}).outputs["Y"]
    turned = run_model(lstm_bytes(attributes={"layout": 1}), {"X": X.transpose(1, 0, 2)}).outputs["Y"]
    np.testing.assert_array_equal(turned, plain.transpose(2, 0, 1, 3))


def test_float64_is_unsupported_when_it_runs():
    session = Session(lstm_bytes("float64"), device="cpu")
    with pytest.raises(Unsupported, match="does not support double yet"):
        session.run({"X": X.astype(np.float64)})


def test_float16_runs():
    outputs = run_model(lstm_bytes("float16"), {"X": X.astype(np.float16)}).outputs
    assert outputs["Y"].dtype == np.float16


def test_shapes_that_disagree_are_bad_input():
    model = onnx.load_from_string(lstm_bytes())
    for tensor in model.graph.initializer:
        if tensor.name == "R":
            tensor.CopyFrom(numpy_helper.from_array(np.ones((1, 20, 4), np.float32), "R"))
    with pytest.raises(BadInput):
        run_model(model, {"X": X})


def test_truncated_bytes_are_bad_input():
    data = lstm_bytes()
    with pytest.raises(BadInput):
        run_model(data[: len(data) // 2], {"X": X})


def test_missing_file_is_bad_input(tmp_path):
    with pytest.raises(BadInput):
        run_model(tmp_path / "none.onnx", {"X": X})


def test_external_data_outside_the_folder_is_bad_input(tmp_path):
    inner = tmp_path / "inner"
    inner.mkdir()
    onnx.save_model(onnx.load_from_string(lstm_bytes()), inner / "m.onnx", save_as_external_data=True, location="w.bin",
                    size_threshold=0)  # fmt: skip
    model = onnx.load_model(inner / "m.onnx", load_external_data=False)
    (inner / "w.bin").rename(tmp_path / "w.bin")
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            entry.value = "../w.bin" if entry.key == "location" else entry.value
    (inner / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(BadInput):
        run_model(inner / "m.onnx", {"X": X})
