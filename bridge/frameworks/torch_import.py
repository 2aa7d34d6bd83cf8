"""An ONNX model as a torch.fx.GraphModule: native modules where they fit, bridge's operators as calls elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import fx, nn

from bridge.cell import Cell
from bridge.errors import BadInput, UsageError
from bridge.frameworks.door import ExportOptions
from bridge.frameworks.torch_graph.writing import Places, written
from bridge.frameworks.torch_layers import Tensor
from bridge.frameworks.torch_own import Whole
from bridge.frameworks.torch_present import present_model
from bridge.frameworks.torch_taken import layers_of
from bridge.ops.backend_torch import TorchBackend
from bridge.ops.port import Port
from bridge.ops.program import Program

if TYPE_CHECKING:
    import onnx_ir as ir

ORIGIN = "bridge.origin"
"""Where GraphModule.meta, which copies keep, has the Origin."""


@dataclass(frozen=True, eq=False)
class Origin:
    """The ONNX model that a module was made of, and what of it is where. Copies of the module share it."""

    model: ir.Model
    ports: tuple[Port, ...]
    output_names: tuple[str, ...]
    places: Places
    code: str
    """What the module's code was."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Origin:
        return self


class OnnxModule(fx.GraphModule, Whole):  # type: ignore[misc]
    """An imported graph: called positionally in the order of `input_names`, or by name.

    Takes tensors or numpy arrays. One output is a tensor, several a tuple in the order of `output_names`. `.code` and
    `.graph` show one line a node. Every layer that owns weights is a native module under its node's name (`nn.LSTM`,
    `nn.GRU`, `nn.RNN`, or bridge's OwnLayer; `nn.Linear`, `nn.Conv2d`, `nn.BatchNorm2d`, …); the other trainable
    constants of the graph are parameters under theirs, with `_` for what Python names cannot hold. It comes in
    inference mode.

    Raises:
        Unsupported: operators that bridge does not carry, all of them named.
    """

    def __init__(self, model: ir.Model, static: Mapping[str, object] | None = None) -> None:
        from bridge import graph

        folded = graph.fold(model, static)
        typed = graph.with_types(folded)
        layers = layers_of(typed)
        program = Program(typed, TorchBackend(), layers=layers.inputs())
        root, code, places = written(program, layers, RESERVED)
        super().__init__(root, code, "OnnxModule")
        self.meta[ORIGIN] = Origin(folded, program.ports, program.output_names, places, self.code)
        self.eval()

    @property
    def origin(self) -> Origin:
        """The ONNX model that this module was made of."""
        found: Origin = self.meta[ORIGIN]
        return found

    @property
    def input_names(self) -> tuple[str, ...]:
        """The graph's inputs in order."""
        return tuple(port.name for port in self.origin.ports)

    @property
    def output_names(self) -> tuple[str, ...]:
        """The graph's outputs in order."""
        return self.origin.output_names

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """Run the graph.

        Raises:
            UsageError: too many, missing or unknown inputs.
            BadInput: an input that is no array, or of another shape or dtype than the graph declares.
        """
        given = self._bind(args, kwargs)
        return super().__call__(*(port.placed(self._tensor(port.name, given[port.name]), TorchBackend())
                                  for port in self.origin.ports))  # fmt: skip

    def recompile(self) -> Any:
        """Make `forward` of the graph. The call stays this class's: torch's own cannot take every name of an input."""
        code = super().recompile()
        type(self).__call__ = OnnxModule.__call__  # type: ignore[method-assign]  # of the instance's own class
        return code

    def present_model(self, options: ExportOptions = ExportOptions()) -> ir.Model:  # noqa: B008 (frozen)
        """The imported graph with the present weights.

        Raises:
            UsageError: export options, which cannot change a graph.
            Unsupported: the code or a layer was changed since the import.
        """
        options.refuse_changes(self.origin.model.graph.inputs)
        return present_model(self, self.origin.model, self.origin.places, changed=self.code != self.origin.code)

    def cells(self) -> dict[str, Cell]:
        """The cells of the graph with the present weights, named as its nodes."""
        from bridge.graph import find_cells

        return find_cells(self.present_model())

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as the graph with the present weights and modes."""
        from bridge.graph import to_proto

        self.present_model()  # refuses what would be lost
        frozen = [name for name, parameter in self.named_parameters() if not parameter.requires_grad]
        modes = {name: module.training for name, module in self.named_modules()}
        return _restored, (to_proto(self.origin.model).SerializeToString(), self.state_dict(), frozen, modes)

    def _bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        given = dict(zip(self.input_names, args, strict=False))
        twice = sorted(given.keys() & kwargs.keys())
        given |= kwargs
        if len(args) > len(self.input_names) or twice or set(given) != set(self.input_names):
            raise UsageError("wrong inputs", where="imported module", expected=", ".join(self.input_names),
                             got=f"{len(args)} positional, by name: {', '.join(kwargs) or 'none'}")  # fmt: skip
        return given

    def _tensor(self, name: str, value: Any) -> Tensor:
        if isinstance(value, torch.Tensor):
            return value
        device = next((parameter.device for parameter in self.parameters()), torch.device("cpu"))
        array = np.asarray(value)
        if array.dtype.kind not in "fiub":
            raise BadInput("an input that is no array of numbers", where=name, got=type(value).__name__)
        return torch.tensor(array, device=device)


RESERVED = frozenset([*dir(OnnxModule), *vars(fx.GraphModule(nn.Module(), fx.Graph()))])
"""What a graph's names may not hide."""


def _restored(proto: bytes, state: dict[str, Tensor], frozen: list[str], modes: dict[str, bool]) -> OnnxModule:
    from bridge.graph import parse

    module = OnnxModule(parse(proto))
    module.load_state_dict(state, assign=True)
    for name in frozen:
        module.get_parameter(name).requires_grad_(False)
    for name, inner in module.named_modules():
        inner.training = modes[name]
    return module
