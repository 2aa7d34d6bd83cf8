"""int8 weights: how many products read each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx_ir as ir

PASSING: Final = frozenset({"DequantizeLinear", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
"""Operators behind which a weight is still the same weight to onnxruntime's optimisers."""


def shares_int8(model: ir.Model) -> bool:
    """Whether several nodes compute with the same int8 constant."""
    return any(len(_readers(value)) > 1 for value in _constants(model))


def _constants(model: ir.Model) -> Iterator[ir.Value]:
    """Constants of int8: initialisers and the outputs of Constant nodes, in bodies and functions too."""
    for graph in (*model.graphs(), *model.functions.values()):
        values = [] if not hasattr(graph, "initializers") else list(graph.initializers.values())
        values += [node.outputs[0] for node in graph if node.op_type == "Constant"]
        yield from (value for value in values if value.dtype is None or value.dtype.name == "INT8")


def _readers(value: ir.Value) -> set[ir.Node]:
    """The nodes that compute with the weight."""
    found: set[ir.Node] = set()
    passed: set[ir.Node] = set()
    waiting = [value]
    while waiting:
        for node, _ in waiting.pop().uses():
            if node.op_type not in PASSING:
                found.add(node)
            elif node not in passed:
                passed.add(node)
                waiting += node.outputs
    return found
