"""Recurrent nodes of layout 1 as nodes of layout 0, which are all that onnxruntime computes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from bridge.graph.following import follow_in_order
from bridge.graph.merging import RECURRENT

if TYPE_CHECKING:
    import onnx_ir as ir

STATES: Final = (5, 6)
"""Inputs initial_h and initial_c, [N, D, H] in layout 1 and [D, N, H] in layout 0."""
SWAPPED: Final = (1, 0, 2)
BATCH_FIRST: Final = (2, 0, 1, 3)
"""Y [T, D, N, H] of layout 0 as [N, T, D, H]."""


def write_time_first(model: ir.Model) -> None:
    """Turn each such node over and put Transposes around it; the model means what it meant."""
    for node in list(model.graph.all_nodes()):
        layout = node.attributes.get("layout")
        if node.domain or node.op_type not in RECURRENT or layout is None:
            continue
        node.attributes.pop("layout")
        if layout.as_int() == 1:
            _turn(node)


def _turn(node: ir.Node) -> None:
    import onnx_ir as ir

    name = node.name or next(str(value.name) for value in node.outputs if value.name)
    for at in (0, *STATES):
        value = node.inputs[at] if at < len(node.inputs) else None
        if value is None or node.graph is None:
            continue
        turned = ir.node("Transpose", [value], {"perm": list(SWAPPED)}, name=f"{name}.input_{at}")
        turned.outputs[0].name, turned.outputs[0].type = f"{name}.input_{at}", value.type
        if value.shape is not None and len(value.shape) == len(SWAPPED):
            turned.outputs[0].shape = ir.Shape([value.shape[axis] for axis in SWAPPED])
        node.graph.insert_before(node, turned)
        node.replace_input_with(at, turned.outputs[0])
    for at, output in enumerate(node.outputs):
        if output.name:
            follow_in_order(output, SWAPPED if at else BATCH_FIRST, f"{name}.output_{at}", "time_first")
