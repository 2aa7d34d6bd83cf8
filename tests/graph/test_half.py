"""float16 products behind a Transpose: onnxruntime dies on them, so they are written otherwise."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from bridge import graph
from bridge.graph import Writer
from bridge.graph.half import fatal_products, write_otherwise
from bridge.runtime import run_model

WEIGHTS = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float16)


def product(order: list[int], weights: np.ndarray = WEIGHTS, *, swapped: bool = False, dtype: str = "float16") -> Any:
    """y = Transpose(x) @ W, and z = Relu(y)."""
    w = Writer(dtype=dtype)
    x = w.input("x", dtype, ["a", "b", 4] if order[-1] == 2 else ["a", 4, "b"] if order[-1] == 1 else [4, "a", "b"])
    turned = w.op("Transpose", x, perm=order)
    pair = [turned, w.constant(weights.astype(dtype), "weights")]
    y = w.op("MatMul", *(pair[::-1] if swapped else pair))
    w.output(y, "y", dtype, [None, None, None])
    w.output(w.op("Relu", y), "z", dtype, [None, None, None])
    return w.model()


CASES = {
    "last axis kept": ([1, 0, 2], WEIGHTS, False),
    "channels first": ([0, 2, 1], WEIGHTS, False),
    "turned round": ([2, 1, 0], WEIGHTS, False),
    "weights first": ([0, 1, 2], np.random.default_rng(2).standard_normal((1, 2, 5)).astype(np.float16), True),
}


def feed(order: list[int], swapped: bool) -> np.ndarray:
    rng = np.random.default_rng(1)
    shape = {2: (2, 5, 4), 1: (2, 4, 5), 0: (4, 5, 2)}[order[-1]]
    return rng.standard_normal((1, 5, 4) if swapped else shape).astype(np.float16)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_what_is_written_otherwise_runs_in_any_session_and_means_the_same(case: Any) -> None:
    order, weights, swapped = case
    x = feed(order, swapped)
    model = product(order, weights, swapped=swapped)
    assert len(list(fatal_products(model))) == 1
    write_otherwise(model)
    assert list(fatal_products(model)) == []
    assert all(value.uses() or value.is_graph_output() for node in model.graph for value in node.outputs)
    proto = graph.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_outputs()] == ["y", "z"]
    turned = x.transpose(order).astype(np.float64)
    wanted = weights.astype(np.float64) @ turned if swapped else turned @ weights.astype(np.float64)
    y, z = session.run(None, {"x": x})
    # one rounding to float16 of a product in float32
    np.testing.assert_allclose(y, wanted, rtol=np.finfo(np.float16).eps, atol=1e-6)
    np.testing.assert_array_equal(z, np.maximum(y, 0))


def test_a_file_that_would_end_the_process_runs_here() -> None:
    x = feed([1, 0, 2], swapped=False)
    proto = graph.to_proto(product([1, 0, 2]))
    found = run_model(proto, {"x": x}).outputs["y"]
    wanted = x.transpose(1, 0, 2).astype(np.float64) @ WEIGHTS.astype(np.float64)
    np.testing.assert_allclose(found, wanted, rtol=np.finfo(np.float16).eps, atol=1e-6)


def test_onnxruntime_still_dies_on_it(tmp_path: Path) -> None:
    path = tmp_path / "half.onnx"
    path.write_bytes(graph.to_proto(product([1, 0, 2])).SerializeToString())
    line = f"import onnxruntime; onnxruntime.InferenceSession({str(path)!r}, providers=['CPUExecutionProvider'])"
    done = subprocess.run([sys.executable, "-c", line], capture_output=True, check=False)
    assert done.returncode < 0, "it does not any more: graph/half.py can go"


def test_other_dtypes_stay_as_they_are() -> None:
    model = product([1, 0, 2], dtype="float32")
    before = [node.op_type for node in model.graph]
    write_otherwise(model)
    assert [node.op_type for node in model.graph] == before
