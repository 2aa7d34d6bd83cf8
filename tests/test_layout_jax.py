"""Layouts on JAX arrays: read_blocks while tracing, and the cells of Flax, Haiku and Equinox as they run."""

from __future__ import annotations

import numpy as np
import pytest

from bridge.cell import Cell
from bridge.errors import Unsupported
from bridge.layout import read_blocks, read_params, template
from tests.onnx_equations import onnx

jax = pytest.importorskip("jax", reason="needs the extra flax")
jnp = jax.numpy

INPUTS, HIDDEN, TIME = 3, 4, 5


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def random_params(layout, rng, **options):
    made = template(layout, INPUTS, HIDDEN, **options)
    return {name: rng.uniform(-1, 1, zero.shape).astype(np.float32) for name, zero in made.params.items()}, made.options


@pytest.mark.parametrize(
    ("layout", "options"),
    [
        ("flax.linen.OptimizedLSTMCell", {}),
        ("flax.linen.MGUCell", {}),
        ("flax.linen.MGUCell", {"reset_gate": False}),
        ("flax.nnx.SimpleCell", {"residual": True}),
        ("haiku.LSTM", {}),
        ("haiku.GRU", {}),
        ("keras.GRU", {}),
        ("keras.CuDNNLSTM", {}),
        ("bridge.LSTMCell", {"use_peepholes": True}),
    ],
)
def test_traced_blocks_have_the_bits_of_the_cell(layout, options, rng):
    params, values = random_params(layout, rng, **options)

    @jax.jit
    def traced(arrays):
        blocks = read_blocks(layout, arrays, **values)
        return [block for block in (blocks.W, blocks.R, blocks.B, blocks.P) if block is not None]

    cell = read_params(layout, params, **values)
    expected = [block for block in (cell.W, cell.R, cell.B, cell.P) if block is not None]
    for actual, block in zip(traced(jax.tree.map(jnp.asarray, params)), expected, strict=True):
        np.testing.assert_array_equal(np.asarray(actual), block)
    assert read_params(layout, jax.tree.map(jnp.asarray, params), **values) == cell


def test_gradients_reach_every_parameter_once(rng):
    params, values = random_params("flax.linen.SimpleCell", rng, residual=True)

    def total(arrays):
        blocks = read_blocks("flax.linen.SimpleCell", arrays, **values)
        return blocks.W.sum() + 2 * blocks.R.sum() + 3 * blocks.B.sum()

    gradients = jax.grad(total)(jax.tree.map(jnp.asarray, params))
    for name, weight in (("i.kernel", 1), ("h.kernel", 2), ("i.bias", 3)):
        np.testing.assert_array_equal(np.asarray(gradients[name]), weight)


def test_bfloat16_is_refused(rng):
    params, _ = random_params("haiku.LSTM", rng)
    with pytest.raises(Unsupported, match="bfloat16"):
        read_params("haiku.LSTM", {name: jnp.asarray(array, jnp.bfloat16) for name, array in params.items()})


def agrees(cell: Cell, x: np.ndarray, actual) -> None:
    # float32 against float64: sums of at most 9 products of numbers below 2, five steps
    np.testing.assert_allclose(np.asarray(actual, np.float64), onnx(cell, x), rtol=0, atol=2e-6)


def flat(tree, prefix=""):
    return {
        key: leaf
        for name, value in tree.items()
        for key, leaf in (
            flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
        ).items()
    }


@pytest.mark.parametrize("name", ["LSTM", "GRU", "VanillaRNN"])
def test_haikus_own_cores_are_what_is_read(name, rng):
    hk = pytest.importorskip("haiku", reason="dm-haiku is not installed")
    x = rng.standard_normal((TIME, INPUTS)).astype(np.float32)

    def run(x):
        core = getattr(hk, name)(HIDDEN)
        return hk.dynamic_unroll(core, x, core.initial_state(None))[0]

    transformed = hk.without_apply_rng(hk.transform(run))
    tree = transformed.init(jax.random.key(0), x)
    tree = jax.tree.map(lambda leaf: jnp.asarray(rng.uniform(-1, 1, leaf.shape), jnp.float32), tree)
    params = {f"{module.partition('/')[2]}.{leaf}".lstrip("."): value
              for module, leaves in tree.items() for leaf, value in leaves.items()}  # fmt: skip
    agrees(read_params(f"haiku.{name}", params), x, transformed.apply(tree, x))


@pytest.mark.parametrize("name", ["LSTMCell", "GRUCell"])
def test_equinoxs_own_cells_are_what_is_read(name, rng):
    eqx = pytest.importorskip("equinox", reason="equinox is not installed")
    cell = getattr(eqx.nn, name)(INPUTS, HIDDEN, key=jax.random.key(0))
    names = ["weight_ih", "weight_hh", "bias", *(["bias_n"] if name == "GRUCell" else [])]
    x = rng.standard_normal((TIME, INPUTS)).astype(np.float32)
    state = jnp.zeros(HIDDEN) if name == "GRUCell" else (jnp.zeros(HIDDEN), jnp.zeros(HIDDEN))
    out = []
    for x_t in x:
        state = cell(jnp.asarray(x_t), state)
        out.append(state if name == "GRUCell" else state[0])
    agrees(read_params(f"equinox.{name}", {key: getattr(cell, key) for key in names}), x, out)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("LSTMCell", {}),
        ("OptimizedLSTMCell", {}),
        ("GRUCell", {}),
        ("MGUCell", {}),
        ("MGUCell", {"reset_gate": False}),
        ("SimpleCell", {}),
        ("SimpleCell", {"residual": True}),
    ],
)
def test_linens_own_cells_are_what_is_read(name, options, rng):
    linen = pytest.importorskip("flax.linen", reason="needs the extra flax")
    x = rng.standard_normal((1, TIME, INPUTS)).astype(np.float32)
    rnn = linen.RNN(getattr(linen, name)(HIDDEN, **options))
    variables = rnn.init(jax.random.key(0), x)
    variables = jax.tree.map(lambda leaf: jnp.asarray(rng.uniform(-1, 1, leaf.shape), jnp.float32), variables)
    cell = read_params(f"flax.linen.{name}", flat(variables["params"]["cell"]), **options)
    agrees(cell, x[0], rnn.apply(variables, x)[0])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("LSTMCell", {}),
        ("OptimizedLSTMCell", {}),
        ("GRUCell", {}),
        ("SimpleCell", {}),
        ("SimpleCell", {"residual": True}),
    ],
)
def test_nnxs_own_cells_are_what_is_read(name, options, rng):
    nnx = pytest.importorskip("flax.nnx", reason="needs the extra flax")
    rnn = nnx.RNN(getattr(nnx, name)(INPUTS, HIDDEN, rngs=nnx.Rngs(0), **options), rngs=nnx.Rngs(0))
    state = nnx.state(rnn.cell, nnx.Param)
    state = jax.tree.map(lambda leaf: jnp.asarray(rng.uniform(-1, 1, leaf.shape), jnp.float32), state)
    nnx.update(rnn.cell, state)
    x = rng.standard_normal((1, TIME, INPUTS)).astype(np.float32)
    params = flat(nnx.to_pure_dict(state))
    agrees(read_params(f"flax.nnx.{name}", params, **options), x[0], rnn(jnp.asarray(x))[0])
