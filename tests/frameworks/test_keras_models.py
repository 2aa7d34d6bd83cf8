"""Keras layers out of torch's weights, and out of a published file of Keras 2.2.0."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
import torch

from bridge.errors import NotRepresentable
from bridge.frameworks import keras as door
from bridge.frameworks.keras_h5 import read_h5
from bridge.graph import Writer, to_proto
from bridge.layout import read_params
from bridge.reference import evaluate
from tests.frameworks.keras_cases import numpy
from tests.models import model_file
from tests.tolerances import assert_within_referee_bound


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(2)


@pytest.mark.parametrize(("kind", "module"), [("torch.LSTM", torch.nn.LSTM), ("torch.GRU", torch.nn.GRU)])
def test_a_torch_layer_becomes_a_keras_layer(kind: str, module: type[torch.nn.LSTM], rng: np.random.Generator) -> None:
    torch.manual_seed(0)
    source = module(4, 6, batch_first=True)
    params = {name.removesuffix("_l0"): value.detach().numpy() for name, value in source.named_parameters()}
    layer = door.build([read_params(kind, params)], False)
    x = rng.standard_normal((3, 5, 4)).astype(np.float32)
    with torch.no_grad():
        expected = source(torch.from_numpy(x))[0].numpy()
        referee = source.double()(torch.from_numpy(x).double())[0].numpy()
    assert_within_referee_bound(numpy(layer(x)), expected, referee)


@pytest.mark.models
def test_chars2vec_keeps_the_hard_sigmoid_of_its_keras(rng: np.random.Generator) -> None:
    found = read_h5(str(model_file("chars2vec")))
    assert list(found.cells) == ["lstm_1", "lstm_2"]
    assert "the defaults of Keras 2.2.0: recurrent_activation hard_sigmoid, activation tanh" in found.notes[0]
    cells = list(found.cells.values())
    with pytest.raises(NotRepresentable, match=r"'f' is HardSigmoid\(0\.2, 0\.5\)"):
        door.build(cells, False)
    stack = door.build(cells, True)
    x = np.eye(59, dtype=np.float32)[rng.integers(0, 59, (2, 7))]
    w, y, referee = Writer(), None, x.transpose(1, 0, 2)
    y = w.transpose(w.input("x", "float32", ["batch", "time", 59]), (1, 0, 2))
    for name, cell in found.cells.items():
        y = w.squeeze(w.recurrent(cell, y, name=name)[0], 1)
        referee = evaluate(cell, referee)[0][:, 0]
    w.output(y, "y")
    session = ort.InferenceSession(to_proto(w.model()).SerializeToString(), providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"x": x})
    assert_within_referee_bound(numpy(stack(x)).transpose(1, 0, 2), expected, referee)
