"""What is asked of one node again and again: its kind, an input that it may lack, the graphs that it holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bridge.cell import GATES

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx_ir as ir


def is_recurrent(node: ir.Node) -> bool:
    """Whether it is an LSTM, GRU or RNN of ONNX."""
    return not node.domain and node.op_type in GATES


def input_of(node: ir.Node, at: int) -> ir.Value | None:
    """Input number `at`; None where the node leaves it out."""
    return node.inputs[at] if at < len(node.inputs) else None


def holds_graphs(node: ir.Node) -> bool:
    """Whether the node has bodies, which may read values that are none of its inputs."""
    return next(bodies(node), None) is not None


def bodies(node: ir.Node) -> Iterator[ir.Graph]:
    """The graphs in its attributes."""
    for attribute in node.attributes.values():
        if attribute.type.name == "GRAPH":
            yield attribute.as_graph()
        elif attribute.type.name == "GRAPHS":
            yield from attribute.as_graphs()
