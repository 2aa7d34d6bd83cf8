from __future__ import annotations

import numpy as np
import pytest

from bridge.graph.interface import Port, arranged, neutral

F = np.dtype(np.float32)
TORCH = (
    Port("output", F, ("time", "batch", 4)),
    Port("h_n", F, (2, "batch", 2)),
)
KERAS = (
    Port("output", F, ("batch", "time", 4)),
    Port("h_n_forward", F, ("batch", 2)),
    Port("h_n_backward", F, ("batch", 2)),
)


@pytest.fixture
def torch_arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {"output": rng.standard_normal((5, 3, 4)), "h_n": rng.standard_normal((2, 3, 2))}


def test_torch_and_keras_arrangements_hold_the_same_arrays(torch_arrays: dict[str, np.ndarray]) -> None:
    there = arranged(KERAS, neutral(TORCH, torch_arrays))
    assert there["output"].shape == (3, 5, 4)
    assert np.array_equal(there["output"][1, 4], torch_arrays["output"][4, 1])
    assert np.array_equal(there["h_n_forward"], torch_arrays["h_n"][0])
    assert np.array_equal(there["h_n_backward"], torch_arrays["h_n"][1])
    back = arranged(TORCH, neutral(KERAS, there))
    assert all(np.array_equal(back[name], torch_arrays[name]) for name in torch_arrays)


def test_an_output_that_the_other_side_lacks_is_left_out(torch_arrays: dict[str, np.ndarray]) -> None:
    only = neutral(TORCH[:1], torch_arrays)
    assert set(arranged(KERAS, only)) == {"output"}
