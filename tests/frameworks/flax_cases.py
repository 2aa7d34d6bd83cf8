"""Flax layers with random parameters, inputs for an exported graph, and the three-way comparison."""

from __future__ import annotations

from typing import Any

import numpy as np

from bridge import runtime
from bridge.graph import to_proto
from bridge.ops.program import evaluate
from tests.tolerances import assert_within_referee_bound

TIME, LENGTHS = 5, np.array([5, 2, 0, 1], np.int32)
BATCH = len(LENGTHS)
SIZES = {"batch": BATCH, "time": TIME, "space_0": 4, "space_1": 3}


def random_nnx(module: Any) -> Any:
    """`module` with random parameters, non-zero biases."""
    import jax
    from flax import nnx

    rng = np.random.default_rng(1)

    def draw(leaf: Any) -> Any:
        return jax.numpy.asarray(rng.uniform(-0.6, 0.6, leaf.shape).astype(leaf.dtype))

    nnx.update(module, jax.tree.map(draw, nnx.state(module, nnx.Param)))
    return module


def random_linen(module: Any, *shape: int, dtype: str = "float32") -> tuple[Any, Any]:
    """(module, variables) for an input of `shape`, random, non-zero biases."""
    import jax
    from flax import linen as nn

    rng, key, x = np.random.default_rng(1), jax.random.key(0), np.zeros(shape, dtype)
    carry: tuple[Any, ...] = ()
    if isinstance(module, nn.RNNCellBase):
        unlearned = module.clone(learned_carry=False) if hasattr(module, "learned_carry") else module
        carry = (unlearned.initialize_carry(key, shape),)
    variables = jax.eval_shape(module.init, key, *carry, x)

    def draw(leaf: Any) -> Any:
        return jax.numpy.asarray(rng.uniform(-0.6, 0.6, leaf.shape).astype(leaf.dtype))

    return module, jax.tree.map(draw, variables)


def feeds_of(model: Any) -> dict[str, np.ndarray]:
    """Random inputs of a graph with the lengths above."""
    rng = np.random.default_rng(2)
    feeds = {}
    for value in model.graph.inputs:
        shape = [dim if isinstance(dim, int) else SIZES[dim.value] for dim in value.shape]
        feeds[value.name] = (
            LENGTHS if value.name == "lengths" else rng.standard_normal(shape).astype(value.dtype.numpy())
        )
    return feeds


def ort(model: Any, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What onnxruntime computes."""
    return dict(runtime.run_model(to_proto(model), feeds, device="cpu").outputs)


def assert_agree(model: Any, actual: dict[str, Any], feeds: dict[str, np.ndarray]) -> None:
    """`actual`, by output name, is within the bound of the float64 referee, and no output is missing."""
    expected, referee = ort(model, feeds), evaluate(model, feeds)
    assert list(actual) == list(expected)
    for name, value in actual.items():
        assert_within_referee_bound(value, expected[name], referee[name])


def called(net: Any, feeds: dict[str, np.ndarray], *variables: Any) -> dict[str, Any]:
    """The outputs of an imported model by name: a module, or (module, variables)."""
    if isinstance(net, tuple):
        net, *variables = net
    result = net.apply(*variables, **feeds) if variables else net(**feeds)
    values = result if isinstance(result, tuple) else (result,)
    return dict(zip(net.output_names, values, strict=True))
