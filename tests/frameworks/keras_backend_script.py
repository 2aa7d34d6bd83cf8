"""Run by test_keras_backends under KERAS_BACKEND: the Keras door on one backend, compactly.

What differs between backends is what masked steps output, so every case has ragged lengths, one of them 0.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from bridge.cell import Cell
from bridge.errors import Unsupported
from bridge.frameworks import keras as door
from bridge.frameworks.door import ExportOptions
from bridge.ops.program import evaluate
from tests.cells import random_cell
from tests.frameworks.keras_cases import (
    INPUTS,
    UNITS,
    WITH_EMPTY,
    assert_export_agrees,
    feeds_of,
    filled,
    numpy,
    onnxruntime_outputs,
)
from tests.frameworks.keras_return_cases import stack
from tests.tolerances import assert_within_referee_bound

SHAPE_2D = (None, None, 4, 5, 2)
BACKEND = keras.backend.backend()


def sources(rng: np.random.Generator) -> Iterator[Any]:
    for kind in (layers.LSTM, layers.GRU):
        for backwards in (False, True):
            for sequences in (False, True):
                options = {"go_backwards": backwards, "return_sequences": sequences}
                yield filled(kind(UNITS, **options), rng)
                yield filled(kind(UNITS, zero_output_for_mask=True, **options), rng)
    yield filled(layers.SimpleRNN(UNITS, activation="silu", go_backwards=True, return_sequences=True), rng)
    yield filled(layers.LSTM(UNITS, unroll=True, return_sequences=True, zero_output_for_mask=True), rng)
    yield filled(layers.Bidirectional(layers.LSTM(UNITS, return_sequences=True), merge_mode=None), rng)
    yield filled(layers.Bidirectional(layers.GRU(UNITS), merge_mode="ave"), rng)


def check_exports(rng: np.random.Generator) -> None:
    for source in sources(rng):
        assert_export_agrees(source, rng, WITH_EMPTY, states="inputs")
    convolution = filled(layers.ConvLSTM2D(3, 2, padding="same", return_sequences=True), rng, SHAPE_2D)
    assert_export_agrees(convolution, rng)
    if BACKEND == "jax":
        with pytest.raises(Unsupported, match="wrong axes of a ConvLSTM"):
            door.export(convolution, ExportOptions(lengths=True))
    else:
        assert_export_agrees(convolution, rng, WITH_EMPTY)
    model = keras.Sequential([
        keras.Input((None, INPUTS)),
        layers.LSTM(UNITS, return_sequences=True, go_backwards=True),
        layers.Bidirectional(layers.GRU(3, return_sequences=True)),
        layers.SimpleRNN(3),
    ])  # fmt: skip
    assert_export_agrees(filled(model, rng), rng, WITH_EMPTY)


def check_imports(rng: np.random.Generator) -> None:
    for source in (
        filled(layers.Bidirectional(layers.LSTM(UNITS, return_sequences=True)), rng),
        filled(layers.GRU(UNITS, activation="gelu", go_backwards=True, return_sequences=True), rng),
    ):
        model = door.export(source, ExportOptions(lengths=True, states="inputs"))
        feeds = feeds_of(model, rng, WITH_EMPTY)
        expected, referee = onnxruntime_outputs(model, feeds), evaluate(model, feeds)
        for name, output in zip(expected, door.import_model(model)(*feeds.values()), strict=True):
            assert_within_referee_bound(numpy(output), expected[name], referee[name])


def check_own_cell(rng: np.random.Generator) -> None:
    cell: Cell = random_cell("LSTM", INPUTS, UNITS, rng, clip=0.4, peepholes=True)
    layer = door.build([cell], True)
    x = rng.standard_normal((2, 5, INPUTS)).astype(np.float32)
    from bridge.reference import evaluate as reference

    Y, _, _ = reference(cell, x.transpose(1, 0, 2))
    np.testing.assert_allclose(numpy(layer(x)), Y[:, 0].transpose(1, 0, 2), rtol=0, atol=4e-6)  # float32, 5 steps


def check_training(rng: np.random.Generator) -> None:
    source = filled(keras.Sequential([keras.Input((5, INPUTS)), layers.LSTM(UNITS)]), rng)
    model = door.import_model(door.export(source, ExportOptions()))
    model.compile("sgd", "mse")
    before = [numpy(weight).copy() for weight in model.trainable_variables]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras' trainers warn about themselves
        model.fit(rng.standard_normal((4, 5, INPUTS)), rng.standard_normal((4, UNITS)), epochs=1, verbose=0)
    assert len(before) == 3
    assert all((numpy(now) != was).any() for now, was in zip(model.trainable_variables, before, strict=True))


def check_float64(rng: np.random.Generator) -> None:
    """jax holds float32 under a float64 policy unless it is told otherwise; torch holds float64."""
    layer = filled(layers.GRU(UNITS, dtype="float64"), rng)
    if BACKEND == "jax":
        with pytest.raises(Unsupported, match="holds narrower numbers"):
            door.export(layer, ExportOptions())
    else:
        (cell,) = door.cells(layer).values()
        assert cell.dtype == np.float64


def check_whole(rng: np.random.Generator) -> None:
    """A whole model is traced by a process on TensorFlow, and masked steps are those of this backend."""
    x = keras.Input((None, INPUTS), name="x")
    y = layers.Masking(name="masking")(layers.Dense(3, activation="relu")(x))
    y = layers.LSTM(UNITS, go_backwards=True, return_sequences=True, name="encoder")(y)
    model = filled(keras.Model(x, layers.Dense(2, name="head")(y)), rng)
    assert_export_agrees(model, rng, states="inputs")


def check_nested(rng: np.random.Generator) -> None:
    """An imported graph inside the caller's own model, which the process on TensorFlow makes again."""
    imported = door.import_model(stack("LSTM", "bidirectional"))
    x = keras.Input((None, INPUTS), name="x")
    assert_export_agrees(filled(keras.Model(x, layers.Dense(2, name="head")(imported(x)[0])), rng), rng)


CHECKS = (check_exports, check_imports, check_own_cell, check_training, check_float64, check_whole, check_nested)

if __name__ == "__main__":
    random = np.random.default_rng(3)
    for check in CHECKS:
        check(random)
        print(BACKEND, check.__name__)
