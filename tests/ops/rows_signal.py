"""Rows for scatter, selection, spectral and quantised operators, bits, trigonometry and Loop."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tests.ops.row import Row

F32, I64, U8 = np.float32, np.int64, np.uint8


def signal_rows(rng: np.random.Generator) -> Iterator[Row]:
    yield from _single(rng)
    yield from _scatters(rng)
    yield from _selections(rng)
    yield from _spectral(rng)
    yield from _quantised(rng)
    yield from _loops(rng)


def _single(rng: np.random.Generator) -> Iterator[Row]:
    x = rng.uniform(-0.9, 0.9, (3, 4)).astype(F32)
    for op in ("Tan", "Asin", "Acos", "Atan", "Sinh", "Cosh", "Asinh", "Atanh"):
        yield Row(op, {"input": x})
    yield Row("Acosh", {"input": np.abs(x) + 1})
    yield Row("Shrink", {"input": x}, {"bias": 0.1, "lambd": 0.3})
    yield Row("Hardmax", {"input": np.round(x)})
    yield Row("Hardmax", {"input": x}, {"axis": 0}, opset=11)
    infinite = np.array([1, np.inf, -np.inf, np.nan], F32)
    yield Row("IsInf", {"X": infinite})
    yield Row("IsInf", {"X": infinite}, {"detect_negative": 0})
    a, b = rng.integers(0, 200, (2, 3)).astype(U8), rng.integers(0, 7, 3).astype(U8)
    for way in ("LEFT", "RIGHT"):
        yield Row("BitShift", {"X": a, "Y": b}, {"direction": way})
    for op in ("BitwiseAnd", "BitwiseOr", "BitwiseXor"):
        yield Row(op, {"A": a, "B": b})
    yield Row("BitwiseNot", {"X": a})
    for upper in (0, 1):
        yield Row("Trilu", {"input": x}, {"upper": upper}, {"k": np.array(1 - 2 * upper, I64)})
    yield Row("EyeLike", {"input": x}, {"k": 1, "dtype": onnx.TensorProto.INT32})
    matrices = {"a": rng.standard_normal((2, 3, 4)).astype(F32), "b": rng.standard_normal((2, 4, 5)).astype(F32)}
    yield Row("Einsum", matrices, {"equation": "b i j, b j k -> b k i"})
    yield Row("Einsum", {"a": x}, {"equation": "...j->..."})
    yield Row("Det", {"X": rng.standard_normal((2, 3, 3)).astype(F32)})


def _scatters(rng: np.random.Generator) -> Iterator[Row]:
    x, new = rng.standard_normal((4, 3, 2)).astype(F32), rng.standard_normal((3, 2)).astype(F32)
    twice = np.array([[1, 2], [-1, 0], [1, 2]], I64)
    for reduction in ("add", "mul", "max", "min"):
        yield Row("ScatterND", {"data": x, "indices": twice, "updates": new}, {"reduction": reduction}, opset=18)
    yield Row("ScatterND", {"data": x, "indices": twice[:2], "updates": new[:2]})
    yield Row("ScatterND", {"data": x, "indices": np.array([[-1], [0]], I64), "updates": x[:2] + 1}, opset=13)
    places = np.array([[[0, 1], [2, -1]]], I64)
    updates = rng.standard_normal((1, 2, 2)).astype(F32)
    for reduction in ("none", "add", "max"):
        fed = {"data": x, "indices": places, "updates": updates}
        yield Row("ScatterElements", fed, {"axis": 1, "reduction": reduction}, opset=18)
    yield Row("ScatterElements", {"data": x, "indices": places, "updates": updates}, {"axis": 0}, opset=13)
    yield Row("Scatter", {"data": x, "indices": places, "updates": updates}, {"axis": 0}, opset=10)


def _selections(rng: np.random.Generator) -> Iterator[Row]:
    x = np.round(rng.standard_normal((3, 5)) * 2).astype(F32)
    for largest in (0, 1):
        yield Row("TopK", {"X": x}, {"largest": largest}, {"K": np.array([3], I64)}, outputs=2)
    yield Row("TopK", {"X": x}, {"axis": 0}, {"K": np.array([2], I64)}, opset=10, outputs=2)
    yield Row("TopK", {"X": x}, {"k": 2, "axis": 1}, opset=9, outputs=2)
    indices = np.array([[0, 2], [-1, 5]], I64)
    for axis in (-1, 1):
        yield Row("OneHot", {"indices": indices}, {"axis": axis},
                  {"depth": np.array(3, I64), "values": np.array([0.5, 2], F32)})  # fmt: skip
    yield Row("NonZero", {}, constants={"X": x})
    kept = {"condition": np.array([True, False, True])}
    yield Row("Compress", {"input": x}, {"axis": 0}, kept)
    yield Row("Compress", {"input": x}, {}, kept)
    for options in ({}, {"sorted": 0}, {"axis": 1}):
        yield Row("Unique", {}, options, {"X": x}, outputs=4)


def _spectral(rng: np.random.Generator) -> Iterator[Row]:
    real, both = (rng.standard_normal((2, 10, parts)).astype(F32) for parts in (1, 2))
    yield Row("DFT", {"input": real}, {"onesided": 1})
    yield Row("DFT", {"input": both}, {"inverse": 1}, {"dft_length": np.array(8, I64)})
    yield Row("DFT", {"input": both}, {"axis": 1}, {"dft_length": np.array(12, I64)}, opset=17)
    window = {"frame_step": np.array(3, I64), "window": np.hanning(8).astype(F32)}
    yield Row("STFT", {"signal": rng.standard_normal((2, 20, 1)).astype(F32)}, {}, window)
    yield Row("STFT", {"signal": rng.standard_normal((1, 20, 1)).astype(F32)}, {"onesided": 0},
              {"frame_step": np.array(4, I64), "frame_length": np.array(6, I64)})  # fmt: skip
    for op in ("HannWindow", "HammingWindow", "BlackmanWindow"):
        for periodic in (0, 1):
            yield Row(op, {}, {"periodic": periodic}, {"size": np.array(9, I64)})
    mel = {"num_mel_bins": np.array(6, I64), "dft_length": np.array(64, I64), "sample_rate": np.array(8000, I64),
           "lower_edge_hertz": np.array(50, F32), "upper_edge_hertz": np.array(3500, F32)}  # fmt: skip
    yield Row("MelWeightMatrix", {}, {}, mel)


def _quantised(rng: np.random.Generator) -> Iterator[Row]:
    x = rng.standard_normal((2, 3, 4)).astype(F32)
    scales = rng.uniform(0.01, 0.03, 3).astype(F32)
    zeros = np.array([3, -5, 0], np.int8)
    yield Row("QuantizeLinear", {"x": x}, {}, {"y_scale": scales, "y_zero_point": zeros})
    yield Row("QuantizeLinear", {"x": x}, {}, {"y_scale": np.array(0.02, F32)}, opset=10)
    q = rng.integers(-128, 128, (2, 3, 4)).astype(np.int8)
    yield Row("DequantizeLinear", {"x": q}, {}, {"x_scale": scales, "x_zero_point": zeros})
    yield Row("DequantizeLinear", {"x": q}, {}, {"x_scale": scales[0], "x_zero_point": zeros[0]}, opset=10)
    blocks = {"x_scale": rng.uniform(0.01, 0.1, (2, 3, 2)).astype(F32)}
    yield Row("DequantizeLinear", {"x": q}, {"axis": -1, "block_size": 2}, blocks, opset=21)
    yield Row("DynamicQuantizeLinear", {"x": x}, outputs=3)
    a, b = rng.integers(0, 256, (5, 4)).astype(U8), rng.integers(-128, 128, (4, 3)).astype(np.int8)
    yield Row("MatMulInteger", {"A": a, "a_zero_point": np.array(120, U8)}, {}, {"B": b, "b_zero_point": zeros})
    scaled = {"b": b, "b_scale": scales, "b_zero_point": zeros, "y_scale": np.array(0.3, F32),
              "y_zero_point": np.array(128, U8)}  # fmt: skip
    yield Row("QLinearMatMul", {"a": a}, {}, {"a_scale": np.array(0.02, F32), "a_zero_point": np.array(120, U8),
                                              **scaled}, opset=20)  # fmt: skip
    image, kernel = rng.integers(0, 256, (1, 2, 5, 4)).astype(U8), rng.integers(0, 256, (3, 2, 2, 3)).astype(U8)
    zero = np.array(7, U8)
    yield Row("ConvInteger", {"x": image}, {"pads": [1, 1, 0, 0]}, {"w": kernel, "x_zero_point": zero})
    yield Row("QLinearConv", {"x": image}, {"strides": [2, 1]}, {
        "x_scale": np.array(0.02, F32), "x_zero_point": zero, "w": kernel, "w_scale": np.array(0.01, F32),
        "w_zero_point": zero, "y_scale": np.array(0.7, F32), "y_zero_point": zero,
        "B": np.array([100, -200, 0], np.int32)})  # fmt: skip


def _loops(rng: np.random.Generator) -> Iterator[Row]:
    x = rng.standard_normal(3).astype(F32)
    for steps in (3, 40):
        fixed = {"M": np.array(steps, I64), "cond": np.array(True)}
        yield Row("Loop", {"x": x}, {"body": loop_body()}, fixed, outputs=2)
    yield Row("Loop", {"M": np.array(3, I64), "cond": np.array(True), "x": x}, {"body": loop_body(rows=False)})
    fixed = {"M": np.array(50, I64), "cond": np.array(True)}
    yield Row("Loop", {"x": x}, {"body": loop_body(limit=5.0, rows=False)}, fixed)


def loop_body(limit: float | None = None, rows: bool = True) -> onnx.GraphProto:
    """The state halves and takes the step's number in; the row is its double; it goes on below a limit of the sum."""
    nodes = [
        helper.make_node("Cast", ["step"], ["number"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Mul", ["s", "half"], ["faded"]),
        helper.make_node("Add", ["faded", "number"], ["s_next"]),
        helper.make_node("Add", ["s_next", "s_next"], ["row"]),
        helper.make_node("ReduceSum", ["s_next"], ["total"], keepdims=0),
        helper.make_node("Less", ["total", "limit"], ["less"]) if limit is not None else
        helper.make_node("Identity", ["going"], ["less"]),
    ]  # fmt: skip
    infos = [helper.make_tensor_value_info(*entry) for entry in (("step", 7, []), ("going", 9, []), ("s", 1, [3]))]
    results = [
        helper.make_tensor_value_info(*entry) for entry in (("less", 9, []), ("s_next", 1, [3]), ("row", 1, [3]))
    ]
    weights = [
        numpy_helper.from_array(np.array(value, F32), name) for name, value in (("half", 0.5), ("limit", limit or 0))
    ]
    return helper.make_graph(nodes, "body", infos, results[: 3 if rows else 2], weights)
