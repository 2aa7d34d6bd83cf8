"""Gradients of JAX in float64 against central finite differences."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

STEP = 1e-5
TRUNCATION = 1e-9
"""The rule of step 1e-5 and 2e-5, extrapolated, errs by step**4 times the fifth derivative, which is far below, and by
eps / step = 2e-11 of the loss: a margin of 50 above that, relative to the loss and the slope."""
DIRECTIONS = 3


def worst_error(loss: Callable[[Any], Any], at: Any) -> float:
    """Over every leaf of `at` and several random directions: |slope by jax.grad - slope by differences| / bound.

    Every leaf must have a slope that is not 0, or the check would prove nothing: AssertionError where it has none.
    """
    import jax

    both = jax.jit(jax.value_and_grad(loss))  # compiled once, for the differences too
    value, gradient = both(at)
    rng, worst = np.random.default_rng(0), 0.0
    leaves, structure = jax.tree.flatten(at)
    for index, (leaf, slope_of) in enumerate(zip(leaves, jax.tree.leaves(gradient), strict=True)):
        assert leaf.dtype == slope_of.dtype == np.float64, (leaf.dtype, slope_of.dtype)
        assert np.abs(slope_of).max() > 1e-6, f"leaf {index} of {structure} has no gradient"

        def moved(way: np.ndarray, step: float, index: int = index) -> float:
            shifted = [each + step * way if place == index else each for place, each in enumerate(leaves)]
            return float(both(jax.tree.unflatten(structure, shifted))[0])

        for _ in range(DIRECTIONS):
            way = rng.standard_normal(leaf.shape)
            near, far = ((moved(way, step) - moved(way, -step)) / (2 * step) for step in (STEP, 2 * STEP))
            slope, expected = float(np.vdot(slope_of, way)), (4 * near - far) / 3
            worst = max(worst, abs(slope - expected) / (TRUNCATION * max(1.0, abs(float(value)), abs(slope))))
    return worst
