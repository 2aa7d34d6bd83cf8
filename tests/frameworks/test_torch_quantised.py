"""Dynamically quantised modules: exported as the float modules that their weights stand for, with a note."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import bridge
from bridge.errors import Unsupported
from bridge.frameworks.torch_quantised import as_float

INPUTS, HIDDEN = 3, 5
pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning"),
]
QUANTISED = {nn.LSTM, nn.GRU, nn.LSTMCell, nn.GRUCell, nn.RNNCell, nn.Linear}


class Speech(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.LSTM(INPUTS, HIDDEN, 2, bidirectional=True, batch_first=True)
        self.decoder = nn.GRU(2 * HIDDEN, HIDDEN, batch_first=True)
        self.cell, self.last = nn.LSTMCell(HIDDEN, HIDDEN), nn.RNNCell(HIDDEN, HIDDEN, nonlinearity="relu")
        self.head = nn.Linear(HIDDEN, 2)

    def forward(self, x):
        y, _ = self.decoder(self.encoder(x)[0])
        return self.head(self.last(self.cell(y[:, -1])[0]))


def quantised(module: nn.Module, dtype: torch.dtype = torch.qint8) -> Any:
    return torch.ao.quantization.quantize_dynamic(module.eval(), QUANTISED, dtype=dtype)


def frames(batch: int = 2, time: int = 6) -> np.ndarray:
    return np.random.default_rng(time).standard_normal((batch, time, INPUTS)).astype(np.float32)


@pytest.mark.parametrize("dtype", [torch.qint8, torch.float16], ids=["int8", "float16"])
def test_a_quantised_model_is_exported_as_its_float_equivalent(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    original = Speech()
    module = quantised(original, dtype)
    model = bridge.to_onnx(module, example=(frames(),))
    assert sum(node.op_type in ("LSTM", "GRU", "RNN") for node in model.graph.node) == 5
    wide, _ = as_float(module)
    x = frames(3, 9)
    (mine,) = bridge.run(model, {"x": x}).values()
    with torch.no_grad():
        np.testing.assert_allclose(mine, wide(torch.tensor(x)).numpy(), rtol=0, atol=1e-6)  # float32, values below 1
        exact, rounded = original(torch.tensor(x)).numpy(), module(torch.tensor(x)).numpy()
    assert 0 < np.abs(mine - exact).max() < 0.02  # the weights' own rounding: 8 bits
    assert np.abs(mine - rounded).max() < 0.05  # and that of the activations


def test_a_note_names_every_module() -> None:
    model = bridge.to_onnx(quantised(Speech()), example=(frames(),))
    notes = json.loads({entry.key: entry.value for entry in model.metadata_props}["bridge.notes"])
    assert [note.split(":")[0] for note in notes if "quantised" in note] == [
        "encoder",
        "decoder",
        "cell",
        "last",
        "head",
    ]


def test_the_weights_are_those_that_the_quantised_ones_stand_for() -> None:
    module = quantised(Speech())
    wide, _ = as_float(module)
    for name, value in module.encoder.get_weight().items():
        assert torch.equal(wide.encoder.state_dict()[name], value.dequantize())
    assert torch.equal(wide.head.weight, module.head.weight().dequantize())
    assert set(bridge.cells(module)) == {"encoder.l0", "encoder.l1", "decoder.l0", "cell", "last"}


def test_the_module_itself_stays_quantised() -> None:
    module = quantised(Speech())
    before = module(torch.tensor(frames()))
    bridge.to_onnx(module, example=(frames(),))
    assert torch.equal(module(torch.tensor(frames())), before)
    assert "Dynamic" in repr(module.encoder)


def test_a_bare_layer_and_a_shared_one() -> None:
    both = quantised(nn.ModuleDict({"one": nn.LSTM(INPUTS, HIDDEN)}))
    model = bridge.to_onnx(both["one"])
    assert [node.op_type for node in model.graph.node].count("LSTM") == 1
    assert "quantised" in str(model.metadata_props)
    linear = quantised(nn.Sequential(nn.Linear(2, 2)))[0]
    wide, notes = as_float(nn.Sequential(linear, nn.ReLU(), linear))
    assert wide[0] is wide[2]
    assert len(notes) == 1


def test_what_is_not_quantised_is_not_copied() -> None:
    module = Speech()
    assert as_float(module) == (module, [])


def test_other_quantisation_is_refused_by_path() -> None:
    static = nn.Sequential(torch.ao.nn.quantized.ReLU6())
    with pytest.raises(Unsupported, match=r"0 \(ReLU6\)"):
        bridge.to_onnx(static, example=(frames(),))
