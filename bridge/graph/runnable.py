"""Recurrent nodes as onnxruntime takes them: in layout 0, and with the hidden_size that the text lets out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from bridge.graph.following import follow_in_order
from bridge.graph.nodes import input_of, is_recurrent

if TYPE_CHECKING:
    import onnx_ir as ir

STATES: Final = (5, 6)
"""Inputs initial_h and initial_c, [N, D, H] in layout 1 and [D, N, H] in layout 0."""
SWAPPED: Final = (1, 0, 2)
BATCH_FIRST: Final = (2, 0, 1, 3)
"""Y [T, D, N, H] of layout 0 as [N, T, D, H]."""


def runnable(model: ir.Model) -> ir.Model:
    """`model` itself where onnxruntime takes its recurrent nodes as they are, else a copy that means the same."""
    if not any(_refused(node) for node in model.graph.all_nodes()):
        return model
    copy = model.clone()
    make_runnable(copy)
    return copy


def make_runnable(model: ir.Model) -> None:
    """Name every hidden_size, and turn nodes of layout 1 over, with Transposes around them."""
    import onnx_ir as ir

    for node in [node for node in model.graph.all_nodes() if _refused(node)]:
        hidden, layout = _unnamed_size(node), node.attributes.pop("layout", None)
        if hidden is not None:
            node.attributes["hidden_size"] = ir.AttrInt64("hidden_size", hidden)
        if layout is not None and layout.as_int() == 1:
            _turn(node)


def _refused(node: ir.Node) -> bool:
    if not is_recurrent(node):
        return False
    layout = node.attributes.get("layout")
    return (layout is not None and layout.value == 1) or _unnamed_size(node) is not None


def _unnamed_size(node: ir.Node) -> int | None:
    """H of R [D, n*H, H], where the node does not say it and R does."""
    R = input_of(node, 2)
    if "hidden_size" in node.attributes or R is None or R.shape is None or len(R.shape) != 3:
        return None
    hidden = R.shape[2]
    return hidden if isinstance(hidden, int) else None


def _turn(node: ir.Node) -> None:
    import onnx_ir as ir

    name = node.name or next(str(value.name) for value in node.outputs if value.name)
    for at in (0, *STATES):
        value = input_of(node, at)
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
