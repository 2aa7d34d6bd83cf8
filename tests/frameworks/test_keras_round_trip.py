"""Keras to ONNX to Flax to ONNX to Keras: the outputs of the first, and its parameters bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import bridge
from bridge.graph import as_model
from bridge.ops.program import evaluate
from tests.frameworks.keras_cases import numpy
from tests.frameworks.keras_return_cases import initialisers
from tests.models import inside, model_file
from tests.tolerances import assert_within_referee_bound


@pytest.fixture(scope="module")
def sleepecg(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder: Path = tmp_path_factory.mktemp("sleepecg")
    return keras.saving.load_model(inside(model_file("sleepecg"), "classifier.keras", folder), compile=False)


@pytest.mark.models
@pytest.mark.parametrize("masks", ["exact", "right"])
def test_sleepecg_comes_back_through_flax(sleepecg: Any, masks: Any) -> None:
    first = bridge.to_onnx(sleepecg, masks=masks)
    flax = bridge.to_flax(first)
    second = bridge.to_onnx(flax)
    last = bridge.to_keras(second)
    assert initialisers(as_model(second)) == initialisers(as_model(first))
    assert initialisers(as_model(bridge.to_onnx(last))) == initialisers(as_model(first))
    kept = {numpy(weight).tobytes() for weight in last.weights}
    # tf2onnx folds the batch normalisation into one scale and one shift
    assert {numpy(weight).tobytes() for layer in sleepecg.layers if not layer.name.startswith("batch_norm")
            for weight in layer.weights} <= kept  # fmt: skip
    x = np.random.default_rng(0).standard_normal((3, 9, 36)).astype(np.float32)
    x[1, 6:] = -1
    if masks == "exact":
        x[2, 3] = -1
    (name,), (output,) = [[value.name for value in ends] for ends in (first.graph.input, first.graph.output)]
    judge, referee = bridge.run(first, {name: x})[output], evaluate(as_model(first), {name: x})[output]
    for candidate in (sleepecg(x), flax(x), last(x)):
        assert_within_referee_bound(numpy(candidate), judge, referee)
