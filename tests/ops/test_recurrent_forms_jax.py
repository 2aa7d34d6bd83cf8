"""The forms of the time loop on JAX are one recurrence: against the referee and each other's gradients in float64."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache
from typing import get_args

import jax
import jax.extend
import numpy as np
import pytest

from bridge import reference
from bridge.cell import GATES, Cell
from bridge.frameworks.flax_loop import one_direction
from bridge.layout import op_of, template
from bridge.layout.convert import read_params
from bridge.ops import backend_jax_recurrent
from bridge.ops.backend_jax import JaxBackend
from bridge.ops.recurrent import gru, lstm, rnn
from tests.ops.recurrent_verdict import always

T, N, INPUTS, H = 4, 3, 2, 5
LAYOUTS = {"flax.nnx.OptimizedLSTMCell": 2, "flax.linen.LSTMCell": 2, "flax.nnx.GRUCell": 1, "flax.linen.GRUCell": 1,
           "flax.nnx.SimpleCell": 1}  # fmt: skip
LSTM, GRU, RNN = "flax.nnx.OptimizedLSTMCell", "flax.nnx.GRUCell", "flax.nnx.SimpleCell"
GATES_APART = ("flax.linen.LSTMCell", "flax.linen.GRUCell")
"""Layouts that keep each gate's weights as arrays of their own."""

CHOICES = [
    (LSTM, (1, 1, 40, 256), ("by gate", "hoisted")),
    (LSTM, (1, 100, 64, 128), ("joined", "hoisted")),
    (LSTM, (2, 100, 64, 128), ("by gate", "hoisted")),
    (LSTM, (8, 100, 64, 128), ("in the loop", "hoisted")),
    (LSTM, (32, 100, 128, 256), ("halves", "in the loop")),
    (LSTM, (32, 200, 512, 512), ("transposed", "in the loop")),
    (LSTM, (32, 8, 512, 512), ("by gate", "hoisted")),
    (LSTM, (1, 100, 64, 512), ("by gate", "hoisted")),
    (GRU, (2, 100, 400, 400), ("halves", "hoisted")),
    (GRU, (32, 200, 512, 512), ("halves", "in the loop")),
    (GRU, (1, 4, 3, 64), ("by gate", "hoisted")),
    (GRU, (1, 4, 3, 5), ("in the loop", "hoisted")),
    (RNN, (8, 100, 64, 512), ("halves", "hoisted")),
    *[(layout, (1, 1, 40, 128), ("apart", "hoisted")) for layout in GATES_APART],
    *[(layout, (8, 15, 40, 256), ("apart", "hoisted")) for layout in GATES_APART],
    *[(layout, (8, 16, 40, 256), ("halves", "hoisted")) for layout in GATES_APART],
    ("flax.linen.LSTMCell", (1, 1, 40, 64), ("joined", "hoisted")),
]
"""Layout, (batch, time, inputs, hidden), and the forms forward and under grad."""


