"""dtype and shape of a node's outputs, by the inference that ONNX itself defines for the operator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from bridge.errors import UsageError

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

KNOWN_SIZE: Final = 64
"""Constants of up to this many elements are shown to the inference: shapes, axes and bounds, never weights."""


def infer_outputs(node: ir.Node, opset: int) -> None:
    """Set dtype and shape of `node`'s outputs; without a schema or with an untyped input they stay open.

    Raises:
        UsageError: the operator does not take these inputs and attributes.
    """
    import onnx
    from onnx_ir import serde

    inputs = [value for value in node.inputs if value is not None]
    if any(value.dtype is None for value in inputs) or not onnx.defs.has(node.op_type, opset, node.domain):
        return
    schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
    types = {str(value.name): _type_of(value) for value in inputs}
    data = {
        str(value.name): serde.serialize_tensor(value.const_value)
        for value in inputs
        if value.const_value is not None and value.const_value.size <= KNOWN_SIZE
    }
    try:
        found = onnx.shape_inference.infer_node_outputs(
            schema, serde.serialize_node(node), types, data, opset_imports=[onnx.helper.make_opsetid("", opset)],
            ir_version=10)  # fmt: skip
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError) as error:
        got = ", ".join(f"{value.name}: {value.type} {value.shape}" for value in inputs)
        raise UsageError(str(error).strip(), where=f"{node.op_type} {node.name!r}", got=got) from error
    for value in node.outputs:
        if str(value.name) in found:
            _set_type(value, found[str(value.name)])


def _type_of(value: ir.Value) -> onnx.TypeProto:
    from onnx_ir import serde

    return serde.serialize_value(value).type


def _set_type(value: ir.Value, proto: onnx.TypeProto) -> None:
    from onnx_ir import serde

    value.type = serde.deserialize_type_proto_for_type(proto)
    value.shape = serde.deserialize_type_proto_for_shape(proto)
