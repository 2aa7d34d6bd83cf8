"""Every operator under jax.jit against onnxruntime; `python -m tests.ops.backend_cases jax` runs all the cases."""

from __future__ import annotations

import jax
import pytest

from bridge.ops.backend_jax import JaxBackend
from tests.ops.agreement import assert_agrees
from tests.ops.rows import Row, representatives


@pytest.mark.parametrize("row", representatives(), ids=lambda row: row.name)
def test_jax_under_jit_agrees_with_onnxruntime(row: Row) -> None:
    assert_agrees(row, JaxBackend(), jax.jit)
