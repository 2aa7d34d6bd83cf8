"""ONNX's node cases of every carried operator, by the float64 referee: none wrong."""

from __future__ import annotations

import warnings

from bridge.ops.backend_numpy import NumpyBackend
from tests.ops.backend_cases import count


def test_no_case_is_wrong_and_no_more_are_refused_than_known() -> None:
    with warnings.catch_warnings():  # onnx computes some expected values with overflow
        warnings.simplefilter("ignore")
        counts, wrong = count(NumpyBackend(double=True), double=True)
    assert not wrong
    assert counts["passed"] >= 1498
    assert counts["refused"] <= 208  # float8, bfloat16, 4- and 2-bit types, sequences, training mode of Dropout
