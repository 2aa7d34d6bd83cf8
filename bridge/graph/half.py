"""float16: a pattern on which onnxruntime ends the process, found and written otherwise.

onnxruntime 1.31.1 (CPU) dies by a segmentation fault while it makes a session of a model in which a float16 Transpose
feeds a MatMul with constant weights; with its MatmulTransposeFusion switched off the same model runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from bridge.graph.following import follow, follow_in_order

if TYPE_CHECKING:
    import onnx_ir as ir

FATAL_OPTIMIZER: Final = "MatmulTransposeFusion"
"""The optimizer of onnxruntime without which such a model runs."""


def fatal_products(model: ir.Model) -> Iterator[ir.Node]:
    """Every MatMul of the pattern, in subgraphs too."""
    import onnx_ir as ir

    for node in model.graph.all_nodes():
        if node.domain != "" or node.op_type != "MatMul" or any(value is None for value in node.inputs):
            continue
        producers = [None if value is None else value.producer() for value in node.inputs]
        half = any(value is not None and value.dtype == ir.DataType.FLOAT16 for value in (*node.inputs, *node.outputs))
        constant = any(value is not None and value.const_value is not None for value in node.inputs)
        if half and constant and any(each is not None and each.op_type == "Transpose" for each in producers):
            yield node


def write_otherwise(model: ir.Model) -> None:
    """Move each such Transpose behind its MatMul where that keeps the last axis, else multiply in float32.

    Both are what the model says: onnxruntime multiplies float16 in float32 on the CPU in any case, and rounds once.
    """
    for node in list(fatal_products(model)):
        x, weights = node.inputs
        transpose = None if x is None else x.producer()
        if transpose is not None and transpose.op_type == "Transpose" and weights is not None and (
            _keeps_last(transpose) and weights.shape is not None and len(weights.shape) == 2
        ):  # fmt: skip
            _behind(node, transpose)
        else:
            _widened(node)


def _keeps_last(transpose: ir.Node) -> bool:
    order = transpose.attributes.get("perm")
    return order is not None and list(order.as_ints())[-1] == len(order.as_ints()) - 1


def _behind(node: ir.Node, transpose: ir.Node) -> None:
    """Transpose(x) @ W as Transpose(x @ W)."""
    old, order = node.outputs[0], list(transpose.attributes["perm"].as_ints())
    node.replace_input_with(0, transpose.inputs[0])
    turned = transpose.outputs[0]
    if transpose.graph is not None and not turned.uses() and not turned.is_graph_output():
        transpose.graph.remove(transpose, safe=True)
    follow_in_order(old, order, f"{node.name}.order", "product")


def _widened(node: ir.Node) -> None:
    """The product in float32, rounded once."""
    import onnx_ir as ir

    graph = node.graph
    for at, value in enumerate(list(node.inputs)):
        cast = ir.node("Cast", [value], {"to": ir.DataType.FLOAT.value}, name=f"{node.name}.wide_{at}")
        cast.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        cast.outputs[0].shape = None if value is None else value.shape
        if graph is not None:
            graph.insert_before(node, cast)
        node.replace_input_with(at, cast.outputs[0])
    old = node.outputs[0]
    after = ir.node("Cast", [old], {"to": ir.DataType.FLOAT16.value}, name=f"{node.name}.round")
    follow(old, after, "product")
    old.type = ir.TensorType(ir.DataType.FLOAT)
