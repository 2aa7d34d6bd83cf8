"""One node for every operator that bridge.ops carries: inputs, attributes and, where it matters, the opset."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tests.ops.row import Row
from tests.ops.rows_signal import signal_rows
from tests.ops.rows_vision import vision_rows

__all__ = ["Row", "representatives", "rows"]

F32, I64 = np.float32, np.int64


def representatives() -> tuple[Row, ...]:
    """The last row of every operator and opset, for runs that compile each row: opsets differ in their handlers."""
    return tuple({(row.op, row.opset): row for row in rows()}.values())


def rows() -> tuple[Row, ...]:
    rng = np.random.default_rng(20)
    return (
        *_elementwise(rng), *_logic(rng), *_shapes(rng), *_gathers(rng), *_reductions(rng), *_products(rng),
        *_control(rng), *_recurrent(rng), *vision_rows(rng), *signal_rows(rng),
    )  # fmt: skip


def _elementwise(rng: np.random.Generator) -> Iterator[Row]:
    x, y = rng.standard_normal((3, 4)).astype(F32), rng.standard_normal((2, 1, 4)).astype(F32)
    n, m = np.array([7, -7, 7, -7, 6], I64), np.array([2, 2, -2, -2, 3], I64)
    positive = np.abs(x) + F32(0.1)
    for op in ("Add", "Sub", "Mul", "Div"):
        yield Row(op, {"A": x, "B": y})
    for op in ("Div", "Mod"):
        yield Row(op, {"A": n, "B": m})
    yield Row("Mod", {"A": x, "B": positive}, {"fmod": 1})
    yield Row("Pow", {"X": positive, "Y": y})
    yield Row("Pow", {"X": x}, constants={"Y": np.array(2, I64)})
    unary = ("Neg", "Abs", "Floor", "Ceil", "Round", "Relu", "Selu", "Sigmoid", "HardSwish", "Mish", "Softplus",
             "Elu", "LeakyRelu", "ThresholdedRelu", "HardSigmoid", "Celu", "Reciprocal")  # fmt: skip
    for op in unary:
        yield Row(op, {"X": x * 3})
    for op in ("Exp", "Sin", "Cos", "Erf", "Tanh", "Softsign"):
        yield Row(op, {"input": x})
    for op, name in (("Sqrt", "X"), ("Log", "input")):
        yield Row(op, {name: positive})
    yield Row("Sign", {"input": x})
    yield Row("LeakyRelu", {"X": x}, {"alpha": 0.0})
    yield Row("Elu", {"X": x}, {"alpha": 0.3}, opset=22)
    yield Row("Celu", {"X": x}, {"alpha": 0.7})
    yield Row("PRelu", {"X": x}, constants={"slope": np.array([0.1, 0.2, 0.3, 0.4], F32)})
    yield Row("HardSigmoid", {"X": x}, {"alpha": 1 / 6, "beta": 0.5})
    yield Row("ThresholdedRelu", {"X": x}, {"alpha": 0.2})
    for mode in ("none", "tanh"):
        yield Row("Gelu", {"X": x}, {"approximate": mode})
    for op in ("Min", "Max", "Sum", "Mean"):
        yield Row(op, {"a": x, "b": y, "c": x[:1]})
    yield Row("Clip", {"input": x}, constants={"min": np.array(-0.5, F32), "max": np.array(0.25, F32)})
    yield Row("Clip", {"input": x}, constants={"max": np.array(0.25, F32)})
    yield Row("Clip", {"input": x}, {"max": 0.5}, opset=10)
    for op in ("Softmax", "LogSoftmax"):
        yield Row(op, {"input": 30 * y})
        yield Row(op, {"input": y + x}, {"axis": 1})
        yield Row(op, {"input": y + x}, opset=11)
    for exclusive, reverse in ((0, 0), (1, 0), (0, 1), (1, 1)):
        attributes = {"exclusive": exclusive, "reverse": reverse}
        yield Row("CumSum", {"x": x}, attributes, constants={"axis": np.array(-1, I64)})


def _logic(rng: np.random.Generator) -> Iterator[Row]:
    a, b = rng.integers(-1, 2, (3, 4)), rng.integers(-1, 2, (4,))
    p, q = a > 0, b > 0
    for op in ("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"):
        yield Row(op, {"A": a, "B": b})
        yield Row(op, {"A": a.astype(F32), "B": b.astype(F32)})
    for op in ("And", "Or", "Xor"):
        yield Row(op, {"A": p, "B": q})
    yield Row("Not", {"X": p})
    yield Row("IsNaN", {"X": np.array([1, np.nan, np.inf], F32)})
    yield Row("Where", {"condition": p, "X": a.astype(F32), "Y": rng.standard_normal((2, 3, 4)).astype(F32)})
    for op in ("ArgMax", "ArgMin"):
        yield Row(op, {"data": a.astype(F32)}, {"axis": 1})
        yield Row(op, {"data": a.astype(F32)}, {"axis": -2, "keepdims": 0, "select_last_index": 1})
        for last in (0, 1):  # zeros of either sign are equal
            yield Row(op, {"data": np.array([[-0.0, 0.0, -0.0], [0.0, -0.0, 0.0]], F32)},
                      {"axis": 1, "select_last_index": last})  # fmt: skip


def _shapes(rng: np.random.Generator) -> Iterator[Row]:
    x = rng.standard_normal((2, 1, 6)).astype(F32)
    yield Row("Identity", {"input": x})
    yield Row("Transpose", {"data": x})
    yield Row("Transpose", {"data": x}, {"perm": [1, 2, 0]})
    yield Row("Reshape", {"data": x}, constants={"shape": np.array([0, -1, 3], I64)})
    yield Row("Flatten", {"input": x}, {"axis": 2})
    yield Row("Squeeze", {"data": x}, constants={"axes": np.array([-2], I64)})
    yield Row("Squeeze", {"data": x})
    yield Row("Squeeze", {"data": x}, {"axes": [1]}, opset=11)
    yield Row("Unsqueeze", {"data": x}, constants={"axes": np.array([0, -1], I64)})
    yield Row("Unsqueeze", {"data": x}, {"axes": [0, 4]}, opset=11)
    yield Row("Concat", {"a": x, "b": x[:1] + 1}, {"axis": 0})
    yield Row("Split", {"input": x}, {"axis": -1}, {"split": np.array([1, 5], I64)}, outputs=2)
    yield Row("Split", {"input": x[..., :5].copy()}, {"axis": 2, "num_outputs": 3}, outputs=3)
    yield Row("Split", {"input": x}, {"axis": 2}, opset=13, outputs=3)
    yield Row("Split", {"input": x}, {"axis": 2, "split": [2, 4]}, opset=11, outputs=2)
    ends = {"starts": np.array([4, -1], I64), "ends": np.array([-100, 2**62], I64)}
    yield Row("Slice", {"data": x}, constants={**ends, "axes": np.array([2, 0], I64), "steps": np.array([-2, 1], I64)})
    for end in (2**31 - 1, 2**63 - 1, 2**40, -(2**63)):  # the first two onnxruntime takes for the beginning
        ends = {"starts": np.array([-1], I64), "ends": np.array([end], I64)}
        yield Row("Slice", {"data": x}, constants={**ends, "axes": np.array([2], I64), "steps": np.array([-1], I64)})
    yield Row("Slice", {"data": x}, {"starts": [1], "ends": [5], "axes": [2]}, opset=9)
    yield Row("Shape", {"data": x}, {"start": 1})
    yield Row("Size", {"data": x})
    yield Row("Expand", {"input": x}, constants={"shape": np.array([2, 4, 1], I64)})
    yield Row("Tile", {"input": x}, constants={"repeats": np.array([1, 3, 2], I64)})
    yield Row("ConstantOfShape", {}, {"value": numpy_helper.from_array(np.array([2.5], F32))},
              {"input": np.array([2, 3], I64)})  # fmt: skip
    yield Row("Constant", {}, {"value_floats": [0.5, 1.5]})
    yield Row("Range", {}, constants={name: np.array(value, I64)
                                      for name, value in {"start": 1, "limit": 8, "delta": 3}.items()})  # fmt: skip
    yield Row("Cast", {"input": x * 10}, {"to": onnx.TensorProto.INT32})
    yield Row("Cast", {"input": x}, {"to": onnx.TensorProto.FLOAT16})
    for values in (np.round(x), x > 0):
        yield Row("Cast", {"input": values}, {"to": onnx.TensorProto.BOOL})
    yield Row("CastLike", {"input": x * 10, "target_type": np.zeros(1, np.int32)})
    yield Row("Dropout", {"data": x}, outputs=2)
    yield Row("Dropout", {"data": x}, {"ratio": 0.4}, opset=10)
    pads = np.array([0, 2, 1, 1], I64)
    for mode in ("constant", "edge", "reflect", "wrap"):
        constants = {"pads": pads, "axes": np.array([0, 2], I64)}
        yield Row("Pad", {"data": x}, {"mode": mode}, constants)
    yield Row("Pad", {"data": x}, {}, {"pads": np.array([0, 0, -1, 1, 0, 2], I64), "constant_value": np.array(7, F32)})
    yield Row("Pad", {"data": x}, {"pads": [0, 1, 0, 0, 0, 1], "value": 3.0}, opset=10)


def _gathers(rng: np.random.Generator) -> Iterator[Row]:
    x = rng.standard_normal((3, 4, 2)).astype(F32)
    yield Row("Gather", {"data": x, "indices": np.array([[0, -1], [2, 3]], I64)}, {"axis": 1})
    yield Row("Gather", {"data": x}, {"axis": -1}, {"indices": np.array(1, I64)})
    for integer in (np.int64, np.int32):
        yield Row("GatherElements", {"data": x, "indices": rng.integers(-4, 4, (2, 5, 2)).astype(integer)}, {"axis": 1})
    yield Row("GatherND", {"data": x, "indices": np.array([[0, 1], [2, -1]], I64)})
    yield Row("GatherND", {"data": x, "indices": np.array([[3], [0], [-2]], I64)}, {"batch_dims": 1})
    for axes in ({}, {"time_axis": 1, "batch_axis": 0}):
        lengths = np.array([1, 0, 3, 2] if not axes else [4, 0, 2], I64)
        yield Row("ReverseSequence", {"input": x, "sequence_lens": lengths}, axes)


def _reductions(rng: np.random.Generator) -> Iterator[Row]:
    x = rng.uniform(0.5, 2, (3, 4, 2)).astype(F32)
    for name in ("Sum", "Max", "Min", "Mean", "Prod", "L1", "L2", "SumSquare", "LogSum", "LogSumExp"):
        yield Row(f"Reduce{name}", {"data": x}, {"keepdims": 0}, {"axes": np.array([0, -1], I64)})
        yield Row(f"Reduce{name}", {"data": x}, {"axes": [1]}, opset=11)
        yield Row(f"Reduce{name}", {"data": x}, {"noop_with_empty_axes": 1})
        yield Row(f"Reduce{name}", {"data": (x * 4).astype(np.int32)}, {"axes": [1]}, opset=11)


def _products(rng: np.random.Generator) -> Iterator[Row]:
    a, b = rng.standard_normal((2, 3, 4)).astype(F32), rng.standard_normal((4, 5)).astype(F32)
    yield Row("MatMul", {"A": a}, constants={"B": b})
    yield Row("Gemm", {"A": a[0]}, constants={"B": b, "C": b[0]})
    flipped = {"transA": 1, "transB": 1, "alpha": 0.5, "beta": 0.25}
    yield Row("Gemm", {"A": a[0].T.copy(), "B": b.T.copy(), "C": b[:3]}, flipped)
    for rank, options in ((1, {"pads": [2, 1], "dilations": [2]}), (2, {"auto_pad": "SAME_UPPER", "strides": [2, 3]}),
                          (2, {"auto_pad": "SAME_LOWER"}), (3, {"strides": [2, 1, 2]}),
                          (2, {"group": 2, "auto_pad": "VALID"})):  # fmt: skip
        groups = options.get("group", 1)
        x = rng.standard_normal((2, 4, *[6, 7, 5][:rank])).astype(F32)
        w = rng.standard_normal((6, 4 // groups, *[2, 3, 2][:rank])).astype(F32)
        yield Row("Conv", {"X": x}, options, {"W": w, "B": rng.standard_normal(6).astype(F32)})


def _control(rng: np.random.Generator) -> Iterator[Row]:
    x, state = rng.standard_normal((5, 3)).astype(F32), rng.standard_normal(3).astype(F32)
    for flag in (True, False):
        yield Row("If", {"cond": np.array(flag)}, {"then_branch": _branch(2.0), "else_branch": _branch(3.0)})
    yield Row("Scan", {"state": state, "x": x}, {"body": _scan_body(), "num_scan_inputs": 1}, outputs=2)
    directions = {"scan_input_directions": [1], "scan_output_directions": [1]}
    axes = {"scan_input_axes": [1], "scan_output_axes": [-1]}
    yield Row("Scan", {"state": state, "x": x.T.copy()},
              {"body": _scan_body(), "num_scan_inputs": 1, **directions, **axes}, outputs=2)  # fmt: skip


def _branch(value: float) -> onnx.GraphProto:
    node = helper.make_node("Constant", [], ["value"], value_floats=[value])
    return helper.make_graph([node], "branch", [], [helper.make_tensor_value_info("value", 1, [1])])


def _scan_body() -> onnx.GraphProto:
    """The state halves and takes the input in; the output is its double."""
    half = numpy_helper.from_array(np.array(0.5, F32), "half")
    nodes = [
        helper.make_node("Mul", ["s", "half"], ["faded"]),
        helper.make_node("Add", ["faded", "step"], ["s_next"]),
        helper.make_node("Add", ["s_next", "s_next"], ["y"]),
    ]
    infos = [helper.make_tensor_value_info(name, 1, [3]) for name in ("s", "step")]
    results = [helper.make_tensor_value_info(name, 1, [3]) for name in ("s_next", "y")]
    return helper.make_graph(nodes, "body", infos, results, [half])


def _recurrent(rng: np.random.Generator) -> Iterator[Row]:
    for op, gates in (("LSTM", 4), ("GRU", 3), ("RNN", 1)):
        for direction, count in (("forward", 1), ("bidirectional", 2)):
            blocks = {
                "X": (5, 2, 3), "W": (count, gates * 4, 3), "R": (count, gates * 4, 4), "B": (count, 2 * gates * 4),
                "initial_h": (count, 2, 4),
            }  # fmt: skip
            arrays = {name: rng.uniform(-0.6, 0.6, shape).astype(F32) for name, shape in blocks.items()}
            fed = {name: arrays.pop(name) for name in ("X", "initial_h")}
            fed["sequence_lens"] = np.array([3, 5], np.int32)
            attributes = {"hidden_size": 4, "direction": direction}
            yield Row(op, fed, attributes, arrays, outputs=3 if op == "LSTM" else 2)
