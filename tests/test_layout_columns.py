"""read_columns: the same recurrence as read_blocks, and arrays left as they stand where they can be."""

from __future__ import annotations

import numpy as np
import pytest

from bridge.cell import GATES
from bridge.layout import layouts, read_blocks, read_columns, template


@pytest.mark.parametrize("layout", layouts())
def test_columns_hold_the_rows_of_the_blocks(layout: str) -> None:
    rng, empty = np.random.default_rng(0), template(layout, 3, 4)
    params = {name: rng.standard_normal(value.shape).astype(np.float32) for name, value in empty.params.items()}
    columns = read_columns(layout, params, **empty.options)
    blocks = read_blocks(layout, params, **empty.options)
    assert sorted(columns.gates) == sorted(GATES[blocks.op])
    n, hidden = len(columns.gates), 4
    order = np.concatenate([np.arange(hidden) + columns.gates.index(gate) * hidden for gate in GATES[blocks.op]])
    np.testing.assert_array_equal(columns.W.T[order], blocks.W[0])
    np.testing.assert_array_equal(columns.R.T[order], blocks.R[0])
    B = np.zeros(2 * n * hidden, np.float32) if blocks.B is None else blocks.B[0]
    for bias, rows in ((columns.Wb, B[: n * hidden]), (columns.Rb, B[n * hidden :])):
        np.testing.assert_array_equal(np.zeros(n * hidden) if bias is None else bias[order], rows)
    for name in ("activations", "alpha", "beta", "clip", "input_forget", "linear_before_reset"):
        assert getattr(columns, name) == getattr(blocks, name)


def test_whole_arrays_are_not_copied() -> None:
    params = template("flax.nnx.OptimizedLSTMCell", 3, 4).params
    columns = read_columns("flax.nnx.OptimizedLSTMCell", params)
    assert columns.gates == "ifco"
    assert columns.R is params["dense_h.kernel"] or columns.R.base is params["dense_h.kernel"]
    assert np.shares_memory(columns.W, params["dense_i.kernel"])


@pytest.mark.parametrize(
    ("layout", "by_gate"),
    [("flax.linen.LSTMCell", True), ("flax.linen.GRUCell", True), ("flax.nnx.OptimizedLSTMCell", False),
     ("flax.nnx.GRUCell", False), ("torch.LSTM", False), ("keras.LSTM", False)],
)  # fmt: skip
def test_weights_that_a_layer_keeps_gate_by_gate_are_said_to_be(layout: str, by_gate: bool) -> None:
    empty = template(layout, 3, 4)
    assert read_columns(layout, empty.params, **empty.options).by_gate is by_gate
