"""An imported graph as a part of a larger Flax model: out again as fused nodes, for any batch and time."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import bridge
from bridge import graph
from bridge.ops.program import evaluate
from tests.cells import random_cell
from tests.tolerances import assert_within_referee_bound

INPUTS, HIDDEN = 3, 5
CELLS: dict[str, dict[str, Any]] = {
    "LSTM": {"kind": "LSTM"},
    "LSTM with peepholes, reverse": {"kind": "LSTM", "peepholes": True, "direction": "reverse"},
    "GRU, both ways": {"kind": "GRU", "direction": "bidirectional", "linear_before_reset": True},
    "RNN, both ways": {"kind": "RNN", "direction": "bidirectional"},
}


class Around(nnx.Module):
    """Layers before and after the imported one."""

    def __init__(self, net: Any, width: int) -> None:
        rngs = nnx.Rngs(0)
        self.before, self.net = nnx.Linear(2, INPUTS, rngs=rngs), net
        self.after = nnx.Linear(width, 2, rngs=rngs)

    def __call__(self, x: Any, *more: Any) -> Any:
        y, *states = self.net(jax.nn.relu(self.before(x)), *more)
        return self.after(y), *states


class AroundLinen(nn.Module):
    """The same in linen."""

    net: nn.Module
    width: int

    @nn.compact
    def __call__(self, x: Any, *more: Any) -> Any:
        y, *states = self.net(jax.nn.relu(nn.Dense(INPUTS, name="before")(x)), *more)
        return nn.Dense(2, name="after")(y), *states


def around(api: str, proto: Any, width: int, example: Any) -> tuple[Any, Any]:
    """The source for `to_onnx`, and a function that runs it."""
    if api == "nnx":
        model = Around(bridge.to_flax(proto), width)
        return model, model
    net, variables = bridge.to_flax(proto, api="linen")
    module = AroundLinen(net, width)
    own = module.init(jax.random.key(0), *example)
    params = {**own["params"], "net": variables["params"]}
    return (module, {"params": params}), lambda *given: module.apply({"params": params}, *given)


@pytest.mark.parametrize("more", ["plain", "lengths", "states"])
@pytest.mark.parametrize("api", ["nnx", "linen"])
@pytest.mark.parametrize("name", CELLS)
def test_it_comes_out_as_fused_nodes_for_any_batch_and_time(name: str, api: str, more: str) -> None:
    rng = np.random.default_rng(0)
    cell = random_cell(inputs=INPUTS, hidden=HIDDEN, rng=rng, **CELLS[name])
    proto = bridge.to_onnx(cell, lengths=more == "lengths", states="inputs" if more == "states" else "zero")

    def inputs(batch: int, time: int) -> list[np.ndarray]:
        found = [rng.standard_normal((time, batch, 2)).astype(np.float32)]
        if more == "lengths":
            found.append(np.array([0, time, *rng.integers(1, time + 1, batch - 2)], np.int32))
        if more == "states":
            shape = (cell.num_directions, batch, HIDDEN)
            found += [rng.standard_normal(shape).astype(np.float32) for _ in range(2 if cell.op == "LSTM" else 1)]
        return found

    example = inputs(4, 6)
    source, run = around(api, proto, HIDDEN * cell.num_directions, example)
    model = bridge.to_onnx(source, example=tuple(example))
    assert [node.op_type for node in model.graph.node].count(cell.op) == 1
    assert not [node.op_type for node in model.graph.node if node.op_type in ("Scan", "Loop")]
    for given in (example, inputs(2, 9)):
        feeds = dict(zip((value.name for value in model.graph.input), given, strict=True))
        judged, truth = bridge.run(model, feeds), evaluate(graph.as_model(model), feeds)
        for actual, output in zip(run(*given), judged, strict=True):
            assert_within_referee_bound(actual, judged[output], truth[output])
