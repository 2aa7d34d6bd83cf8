"""One node of a graph as a graph of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir


def single_node(node: ir.Node, model: ir.Model) -> ir.Model:
    """A model of a copy of `node` alone, of the opsets and the file format of `model`.

    Its inputs are those of the node, with their types and shapes; constants stay constants.
    """
    import onnx_ir as ir

    given = {value: ir.Value(name=value.name, type=value.type, shape=value.shape, const_value=value.const_value)
             for value in node.inputs if value is not None}  # fmt: skip
    copy = ir.Node(node.domain, node.op_type, [None if value is None else given[value] for value in node.inputs],
                   list(node.attributes.values()), num_outputs=len(node.outputs), name=node.name)  # fmt: skip
    for mine, value in zip(copy.outputs, node.outputs, strict=True):
        mine.name, mine.type = value.name, value.type
    inputs = [value for value in given.values() if value.const_value is None]
    constants = [value for value in given.values() if value.const_value is not None]
    graph = ir.Graph(inputs, [value for value in copy.outputs if value.name], nodes=[copy], initializers=constants,
                     opset_imports=model.opset_imports, name=str(node.name))  # fmt: skip
    return ir.Model(graph, ir_version=model.ir_version)
