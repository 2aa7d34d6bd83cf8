"""The kernels under jit, grad and vmap, in float64 against the referee and finite differences."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import numpy as np
import pytest

from bridge import reference
from bridge.cell import ACTIVATIONS, DEFAULT_ACTIVATIONS, GATES, Cell
from bridge.errors import BadInput, Unsupported
from bridge.ops import recurrent
from bridge.ops.backend_jax import JaxBackend

T, N, INPUTS, H = 5, 4, 3, 6
KERNELS = {"LSTM": recurrent.lstm, "GRU": recurrent.gru, "RNN": recurrent.rnn}


@pytest.fixture(autouse=True)
def _double() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def _case(op: str, seed: int) -> tuple[dict[str, np.ndarray | None], dict[str, object], Cell]:
    rng = np.random.default_rng([seed, len(op)])
    direction = ("forward", "reverse", "bidirectional")[seed % 3]
    sides, gates = 2 if direction == "bidirectional" else 1, len(GATES[op])

    def uniform(*shape: int) -> np.ndarray:
        return rng.uniform(-0.4, 0.4, shape)

    arrays: dict[str, np.ndarray | None] = {
        "W": uniform(sides, gates * H, INPUTS), "R": uniform(sides, gates * H, H),
        "B": uniform(sides, 2 * gates * H) if seed % 4 else None,
        "P": uniform(sides, 3 * H) if op == "LSTM" and seed % 2 else None,
    }  # fmt: skip
    states = {"sequence_lens": rng.integers(0, T + 1, N).astype(np.int32) if seed % 5 else None,
              "initial_h": uniform(sides, N, H),
              "initial_c": uniform(sides, N, H) if op == "LSTM" else None}  # fmt: skip
    attributes: dict[str, object] = {"direction": direction, "clip": 0.3 if seed % 3 == 1 else None}
    if seed % 2:
        count = len(DEFAULT_ACTIVATIONS[op]) * sides
        attributes["activations"] = tuple(str(name) for name in rng.choice(list(ACTIVATIONS), count))
        attributes["activation_alpha"] = tuple(rng.uniform(0.1, 0.5, count).tolist())
        attributes["activation_beta"] = tuple(rng.uniform(0.1, 0.5, count).tolist())
    if op == "LSTM":
        attributes["input_forget"] = seed // 2 % 2
    if op == "GRU":
        attributes["linear_before_reset"] = seed // 2 % 2
    return {**arrays, **states}, attributes, Cell(op, **arrays, **attributes)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("op", KERNELS)
def test_kernel_is_the_referee_in_float64(op: str, seed: int) -> None:
    given, attributes, cell = _case(op, seed)
    X = np.random.default_rng(seed).uniform(-1, 1, (T, N, INPUTS))
    names = ("sequence_lens", "initial_h", "initial_c", "P") if op == "LSTM" else ("sequence_lens", "initial_h")

    def run(X, W, R, B, *rest):
        return KERNELS[op](JaxBackend(), X, W, R, B, *rest, hidden_size=H, **attributes)

    actual = jax.jit(run)(X, given["W"], given["R"], given["B"], *(given[name] for name in names))
    options = {"initial_c": given["initial_c"]} if op == "LSTM" else {}
    expected = reference.evaluate(cell, X, lengths=given["sequence_lens"], initial_h=given["initial_h"], **options)
    for got, wanted in zip(actual, (value for value in expected if value is not None), strict=True):
        assert got.dtype == np.float64
        # 64 units of the largest value: five steps of sums in another order; the unbounded activations grow
        scale = 64 * np.finfo(np.float64).eps * max(1.0, float(np.abs(wanted).max()))
        assert float(np.abs(got - wanted).max()) <= scale


@pytest.mark.parametrize("op", KERNELS)
def test_gradient_is_that_of_finite_differences_through_ragged_lengths(op: str) -> None:
    given, attributes, _ = _case(op, 2)  # bidirectional, default activations, lengths
    X = np.random.default_rng(3).uniform(-1, 1, (T, N, INPUTS))
    names = [name for name in ("W", "R", "B", "initial_h", "initial_c") if given[name] is not None]

    def loss(values):
        arrays = {**given, **values}
        rest = {name: arrays[name] for name in ("W", "R", "B", "initial_h", "initial_c", "sequence_lens")
                if not (name == "initial_c" and op != "LSTM")}  # fmt: skip
        outputs = KERNELS[op](JaxBackend(), X, **rest, **attributes)
        return sum((output * (at + 1.3)).sum() for at, output in enumerate(outputs))

    values = {name: given[name] for name in names}
    gradients = jax.jit(jax.grad(loss))(values)
    rng, step, loss = np.random.default_rng(4), 1e-6, jax.jit(loss)
    for name in names:
        way = rng.standard_normal(values[name].shape)
        ahead, behind = ({**values, name: values[name] + sign * step * way} for sign in (1, -1))
        slope = (loss(ahead) - loss(behind)) / (2 * step)
        # central differences: error step**2 times the third derivative, and eps / step of cancellation
        assert float(np.vdot(gradients[name], way)) == pytest.approx(float(slope), rel=1e-6, abs=1e-7), name


def test_padding_that_is_nan_reaches_no_gradient() -> None:
    given, _, _ = _case("GRU", 0)
    X = np.zeros((T, N, INPUTS))
    X[3:] = np.nan
    lengths = np.array([3, 2, 0, 1], np.int32)
    loss = lambda W: recurrent.gru(JaxBackend(), X, W, given["R"], None, lengths)[0].sum()  # noqa: E731
    assert np.isfinite(jax.grad(loss)(given["W"])).all()


def test_vmap_over_weights_is_a_loop_over_weights() -> None:
    given, _, _ = _case("RNN", 0)
    X = np.random.default_rng(0).uniform(-1, 1, (T, N, INPUTS))
    weights = np.stack([given["W"], 2 * given["W"]])
    run = lambda W: recurrent.rnn(JaxBackend(), X, W, given["R"])[0]  # noqa: E731
    np.testing.assert_allclose(jax.vmap(run)(weights), np.stack([run(W) for W in weights]), atol=1e-15)


def test_a_length_beyond_the_sequence_is_refused() -> None:
    given, _, _ = _case("RNN", 0)
    with pytest.raises(BadInput, match="length outside"):
        recurrent.rnn(JaxBackend(), np.ones((T, N, INPUTS)), given["W"], given["R"], None, np.full(N, T + 1, np.int32))


def test_what_jax_would_narrow_is_refused_with_x64_off() -> None:
    with jax.enable_x64(False):
        with pytest.raises(Unsupported, match="float64"):
            JaxBackend().asarray(np.zeros(2))
        with pytest.raises(Unsupported, match="beyond 32 bits"):
            JaxBackend().asarray(np.array([2**40]))
        assert JaxBackend().asarray(np.array([3])).dtype == np.int32


@pytest.mark.parametrize("shape", [(1, N - 1, H), (2, N, H), (1, N, H + 1), (N, H)], ids=str)
@pytest.mark.parametrize("op", KERNELS)
def test_a_state_of_another_shape_is_named(op: str, shape: tuple[int, ...]) -> None:
    gates = len(GATES[op])
    X, W, R = np.zeros((T, N, INPUTS)), np.zeros((1, gates * H, INPUTS)), np.zeros((1, gates * H, H))
    expected = rf"{op}, initial_h(.|\n)*\[1, {N}, {H}\]: directions, the batch of X, units"
    with pytest.raises(BadInput, match=expected):
        KERNELS[op](JaxBackend(), X, W, R, initial_h=np.zeros(shape))
