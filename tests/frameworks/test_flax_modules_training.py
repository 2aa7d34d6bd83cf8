"""A whole imported model of native modules under JAX: jit, grad, vmap, split, optimisers, files, and control flow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx

import bridge
from bridge import graph
from bridge.graph import Writer
from tests.cells import random_cell
from tests.frameworks.flax_cases import assert_agree, called, feeds_of

APIS = ("nnx", "linen")


def tagger() -> Any:
    """Tokens to scores: Embed, Conv, BatchNorm, LSTM, LayerNorm, Linear, and a scale that no layer owns."""
    rng = np.random.default_rng(7)
    draw = lambda *shape: rng.uniform(-0.6, 0.6, shape).astype(np.float32)  # noqa: E731
    w = Writer()
    x = w.op("Gather", w.constant(draw(9, 4), "embed.weight"), w.input("tokens", "int64", ["batch", "time"]),
             name="/embed/Gather")  # fmt: skip
    x = w.op("Conv", w.transpose(x, (0, 2, 1)), w.constant(draw(5, 4, 3), "conv.weight"),
             w.constant(draw(5), "conv.bias"), pads=[1, 1], name="/encoder/conv/Conv")  # fmt: skip
    norm = (draw(5) + 1, draw(5), draw(5), np.abs(draw(5)) + np.float32(0.3))
    statistics = [w.constant(array, f"norm.{n}") for n, array in enumerate(norm)]
    x = w.op("BatchNormalization", x, *statistics, name="/encoder/norm/BatchNormalization")
    cell = random_cell("LSTM", 5, 3, rng, direction="bidirectional")
    x, *_ = w.recurrent(cell, w.transpose(x, (2, 0, 1)), name="/encoder/rnn/LSTM")
    x = w.op("Reshape", w.transpose(x, (2, 0, 1, 3)), w.constant([0, 0, 6]))
    x = w.op("LayerNormalization", x, w.constant(draw(6) + 1, "ln.weight"), w.constant(draw(6), "ln.bias"),
             name="/ln/LayerNormalization")  # fmt: skip
    x = w.op("Mul", w.op("MatMul", x, w.constant(draw(6, 2), "head.weight"), name="/head/MatMul"),
             w.constant(draw(2) + 1, "scale"))  # fmt: skip
    w.output(x, "scores")
    return w.model()


TREE = {
    ("embed", "embedding"), ("encoder", "conv", "kernel"), ("encoder", "conv", "bias"), ("encoder", "norm", "scale"),
    ("encoder", "norm", "bias"), ("ln", "scale"), ("ln", "bias"), ("head", "kernel"), ("scale",),
    *(("encoder", "rnn", f"{way}_cell", layer, name) for way in ("forward", "backward")
      for layer, name in (("dense_i", "kernel"), ("dense_h", "kernel"), ("dense_h", "bias"))),
}  # fmt: skip


@pytest.fixture(scope="module")
def model() -> Any:
    return tagger()


@pytest.fixture
def net(model: Any) -> Any:
    return bridge.to_flax(model)


@pytest.fixture(scope="module")
def tokens() -> Any:
    return np.random.default_rng(0).integers(0, 9, (3, 6))


def test_the_tree_is_the_one_a_person_would_have_written(model: Any, net: Any, tokens: Any) -> None:
    assert {path for path, _ in nnx.to_flat_state(nnx.state(net, nnx.Param))} == TREE
    assert {path for path, _ in nnx.to_flat_state(nnx.state(net, nnx.BatchStat))} == {
        ("encoder", "norm", "mean"), ("encoder", "norm", "var")}  # fmt: skip
    _, variables = bridge.to_flax(model, api="linen")
    assert jax.tree.structure(variables["batch_stats"]) == jax.tree.structure(
        {"encoder": {"norm": {"mean": 0, "var": 0}}}
    )
    assert len(jax.tree.leaves(variables["params"])) >= len(TREE)
    assert_agree(model, called(net, {"tokens": tokens}), {"tokens": tokens})


def test_jit_grad_vmap_split_and_merge(net: Any, tokens: Any) -> None:
    expected = net(tokens)
    near = {"rtol": 0, "atol": 1e-6}
    np.testing.assert_allclose(nnx.jit(lambda m, x: m(x))(net, tokens), expected, **near)
    graphdef, params, rest = nnx.split(net, nnx.Param, ...)
    pure = jax.jit(lambda p, x: nnx.merge(graphdef, p, rest)(x))
    np.testing.assert_allclose(pure(params, tokens), expected, **near)
    many = jax.jit(jax.vmap(net))(np.stack([tokens, tokens[::-1]]))
    np.testing.assert_allclose(many[1], expected[::-1], **near)
    grads = nnx.jit(nnx.grad(lambda m: jnp.sum(m(tokens) ** 2)))(net)
    assert {path for path, _ in nnx.to_flat_state(grads)} == TREE
    assert all(np.any(leaf[...]) for _, leaf in nnx.to_flat_state(grads))


def test_a_gradient_is_the_slope(net: Any, tokens: Any) -> None:
    graphdef, params, rest = nnx.split(net, nnx.Param, ...)
    loss = jax.jit(lambda p: jnp.sum(nnx.merge(graphdef, p, rest)(tokens) ** 2))
    grads, rng, step = jax.jit(jax.grad(loss))(params), np.random.default_rng(1), 3e-3
    way = jax.tree.map(lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape).astype(np.float32)), params)
    moved = [loss(jax.tree.map(lambda p, d, s=sign: p + s * step * d, params, way)) for sign in (1, -1)]
    slope = float(sum(jnp.vdot(g, d) for g, d in zip(jax.tree.leaves(grads), jax.tree.leaves(way), strict=True)))
    # float32 differences at this step: truncation and rounding are each below a hundredth of the slope.
    assert abs(float(moved[0] - moved[1]) / (2 * step) - slope) < 0.02 * abs(slope)


def test_an_optimiser_moves_every_parameter_and_no_statistic(net: Any, tokens: Any) -> None:
    target = net(tokens) + 0.2
    before = {path: np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(nnx.state(net))}
    optimizer = nnx.Optimizer(net, optax.adam(1e-2), wrt=nnx.Param)

    @nnx.jit
    def step(model: Any, optimizer: Any) -> Any:
        loss, grads = nnx.value_and_grad(lambda m: jnp.mean((m(tokens) - target) ** 2))(model)
        optimizer.update(model, grads)
        return loss

    losses = [float(step(net, optimizer)) for _ in range(15)]
    assert losses[-1] < 0.3 * losses[0]
    after = {path: np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(nnx.state(net))}
    assert {path for path in after if not np.array_equal(after[path], before[path])} == TREE
    again = graph.as_model(bridge.to_onnx(net))
    assert_agree(again, called(net, {"tokens": tokens}), {"tokens": tokens})


def test_orbax_saves_and_restores(net: Any, model: Any, tokens: Any, tmp_path: Path) -> None:
    nnx.update(net, jax.tree.map(lambda leaf: 0.9 * leaf, nnx.state(net, nnx.Param)))
    _, state = nnx.split(net)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "net", state)
    fresh = bridge.to_flax(model)
    graphdef, like = nnx.split(fresh)
    with ocp.StandardCheckpointer() as checkpointer:
        restored = checkpointer.restore(tmp_path / "net", jax.tree.map(ocp.utils.to_shape_dtype_struct, like))
    np.testing.assert_array_equal(nnx.merge(graphdef, restored)(tokens), net(tokens))


def test_linen_applies_trains_and_serialises(model: Any, tokens: Any) -> None:
    module, variables = bridge.to_flax(model, api="linen")
    expected = module.apply(variables, tokens)
    np.testing.assert_allclose(jax.jit(module.apply)(variables, tokens), expected, rtol=0, atol=1e-6)
    statistics = variables["batch_stats"]
    loss = lambda params: jnp.sum(module.apply({"params": params, "batch_stats": statistics}, tokens) ** 2)  # noqa: E731
    grads = jax.jit(jax.grad(loss))(variables["params"])
    assert jax.tree.structure(grads) == jax.tree.structure(variables["params"])
    assert all(np.any(leaf) for leaf in jax.tree.leaves(grads))
    moved = {"params": jax.tree.map(lambda p, g: p - 1e-2 * g, variables["params"], grads), "batch_stats": statistics}
    data = flax.serialization.to_bytes(moved)
    back = flax.serialization.from_bytes(variables, data)
    np.testing.assert_array_equal(module.apply(back, tokens), module.apply(moved, tokens))
    again = graph.as_model(bridge.to_onnx((module, back)))
    assert_agree(again, called((module, back), {"tokens": tokens}), {"tokens": tokens})


def test_linen_init_draws_the_same_variables(model: Any, tokens: Any) -> None:
    module, variables = bridge.to_flax(model, api="linen")
    fresh = jax.eval_shape(module.init, jax.random.key(0), tokens)
    assert jax.tree.map(np.shape, fresh) == jax.tree.map(np.shape, variables)


def branches() -> Any:
    """A Gemm in each branch of an If whose condition is an input, and one in the body of a Scan."""
    rng = np.random.default_rng(4)
    draw = lambda *shape: rng.uniform(-0.6, 0.6, shape).astype(np.float32)  # noqa: E731
    w = Writer()
    p, x = w.input("p", "bool", []), w.input("x", "float32", [2, 3])

    def branch(name: str) -> Any:
        return lambda inner: (inner.op("Gemm", x, inner.constant(draw(3, 3), f"{name}.w"),
                                       inner.constant(draw(3), f"{name}.b"), name=f"/{name}/Gemm"),)  # fmt: skip

    (y,) = w.choose(p, branch("yes"), branch("no"), name="choice")
    kernel = w.constant(draw(3, 3), "loop.w")

    def body(inner: Any, states: Any, xs: Any) -> Any:
        h = inner.op("Tanh", inner.op("MatMul", inner.op("Add", states[0], xs[0]), kernel, name="/loop/MatMul"))
        return (h,), (h,)

    (final,), _ = w.scan(body, [y], [w.input("steps", "float32", ["time", 2, 3])], name="scan")
    w.output(final, "final")
    return w.model()


@pytest.mark.parametrize("p", [True, False])
@pytest.mark.parametrize("api", APIS)
def test_modules_inside_branches_and_loops_run_traced(api: str, p: bool) -> None:
    model = branches()
    net = bridge.to_flax(model, api=api)
    feeds = {**feeds_of(model), "p": np.array(p)}
    module, variables = net if api == "linen" else (net, None)
    if api == "linen":
        result = jax.jit(module.apply)(variables, *feeds.values())
        tree = variables["params"]
    else:
        result = nnx.jit(lambda m, *inputs: m(*inputs))(net, *feeds.values())
        tree = nnx.to_pure_dict(nnx.state(net))
    assert set(tree) == {"yes", "no", "loop"}
    assert_agree(model, {"final": result}, feeds)
    if api == "linen":
        fresh = jax.eval_shape(module.init, jax.random.key(0), *feeds.values())
        assert jax.tree.map(np.shape, fresh) == jax.tree.map(np.shape, variables)


@pytest.mark.parametrize("api", APIS)
def test_nodes_of_one_name_in_two_branches_keep_their_own_weights(api: str) -> None:
    model = branches()
    for node in model.graph.all_nodes():
        if node.op_type == "Gemm":
            node.name = "same"
    net = bridge.to_flax(model, api=api)
    for p in (True, False):
        feeds = {**feeds_of(model), "p": np.array(p)}
        assert_agree(model, called(net, feeds), feeds)


def test_recurrent_nodes_of_one_name_in_two_branches_keep_their_own_weights() -> None:
    rng, w = np.random.default_rng(4), Writer()
    p, x = w.input("p", "bool", []), w.input("x", "float32", ["time", "batch", 3])
    one, other = (random_cell("LSTM", 3, 3, rng) for _ in range(2))
    (y,) = w.choose(p, lambda inner: (inner.recurrent(one, x, name="yes")[1],),
                    lambda inner: (inner.recurrent(other, x, name="no")[1],), name="choice")  # fmt: skip
    w.output(y, "y")
    model = w.model()
    for node in model.graph.all_nodes():
        if node.op_type == "LSTM":
            node.name = "same"
    net = bridge.to_flax(model)
    for value in (True, False):
        feeds = {**feeds_of(model), "p": np.array(value)}
        assert_agree(model, called(net, feeds), feeds)
