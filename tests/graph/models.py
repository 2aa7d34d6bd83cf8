"""Small models for the tests of bridge.graph, and onnxruntime's outputs of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime

from bridge.graph import Writer, to_proto

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx_ir as ir

    from bridge.cell import Cell


def cell_model(
    cell: Cell, *, form: str = "fused", lengths: bool = False, states: bool = False, opset: int = 20, name: str = "rnn"
) -> ir.Model:
    """One cell: x[, lengths][, h0][, c0] to Y, Y_h[, Y_c]; batch and time symbolic."""
    dtype = cell.dtype.name
    w = Writer(opset=opset, dtype=dtype)
    x = w.input("x", dtype, ["time", "batch", cell.input_size])
    given = {}
    if lengths:
        given["lengths"] = w.input("lengths", "int32", ["batch"])
    if states:
        shape = [cell.num_directions, "batch", cell.hidden_size]
        given["initial_h"] = w.input("h0", dtype, shape)
        if cell.op == "LSTM":
            given["initial_c"] = w.input("c0", dtype, shape)
    results = w.recurrent(cell, x, name=name, form=form, **given)
    for label, value in zip(("Y", "Y_h", "Y_c"), results, strict=True):
        if value is not None:
            w.output(value, label)
    return w.model({"bridge.source": "test"})


def check(model: onnx.ModelProto) -> None:
    """Run the checker and strict inference, as users do."""
    onnx.checker.check_model(model, full_check=True)
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)


def run(model: ir.Model | onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """onnxruntime's outputs on the CPU, after `check`."""
    proto = model if isinstance(model, onnx.ModelProto) else to_proto(model)
    check(proto)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip([out.name for out in session.get_outputs()], session.run(None, dict(feeds)), strict=True))


def feeds_of(
    cell: Cell, rng: np.random.Generator, *, lengths: bool = False, states: bool = False, time: int = 6, batch: int = 4
) -> dict[str, np.ndarray]:
    """Inputs for `cell_model`: ragged lengths that hold 0 and `time`, non-zero states."""
    feeds = {"x": rng.standard_normal((time, batch, cell.input_size)).astype(cell.dtype)}
    if lengths:
        feeds["lengths"] = np.resize(np.asarray([time, 3, 1, 0], np.int32), batch)
    if states:
        shape = (cell.num_directions, batch, cell.hidden_size)
        feeds["h0"] = rng.uniform(-0.9, 0.9, shape).astype(cell.dtype)
        if cell.op == "LSTM":
            feeds["c0"] = rng.uniform(-0.9, 0.9, shape).astype(cell.dtype)
    return feeds
