from __future__ import annotations

import numpy as np
import pytest

from bridge.errors import UsageError
from bridge.graph.interface import Interface, Port
from bridge.verification.trials import make_trial

F, I32 = np.dtype(np.float32), np.dtype(np.int32)


def interface(*inputs: Port) -> Interface:
    return Interface(inputs, ())


def test_symbols_and_fixed_sizes_are_honoured() -> None:
    trial = make_trial(interface(Port("x", F, ("time", "batch", 7)), Port("initial_h", F, (2, "batch", 5))), 3, 11)
    assert trial.feeds["x"].shape == (11, 3, 7)
    assert trial.feeds["initial_h"].shape == (2, 3, 5)
    assert trial.states


def test_an_unknown_symbol_means_the_same_size_wherever_it_stands() -> None:
    trial = make_trial(interface(Port("a", F, ("foo", "bar", 2)), Port("b", F, (1, "foo"))), 3, 11)
    assert trial.feeds["a"].shape[0] == trial.feeds["b"].shape[1] == 3


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_lengths_are_ragged_and_in_range(batch: int) -> None:
    lengths = make_trial(interface(Port("lengths", I32, ("batch",))), batch, 9).lengths
    assert lengths is not None
    assert all(1 <= length <= 9 for length in lengths)
    if batch > 1:
        assert (lengths[0], lengths[-1]) == (1, 9)


def test_the_same_seed_gives_the_same_inputs() -> None:
    side = interface(Port("x", F, ("time", "batch", 7)))
    first, again, other = make_trial(side, 2, 3), make_trial(side, 2, 3), make_trial(side, 2, 3, seed=1)
    assert np.array_equal(first.feeds["x"], again.feeds["x"])
    assert not np.array_equal(first.feeds["x"], other.feeds["x"])


def test_an_input_without_a_rank_asks_for_inputs() -> None:
    with pytest.raises(UsageError, match="give inputs"):
        make_trial(interface(Port("x", F, None)), 1, 1)


def test_tokens_and_masks_are_right_padded_where_a_side_asks_for_it() -> None:
    ports = Port("tokens", I32, ("batch", "time")), Port("mask", np.dtype(bool), ("batch", "time")), Port("k", I32, ())
    feeds = make_trial(interface(*ports), 5, 12, right_padded=True).feeds
    for name in ("tokens", "mask"):
        lengths = feeds[name].sum(axis=1)
        assert (feeds[name] == (np.arange(12) < lengths[:, None])).all()
        assert (lengths[0], lengths[-1]) == (1, 12)
