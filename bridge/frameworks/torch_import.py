"""An ONNX model as a torch module: native recurrent layers where they fit, bridge's own elsewhere."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from bridge.cell import Cell
from bridge.errors import BadInput, UsageError
from bridge.frameworks.door import ExportOptions
from bridge.frameworks.projection import describes_projection
from bridge.frameworks.torch_layers import Tensor
from bridge.frameworks.torch_own import Whole, as_numpy
from bridge.frameworks.torch_taken import Taken, inputs_of, projected_arrays, projected_layer, recurrent_layer

if TYPE_CHECKING:
    import onnx_ir as ir


class OnnxModule(Whole):
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
        self._taken = _taken_nodes(self, self._model)
        layers = {name: taken.run for name, taken in self._taken.items()}
        self._program = Program(self._model, TorchBackend(), layers=layers)
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

    def present_model(self, options: ExportOptions = ExportOptions()) -> ir.Model:  # noqa: B008 (frozen)
        """The imported graph with the present weights.

        Raises:
            UsageError: export options, which cannot change a graph.
        """
        from bridge.graph.updating import with_weights

        if options != ExportOptions():
            raise UsageError("an imported graph is exported as it is, without options", where="to_onnx",
                             do="give them where the graph is exported from its framework")  # fmt: skip
        weights = {name: as_numpy(getattr(self, own)) for name, own in self._names.items()}
        nodes: dict[str, dict[int, np.ndarray]] = {}
        for name, taken in self._taken.items():
            if taken.weights:
                arrays = projected_arrays(taken.module)
                weights |= {own: arrays[block] for block, own in taken.weights.items()}
            else:
                nodes[name] = inputs_of(taken.module)
        return with_weights(self._model, weights, nodes)

    def cells(self) -> dict[str, Cell]:
        """The cells of the graph with the present weights, named as its nodes."""
        from bridge.graph import find_cells

        return find_cells(self.present_model())

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


def _taken_nodes(owner: nn.Module, model: ir.Model) -> dict[str, Taken]:
    """What runs each node that has weights of its own; their modules become submodules of `owner`.

    Nodes that share a name cannot be told apart by the Program and are left to it, weights and all.
    """
    from bridge import graph
    from bridge.ops.steps import node_name

    count = Counter(node_name(node) for node in model.graph.all_nodes())
    taken: dict[str, Taken] = {}
    for found in graph.recurrent_nodes(model):
        if found.cell is not None and found.node.op_type == found.cell.op and count[node_name(found.node)] == 1:
            taken[node_name(found.node)] = recurrent_layer(found.cell)
            _place(owner, found.name, taken[node_name(found.node)].module)
    for node in model.graph.all_nodes():
        described = describes_projection(node)
        if described is not None and count[node_name(node)] == 1:
            taken[node_name(node)] = projected_layer(described, model)
            _place(owner, node_name(node), taken[node_name(node)].module)
    return taken


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
