"""An ONNX model as a torch module: native recurrent layers where they fit, bridge's own elsewhere, the rest evaluated."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from bridge.cell import Cell
from bridge.errors import BadInput, NotRepresentable, UsageError
from bridge.frameworks.torch_layers import Tensor, run_native
from bridge.frameworks.torch_own import OwnLayer
from bridge.frameworks.torch_write import native_module, projected_module

if TYPE_CHECKING:
    import onnx_ir as ir


class OnnxModule(nn.Module):
    """An imported graph: called positionally in the order of `input_names`, or by name.

    Takes tensors or numpy arrays. One output is a tensor, several a tuple in the order of `output_names`. Every
    recurrent node is a submodule under its own name (`nn.LSTM`, `nn.GRU`, `nn.RNN`, or bridge's OwnLayer); the other
    trainable constants of the graph are parameters under theirs, with `_` for what Python names cannot hold.

    Raises:
        Unsupported: operators that bridge does not carry, all of them named.
    """

    def __init__(self, model: ir.Model, static: Mapping[str, object] | None = None) -> None:
        from bridge import graph
        from bridge.ops import Program
        from bridge.ops.backend_torch import TorchBackend

        super().__init__()
        model = graph.fold(model, static)
        layers = {name: run for name, run in _layers(self, model)}
        self._program = Program(model, TorchBackend(), layers=layers, static=static)
        self._names = {}
        for name, array in self._program.parameters.items():
            own = _free_name(self, name)
            self.register_parameter(own, nn.Parameter(torch.tensor(array)))
            self._names[name] = own

    @property
    def input_names(self) -> tuple[str, ...]:
        """The graph's inputs in order."""
        return tuple(self._program.input_names)

    @property
    def output_names(self) -> tuple[str, ...]:
        """The graph's outputs in order."""
        return tuple(self._program.output_names)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the graph.

        Raises:
            UsageError: too many, missing or unknown inputs.
            BadInput: an input that is no array.
        """
        feeds = {name: self._tensor(name, value) for name, value in self._bind(args, kwargs).items()}
        parameters = {name: getattr(self, own) for name, own in self._names.items()}
        results = self._program(feeds, parameters)
        values = tuple(results[name] for name in self.output_names)
        return values[0] if len(values) == 1 else values

    def _bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        given = dict(zip(self.input_names, args, strict=False))
        twice = sorted(given.keys() & kwargs.keys())
        given |= kwargs
        if len(args) > len(self.input_names) or twice or set(given) != set(self.input_names):
            raise UsageError("wrong inputs", where="imported module", expected=", ".join(self.input_names),
                             got=f"{len(args)} positional, by name: {', '.join(kwargs) or 'none'}")  # fmt: skip
        return given

    def _tensor(self, name: str, value: Any) -> Tensor:
        device = next((parameter.device for parameter in self.parameters()), torch.device("cpu"))
        if isinstance(value, torch.Tensor):
            return value
        array = np.asarray(value)
        if array.dtype.kind not in "fiub":
            raise BadInput("an input that is no array of numbers", where=name, got=type(value).__name__)
        return torch.tensor(array, device=device)


def _layers(owner: nn.Module, model: ir.Model) -> list[tuple[str, Callable[..., Any]]]:
    """What runs each node that has weights of its own; the modules become submodules of `owner`."""
    from bridge import graph

    found: list[tuple[str, Callable[..., Any]]] = []
    for name, node, cell, _ in graph.recurrent_nodes(model):
        if cell is not None and node.op_type == cell.op:
            module, run = _recurrent_layer(cell)
            _place(owner, name, module)
            found.append((name, run))
    return found


def _recurrent_layer(cell: Cell) -> tuple[nn.Module, Callable[..., Any]]:
    """The module of one fused node. Constant initial states reach it as inputs: the graph keeps them."""
    stateless = replace(cell, initial_h=None, initial_c=None)
    reverse = cell.direction == "reverse"
    try:
        module = native_module([replace(stateless, direction="forward") if reverse else stateless])
    except NotRepresentable:
        own = OwnLayer(stateless)
        return own, own
    return module, lambda *args, **kwargs: run_native(module, *args, **kwargs, reverse=reverse)


def _place(owner: nn.Module, path: str, module: nn.Module) -> str:
    """Make `module` a submodule at the dotted `path`, through plain modules; the path it got."""
    *parents, last = path.split(".")
    for parent in parents:
        name = _clean(parent)
        inner = owner._modules.get(name)  # noqa: SLF001 (getattr would find methods too)
        if type(inner) is not nn.Module:
            name = _free_name(owner, parent)
            inner = nn.Module()
            owner.add_module(name, inner)
        owner = inner
    name = _free_name(owner, last)
    owner.add_module(name, module)
    return name


def _clean(name: str) -> str:
    return re.sub(r"\W+", "_", name).strip("_") or "unnamed"


def _free_name(owner: nn.Module, wanted: str) -> str:
    name = base = _clean(wanted)
    count = 0
    while hasattr(owner, name):
        count += 1
        name = f"{base}_{count}"
    return name
