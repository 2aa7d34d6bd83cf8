"""Serialise models, and write them to files: complete or not at all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from bridge.errors import UsageError

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

LARGEST_PROTO: Final = 2**31 - 1
"""Protobuf refuses more in one message."""


def to_proto(model: ir.Model) -> onnx.ModelProto:
    """The whole model in memory, every tensor inline.

    Raises:
        UsageError: more than 2 GB, which no protobuf message holds.
    """
    from onnx_ir import serde

    size = sum(value.const_value.nbytes for graph in model.graphs() for value in graph.initializers.values()
               if value.const_value is not None)  # fmt: skip
    if size > LARGEST_PROTO:
        raise UsageError("the weights do not fit into one ModelProto", where="to_proto", got=f"{size} bytes",
                         expected="less than 2 GB", do="give a path: large weights go beside it")  # fmt: skip
    return serde.serialize_model(model)
