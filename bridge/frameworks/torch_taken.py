"""The modules that take nodes of an imported graph over, and their weights on the way back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from torch import nn

from bridge.cell import Cell
from bridge.errors import NotRepresentable
from bridge.frameworks.projection import blocks
from bridge.frameworks.stack import read_layer
from bridge.frameworks.torch_layers import Tensor, run_native
from bridge.frameworks.torch_own import OwnLayer, as_numpy
from bridge.frameworks.torch_read import read_cells
from bridge.frameworks.torch_write import native_module, projected_module

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True, slots=True)
class Taken:
    """A node that a submodule has taken over."""

    module: Any
    run: Callable[..., Any]
    """The module under the interface that the Program calls."""
    weights: Mapping[str, str]
    """Of a Scan: the initialisers of its blocks. Of a fused node: nothing, they are its inputs."""


def recurrent_layer(cell: Cell) -> Taken:
    """The module of one fused node. Constant initial states reach it as inputs: the graph keeps them."""
    stateless = replace(cell, initial_h=None, initial_c=None)
    reverse = cell.direction == "reverse"
    try:
        module = native_module([replace(stateless, direction="forward") if reverse else stateless])
    except NotRepresentable:
        own = OwnLayer(stateless)
        return Taken(own, own, {})
    return Taken(module, partial(run_native, module, reverse=reverse), {})


def inputs_of(module: nn.Module) -> dict[int, np.ndarray]:
    """The present weights of a fused node by input position."""
    (cell,) = read_cells(module).values()
    arrays = {1: cell.W, 2: cell.R, 3: cell.B, 7: cell.P}
    return {at: array for at, array in arrays.items() if array is not None}


def projected_layer(described: dict[str, Any], model: ir.Model) -> Taken:
    """`nn.LSTM(proj_size=...)` in the place of a Scan over (h, c, x[, valid]) that `write_projected` wrote."""
    options, weights = described["options"], described["weights"]
    held: Any = model.graph.initializers
    arrays = {name: held[own].const_value.numpy() for name, own in weights.items()}
    module = projected_module(arrays, options["hidden_size"], options["proj_size"])
    reverse = options["direction"] == "reverse"

    def run(h: Tensor, c: Tensor, x: Tensor, valid: Tensor | None = None) -> tuple[Tensor, ...]:
        lengths = None if valid is None else valid[..., 0].sum(0)
        y, final_h, final_c = run_native(module, x, lengths, h[None], c[None], reverse=reverse)
        return final_h[0], cast("Tensor", final_c)[0], y[:, 0]

    return Taken(module, run, weights)


def projected_arrays(module: nn.Module) -> dict[str, np.ndarray]:
    """The present blocks of a projected layer, named as in its Scan."""
    params = {name.removesuffix("_l0"): as_numpy(value) for name, value in module.named_parameters()}
    return blocks(read_layer("projection", "torch.LSTM", [params], {}), 0)
