"""The bound of an honest error: derived from onnxruntime's own error against the float64 referee, not chosen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

FACTOR: Final = 4.0
"""How many times onnxruntime's own error a candidate may reach: other orders of the same sums stay below it."""

UNITS: Final = 8.0
"""The floor, in eps * max(1, max|referee|): nobody is asked to be as lucky as onnxruntime may be."""

CONCLUSIVE: Final = 1e-3
"""Where onnxruntime's own relative error exceeds this, the network is chaotic on these inputs and proves nothing."""


@dataclass(frozen=True, slots=True)
class Error:
    """How far one array is from the referee."""

    absolute: float
    """max |actual - referee|, in the output's own unit."""
    relative: float
    """The same over max |referee|."""


def error_against(actual: np.ndarray, referee: np.ndarray) -> Error:
    """The error of `actual` against the float64 `referee` of the same shape; NaN anywhere counts as infinite."""
    difference = np.abs(actual.astype(np.float64) - referee)
    absolute = float(np.max(difference, initial=0.0)) if np.isfinite(difference).all() else float("inf")
    scale = float(np.max(np.abs(referee), initial=0.0))
    return Error(absolute, absolute / scale if scale > 0 else (0.0 if absolute == 0 else float("inf")))


def bound(own: Error, referee: np.ndarray, dtype: np.dtype[Any]) -> float:
    """The largest absolute error that passes.

    Args:
        own: onnxruntime's error on the same output.
        referee: the float64 truth.
        dtype: of the output. For float64 the referee rounds as much as the candidate does, so its floor is eight
            times wider: the rounding of one more sum of the same length.
    """
    eps = float(np.finfo(dtype).eps) * (8.0 if dtype == np.float64 else 1.0)
    return max(FACTOR * own.absolute, UNITS * eps * max(1.0, float(np.max(np.abs(referee), initial=0.0))))


def growth(actual: np.ndarray, referee: np.ndarray, time_axis: int, parts: int = 4) -> tuple[float, ...]:
    """The largest error in each of up to `parts` equal stretches of time, first to last."""
    difference = np.moveaxis(np.abs(actual.astype(np.float64) - referee), time_axis, 0)
    pieces = np.array_split(difference, min(parts, max(1, len(difference))))
    return tuple(float(np.max(piece, initial=0.0)) for piece in pieces)
