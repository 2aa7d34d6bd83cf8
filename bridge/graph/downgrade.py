"""Opset 18 to 17: the few operators whose form changed between them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from bridge.errors import Unsupported
from bridge.graph.expressions import constant_of

if TYPE_CHECKING:
    import onnx_ir as ir

REDUCTIONS: Final = frozenset(
    {"ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp",
     "ReduceSumSquare"}
)  # fmt: skip
"""Their axes are an input since 18 (ReduceSum's since 13)."""


def to_opset_17(model: ir.Model, where: str) -> None:
    """Rewrite the nodes whose form changed at 18; the caller sets the opset.

    Raises:
        Unsupported: an operator whose newer version says something that 17 cannot.
    """
    for node in list(model.graph.all_nodes()):
        if node.domain != "":
            continue
        if node.op_type in REDUCTIONS:
            _reduction(node, where)
        elif node.op_type == "Split":
            _split(node, where)
        elif node.op_type == "Pad" and (len(node.inputs) < 4 or node.inputs[3] is None):
            continue
        elif not _unchanged(node.op_type):
            raise Unsupported(f"the operator {node.op_type} is newer than opset 17", where=where,
                              do="leave opset at its default of 20")  # fmt: skip
        node.version = None


COMPATIBLE: Final = frozenset({"ScatterElements", "ScatterND", "Resize", "LpPool"})
"""New in 18 with forms that torch's exporter does not use, or that mean the same at their defaults."""


def _unchanged(op_type: str) -> bool:
    from onnx import defs

    if not defs.has(op_type, 17, ""):
        return False
    versions = [defs.get_schema(op_type, opset).since_version for opset in (17, 18)]
    return op_type in COMPATIBLE or versions[0] == versions[1]


def _reduction(node: ir.Node, where: str) -> None:
    import onnx_ir as ir

    if len(node.inputs) < 2 or node.inputs[1] is None:
        node.resize_inputs(1)
        node.attributes.pop("noop_with_empty_axes", None)
        return
    axes = constant_of(node.inputs[1])
    if axes is None:
        raise Unsupported(f"{node.op_type} takes its axes from a computed value, which opset 17 cannot", where=where,
                          do="leave opset at its default of 20")  # fmt: skip
    node.resize_inputs(1)
    node.attributes.pop("noop_with_empty_axes", None)
    values = [int(axis) for axis in axes.numpy().ravel()]
    if values:
        node.attributes["axes"] = ir.AttrInt64s("axes", values)


def _split(node: ir.Node, where: str) -> None:
    if "num_outputs" not in node.attributes:
        return
    size = None
    value, axis = node.inputs[0], node.attributes.get("axis")
    if value is not None and value.shape is not None:
        size = value.shape[axis.as_int() if axis is not None else 0]
    if not isinstance(size, int) or size % len(node.outputs):
        raise Unsupported("Split into parts that opset 17 cannot count", where=where,
                          do="leave opset at its default of 20")  # fmt: skip
    del node.attributes["num_outputs"]
