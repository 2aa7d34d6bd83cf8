"""Values that are zeros whatever the inputs are: the initial states that frameworks build from shapes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from bridge.graph.expressions import constant_of

if TYPE_CHECKING:
    import onnx_ir as ir

KEEPING: Final = frozenset(
    {"Cast", "CastLike", "Expand", "Gather", "GatherND", "Identity", "Reshape", "Slice", "Squeeze", "Tile", "Transpose",
     "Unsqueeze", "Neg", "Split"}
)  # fmt: skip
"""Operators whose output is zeros where their first input is."""

LARGEST: Final = 10**6
"""Constants of more elements are not looked into."""


def is_zeros(value: ir.Value) -> bool:
    """Whether every element of `value` is known to be zero."""
    tensor = constant_of(value)
    if tensor is not None:
        return int(tensor.size) <= LARGEST and not np.any(tensor.numpy())
    node = value.producer()
    if node is None or node.domain != "":
        return False
    if node.op_type == "ConstantOfShape":
        fill = node.attributes.get("value")
        return fill is None or not np.any(fill.as_tensor().numpy())
    if node.op_type in ("Concat",):
        return all(entry is not None and is_zeros(entry) for entry in node.inputs)
    first = node.inputs[0] if node.inputs else None
    return node.op_type in KEEPING and first is not None and is_zeros(first)
