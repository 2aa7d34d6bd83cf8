"""DynamicQuantizeLSTM as onnxruntime.quantization writes it, against onnxruntime."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import onnx
import pytest
from onnxruntime.quantization import QuantType, quantize_dynamic

from bridge.errors import Unsupported
from bridge.ops.backend_jax import JaxBackend
from bridge.ops.backend_numpy import NumpyBackend
from bridge.ops.program import Program
from tests.single_node import node_model, session

T, N, INPUTS, HIDDEN = 6, 2, 5, 7

ROUNDING = 1e-5
"""float32 rounding of sums of a few products of size one. A tie that falls to the other side would show as about 1e-3:
none does with these seeds; a wrong zero point, scale or gate order shows as 1e-2 and more."""


def quantised(folder: Path, direction: str, per_channel: bool, weight_type: QuantType) -> tuple[bytes, dict]:
    rng, count = np.random.default_rng(3), 2 if direction == "bidirectional" else 1
    shapes = {"X": (T, N, INPUTS), "W": (count, 4 * HIDDEN, INPUTS), "R": (count, 4 * HIDDEN, HIDDEN),
              "B": (count, 8 * HIDDEN), "initial_h": (count, N, HIDDEN), "initial_c": (count, N, HIDDEN)}  # fmt: skip
    arrays = {name: rng.uniform(-0.8, 0.8, shape).astype(np.float32) for name, shape in shapes.items()}
    (folder / "float.onnx").write_bytes(node_model("LSTM", arrays, {"direction": direction}))
    quantize_dynamic(folder / "float.onnx", folder / "int8.onnx", op_types_to_quantize=["LSTM"],
                     per_channel=per_channel, weight_type=weight_type)  # fmt: skip
    return (folder / "int8.onnx").read_bytes(), {name: arrays[name] for name in ("X", "initial_h", "initial_c")}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("weight_type", [QuantType.QInt8, QuantType.QUInt8], ids=["int8", "uint8"])
@pytest.mark.parametrize(("direction", "per_channel"), [("forward", False), ("reverse", True), ("bidirectional", True)])
def test_numpy_and_jax_agree_with_onnxruntime(direction, per_channel, weight_type, tmp_path) -> None:
    model, feeds = quantised(tmp_path, direction, per_channel, weight_type)
    assert [node.op_type for node in onnx.load_from_string(model).graph.node] == ["DynamicQuantizeLSTM"]
    expected = session(model).run(None, feeds)
    programs = (Program(model, NumpyBackend()), jax.jit(Program(model, JaxBackend())))
    for program in programs:
        actual = program(feeds)
        for name, wanted in zip(("Y", "Y_h", "Y_c"), expected, strict=True):
            np.testing.assert_allclose(actual[name], wanted, atol=ROUNDING, rtol=0)


@pytest.mark.filterwarnings("ignore")
def test_what_is_not_carried_is_refused(tmp_path) -> None:
    model, feeds = quantised(tmp_path, "forward", False, QuantType.QInt8)
    proto = onnx.load_from_string(model)
    proto.graph.node[0].attribute.append(onnx.helper.make_attribute("clip", 3.0))
    with pytest.raises(Unsupported, match="clip"):
        Program(proto, NumpyBackend())(feeds)
