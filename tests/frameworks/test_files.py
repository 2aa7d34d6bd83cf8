"""Cells as the named arrays of a file."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bridge.cell import Cell
from bridge.errors import NotRepresentable
from bridge.frameworks.files import named_arrays


@pytest.fixture
def cell() -> Cell:
    rng = np.random.default_rng(0)
    return Cell("LSTM", W=rng.standard_normal((1, 12, 2)), R=rng.standard_normal((1, 12, 3)))


def test_a_layer_that_only_runs_backwards_has_no_names_in_torch(cell: Cell) -> None:
    with pytest.raises(NotRepresentable, match="in reverse only") as refused:
        named_arrays({"encoder": replace(cell, direction="reverse")}, "torch")
    assert refused.value.where == "encoder"


def test_directions_are_told_apart_by_their_names(cell: Cell) -> None:
    both = Cell.join(cell, replace(cell, direction="reverse"))
    assert {"weight_ih_l0", "weight_hh_l0_reverse"} <= named_arrays({"encoder": both}, "torch")[0].keys()
    assert {"encoder.forward.kernel", "encoder.backward.kernel"} <= named_arrays({"encoder": both}, "keras")[0].keys()


def test_one_direction_is_told_where_it_is_not_forward(cell: Cell) -> None:
    assert "encoder.kernel" in named_arrays({"encoder": cell}, "keras")[0]
    assert "encoder.backward.kernel" in named_arrays({"encoder": replace(cell, direction="reverse")}, "keras")[0]
