"""What the tests of the Keras door share: layers with random weights, and runs of their export in onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from bridge.frameworks import keras as door
from bridge.frameworks.door import ExportOptions
from bridge.frameworks.keras_read import keras_array
from bridge.graph import to_proto
from bridge.ops.program import evaluate
from tests.tolerances import assert_within_referee_bound

BATCH, TIME, INPUTS, UNITS = 3, 5, 4, 6
RAGGED = (5, 2, 1)
WITH_EMPTY = (5, 2, 0)


def filled(layer: Any, rng: np.random.Generator, shape: tuple[int | None, ...] = (BATCH, TIME, INPUTS)) -> Any:
    """A layer or model with weights in +-0.6, biases too."""
    if not layer.built:
        layer.build(shape)
    for weight in layer.weights:
        if "state" not in weight.name and "seed" not in weight.name:
            weight.assign(rng.uniform(-0.6, 0.6, weight.shape).astype(weight.dtype))
    return layer


def feeds_of(model: Any, rng: np.random.Generator, lengths: tuple[int, ...] = RAGGED) -> dict[str, np.ndarray]:
    feeds = {}
    for value in model.graph.inputs:
        if value.name.endswith("lengths"):
            feeds[value.name] = np.array(lengths, np.int32)
            continue
        shape = [BATCH if at == 0 else TIME if not isinstance(dim, int) else dim for at, dim in enumerate(value.shape)]
        feeds[value.name] = rng.standard_normal(shape).astype(value.dtype.numpy())
    return feeds


def onnxruntime_outputs(model: Any, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    proto = to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    assert [entry.name for entry in session.get_inputs()] == list(feeds)
    return dict(zip(names, session.run(names, feeds), strict=True))


def assert_export_agrees(
    source: Any,
    rng: np.random.Generator,
    lengths: tuple[int, ...] | None = None,
    **options: Any,
) -> Any:
    """Keras' own numbers, and those of onnxruntime on the export, under one bound; the export is returned."""
    model = door.export(source, ExportOptions(lengths=lengths is not None, **options))
    feeds = feeds_of(model, rng, lengths or RAGGED)
    expected, native = onnxruntime_outputs(model, feeds), door.execute(source, feeds)
    referee = evaluate(model, feeds)
    assert list(native) == list(expected)
    for name in expected:
        assert native[name].dtype == expected[name].dtype
        assert_within_referee_bound(native[name], expected[name], referee[name])
    return model


def operators(model: Any) -> list[str]:
    return [node.op_type for node in model.graph]


def numpy(value: Any) -> np.ndarray:
    return keras_array(value)
