"""Once around: torch to ONNX to Flax to ONNX to torch, on a published model."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import nn

import bridge
from tests.models import model_file
from tests.tolerances import assert_within_referee_bound
from tests.whole_models.real_torch import Legere


def legere() -> nn.Module:
    module = Legere().eval()
    module.load_state_dict(torch.load(model_file("legere"), weights_only=True, map_location="cpu")["model"])
    return module


def images(batch: int, width: int) -> np.ndarray:
    return np.random.default_rng(width).random((batch, 1, 32, width), np.float32)


@pytest.fixture(scope="module")
def trip() -> tuple[nn.Module, Any, Any]:
    """The model, the last ONNX model and the torch module made of it."""
    original = legere()
    dynamic = {"images": {0: "batch", 3: "width"}}
    flax = bridge.to_flax(bridge.to_onnx(original, example=(images(1, 64),), dynamic=dynamic))
    last = bridge.to_onnx(flax)
    return original, last, bridge.to_torch(last)


@pytest.mark.models
def test_legere_comes_back_with_its_own_parameters_bit_for_bit(trip: Any) -> None:
    original, _, back = trip
    returned = back.state_dict()
    for name, value in original.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(returned.pop(name.replace("rnn.", "rnn.l0.")), value), name
    assert all(name.endswith("num_batches_tracked") for name in returned)
    kinds = {type(module) for module in back.modules() if next(module.parameters(recurse=False), None) is not None}
    assert kinds == {nn.Conv2d, nn.BatchNorm2d, nn.GRU, nn.Linear}


@pytest.mark.models
def test_legere_comes_back_with_its_outputs(trip: Any) -> None:
    original, last, back = trip
    exact = copy.deepcopy(original).double()
    session = ort.InferenceSession(last.SerializeToString(), providers=["CPUExecutionProvider"])
    for x in (images(2, 48), images(1, 100)):
        (judged,) = session.run(None, {session.get_inputs()[0].name: x})
        with torch.no_grad():
            own, mine, referee = original(torch.tensor(x)), back(x), exact(torch.tensor(x).double())
        assert_within_referee_bound(mine.numpy(), own.numpy(), referee.numpy())
        assert_within_referee_bound(judged, own.numpy(), referee.numpy())
