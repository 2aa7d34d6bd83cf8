"""An ONNX model as a torch module: native recurrent layers where they fit, bridge's own elsewhere."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import nn

from bridge.cell import Cell
from bridge.errors import BadInput, NotRepresentable, UsageError
from bridge.frameworks.projection import describes_projection
from bridge.frameworks.torch_layers import Tensor, run_native
from bridge.frameworks.torch_own import OwnLayer
from bridge.frameworks.torch_write import native_module, projected_module

if TYPE_CHECKING:
    import onnx_ir as ir


class OnnxModule(nn.Module):  # type: ignore[misc]
    """An imported graph: called positionally in the order of `input_names`, or by name.

    Takes tensors or numpy arrays. One output is a tensor, several a tuple in the order of `output_names`. Every
    recurrent node is a submodule under its own name (`nn.LSTM`, `nn.GRU`, `nn.RNN`, or bridge's OwnLayer); the other
    trainable constants of the graph are parameters under theirs, with `_` for what Python names cannot hold.

    Raises:
        Unsupported: operators that bridge does not carry, all of them named.
    """

    def __init__(self, model: ir.Model, static: Mapping[str, object] | None = None) -> None:
        from bridge import graph
        from bridge.ops.backend_torch import TorchBackend
        from bridge.ops.program import Program

        super().__init__()
        self._model = graph.fold(model, static)
        self._program = Program(self._model, TorchBackend(), layers=_layers(self, self._model))
        self._names: dict[str, str] = {}
        for name, array in self._program.parameters.items():
            self._names[name] = free_name(self, name)
            self.register_parameter(self._names[name], nn.Parameter(torch.tensor(array)))

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

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle as the graph with the present parameters: what runs it refers to these very submodules."""
        from bridge.graph import to_proto

        frozen = [name for name, parameter in self.named_parameters() if not parameter.requires_grad]
        return _restored, (to_proto(self._model).SerializeToString(), self.state_dict(), frozen, self.training)

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


def _restored(proto: bytes, state: dict[str, Tensor], frozen: list[str], training: bool) -> OnnxModule:
    from bridge.graph import parse

    module = OnnxModule(parse(proto))
    module.load_state_dict(state, assign=True)
    for name in frozen:
        module.get_parameter(name).requires_grad_(False)
    module.train(training)
    return module


def _layers(owner: nn.Module, model: ir.Model) -> dict[str, Callable[..., Any]]:
    """What runs each node that has weights of its own; their modules become submodules of `owner`.

    Nodes that share a name cannot be told apart by the Program and are left to it, weights and all.
    """
    from bridge import graph
    from bridge.ops.steps import node_name

    count = Counter(node_name(node) for node in model.graph.all_nodes())
    cells = [(found.name, found.node, found.cell) for found in graph.recurrent_nodes(model)]
    made = [(name, node, *_recurrent_layer(cell)) for name, node, cell in cells
            if cell is not None and node.op_type == cell.op and count[node_name(node)] == 1]  # fmt: skip
    for node in model.graph.all_nodes():
        described = describes_projection(node)
        if described is not None and count[node_name(node)] == 1:
            made.append((node_name(node), node, *_projected_layer(described, model)))
    for name, _, module, _ in made:
        _place(owner, name, module)
    return {node_name(node): run for _, node, _, run in made}


def _recurrent_layer(cell: Cell) -> tuple[nn.Module, Callable[..., Any]]:
    """The module of one fused node. Constant initial states reach it as inputs: the graph keeps them."""
    stateless = replace(cell, initial_h=None, initial_c=None)
    reverse = cell.direction == "reverse"
    try:
        module = native_module([replace(stateless, direction="forward") if reverse else stateless])
    except NotRepresentable:
        own = OwnLayer(stateless)
        return own, own

    def run(*args: Any, **kwargs: Any) -> Any:
        return run_native(module, *args, **kwargs, reverse=reverse)

    return module, run


def _projected_layer(described: dict[str, Any], model: ir.Model) -> tuple[nn.Module, Callable[..., Any]]:
    """`nn.LSTM(proj_size=...)` in the place of a Scan over (h, c, x[, valid]) that `write_projected` wrote."""
    options = described["options"]
    held: Any = model.graph.initializers
    arrays = {name: held[own].const_value.numpy() for name, own in described["weights"].items()}
    module = projected_module(arrays, options["hidden_size"], options["proj_size"])
    reverse = options["direction"] == "reverse"

    def run(h: Tensor, c: Tensor, x: Tensor, valid: Tensor | None = None) -> tuple[Tensor, ...]:
        lengths = None if valid is None else valid[..., 0].sum(0)
        y, final_h, final_c = run_native(module, x, lengths, h[None], c[None], reverse=reverse)
        return final_h[0], cast("Tensor", final_c)[0], y[:, 0]

    return module, run


def _place(owner: nn.Module, path: str, module: nn.Module) -> None:
    """Make `module` a submodule at the dotted `path`, through plain modules."""
    *parents, last = path.split(".")
    for parent in parents:
        name = _clean(parent)
        inner = owner._modules.get(name)  # noqa: SLF001 (getattr would find methods too)
        if type(inner) is not nn.Module:
            name = free_name(owner, parent)
            inner = nn.Module()
            owner.add_module(name, inner)
        owner = inner
    owner.add_module(free_name(owner, last), module)


def _clean(name: str) -> str:
    return re.sub(r"\W+", "_", name).strip("_") or "unnamed"


def free_name(owner: nn.Module, wanted: str) -> str:
    """`wanted` as a Python name that `owner` does not use yet."""
    name = base = _clean(wanted)
    count = 0
    while hasattr(owner, name):
        count += 1
        name = f"{base}_{count}"
    return name
