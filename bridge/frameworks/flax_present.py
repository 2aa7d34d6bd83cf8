"""An imported and trained Flax model as an ONNX graph again: the imported graph with the present parameters."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.cell import Cell
from bridge.frameworks.door import ExportOptions
from bridge.frameworks.flax_fit import NativeCell
from bridge.frameworks.flax_native import Held as HeldModule
from bridge.ops.native import NativeModule

if TYPE_CHECKING:
    import onnx_ir as ir

    from bridge.frameworks.flax_import import Graph, NativeLayer, Path

Held = Callable[["Path"], Any]
"""What an imported module holds at a path of its tree now."""


def present_model(graph: Graph, held: Held, options: ExportOptions) -> ir.Model:
    """The graph that `graph` was imported from (inputs that were fixed stay fixed), with what the module holds now.

    Weights that have not changed keep their bits and their place; a bias that a node has none for is added where
    training made it non-zero.

    Raises:
        UsageError: export options, which cannot change a graph.
        Unsupported: a weight that has no initialiser of its own to go back to.
        BadInput: a weight that holds NaN or inf.
    """
    from bridge.graph.updating import with_weights
    from bridge.ops.steps import node_name

    options.refuse_changes(graph.model.graph.inputs)
    weights = {name: np.asarray(held(path)) for name, path in graph.parameters.items()}
    nodes: dict[str, dict[int, np.ndarray]] = {}
    layers = {layer.node: layer for layer in graph.layers}
    owners = {node: layers[name] for node in graph.model.graph.all_nodes() if (name := node_name(node)) in layers}
    for node, layer in owners.items():
        leaves = [graph.leaf(path) for path in layer.paths]
        if node.op_type == "Scan":
            weights |= _scan_weights(node, held(layer.paths[0]))
        elif layer.paths and isinstance(leaves[0], NativeModule):
            weights |= _module_weights(leaves[0], held(layer.paths[0]))
        elif changed := _changed_inputs(leaves, [held(path) for path in layer.paths]):
            for at, array in changed.items():
                own = _own_initializer(node, at, layer, owners)
                if own is not None:
                    weights[own] = array
                elif np.any(array) or _has_input(node, at):
                    nodes.setdefault(layer.node, {})[at] = array
    return with_weights(graph.model, weights, nodes)


def _changed_inputs(leaves: Sequence[NativeCell], held: Sequence[Mapping[str, Any]]) -> dict[int, np.ndarray]:
    """W, R, B and P of a node by input position; nothing where its cells hold what they were made with."""
    from bridge.graph.updating import weight_inputs
    from bridge.layout import read_params

    now = [{name: np.asarray(value) for name, value in params.items()} for params in held]
    if all(np.array_equal(params[name], leaf.params[name]) for leaf, params in zip(leaves, now, strict=True)
           for name in params):  # fmt: skip
        return {}
    halves = [read_params(leaf.layout, params, **leaf.options) for leaf, params in zip(leaves, now, strict=True)]
    return weight_inputs(halves[0] if len(halves) == 1 else Cell.join(*halves))


def _module_weights(module: NativeModule, held: HeldModule) -> dict[str, np.ndarray]:
    """The initialisers that a native module holds and that have changed: nobody else holds them."""
    now = {name: np.ascontiguousarray(weight.back(np.asarray(held.value(name))))
           for name, weight in module.weights.items()}  # fmt: skip
    return {str(weight.value.name): now[name] for name, weight in module.weights.items()
            if not np.array_equal(now[name], weight.array)}  # fmt: skip


def _own_initializer(node: ir.Node, at: int, layer: NativeLayer, owners: Mapping[ir.Node, NativeLayer]) -> str | None:
    """The initialiser at an input, where nobody reads it but nodes of the same cells in the same place."""
    value = node.inputs[at] if at < len(node.inputs) else None
    if value is None or not value.is_initializer() or value.is_graph_output():
        return None
    shared = all(user in owners and owners[user].paths == layer.paths and index == at for user, index in value.uses())
    return value.name if shared else None


def _has_input(node: ir.Node, at: int) -> bool:
    return at < len(node.inputs) and node.inputs[at] is not None


def _scan_weights(node: ir.Node, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The initialisers of a ConvLSTM's Scan; kernels lie there as [out, in, *space], in linen as [*space, in, out]."""
    stored: dict[str, str] = json.loads(node.metadata_props["bridge.layer"])["weights"]
    arrays = {name: np.asarray(reduce(lambda inner, key: inner[key], name.split("."), params)) for name in stored}
    return {
        stored[name]: np.ascontiguousarray(np.moveaxis(array, (-1, -2), (0, 1))) if name.endswith("kernel") else array
        for name, array in arrays.items()
    }
