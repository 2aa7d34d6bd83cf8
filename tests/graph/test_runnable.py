"""Recurrent nodes that onnxruntime refuses leave as it takes them: layout 1 in layout 0, hidden_size named."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import bridge
from tests.ops.recurrent_grid import COMMON, OWN, Case, make_case

ROWS = {
    "LSTM, both directions, states fed": (
        "LSTM", {"direction": "bidirectional", "initial_h": "input", "initial_c": "input"}),
    "GRU, constant state, ragged": ("GRU", {"initial_h": "initialiser", "lengths": "ragged", "lengths are": "input"}),
    "RNN, reverse": ("RNN", {"direction": "reverse"}),
}  # fmt: skip


def case_of(name: str, **more: Any) -> Case:
    op, row = ROWS[name]
    plain: dict[str, Any] = {each: values[0] for each, values in {**COMMON, **OWN[op]}.items()}
    row = {**plain, "opset": 14, "B": "initialiser", "parameters": "no activations", **row, "layout": 1, **more}
    return make_case(op, row, np.random.default_rng(5))


def assert_referee(case: Case, results: Mapping[str, np.ndarray]) -> None:
    for output, wanted in case.referee().items():
        # float32: a dozen products below 1 in each of a few steps
        np.testing.assert_allclose(results[output], wanted, rtol=0, atol=64 * np.finfo(np.float32).eps)


@pytest.mark.parametrize("framework", ["onnx", "flax", "torch"])
@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("hidden_size", ["given", "absent"])
def test_what_onnxruntime_refuses_is_written_otherwise(name: str, framework: str, hidden_size: str) -> None:
    case = case_of(name, hidden_size=hidden_size)
    source = case.model()
    with pytest.raises(Exception, match=r"layout_ == 0|hidden_size"):
        ort.InferenceSession(source.SerializeToString(), providers=["CPUExecutionProvider"])
    back = bridge.to_onnx(source if framework == "onnx" else getattr(bridge, f"to_{framework}")(source))
    assert [node.op_type for node in back.graph.node].count(case.op) == 1
    assert [value.name for value in back.graph.output] == [value.name for value in source.graph.output]
    session = ort.InferenceSession(back.SerializeToString(), providers=["CPUExecutionProvider"])
    outputs = [output.name for output in session.get_outputs()]
    assert_referee(case, dict(zip(outputs, session.run(None, case.feeds()), strict=True)))


def test_such_a_model_is_run_and_judged_as_any_other(tmp_path: Path) -> None:
    case = case_of("LSTM, both directions, states fed", hidden_size="absent")
    path = tmp_path / "batch_first.onnx"
    onnx.save(case.model(), path)
    assert_referee(case, bridge.run(str(path), case.feeds()))
    assert bridge.verify(str(path), "flax", inputs=case.feeds()).passed
