"""Graphs on their way into Keras and back; run in the suite's own process, and as a script under KERAS_BACKEND."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from bridge.frameworks import keras as door
from bridge.frameworks.door import ExportOptions
from bridge.graph import Writer
from bridge.ops.program import evaluate
from tests.cells import random_cell
from tests.frameworks.keras_cases import numpy, onnxruntime_outputs
from tests.tolerances import assert_within_referee_bound

BACKEND = keras.backend.backend()
RNG = np.random.default_rng(7)


def draw(*shape: int) -> np.ndarray:
    return RNG.uniform(-0.7, 0.7, shape).astype(np.float32)


@dataclass(frozen=True)
class Row:
    """One node between two others, and the Keras layers that hold its weights."""

    op: str
    x: tuple[Any, ...]
    constants: tuple[np.ndarray, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    native: tuple[str, ...] = ()
    dtype: str = "float32"
    added: np.ndarray | None = None
    at: int = 0
    """Which input of the node x is."""

    def model(self) -> Any:
        w = Writer()
        x = w.input("x", self.dtype, self.x)
        inputs: list[Any] = [w.constant(array, f"w{n}") for n, array in enumerate(self.constants)]
        inputs.insert(self.at, x)
        y = w.op(self.op, *inputs, name=f"block.0.{self.op}", **self.attributes)
        if self.added is not None:
            y = w.op("Add", w.constant(self.added, "added"), y, name="block.0.Add")
        w.output(w.op("Tanh", y), "y")
        return w.model()


STATISTICS = (draw(3) + 1, draw(3), draw(3), np.abs(draw(3)) + np.float32(0.2))
ROWS = {
    "MatMul": Row("MatMul", ("batch", "time", 3), (draw(3, 4),), native=("Dense",)),
    "MatMul and Add": Row("MatMul", ("batch", "time", 3), (draw(3, 4),), native=("Dense",), added=draw(4)),
    "Gemm": Row("Gemm", ("batch", 3), (draw(4, 3), draw(4)), {"transB": 1}, native=("Dense",)),
    "a scaled Gemm": Row("Gemm", ("batch", 3), (draw(3, 4), draw(4)), {"alpha": 0.5}),
    "a product by a vector": Row("MatMul", ("batch", 3), (draw(3),)),
    "Conv1D": Row("Conv", ("batch", 3, "time"), (draw(4, 3, 2), draw(4)), {"pads": [2, 1], "strides": [2]},
                  native=("ZeroPadding1D", "Conv1D")),
    "Conv2D": Row("Conv", ("batch", 3, 8, 7), (draw(4, 3, 3, 2),), {"dilations": [2, 1], "pads": [0, 1, 3, 0]},
                  native=("ZeroPadding2D", "Conv2D")),
    "Conv2D, same": Row("Conv", ("batch", 3, 8, 7), (draw(4, 3, 3, 3),), {"pads": [1, 1, 1, 1]}, native=("Conv2D",)),
    "Conv2D, strides and dilation": Row("Conv", ("batch", 3, 9, 9), (draw(4, 3, 2, 2), draw(4)),
                                        {"strides": [2, 1], "dilations": [2, 2]}, native=("Conv2D",)),
    "Conv3D": Row("Conv", (2, 2, 4, 5, 3), (draw(3, 2, 2, 3, 2), draw(3)), native=("Conv3D",)),
    "in groups": Row("Conv", ("batch", 4, 9), (draw(6, 2, 3), draw(6)), {"group": 2},
                     native=() if BACKEND == "tensorflow" else ("Conv1D",)),
    "per channel": Row("Conv", ("batch", 3, 9), (draw(6, 1, 3), draw(6)), {"group": 3}, native=("DepthwiseConv1D",)),
    "per channel, unequal strides": Row("Conv", ("batch", 3, 9, 8), (draw(3, 1, 3, 3),),
                                        {"group": 3, "strides": [2, 1], "pads": [1, 1, 1, 1]},
                                        native=("ZeroPadding2D", "DepthwiseConv2D")),
    **{f"Conv {auto}": Row("Conv", ("batch", 3, 8, 7), (draw(4, 3, 3, 2), draw(4)),
                           {"auto_pad": auto, "strides": [2, 3]}, native=() if auto == "SAME_LOWER" else ("Conv2D",))
       for auto in ("SAME_UPPER", "SAME_LOWER", "VALID")},
    "BatchNormalization": Row("BatchNormalization", ("batch", 3, 5), STATISTICS, {"epsilon": 0.01},
                              native=("BatchNormalization",)),
    "LayerNormalization": Row("LayerNormalization", ("batch", "time", 5), (draw(5) + 1, draw(5)), {"epsilon": 0.01},
                              native=("LayerNormalization",)),
    "Gather": Row("Gather", ("batch", "time"), (draw(4, 3),), native=("Embedding",), dtype="int64", at=1),
    "columns of a table": Row("Gather", ("batch",), (draw(4, 3),), {"axis": 1}, dtype="int64", at=1),
}  # fmt: skip


def feeds_of(model: Any, time: int = 5) -> dict[str, np.ndarray]:
    """Random inputs; integers count rows, some of them from the end."""
    rng, feeds = np.random.default_rng(3), {}
    for value in model.graph.inputs:
        shape = [dim if isinstance(dim, int) else time if str(dim) == "time" else 2 for dim in value.shape]
        dtype = value.dtype.numpy()
        drawn = rng.integers(-3, 3, shape) if dtype.kind == "i" else rng.standard_normal(shape)
        feeds[value.name] = drawn.astype(dtype)
    return feeds


def assert_agrees(model: Any, imported: Any, feeds: Mapping[str, np.ndarray]) -> None:
    """The imported model and onnxruntime, under the referee's bound."""
    expected, referee = onnxruntime_outputs(model, dict(feeds)), evaluate(model, feeds)
    outputs = imported(**feeds)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    assert imported.output_names == tuple(expected)
    for name, output in zip(expected, outputs, strict=True):
        assert_within_referee_bound(numpy(output), expected[name], referee[name])


