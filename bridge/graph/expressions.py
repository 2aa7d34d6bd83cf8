"""Constant expressions: which values hang on constants alone, and what they are."""

from __future__ import annotations

import math
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import numpy as np

from bridge.errors import BadInput, Unsupported, UsageError
from bridge.graph.infer import infer_outputs
from bridge.graph.nodes import holds_graphs

if TYPE_CHECKING:
    import onnx_ir as ir

SIZE_LIMIT: Final = 2**28
"""Elements that one step of an expression may make, 1 GB of float32: more is an attack and not a weight."""

IMPLEMENTED: Final = MappingProxyType({"DequantizeLinear": 19})
"""The first opset for which the reference has an implementation, of operators that say the same before it."""

SOFTMAX_OVER_ONE_AXIS: Final = 13
"""The opset from which on Softmax and its like are over one axis; the reference computes the older ones so too."""

RANDOM: Final = frozenset({"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial",
                           "Bernoulli", "Dropout"})  # fmt: skip


def constant_of(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor of an initialiser or of a Constant node; None for anything else."""
    if value is None:
        return None
    producer = value.producer()
    if producer is None:
        return value.const_value
    if producer.op_type == "Constant" and producer.domain == "":
        return _tensor_of(producer)
    return None


def _tensor_of(node: ir.Node) -> ir.TensorProtocol | None:
    import onnx_ir as ir

    numbers = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
    for name, attribute in node.attributes.items():
        if attribute.is_ref():
            return None
        if attribute.type == ir.AttributeType.TENSOR:
            return attribute.as_tensor()
        if name in numbers:
            return ir.Tensor(np.asarray(attribute.value, numbers[name]))
    return None


def is_expression(value: ir.Value | None) -> bool:
    """Does `value` come from constants alone, by way of other nodes than Constant?"""
    return value is not None and constant_of(value) is None and _steps(value) is not None


def evaluate(value: ir.Value, opset: int) -> np.ndarray:
    """What the constant expression `value` is, by ONNX's reference implementation of the operators in it.

    Raises:
        BadInput: a step that cannot be evaluated or that makes more than 2**28 elements.
        Unsupported: Softmax and its like before opset 13.
    """
    known: dict[ir.Value, np.ndarray] = {}
    for node in _steps(value) or []:
        arrays = [None if entry is None else _array(entry, known) for entry in node.inputs]
        known.update(zip(node.outputs, _run(node, arrays, opset), strict=False))
    return known[value]


def _steps(value: ir.Value) -> list[ir.Node] | None:
    """The nodes to run, in order; None where something other than a constant is at the bottom."""
    order: list[ir.Node] = []
    seen: set[ir.Node] = set()
    waiting: list[tuple[ir.Value, bool]] = [(value, False)]
    while waiting:
        current, ready = waiting.pop()
        node = current.producer()
        if constant_of(current) is not None or (node is not None and node in seen):
            continue
        if node is None or node.domain != "" or node.op_type in RANDOM or _refers(node) or holds_graphs(node):
            return None
        if ready:
            seen.add(node)
            order.append(node)
            continue
        waiting.append((current, True))
        waiting += [(entry, False) for entry in node.inputs if entry is not None]
    return order


def _refers(node: ir.Node) -> bool:
    return any(attribute.is_ref() for attribute in node.attributes.values())


def _array(value: ir.Value, known: dict[ir.Value, np.ndarray]) -> np.ndarray:
    tensor = constant_of(value)
    return known[value] if tensor is None else np.asarray(tensor.numpy())


def _run(node: ir.Node, arrays: list[np.ndarray | None], opset: int) -> list[np.ndarray]:
    import onnx_ir as ir
    from onnx.reference import ReferenceEvaluator

    where = f"{node.op_type} {node.name!r}"
    if opset < SOFTMAX_OVER_ONE_AXIS and node.op_type in ("Softmax", "LogSoftmax", "Hardmax"):
        raise Unsupported("a constant expression with this operator is not carried before opset 13", where=where,
                          got=f"opset {opset}", do="convert the model to opset 13 or later")  # fmt: skip
    inputs = [None if array is None else _constant(f"in{at}", array) for at, array in enumerate(arrays)]
    outputs = [ir.Value(name=f"out{at}") for at in range(len(node.outputs))]
    step = ir.Node("", node.op_type, inputs, list(node.attributes.values()), outputs=outputs, name=node.name)
    try:
        infer_outputs(step, opset)
        _check_size(outputs, where)
        # Of a node alone the evaluator takes the newest version, whatever opset it is told.
        graph = ir.Graph([value for value in inputs if value is not None], outputs, nodes=[step],
                         opset_imports={"": max(opset, IMPLEMENTED.get(node.op_type, opset))})  # fmt: skip
        run = ReferenceEvaluator(ir.serde.serialize_model(ir.Model(graph, ir_version=10)))
        feeds = {f"in{at}": array for at, array in enumerate(arrays) if array is not None}
        with np.errstate(all="ignore"):
            return [np.asarray(result) for result in run.run(None, feeds)]
    except (UsageError, ArithmeticError, LookupError, ValueError, TypeError, RuntimeError, AttributeError,
            AssertionError, MemoryError) as error:  # fmt: skip
        raise BadInput("a constant expression cannot be evaluated", where=where, got=str(error)[:200]) from error


def _constant(name: str, array: np.ndarray) -> ir.Value:
    import onnx_ir as ir

    dtype = ir.TensorType(ir.DataType.from_numpy(array.dtype))
    return ir.Value(name=name, type=dtype, shape=ir.Shape(array.shape), const_value=ir.Tensor(array))


def _check_size(outputs: list[ir.Value], where: str) -> None:
    for value in outputs:
        if value.shape is None or not value.shape.is_static():
            raise BadInput("the size of a constant expression cannot be told", where=where, got=value.shape)
        if math.prod(value.shape.numpy()) > SIZE_LIMIT:
            raise BadInput("a constant expression is too large", where=where, got=value.shape)
