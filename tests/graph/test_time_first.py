"""Imported graphs with recurrent nodes of layout 1 leave in layout 0, which onnxruntime computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

import bridge
from tests.ops.recurrent_grid import COMMON, OWN, make_case

ROWS = {
    "LSTM, both directions, states fed": (
        "LSTM", {"direction": "bidirectional", "initial_h": "input", "initial_c": "input"}),
    "GRU, constant state, ragged": ("GRU", {"initial_h": "initialiser", "lengths": "ragged", "lengths are": "input"}),
    "RNN, reverse": ("RNN", {"direction": "reverse"}),
}  # fmt: skip


@pytest.mark.parametrize("framework", ["flax", "torch"])
@pytest.mark.parametrize("name", ROWS)
def test_what_is_batch_first_is_turned(name: str, framework: str) -> None:
    op, row = ROWS[name]
    plain: dict[str, Any] = {each: values[0] for each, values in {**COMMON, **OWN[op]}.items()}
    row = {**plain, "opset": 14, "B": "initialiser", "parameters": "no activations", **row, "layout": 1}
    case = make_case(op, row, np.random.default_rng(5))
    back = bridge.to_onnx(getattr(bridge, f"to_{framework}")(case.model()))
    assert [node.op_type for node in back.graph.node].count(op) == 1
    assert not any(attribute.name == "layout" for node in back.graph.node for attribute in node.attribute)
    session, referee = (
        ort.InferenceSession(back.SerializeToString(), providers=["CPUExecutionProvider"]),
        case.referee(),
    )
    for output, value in zip(session.get_outputs(), session.run(None, case.feeds()), strict=True):
        # float32: a dozen products below 1 in each of a few steps
        np.testing.assert_allclose(value, referee[output.name], rtol=0, atol=64 * np.finfo(np.float32).eps)
