"""Values that are zeros whatever the inputs are: the initial states that frameworks build from shapes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from bridge.graph.expressions import constant_of
from bridge.graph.nodes import input_of

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
    waiting: list[ir.Value | None] = [value]
    seen: set[ir.Value] = set()
    while waiting:
        current = waiting.pop()
        if current is None:
            return False
        if current in seen:
            continue
        seen.add(current)
        tensor, node = constant_of(current), current.producer()
        if tensor is not None:
            if int(tensor.size) > LARGEST or np.any(tensor.numpy()):
                return False
        elif node is None or node.domain != "":
            return False
        elif node.op_type == "ConstantOfShape":
            fill = node.attributes.get("value")
            if fill is not None and np.any(fill.as_tensor().numpy()):
                return False
        elif node.op_type in KEEPING:
            waiting.append(input_of(node, 0))
        elif node.op_type == "Concat":
            waiting += node.inputs
        else:
            return False
    return True