@pytest.fixture(autouse=True)
def _double() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def _params(layout: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    empty = template(layout, INPUTS, H, dtype="float64").params
    return {name: rng.uniform(-0.5, 0.5, value.shape) for name, value in empty.items()}


class Case:
    """One layer in reverse (the harder one: forward is every other test), what goes into it, and what must come out."""

    def __init__(self, layout: str) -> None:
        self.layout, self.options, self.params = layout, template(layout, INPUTS, H).options, _params(layout)
        rng = np.random.default_rng(1)
        self.x = rng.uniform(-1, 1, (T, N, INPUTS))
        self.states = [rng.uniform(-1, 1, (1, N, H)) for _ in range(LAYOUTS[layout])]
        cell = read_params(layout, self.params, **self.options)
        cell = Cell(cell.op, cell.W, cell.R, cell.B, direction="reverse", activations=cell.activations,
                    linear_before_reset=cell.linear_before_reset)  # fmt: skip
        named = dict(zip(("initial_h", "initial_c"), self.states, strict=False))
        self.outputs = [value for value in reference.evaluate(cell, self.x, **named) if value is not None]
        with pytest.MonkeyPatch.context() as plainly:  # no product but those of the text, and no rule but JAX's
            plainly.setattr(backend_jax_recurrent, "form_of", always("in the loop"))
            plainly.setattr(backend_jax_recurrent, "can_gather", lambda *_: False)
            self.gradient = self.gradients()

    def run(self, params, states):
        return one_direction(self.layout, params, self.options, self.x, None, *states, direction="reverse")

    def gradients(self) -> list[jax.Array]:
        def loss(params, states):
            return sum((output * (at + 1.3)).sum() for at, output in enumerate(self.run(params, states)))

        return jax.tree.leaves(jax.jit(jax.grad(loss, argnums=(0, 1)))(self.params, self.states))


case_of = cache(Case)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("form", get_args(backend_jax_recurrent.Form))
def test_every_form_is_the_referee(layout: str, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = case_of(layout)
    monkeypatch.setattr(backend_jax_recurrent, "form_of", always(form))
    for got, value in zip(jax.jit(case.run)(case.params, case.states), case.outputs, strict=True):
        # 32 units: four steps of sums in another order, all values below 1
        np.testing.assert_allclose(got, value, rtol=0, atol=32 * np.finfo(np.float64).eps)
    for got, value in zip(case.gradients(), case.gradient, strict=True):
        np.testing.assert_allclose(got, value, rtol=1e-13, atol=1e-13)  # sums of T * N * 4 * H products near 1


@pytest.mark.parametrize(("layout", "sizes", "forms"), CHOICES, ids=str)
def test_the_form_follows_the_sizes(
    layout: str, sizes: tuple[int, ...], forms: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    original = backend_jax_recurrent.form_of
    monkeypatch.setattr(backend_jax_recurrent, "form_of", lambda *given: seen.append(original(*given)) or seen[-1])
    batch, steps, inputs, hidden = sizes
    x = jax.ShapeDtypeStruct((steps, batch, inputs), np.float32)
    params = template(layout, inputs, hidden).params
    jax.eval_shape(lambda p, x: one_direction(layout, p, {}, x), params, x)
    if jax.default_backend() != "cpu":
        pytest.skip("the table of forms is for CPUs")
    assert tuple(seen) == forms


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("layout", GATES_APART)
def test_weights_kept_gate_by_gate_are_not_put_together_for_a_few_steps(layout: str, steps: int) -> None:
    hidden = 128
    params = template(layout, INPUTS, hidden).params
    x = np.zeros((steps, 1, INPUTS), np.float32)
    compiled = jax.jit(lambda p, x: one_direction(layout, p, {}, x)).lower(params, x).compile().as_text()
    joined = rf"f32\[({INPUTS}|{hidden}),{len(GATES[op_of(layout)]) * hidden}\]"
    assert not re.search(joined, compiled)
    assert re.search(rf"f32\[{hidden},{hidden}\]", compiled)


@pytest.mark.parametrize(
    ("form", "direction", "steps"), [("by gate", "forward", 7), ("halves", "reverse", 7), ("halves", "forward", 6)]
)
def test_parts_of_time_are_the_whole(form: str, direction: str, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    options, params = template(GRU, INPUTS, H).options, _params(GRU)
    rng = np.random.default_rng(2)
    x, lengths = rng.uniform(-1, 1, (steps, N, INPUTS)), np.array([steps, 0, 2], np.int32)
    h = rng.uniform(-1, 1, (1, N, H))

    def run(params):
        return jax.jit(lambda p: one_direction(GRU, p, options, x, lengths, h, direction=direction))(params)

    monkeypatch.setattr(backend_jax_recurrent, "form_of", always(form))
    whole, gradient = run(params), jax.grad(lambda p: run(p)[0].sum())(params)
    monkeypatch.setattr(backend_jax_recurrent, "PART_BYTES", 3 * 8 * N * 3 * H)  # three steps: even parts, and a rest
    sizes = []
    original = backend_jax_recurrent.part_steps
    monkeypatch.setattr(backend_jax_recurrent, "part_steps", lambda *given: sizes.append(original(*given)) or sizes[-1])
    for got, wanted in zip(run(params), whole, strict=True):
        # 32 units: the same sums in another order, all values below 1
        np.testing.assert_allclose(got, wanted, rtol=0, atol=32 * np.finfo(np.float64).eps)
    assert set(sizes) == {3}
    again = jax.grad(lambda p: run(p)[0].sum())(params)
    for got, wanted in zip(jax.tree.leaves(again), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-13, atol=1e-13)  # sums of steps * N * 3 * H products near 1


@pytest.mark.parametrize("layout", [LSTM, GRU, RNN])
def test_derivatives_of_every_kind_pass_where_training_has_a_form_of_its_own(
    layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    params, x = _params(layout), np.random.default_rng(3).uniform(-1, 1, (T, N, INPUTS))
    direction = jax.tree.map(np.cos, params)

    def loss(params):
        return (one_direction(layout, params, {}, x)[0] ** 2).sum()

    def derivatives(params):
        slope = jax.jvp(loss, (params,), (direction,))[1]
        forward_over_reverse = jax.jvp(jax.grad(loss), (params,), (direction,))[1]
        reverse_over_reverse = jax.grad(lambda p: jax.tree.reduce(
            lambda total, pair: total + pair, jax.tree.map(lambda g, d: (g * d).sum(), jax.grad(loss)(p), direction)
        ))(params)  # fmt: skip
        batched = jax.vmap(jax.grad(loss))(jax.tree.map(lambda a, b: jax.numpy.stack([a, b]), params, direction))
        return slope, forward_over_reverse, reverse_over_reverse, batched

    def compiled():  # anew, in the forms of the moment
        return jax.jit(lambda params: derivatives(params))(params)

    with monkeypatch.context() as plainly:
        plainly.setattr(backend_jax_recurrent, "can_gather", lambda *_: False)
        one_form = jax.tree.leaves(compiled())
    for got, wanted in zip(jax.tree.leaves(compiled()), one_form, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-12, atol=1e-12)  # second derivatives: products of 1e3 near 1
    monkeypatch.setattr(backend_jax_recurrent, "form_of", lambda *given: "in the loop" if given[-1] else "halves")
    for got, wanted in zip(jax.tree.leaves(compiled()), one_form, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-12, atol=1e-12)  # second derivatives: products of 1e3 near 1


OPTIONS = {
    "LSTM": (lstm, {"direction": "bidirectional"}), "coupled, peepholes": (lstm, {"input_forget": 1}),
    "GRU": (gru, {"clip": 0.7}), "linear before reset": (gru, {"linear_before_reset": 1, "direction": "bidirectional"}),
    "RNN": (rnn, {"direction": "reverse", "activations": ["Softsign"]}),
}  # fmt: skip


def _blocks(name: str) -> dict[str, np.ndarray]:
    """Random weights, input and states of one row of OPTIONS."""
    op, options = OPTIONS[name]
    rng, gates = np.random.default_rng(4), {lstm: 4, gru: 3, rnn: 1}[op]
    sides = 2 if options.get("direction") == "bidirectional" else 1
    shapes = {"X": (T, N, INPUTS), "W": (sides, gates * H, INPUTS), "R": (sides, gates * H, H),
              "B": (sides, 2 * gates * H), "initial_h": (sides, N, H)}  # fmt: skip
    if op is lstm:
        shapes |= {"initial_c": (sides, N, H), "P": (sides, 3 * H)}
    return {key: rng.uniform(-0.6, 0.6, shape) for key, shape in shapes.items()}


def _gradient_of_row(name: str, moving: Sequence[str]) -> dict[str, jax.Array]:
    """The gradient of one row of OPTIONS with ragged lengths, in some of its inputs."""
    values, (op, options) = _blocks(name), OPTIONS[name]
    lengths = np.array([T, 0, 2], np.int32)

    def loss(moved):
        outputs = op(JaxBackend(), **{**values, **moved}, sequence_lens=lengths, **options)
        return sum((np.cos(np.arange(y.size)).reshape(y.shape) * y).sum() for y in outputs)

    return jax.jit(jax.grad(loss))({key: values[key] for key in moving})


@cache
def plain_gradient(name: str) -> dict[str, jax.Array]:
    """The same in all inputs, by JAX's own rules."""
    with pytest.MonkeyPatch.context() as plainly:
        plainly.setattr(backend_jax_recurrent, "can_gather", lambda *_: False)
        return _gradient_of_row(name, list(_blocks(name)))


@pytest.mark.parametrize("moving", ["everything", "X", "R", "B", "initial_h"])
@pytest.mark.parametrize("name", OPTIONS)
def test_gathered_gradients_are_those_of_the_loop(name: str, moving: str) -> None:
    wanted = plain_gradient(name)
    for key, gathered in _gradient_of_row(name, list(wanted) if moving == "everything" else [moving]).items():
        np.testing.assert_allclose(gathered, wanted[key], rtol=1e-13, atol=1e-13, err_msg=key)  # as above


@pytest.mark.parametrize("name", OPTIONS)
def test_what_no_step_reads_reaches_no_gradient(name: str) -> None:
    values, (op, options) = _blocks(name), OPTIONS[name]
    lengths = np.array([T, 0, 2], np.int32)

    def gradient(values):
        return jax.jit(jax.grad(lambda v: op(JaxBackend(), **v, sequence_lens=lengths, **options)[0].sum()))(values)

    unread = {key: value.copy() for key, value in values.items()}
    unread["X"][2:, 2] = unread["X"][:, 1] = unread["initial_h"][:, 1] = np.nan
    found = gradient(unread)
    for key, wanted in gradient(values).items():
        np.testing.assert_array_equal(found[key], wanted, err_msg=key)


@pytest.mark.parametrize("narrow", ["X", "initial_h", "everything but X"])
@pytest.mark.parametrize("name", ["LSTM", "GRU"])
def test_dtypes_that_differ_come_to_the_widest(name: str, narrow: str) -> None:
    values, (op, options) = _blocks(name), OPTIONS[name]
    values.pop("P", None)  # what it multiplies is a state, which has its dtype already
    is_narrow = {key: (key == narrow) != narrow.startswith("everything") for key in values if key != "X"}
    is_narrow["X"] = narrow == "X"
    mixed = {key: value.astype(np.float32 if is_narrow[key] else np.float64) for key, value in values.items()}

    def loss(values):
        return op(JaxBackend(), **values, **options)[0].sum()

    wanted = jax.jit(jax.grad(loss))({key: value.astype(np.float64) for key, value in mixed.items()})
    for key, value in jax.jit(jax.grad(loss))(mixed).items():
        # what is narrow gets its gradient rounded to 2**-24 once for every one of T * N = 12 steps at most
        np.testing.assert_allclose(value, wanted[key], rtol=12 * 2.0**-24, atol=12 * 2.0**-24, err_msg=key)


def _carried(jaxpr: jax.extend.core.Jaxpr) -> set[tuple[int, ...]]:
    """The shapes that any scan of a program carries from step to step."""
    shapes = set()
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "scan":
            fixed = eqn.params["num_consts"]
            shapes |= {value.aval.shape for value in eqn.invars[fixed : fixed + eqn.params["num_carry"]]}
        for inner in jax.tree.leaves(
            eqn.params, is_leaf=lambda value: hasattr(value, "eqns") or hasattr(value, "jaxpr")
        ):
            body = getattr(inner, "jaxpr", inner)
            shapes |= _carried(body) if hasattr(body, "eqns") else set()
    return shapes


def test_no_step_adds_to_the_gradient_of_a_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    params, x = _params(LSTM), np.ones((T, N, INPUTS))

    def loss(params):
        return one_direction(LSTM, params, {}, x)[0].sum()

    matrices = {value.shape for value in params.values() if value.ndim == 2}
    assert matrices.isdisjoint(_carried(jax.make_jaxpr(jax.grad(loss))(params).jaxpr))
    monkeypatch.setattr(backend_jax_recurrent, "can_gather", lambda *_: False)
    assert not matrices.isdisjoint(_carried(jax.make_jaxpr(jax.grad(loss))(params).jaxpr))