def initialisers(model: Any) -> dict[str, bytes]:
    """The bits of every initialiser of all graphs."""
    return {name: value.const_value.numpy().tobytes() for graph in model.graphs()
            for name, value in graph.initializers.items()}  # fmt: skip


def kinds(imported: Any) -> list[str]:
    """The layers of Keras' own that hold weights or pad, in order."""
    return [
        type(layer).__name__
        for layer in imported.layers
        if type(layer).__module__.startswith("keras.src.layers") and type(layer).__name__ != "InputLayer"
    ]


def check_row(row: Row) -> None:
    """Right, native where it should be, and the same graph again."""
    model = row.model()
    imported = door.import_model(model)
    assert_agrees(model, imported, feeds_of(model))
    assert tuple(kinds(imported)) == row.native
    assert initialisers(door.export(imported, ExportOptions())) == initialisers(model)


def stack(op: str, direction: str, *, lengths: bool = False, states: bool = False) -> Any:
    """A batch-major sequence through one node, both directions side by side, and the final states."""
    w = Writer()
    cell = random_cell(op, 4, 3, np.random.default_rng(5), direction=direction)
    x = w.transpose(w.input("x", "float32", ["batch", "time", 4]), [1, 0, 2])
    given = {}
    if lengths:
        given["lengths"] = w.input("lengths", "int32", ["batch"])
    if states:
        given["initial_h"] = w.input("initial_h", "float32", [cell.num_directions, "batch", 3])
        if op == "LSTM":
            given["initial_c"] = w.input("initial_c", "float32", [cell.num_directions, "batch", 3])
    Y, *finals = w.recurrent(cell, x, name="encoder.rnn", **given)
    flat = w.op("Reshape", w.transpose(Y, [2, 0, 1, 3]), w.constant(np.array([0, 0, -1])))
    w.output(flat, "y")
    for name, value in zip(("h_n", "c_n"), finals, strict=False):
        if value is not None:
            w.output(value, name)
    return w.model()


STACKS = [(op, direction, options) for op in ("LSTM", "GRU", "RNN") for direction, options in (
    ("bidirectional", {}), ("reverse", {"states": True}), ("forward", {"lengths": True}),
    ("bidirectional", {"lengths": True, "states": True}))]  # fmt: skip


def check_stack(op: str, direction: str, options: Mapping[str, bool]) -> None:
    """Without lengths the native layer stands in the model itself; with them inside a layer of its node."""
    model = stack(op, direction, **options)
    imported = door.import_model(model)
    feeds = feeds_of(model)
    if options.get("lengths"):
        feeds["lengths"] = np.array([5, 2], np.int32)
    assert_agrees(model, imported, feeds)
    held = [layer for layer in imported.layers if any(layer is one for one in imported.recurrent)]
    assert len(held) == (0 if options.get("lengths") else 1)
    assert initialisers(door.export(imported, ExportOptions())) == initialisers(model)


def main() -> None:
    """All cases on this process' backend."""
    for row in ROWS.values():
        check_row(row)
    for case in STACKS[:4] if BACKEND == "jax" else STACKS:
        check_stack(*case)
    print(BACKEND, len(ROWS))


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="__array__ implementation doesn't accept a copy keyword")
        main()
