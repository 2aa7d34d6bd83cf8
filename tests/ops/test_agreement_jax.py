"""Every operator under jax.jit against onnxruntime."""

from __future__ import annotations

import jax
import pytest

from bridge.ops.backend_jax import JaxBackend
from tests.ops.agreement import assert_agrees
from tests.ops.rows import Row, rows


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.name)
def test_jax_under_jit_agrees_with_onnxruntime(row: Row) -> None:
    assert_agrees(row, JaxBackend(), jax.jit)
