"""What onnxruntime cannot load is refused before anybody gets it, by one check for every framework."""

from __future__ import annotations

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import keras
import numpy as np
import onnx_ir as ir
import pytest
import torch
from flax import nnx
from torch import nn

import bridge
from bridge.errors import Unsupported
from bridge.frameworks.loadable import SHOWN_NAMES, check_loadable
from bridge.graph import Writer
from bridge.graph.finishing import SHOWN_SIZE


class TorchConvolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.window, self.rnn = nn.Conv1d(4, 5, 1), nn.GRU(5, 3, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.rnn(self.window(x.mT).mT)[0]


class FlaxConvolution(nnx.Module):
    def __init__(self) -> None:
        self.window = nnx.Conv(4, 5, (1,), param_dtype=jnp.float64, rngs=nnx.Rngs(0))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.window(x)


def from_torch(path: Path) -> None:
    bridge.to_onnx(TorchConvolution().double().eval(), path, example=(np.zeros((2, 3, 4)),))


def from_keras(path: Path) -> None:
    frames = keras.Input((None, 4), dtype="float64")
    window = keras.layers.Conv1D(5, 1, dtype="float64", name="window")(frames)
    bridge.to_onnx(keras.Model(frames, keras.layers.GRU(3, dtype="float64")(window)), path)


def from_flax(path: Path) -> None:
    with jax.enable_x64(True):
        bridge.to_onnx(FlaxConvolution(), path, example=(np.zeros((2, 3, 4)),))


@pytest.mark.parametrize("export", [from_torch, from_keras, from_flax])
def test_a_float64_convolution_is_refused_from_every_framework(export, tmp_path: Path) -> None:
    with pytest.raises(Unsupported) as caught:
        export(tmp_path / "model.onnx")
    assert "Conv of float64 (window.Conv" in str(caught.value)
    assert "model.float()" in caught.value.do
    assert list(tmp_path.iterdir()) == []


def test_linear_layers_in_bfloat16_are_refused_by_name() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).eval()
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(Unsupported) as caught:
        bridge.to_onnx(model, example=(np.zeros((2, 4), np.float32),))
    assert "Gemm of bfloat16 (0.Gemm, 2.Gemm)" in str(caught.value)
    assert "autocast" in caught.value.do


def products(dtype: str, count: int, size: int) -> ir.Model:
    """`count` products one after another with weights [size, size]."""
    w = Writer(opset=20, dtype="float32")
    kind = ir.DataType[dtype]
    x = w.input("x", "float32", ["batch", size])
    y = w.op("Cast", x, to=kind.value)
    for _ in range(count):
        weight = w.op("Cast", w.constant(np.ones((size, size), np.float32)), to=kind.value)
        y = w.op("MatMul", y, weight)
    w.output(w.op("Cast", y, to=ir.DataType.FLOAT.value), "y", "float32", ["batch", size])
    return w.model({})


def test_nodes_of_one_kind_are_named_together_and_many_are_counted() -> None:
    with pytest.raises(Unsupported) as caught:
        check_loadable(products("BFLOAT16", SHOWN_NAMES + 2, 3), "model")
    got = str(caught.value.got)
    assert got.startswith("MatMul of bfloat16 (")
    assert got.count("MatMul") == 1 + SHOWN_NAMES
    assert got.endswith(", 2 more)")


@pytest.mark.parametrize("dtype", ["FLOAT", "DOUBLE", "FLOAT16"])
@pytest.mark.parametrize("size", [3, int(SHOWN_SIZE**0.5) + 1], ids=["small weights", "weights left out"])
def test_what_onnxruntime_loads_passes(dtype: str, size: int) -> None:
    check_loadable(products(dtype, 2, size), "model")


def test_exports_go_on_where_onnxruntime_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    check_loadable(products("BFLOAT16", 1, 3), "model")
