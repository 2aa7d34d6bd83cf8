"""Conversions from several threads at once, and imported graphs as sources again."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
import pytest
import torch
from flax import nnx
from torch import nn

import bridge
from bridge.errors import UsageError

THREADS = 3


class TorchTagger(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(4, hidden, batch_first=True), nn.Linear(hidden, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(x)[0])


class FlaxTagger(nnx.Module):
    def __init__(self, hidden: int) -> None:
        self.rnn = nnx.RNN(nnx.LSTMCell(4, hidden, rngs=nnx.Rngs(0)))
        self.head = nnx.Linear(hidden, 2, rngs=nnx.Rngs(1))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(self.rnn(x))


@pytest.mark.parametrize("kind", [TorchTagger, FlaxTagger])
def test_threads_that_export_at_once_get_what_each_gets_alone(kind: Callable[[int], Any]) -> None:
    models = [kind(3 + at) for at in range(THREADS)]
    x = np.zeros((2, 5, 4), np.float32)
    together = threading.Barrier(THREADS)

    def export(model: Any) -> bytes:
        together.wait()
        return bridge.to_onnx(model, example=(x,)).SerializeToString()

    with ThreadPoolExecutor(THREADS) as pool:
        protos = list(pool.map(export, models))
    assert protos == [bridge.to_onnx(model, example=(x,)).SerializeToString() for model in models]


def test_threads_that_verify_at_once_all_agree() -> None:
    x = {"x": np.random.default_rng(0).standard_normal((2, 5, 4)).astype(np.float32)}
    together = threading.Barrier(THREADS)

    def verify(model: nn.Module) -> bridge.Report:
        together.wait()
        return bridge.verify(model, "torch", inputs=x)

    with ThreadPoolExecutor(THREADS) as pool:
        reports = list(pool.map(verify, [TorchTagger(3 + at).eval() for at in range(THREADS)]))
    assert all(report.passed for report in reports), "\n".join(map(str, reports))


IMPORTS: dict[str, Callable[..., Any]] = {
    "torch": bridge.to_torch, "keras": bridge.to_keras, "flax.nnx": bridge.to_flax,
    "flax.linen": lambda source: bridge.to_flax(source, api="linen"),
}  # fmt: skip


@pytest.mark.parametrize("framework", IMPORTS)
def test_an_imported_graph_is_asked_for_the_lengths_and_states_that_it_has(framework: str) -> None:
    layer, rng = nn.LSTM(3, 4), np.random.default_rng(0)
    model = bridge.to_onnx(layer, states="inputs", lengths=True)
    imported = IMPORTS[framework](model)
    feeds = {"input": rng.standard_normal((5, 2, 3)).astype(np.float32), "lengths": np.array([5, 3], np.int32)}
    feeds |= {name: rng.standard_normal((1, 2, 4)).astype(np.float32) for name in ("initial_h", "initial_c")}
    expected, found = bridge.run(model, feeds), bridge.run(imported, feeds)
    assert list(found) == list(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)
    assert bridge.verify(layer, imported).passed


@pytest.mark.parametrize("framework", IMPORTS)
@pytest.mark.parametrize("option", [{"states": "inputs"}, {"lengths": True}, {"opset": 18}], ids=str)
def test_an_imported_graph_refuses_options_for_what_it_has_not(framework: str, option: dict[str, Any]) -> None:
    imported = IMPORTS[framework](bridge.to_onnx(nn.GRU(2, 3)))
    with pytest.raises(UsageError, match="exported as it is"):
        bridge.to_onnx(imported, **option)
