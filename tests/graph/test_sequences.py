from __future__ import annotations

import numpy as np
import pytest

from bridge.graph import Writer, sequences
from tests.graph.models import run

LENGTHS = np.asarray([5, 3, 1, 0], np.int32)
TIME, BATCH, HIDDEN = 5, 4, 3


def apply(function, *arrays, symbols):
    w = Writer()
    values = [
        w.input(f"x{at}", array.dtype.name, shape)
        for at, (array, shape) in enumerate(zip(arrays, symbols, strict=True))
    ]
    w.output(function(w, *values), "y")
    model = w.model()
    declared = model.graph.outputs[0].shape
    result = run(model, {f"x{at}": array for at, array in enumerate(arrays)})["y"]
    assert declared is not None
    assert all(not isinstance(want, int) or want == have for want, have in zip(declared, result.shape, strict=True))
    return result


@pytest.mark.parametrize("features", [(), (HIDDEN,), (2, HIDDEN)], ids=str)
def test_past_a_length_are_zeros(features, rng):
    x = rng.standard_normal((TIME, BATCH, *features)).astype("f")
    actual = apply(sequences.zero_past, x, LENGTHS, symbols=[["time", "batch", *features], ["batch"]])
    expected = x.copy()
    for row, length in enumerate(LENGTHS):
        expected[length:, row] = 0
    np.testing.assert_array_equal(actual, expected)


def test_gather_last_takes_the_last_valid_step(rng):
    x = rng.standard_normal((TIME, BATCH, HIDDEN)).astype("f")
    actual = apply(sequences.gather_last, x, LENGTHS, symbols=[["time", "batch", HIDDEN], ["batch"]])
    np.testing.assert_array_equal(actual, x[np.maximum(LENGTHS - 1, 0), np.arange(BATCH)])


@pytest.mark.parametrize("axis", [0, 1])
def test_flip_reverses_one_axis(axis, rng):
    x = rng.standard_normal((TIME, BATCH)).astype("f")
    actual = apply(lambda w, x: sequences.flip(w, x, axis), x, symbols=[["time", "batch"]])
    np.testing.assert_array_equal(actual, np.flip(x, axis))


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("directions", [1, 2])
def test_merge_directions_puts_forward_features_first(directions, batch_first, rng):
    y = rng.standard_normal((TIME, directions, BATCH, HIDDEN)).astype("f")
    actual = apply(lambda w, y: sequences.merge_directions(w, y, batch_first=batch_first), y,
                   symbols=[["time", directions, "batch", HIDDEN]])  # fmt: skip
    expected = np.concatenate([y[:, at] for at in range(directions)], axis=-1)
    np.testing.assert_array_equal(actual, expected.swapaxes(0, 1) if batch_first else expected)


RIGHT = np.arange(TIME)[None] < LENGTHS[:, None]
HOLES = RIGHT.copy()
HOLES[0, 2] = False


@pytest.mark.parametrize(("mask", "expected"), [(RIGHT, True), (RIGHT[:, ::-1].copy(), False), (HOLES, False)])
def test_right_padded_sees_every_hole(mask, expected):
    assert apply(sequences.right_padded, mask, symbols=[["batch", "time"]]).item() is expected
    np.testing.assert_array_equal(apply(sequences.lengths_of_mask, mask, symbols=[["batch", "time"]]), mask.sum(1))
