"""The one tolerance of the suite, derived and not chosen.

onnxruntime computes in float32 (eps = 2**-23); a float64 referee tells its rounding error from a wrong formula. A
candidate may be as wrong as four times onnxruntime's own error (another order of the same sums), or eight units in
the last place of the largest value where onnxruntime happened to be luckier than that.
"""

from __future__ import annotations

import numpy as np

FACTOR = 4.0
"""Candidate error over onnxruntime's own: different summation orders differ by no more on the shapes tested."""

UNITS = 8.0
"""Floor in eps * max(1, max|referee|): a bound of zero would ask for luck where onnxruntime rounds to the referee."""


def referee_bound(expected: np.ndarray, referee: np.ndarray) -> float:
    """The largest error that `actual` may have against the float64 referee."""
    eps = float(np.finfo(np.float32 if expected.dtype == np.float64 else expected.dtype).eps)
    if expected.dtype == np.float64:
        eps = float(np.finfo(np.float64).eps) * 8  # float64 exports: the referee rounds as much as the candidate
    own = float(np.max(np.abs(expected.astype(np.float64) - referee), initial=0.0))
    return max(FACTOR * own, UNITS * eps * max(1.0, float(np.max(np.abs(referee), initial=0.0))))


def assert_within_referee_bound(actual: object, expected: object, referee: object) -> float:
    """Compare `actual` with the referee under the bound that `expected` (onnxruntime) earns; the error is returned."""
    actual_, expected_ = np.asarray(actual), np.asarray(expected)
    referee_ = np.asarray(referee, np.float64)
    if not actual_.shape == expected_.shape == referee_.shape:
        raise AssertionError(f"shapes differ: {actual_.shape}, onnxruntime {expected_.shape}, referee {referee_.shape}")
    if not np.isfinite(referee_).all():
        raise AssertionError("the referee is not finite: the case proves nothing")
    bound = referee_bound(expected_, referee_)
    error = float(np.max(np.abs(actual_.astype(np.float64) - referee_), initial=0.0))
    if not error <= bound:
        own = float(np.max(np.abs(expected_.astype(np.float64) - referee_), initial=0.0))
        raise AssertionError(f"error {error:.3g} exceeds {bound:.3g} (onnxruntime's own error is {own:.3g})")
    return error
