"""ONNX models of one recurrent node, made with onnx.helper alone, and onnxruntime's outputs of them.

Independent of bridge.graph and bridge.runtime on purpose: the referee is judged with these.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
import onnxruntime
from onnx import helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np

INPUTS = {
    "LSTM": ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P"),
    "GRU": ("X", "W", "R", "B", "sequence_lens", "initial_h"),
    "RNN": ("X", "W", "R", "B", "sequence_lens", "initial_h"),
}
OUTPUTS = {"LSTM": ("Y", "Y_h", "Y_c"), "GRU": ("Y", "Y_h"), "RNN": ("Y", "Y_h")}
WEIGHTS = ("W", "R", "B", "P")


def node_model(
    op: str,
    inputs: Mapping[str, np.ndarray],
    attributes: Mapping[str, object],
    *,
    outputs: Sequence[str] | None = None,
    constants: Sequence[str] = WEIGHTS,
    opset: int = 20,
) -> bytes:
    """A model of one node named "cell"; `constants` are initialisers and every other input is a graph input."""
    names = [name if name in inputs else "" for name in INPUTS[op]]
    wanted = [name if name in (outputs or OUTPUTS[op]) else "" for name in OUTPUTS[op]]
    given = {name: value for name, value in attributes.items() if value is not None}
    node = helper.make_node(op, names, wanted, name="cell", hidden_size=inputs["R"].shape[2], **given)
    infos = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), [None] * value.ndim)
        for name, value in inputs.items()
        if name not in constants
    ]
    element = helper.np_dtype_to_tensor_dtype(inputs["X"].dtype)
    results = [
        helper.make_tensor_value_info(name, element, [None] * (4 if name == "Y" else 3)) for name in wanted if name
    ]
    weights = [numpy_helper.from_array(value, name) for name, value in inputs.items() if name in constants]
    graph = helper.make_graph([node], "single", infos, results, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def session(model: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def run_node(model: bytes, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """onnxruntime's outputs by name."""
    opened = session(model)
    feeds = {value.name: inputs[value.name] for value in opened.get_inputs()}
    return dict(zip((value.name for value in opened.get_outputs()), opened.run(None, feeds), strict=True))
