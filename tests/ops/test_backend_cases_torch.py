"""ONNX's node cases of the recurrent operators and Scan in torch: none wrong, none refused."""

from __future__ import annotations

import warnings

from bridge.ops.backend_torch import TorchBackend
from tests.ops.backend_cases import carried, outcome

RECURRENT = ("LSTM", "GRU", "RNN")


def test_recurrent_cases_pass() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = [case for case in carried() if case.model.graph.node[0].op_type in RECURRENT]
    assert len(cases) == 18
    assert {case.name: outcome(case, TorchBackend()) for case in cases} == {case.name: "passed" for case in cases}
