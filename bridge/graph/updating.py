"""The same graph with other weights: how an imported and trained module becomes a model again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from bridge.errors import Unsupported
from bridge.graph.finding import INPUTS
from bridge.graph.naming import unused, value_names
from bridge.graph.runnable import make_runnable

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from bridge.cell import Cell


def weight_inputs(cell: Cell) -> dict[int, np.ndarray]:
    """W, R, B and P of a cell by their positions among the inputs of its node, those that it has."""
    arrays = {INPUTS.index(name): getattr(cell, name) for name in ("W", "R", "B", "P")}
    return {at: array for at, array in arrays.items() if array is not None}


def with_weights(
    model: ir.Model,
    initializers: Mapping[str, np.ndarray],
    nodes: Mapping[str, Mapping[int, np.ndarray]],
) -> ir.Model:
    """A copy of `model` with new values, its recurrent nodes as onnxruntime takes them; `model` is not changed.

    Args:
        model: any model.
        initializers: new values of initialisers and Constant nodes by name, in whatever graph they are.
        nodes: for each node by name (its first output's where it has none), new constants in the place of inputs by
            position, which it may not have had; other readers of the initialisers that stood there keep the old values.

    Raises:
        Unsupported: a name that no initialiser has, or several have.
    """
    import onnx_ir as ir

    copy = model.clone()
    for name, array in initializers.items():
        found = [graph.initializers[name] for graph in copy.graphs() if name in graph.initializers]
        constants = [node for node in copy.graph.all_nodes() if node.op_type == "Constant" and _name(node) == name]
        if len(found) + len(constants) != 1:
            raise Unsupported("a weight cannot be put back: not one initialiser has its name", where=name,
                              got=f"{len(found) + len(constants)} of them")  # fmt: skip
        for value in found:
            value.const_value = ir.Tensor(array, name=name)
        for node in constants:
            node.attributes.clear()
            node.attributes["value"] = ir.AttrTensor("value", ir.Tensor(array))
    for node in copy.graph.all_nodes():
        for at, array in (nodes.get(node.name or _name(node)) or {}).items():
            node.resize_inputs(max(at + 1, len(node.inputs)))
            old = node.inputs[at]
            name = unused(f"{node.name or node.op_type}.{at}", value_names(copy))
            fresh = ir.Value(name=name, type=None if old is None else old.type, shape=ir.Shape(array.shape))
            fresh.const_value = ir.Tensor(array, name=fresh.name)
            copy.graph.register_initializer(fresh)
            node.replace_input_with(at, fresh)
            if old is not None:
                _drop_unread(old)
    make_runnable(copy)
    return copy


def _name(node: ir.Node) -> str:
    return str(node.outputs[0].name)


def _drop_unread(value: ir.Value) -> None:
    graph = value.graph
    if graph is not None and value.is_initializer() and not value.uses() and not value.is_graph_output():
        graph.initializers.pop(str(value.name), None)
