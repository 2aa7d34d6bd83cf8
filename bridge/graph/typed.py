"""dtype and rank of every value of a model, where ONNX's inference can tell."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bridge.graph.nodes import is_recurrent
from bridge.graph.quiet import quiet

if TYPE_CHECKING:
    import onnx_ir as ir


def with_types(model: ir.Model) -> ir.Model:
    """A copy of `model` whose values have the dtypes and shapes that ONNX infers; what it cannot tell stays open.

    Nodes and names are those of `model`. An inference that fails changes nothing.
    """
    from onnx_ir.passes.common import ShapeInferencePass

    copy = model.clone()
    if all(value.dtype is not None and value.shape is not None for node in copy.graph.all_nodes()
           for value in node.outputs if value.name):  # fmt: skip
        return copy
    _ranks_of_sequences(copy)
    with quiet("onnx_ir"):
        return ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(copy).model


def _ranks_of_sequences(model: ir.Model) -> None:
    """Tell the inference what it cannot see behind shape arithmetic: a recurrent operator's X has three axes."""
    import onnx_ir as ir

    for node in model.graph.all_nodes():
        if is_recurrent(node) and node.inputs:
            value = node.inputs[0]
            if value is not None and value.shape is None:
                value.shape = ir.Shape([None, None, None])
