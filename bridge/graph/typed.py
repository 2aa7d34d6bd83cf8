"""dtype and rank of every value of a model, where ONNX's inference can tell."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

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
    log = logging.getLogger("onnx_ir")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        return ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(copy).model
    finally:
        log.setLevel(level)
