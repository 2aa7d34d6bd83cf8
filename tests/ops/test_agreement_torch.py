"""Every operator in torch against onnxruntime."""

from __future__ import annotations

import pytest

from bridge.ops.backend_torch import TorchBackend
from tests.ops.agreement import assert_agrees
from tests.ops.rows import Row, rows


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.name)
def test_torch_agrees_with_onnxruntime(row: Row) -> None:
    assert_agrees(row, TorchBackend())
