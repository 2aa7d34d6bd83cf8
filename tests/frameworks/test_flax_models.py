"""Every published ONNX model in nnx and linen: native layers only, and outputs as exact as onnxruntime's own."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

import bridge
from bridge import runtime
from bridge.ops.program import evaluate
from tests.models import model_file
from tests.real_models import REAL, RealModel, feeds_of
from tests.tolerances import assert_within_referee_bound

pytestmark = pytest.mark.models


@pytest.mark.parametrize("row", REAL.values(), ids=REAL)
def test_a_published_model_computes_what_onnxruntime_computes(row: RealModel) -> None:
    path = str(model_file(row.package, row.file))
    (feeds,) = feeds_of(row, 1)
    expected, referee = dict(runtime.run_model(path, feeds, device="cpu").outputs), evaluate(path, feeds)
    given = {name: value for name, value in feeds.items() if name not in row.static}
    net = bridge.to_flax(path, static=dict(row.static))
    module, variables = bridge.to_flax(path, static=dict(row.static), api="linen")
    graphdef, state = nnx.split(net)
    calls = {"nnx": jax.jit(lambda held, given: nnx.merge(graphdef, held)(**given)),
             "linen": jax.jit(lambda held, given: module.apply(held, **given))}  # fmt: skip
    for api, held in (("nnx", state), ("linen", variables)):
        results = calls[api](held, given)
        results = results if isinstance(results, tuple) else (results,)
        for name, value in zip(module.output_names, results, strict=True):
            if expected[name].dtype == bool:
                np.testing.assert_array_equal(value, expected[name])
            else:
                assert_within_referee_bound(value, expected[name], referee[name])
    assert_native(net, variables)


def assert_native(net: Any, variables: Any) -> None:
    """No weight is left outside a native layer; every parameter lies in a kernel, a bias or an embedding of one."""
    assert not net.graph.parameters
    names = {path[-1] for path, _ in nnx.to_flat_state(nnx.state(net, nnx.Param))}
    own = {"recurrent_kernel", "input_bias", "recurrent_bias"}
    assert names <= {"kernel", "bias", "embedding"} | own
    in_linen = {path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(variables["params"])}
    assert in_linen <= {"kernel", "bias", "embedding"} | own
