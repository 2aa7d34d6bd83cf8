from __future__ import annotations

import numpy as np
import pytest

from bridge.verification.bound import Error, bound, error_against, growth

FLOAT32 = np.dtype(np.float32)


def test_the_bound_is_four_times_onnxruntimes_own_error() -> None:
    assert bound(Error(1e-3, 1e-3), np.ones(3), FLOAT32) == 4e-3


def test_the_floor_is_eight_units_in_the_last_place_of_the_largest_value() -> None:
    eps = float(np.finfo(np.float32).eps)
    assert bound(Error(0.0, 0.0), np.array([0.1, -100.0]), FLOAT32) == pytest.approx(8 * eps * 100)
    assert bound(Error(0.0, 0.0), np.array([0.1]), FLOAT32) == pytest.approx(8 * eps)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_an_error_that_is_not_finite_is_infinite(poison: float) -> None:
    assert error_against(np.array([0.0, poison], np.float32), np.zeros(2)).absolute == np.inf


def test_an_error_against_a_zero_referee_is_relative_infinite_or_none() -> None:
    assert error_against(np.zeros(2, np.float32), np.zeros(2)) == Error(0.0, 0.0)
    assert error_against(np.ones(2, np.float32), np.zeros(2)).relative == np.inf


def test_growth_shows_where_in_time_the_error_is() -> None:
    actual, referee = np.zeros((8, 2, 3), np.float32), np.zeros((8, 2, 3))
    actual[7, 1, 2] = 0.5
    assert growth(actual, referee, time_axis=0) == (0.0, 0.0, 0.0, 0.5)
    assert growth(np.moveaxis(actual, 0, 1), np.moveaxis(referee, 0, 1), time_axis=1) == (0.0, 0.0, 0.0, 0.5)


def test_growth_of_a_short_sequence_has_a_part_for_each_step() -> None:
    assert len(growth(np.zeros((2, 1)), np.zeros((2, 1)), time_axis=0)) == 2
