"""The forms of the time loop on JAX are one recurrence: against the referee and each other's gradients in float64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

import jax
import numpy as np
import pytest

from bridge import reference
from bridge.cell import Cell
from bridge.frameworks.flax_loop import one_direction
from bridge.layout import template
from bridge.layout.convert import read_params
from bridge.ops import backend_jax_recurrent
from tests.ops.recurrent_verdict import always

T, N, INPUTS, H = 4, 3, 2, 5
LAYOUTS = {"flax.nnx.OptimizedLSTMCell": 2, "flax.linen.LSTMCell": 2, "flax.nnx.GRUCell": 1, "flax.nnx.SimpleCell": 1}

SIZES = {
    (1, 1, 40, 256): "hoisted",
    (8, 50, 40, 256): "hoisted",
    (8, 100, 64, 128): "in the loop",
    (32, 200, 512, 512): "transposed",
    (8, 200, 64, 1024): "in the loop",
}
"""(batch, time, inputs, hidden) of an LSTM and its form."""


@pytest.fixture(autouse=True)
def _double() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def _params(layout: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    empty = template(layout, INPUTS, H, dtype="float64").params
    return {name: rng.uniform(-0.5, 0.5, value.shape) for name, value in empty.items()}


@pytest.mark.parametrize("form", get_args(backend_jax_recurrent.Form))
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_form_is_the_referee(layout: str, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    direction = "reverse"  # the harder one: forward is every other test
    options, params = template(layout, INPUTS, H).options, _params(layout)
    rng = np.random.default_rng(1)
    x = rng.uniform(-1, 1, (T, N, INPUTS))
    states = [rng.uniform(-1, 1, (1, N, H)) for _ in range(LAYOUTS[layout])]

    def run(params, states):
        return one_direction(layout, params, options, x, None, *states, direction=direction)

    def loss(params, states):
        return sum((output * (at + 1.3)).sum() for at, output in enumerate(run(params, states)))

    monkeypatch.setattr(backend_jax_recurrent, "form_of", always("in the loop"))
    expected_gradient = jax.grad(loss, argnums=(0, 1))(params, states)
    monkeypatch.setattr(backend_jax_recurrent, "form_of", always(form))
    cell = read_params(layout, params, **options)
    cell = Cell(cell.op, cell.W, cell.R, cell.B, direction=direction, activations=cell.activations,
                linear_before_reset=cell.linear_before_reset)  # fmt: skip
    named = dict(zip(("initial_h", "initial_c"), states, strict=False))
    wanted = [value for value in reference.evaluate(cell, x, **named) if value is not None]
    for got, value in zip(jax.jit(run)(params, states), wanted, strict=True):
        # 32 units: four steps of sums in another order, all values below 1
        np.testing.assert_allclose(got, value, rtol=0, atol=32 * np.finfo(np.float64).eps)
    gradient = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, states)
    for got, value in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected_gradient), strict=True):
        np.testing.assert_allclose(got, value, rtol=1e-13, atol=1e-13)  # sums of T * N * 4 * H products near 1


def test_the_form_follows_the_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    layout = "flax.nnx.OptimizedLSTMCell"
    seen = []
    original = backend_jax_recurrent.form_of
    monkeypatch.setattr(backend_jax_recurrent, "form_of", lambda *given: seen.append(original(*given)) or seen[-1])
    for batch, steps, inputs, hidden in SIZES:
        params = template(layout, inputs, hidden).params
        x = jax.ShapeDtypeStruct((steps, batch, inputs), np.float32)
        jax.eval_shape(lambda p, x: one_direction(layout, p, {}, x), params, x)
    if jax.default_backend() != "cpu":
        pytest.skip("the table of forms is for CPUs")
    assert seen == list(SIZES.values())


def test_a_gru_stays_in_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    original = backend_jax_recurrent.form_of
    monkeypatch.setattr(backend_jax_recurrent, "form_of", lambda *given: seen.append(original(*given)) or seen[-1])
    params = template("flax.nnx.GRUCell", 3, 5).params
    x = jax.ShapeDtypeStruct((4, 1, 3), np.float32)
    jax.eval_shape(lambda p, x: one_direction("flax.nnx.GRUCell", p, {}, x), params, x)
    if jax.default_backend() != "cpu":
        pytest.skip("the table of forms is for CPUs")
    assert seen == ["in the loop"]
