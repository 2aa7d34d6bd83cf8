"""Export a case once and judge it at other sizes: Keras on TensorFlow in float64 is the referee."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnx

import bridge
from bridge.errors import BridgeError
from bridge.frameworks import keras as door
from tests.whole_models.keras_cases import EXAMPLE, OTHERS, Case, all_cases
from tests.whole_models.verdict import Run, Verdict, count, judge

PEER = "tf2onnx"

__all__ = ["PEER", "all_cases", "built", "count", "export", "outputs", "peer", "run"]


Sizes = Sequence[tuple[int, int]]


def built(case: Case, dtype: str = "float32") -> keras.Model:
    """The model, every weight and statistic random: the same numbers in every dtype."""
    kept = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx(dtype)
    keras.config.set_dtype_policy(dtype)
    keras.utils.clear_session()
    try:
        model = case.build()
        if not model.built:
            arrays = case.inputs(*EXAMPLE, np.random.default_rng(0))
            model(*[_as(array, dtype) for array in arrays])
    finally:
        keras.config.set_floatx(kept[0])
        keras.config.set_dtype_policy(kept[1])
    rng = np.random.default_rng(1)
    for weight in model.weights:
        values = rng.uniform(-0.6, 0.6, weight.shape).astype(np.float32)
        if "variance" in weight.name:
            values = np.abs(values) + 0.5
        if "seed" not in weight.name:
            weight.assign(np.zeros(weight.shape) if "state" in weight.path.split("/")[-1] else values)
    return model


def _as(array: np.ndarray, dtype: str) -> np.ndarray:
    return array.astype(dtype) if array.dtype == np.float32 else array


def export(case: Case, model: keras.Model) -> Any:
    example = case.inputs(*EXAMPLE, np.random.default_rng(0)) if case.example else None
    return bridge.to_onnx(model, example=example, **dict(case.options))


def runs(case: Case, model: keras.Model, names: list[str], sizes: Sizes = OTHERS) -> Iterator[Run]:
    """The case at other sizes; `names` are the graph's inputs."""
    exact = built(case, "float64")
    for at, (batch, time) in enumerate(sizes):
        arrays = case.inputs(batch, case.fixed_time or time, np.random.default_rng(at + 1))
        feeds = dict(zip(names, arrays, strict=True))
        wide = {name: _as(array, "float64") for name, array in feeds.items()}
        yield Run(str((batch, time)), arrays, list(outputs(model, feeds).values()),
                  list(outputs(exact, wide).values()))  # fmt: skip


def outputs(model: keras.Model, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Keras' own outputs, states too where the feeds hold states."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return door.execute(model, feeds)


def run(case: Case, sizes: Sizes = OTHERS) -> Verdict:
    """Build, export, judge."""
    model = built(case)
    try:
        proto = export(case, model)
    except BridgeError as error:
        return Verdict(case.name, "refused", detail=str(error))
    return judge(case.name, proto, runs(case, model, [value.name for value in proto.graph.input], sizes))


def peer(case: Case) -> Verdict:
    """The same model by `keras.Model.export(format="onnx")`, which is tf2onnx."""
    model = built(case)
    arrays = case.inputs(*EXAMPLE, np.random.default_rng(0))
    ours = _names(case, model, len(arrays))
    logging.getLogger("tf2onnx").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        path = Path(folder) / "model.onnx"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                specs = [keras.InputSpec(dtype=array.dtype.name, shape=(None, None, *array.shape[2:]))
                         for array in arrays] if case.example else None  # fmt: skip
                model.export(path, format="onnx", verbose=False, input_signature=specs)
            proto = onnx.load(path)
        except Exception as error:  # noqa: BLE001 (whatever the exporter says is the verdict)
            return Verdict(case.name, "failed", detail=f"{type(error).__name__}: {str(error)[:200]}")
    if len(proto.graph.input) != len(arrays):
        return Verdict(case.name, "failed", detail="the states are no inputs of the graph")
    return judge(case.name, proto, runs(case, model, ours))


def _names(case: Case, model: keras.Model, count: int) -> list[str]:
    """The names by which Keras' own run of the case takes its inputs."""
    try:
        proto = export(case, model)
    except BridgeError:
        return [f"input_{at}" for at in range(count)]
    return [value.name for value in proto.graph.input]
