"""remat: the same numbers and gradients, and a gradient that keeps fewer states."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

import bridge
from bridge.errors import UsageError
from bridge.graph import Writer, to_proto
from tests.cells import random_cell

STEPS, BATCH, INPUTS, HIDDEN = 11, 2, 3, 5


def two_layers(**fields: Any) -> Any:
    """x and lengths to every output of two layers, the second one reversed."""
    rng = np.random.default_rng(0)
    w = Writer()
    x = w.input("x", "float32", ["time", "batch", INPUTS])
    lengths = w.input("lengths", "int32", ["batch"])
    y, *_ = w.recurrent(random_cell(inputs=INPUTS, hidden=HIDDEN, rng=rng, **fields), x, lengths=lengths, name="one")
    inner = w.op("Squeeze", y, w.constant(np.array([1], np.int64)))
    second = random_cell(inputs=HIDDEN, hidden=HIDDEN, rng=rng, direction="reverse", **fields)
    for name, value in zip(("y", "h", "c"), w.recurrent(second, inner, name="two"), strict=True):
        if value is not None:
            w.output(value, name)
    return to_proto(w.model())


def gradient(model: Any, remat: int | None, x: Any, lengths: Any) -> Any:
    """A loss over every output and its gradient, jitted, and that function with its arguments."""
    graphdef, state = nnx.split(bridge.to_flax(model, remat=remat))

    def loss(state: Any, x: Any) -> Any:
        return sum((1.3 + at) * (out**2).sum() for at, out in enumerate(nnx.merge(graphdef, state)(x, lengths)))

    function = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    return function(state, x), function, state


@pytest.mark.parametrize(("kind", "remat"), [("LSTM", 4), ("GRU", 4), ("RNN", 1), ("RNN", 11)])
def test_the_numbers_and_gradients_stay(kind: str, remat: int) -> None:
    model = two_layers(kind=kind)
    rng = np.random.default_rng(1)
    x, lengths = rng.standard_normal((STEPS, BATCH, INPUTS)).astype(np.float32), np.array([7, 11], np.int32)
    wanted, got = (jax.tree.leaves(gradient(model, choice, x, lengths)[0]) for choice in (None, remat))
    assert len(got) == len(wanted) > 6
    for value, expected in zip(got, wanted, strict=True):
        # the same products and sums, only computed twice: XLA may fuse them otherwise
        scale = float(np.max(np.abs(expected)))
        np.testing.assert_allclose(value, expected, rtol=0, atol=32 * np.finfo(np.float32).eps * max(1.0, scale))


def test_a_gradient_keeps_fewer_states() -> None:
    model, steps = two_layers(kind="LSTM"), 400
    x, lengths = np.zeros((steps, BATCH, INPUTS), np.float32), np.full(BATCH, steps, np.int32)

    def kept(remat: int | None) -> int:
        _, function, state = gradient(model, remat, x, lengths)
        return int(function.lower(state, x).compile().memory_analysis().temp_size_in_bytes)

    assert kept(20) < 0.5 * kept(None)


@pytest.mark.parametrize("remat", [0, -1, True, 2.0])
def test_a_remat_that_is_no_count_is_refused(remat: Any) -> None:
    with pytest.raises(UsageError, match="not a number of time steps"):
        bridge.to_flax(two_layers(kind="GRU"), remat=remat)


def test_linen_takes_it_too() -> None:
    model = two_layers(kind="GRU")
    x = np.random.default_rng(1).standard_normal((STEPS, BATCH, INPUTS)).astype(np.float32)
    lengths = np.array([7, 11], np.int32)
    results = []
    for remat in (None, 4):
        module, variables = bridge.to_flax(model, api="linen", remat=remat)
        results.append(module.apply(variables, x, lengths))
    for got, expected in zip(*results, strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=8 * np.finfo(np.float32).eps)
