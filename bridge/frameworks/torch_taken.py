"""Which modules take which nodes of an imported graph over, and the weights of recurrent ones on the way back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from bridge.cell import Cell
from bridge.errors import NotRepresentable
from bridge.frameworks.projection import blocks, describes_projection
from bridge.frameworks.stack import read_layer
from bridge.frameworks.torch_native import KINDS, Native, native_of
from bridge.frameworks.torch_own import OwnLayer, as_numpy
from bridge.frameworks.torch_read import read_cells
from bridge.frameworks.torch_write import native_module, projected_module
from bridge.ops.layers import Takeover
from bridge.ops.native import native_modules, running_nodes

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True, slots=True)
class Recurrent:
    """A fused node that a layer takes over."""

    name: str
    """The layer's path as the graph names it."""
    module: Any
    """`nn.LSTM`, `nn.GRU` or `nn.RNN` of one layer, or bridge's OwnLayer."""
    directions: int
    reverse: bool
    """Whether a layer of one direction runs from the last step to the first."""
    batch_major: bool
    """Whether the node has layout=1."""

    @property
    def plain(self) -> bool:
        """Whether torch's own forward on X alone is the node, but for the layout of the results."""
        native = not isinstance(self.module, OwnLayer) and self.module.weight_ih_l0.dtype != torch.float16
        return native and not self.reverse and not self.batch_major


@dataclass(frozen=True, slots=True)
class Projected:
    """A Scan over (h, c, x[, valid]) that `write_projected` wrote, and `nn.LSTM(proj_size=...)` takes over."""

    module: nn.LSTM
    weights: Mapping[str, str]
    """The initialisers of its blocks."""
    reverse: bool


@dataclass(frozen=True, slots=True)
class Layers:
    """What takes nodes of an imported graph over, by the node's name."""

    recurrent: Mapping[str, Recurrent]
    projected: Mapping[str, Projected]
    native: Mapping[str, Native]
    merged: Mapping[str, int]
    """An Add that the layer before does too: the position of that layer's output among its inputs."""

    @property
    def names(self) -> set[str]:
        """All nodes that are taken over."""
        return {*self.recurrent, *self.projected, *self.native, *self.merged}

    def inputs(self) -> dict[str, Any]:
        """For a Program: which inputs of each node stay inputs. The layers run elsewhere."""
        given = {name: native.taken.inputs for name, native in self.native.items()}
        given |= {name: (at,) for name, at in self.merged.items()}
        whole = dict.fromkeys((*self.recurrent, *self.projected), _elsewhere)
        return whole | {name: Takeover(_elsewhere, taken) for name, taken in given.items()}


def _elsewhere(*_: Any) -> Any:
    raise NotImplementedError("an imported torch graph calls its layers itself")


def layers_of(model: ir.Model) -> Layers:
    """What takes which node over.

    Nodes that share a name cannot be told apart and stay operators, weights and all.
    """
    from bridge import graph
    from bridge.ops.steps import node_name

    count = Counter(node_name(node) for node in model.graph.all_nodes())
    found = [found for found in graph.recurrent_nodes(model) if found.cell is not None
             and found.node.op_type == found.cell.op and count[node_name(found.node)] == 1]  # fmt: skip
    recurrent = {node_name(each.node): recurrent_layer(each.name, each.cell, each.node) for each in found if each.cell}
    projected, scans = {}, []
    for node in model.graph.all_nodes():
        described = describes_projection(node)
        if described is not None and count[node_name(node)] == 1:
            projected[node_name(node)] = projected_layer(described, model)
            scans.append(node)
    copied = {name for layer in projected.values() for name in layer.weights.values()}
    nodes = list(running_nodes(model.graph, scans))
    native, merged = {}, {}
    for taken in native_modules(nodes, lambda node: count[node_name(node)] == 1, copied, KINDS):
        made = native_of(taken)
        if made is None:
            continue
        native[node_name(taken.node)] = made
        if taken.bias_node is not None:
            merged[node_name(taken.bias_node)] = 0 if taken.bias_node.inputs[0] is taken.node.outputs[0] else 1
    return Layers(recurrent, projected, native, merged)


def recurrent_layer(name: str, cell: Cell, node: ir.Node) -> Recurrent:
    """The module of one fused node. Constant initial states reach it as inputs: the graph keeps them."""
    stateless = replace(cell, initial_h=None, initial_c=None)
    layout = node.attributes.get("layout")
    batch_major = layout is not None and bool(layout.value)
    reverse = cell.direction == "reverse"
    try:
        module = native_module([replace(stateless, direction="forward") if reverse else stateless])
    except NotRepresentable:
        return Recurrent(name, OwnLayer(stateless), cell.num_directions, False, batch_major)
    return Recurrent(name, module, cell.num_directions, reverse, batch_major)


def inputs_of(module: nn.Module) -> dict[int, np.ndarray]:
    """The present weights of a fused node by input position."""
    from bridge.graph.updating import weight_inputs

    (cell,) = read_cells(module).values()
    return weight_inputs(cell)


def projected_layer(described: dict[str, Any], model: ir.Model) -> Projected:
    """`nn.LSTM(proj_size=...)` with the weights that the graph has for a Scan."""
    options, weights = described["options"], described["weights"]
    held: Any = model.graph.initializers
    arrays = {name: held[own].const_value.numpy() for name, own in weights.items()}
    module = projected_module(arrays, options["hidden_size"], options["proj_size"])
    return Projected(module, weights, options["direction"] == "reverse")


def projected_arrays(module: nn.Module) -> dict[str, np.ndarray]:
    """The present blocks of a projected layer, named as in its Scan."""
    params = {name.removesuffix("_l0"): as_numpy(value) for name, value in module.named_parameters()}
    return blocks(read_layer("projection", "torch.LSTM", [params], {}), 0)
