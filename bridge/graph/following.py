"""A node put behind a value, in its place for whoever read it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx_ir as ir


def follow(old: ir.Value, after: ir.Node, suffix: str) -> None:
    """Put `after`, which reads `old`, behind the node that makes `old`: its output takes over the name and the readers.

    `old` is called by that name and the suffix from then on.
    """
    from onnx_ir.convenience import replace_all_uses_with

    new, node = after.outputs[0], old.producer()
    new.type, new.shape, name = old.type, old.shape, str(old.name)
    replace_all_uses_with(old, new, replace_graph_outputs=True)
    after.replace_input_with(0, old)
    old.name, new.name = f"{name}.{suffix}", name
    if node is not None and node.graph is not None:
        node.graph.insert_after(node, after)


def follow_in_order(old: ir.Value, order: Sequence[int], name: str, suffix: str) -> None:
    """Put a Transpose by `order` behind `old`, whose declared shape becomes that of before it."""
    import onnx_ir as ir

    shape = old.shape
    follow(old, ir.node("Transpose", [old], {"perm": list(order)}, name=name), suffix)
    if shape is not None:
        old.shape = ir.Shape([shape[list(order).index(axis)] for axis in range(len(order))])
