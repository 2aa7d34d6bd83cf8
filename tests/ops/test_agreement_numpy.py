"""Every operator in float32 numpy against onnxruntime; every operator has a row."""

from __future__ import annotations

import pytest

from bridge.ops.backend_numpy import NumpyBackend
from bridge.ops.table import HANDLERS
from tests.ops.agreement import assert_agrees
from tests.ops.rows import Row, rows


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.name)
def test_numpy_agrees_with_onnxruntime(row: Row) -> None:
    assert_agrees(row, NumpyBackend())


JUDGED_BY_BACKEND_CASES_ONLY = {"Swish", "CumProd", "TensorScatter"}
"""Since opsets 24 and 26; onnxruntime 1.31.1 has no CPU kernel for them."""


def test_every_operator_has_a_row() -> None:
    operators = {op for domain, op, _ in HANDLERS if domain == ""}
    assert operators - {row.op for row in rows()} == JUDGED_BY_BACKEND_CASES_ONLY
