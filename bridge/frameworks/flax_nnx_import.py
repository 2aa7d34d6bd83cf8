"""An ONNX model as an nnx module: native cells and Params in a tree that mirrors the graph's names."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from flax import nnx

from bridge.cell import Activation, Cell
from bridge.frameworks.door import ExportOptions
from bridge.frameworks.flax_activations import function_of
from bridge.frameworks.flax_fit import NativeCell
from bridge.frameworks.flax_import import Graph, Path, device_array
from bridge.frameworks.flax_native_nnx import held_module, native_module
from bridge.frameworks.flax_nnx_cells import OWN_CELLS
from bridge.ops.native import NativeModule

if TYPE_CHECKING:
    import onnx_ir as ir

CLASSES: Final = MappingProxyType(
    {"flax.nnx.LSTMCell": nnx.LSTMCell, "flax.nnx.OptimizedLSTMCell": nnx.OptimizedLSTMCell,
     "flax.nnx.GRUCell": nnx.GRUCell, "flax.nnx.SimpleCell": nnx.SimpleCell}
)  # fmt: skip

RESERVED: Final = (*dir(nnx.Module), "graph", "input_names", "output_names")


class Block(nnx.Module):  # type: ignore[misc]
    """A level of the tree: holds cells, modules, Params and further levels under the graph's names."""

    def __init__(self, tree: Mapping[str, Any]) -> None:
        grow(self, tree)


class OnnxModule(nnx.Module):  # type: ignore[misc]
    """An imported graph: called positionally in the order of `input_names`, or by name.

    One output is an array, several a tuple in the order of `output_names`. Cells are native nnx cells (bridge's own
    where nnx has no place for the recurrence), other layers that own weights native nnx modules where those compute
    exactly the operator; the other trainable constants of the graph are nnx.Params.

    Raises:
        Unsupported: operators that bridge does not carry, all of them named.
    """

    def __init__(self, model: ir.Model, static: Mapping[str, object] | None = None, remat: int | None = None) -> None:
        self.graph = graph_of(model, static, remat)
        grow(self, self.graph.tree)

    @property
    def input_names(self) -> tuple[str, ...]:
        """The graph's inputs in order."""
        return self.graph.input_names

    @property
    def output_names(self) -> tuple[str, ...]:
        """The graph's outputs in order."""
        return self.graph.output_names

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """Run the graph. Raises UsageError for wrong inputs, BadInput for wrong dtypes or shapes."""
        return self.graph.run(args, kwargs, self._held)

    def present_model(self, options: ExportOptions) -> ir.Model:
        """The imported graph with the present parameters. Raises UsageError for options."""
        from bridge.frameworks.flax_present import present_model

        return present_model(self.graph, self._held, options)

    def _held(self, path: Path) -> Any:
        """What is at `path` now: an array, a native module, or the parameters of a cell by their names."""
        found = functools.reduce(getattr, path, self)
        if isinstance(self.graph.leaf(path), NativeModule):
            return held_module(found)
        return found[...] if isinstance(found, nnx.Variable) else held_parameters(found)


def graph_of(model: ir.Model, static: Mapping[str, object] | None, remat: int | None) -> Graph:
    """What an nnx module holds of a model."""
    return Graph(model, static, "nnx", RESERVED, lambda *_: None, remat, graph_of)


def grow(owner: nnx.Module, tree: Mapping[str, Any]) -> None:
    """Make what `tree` holds attributes of `owner`."""
    for name, value in tree.items():
        if isinstance(value, NativeCell):
            setattr(owner, name, native_cell(value))
        elif isinstance(value, NativeModule):
            setattr(owner, name, native_module(value))
        elif isinstance(value, dict):
            setattr(owner, name, Block(value))
        else:
            setattr(owner, name, nnx.Param(device_array(value)))


def native_cell(native: NativeCell) -> Any:
    """The nnx cell of `native`, its parameters in place."""
    cell = empty_cell(native.layout, native.options, native.cell, **native.carry_options)
    for name, value in native.params.items():
        functools.reduce(getattr, name.split("."), cell).set_value(device_array(value))
    return cell


def empty_cell(layout: str, options: Mapping[str, Any], like: Cell, **more: Any) -> Any:
    """A cell of the sizes and dtype of `like`, all parameters zeros."""
    zeros, dtype = nnx.initializers.zeros_init(), like.dtype
    common = {"kernel_init": zeros, "recurrent_kernel_init": zeros, "bias_init": zeros, "param_dtype": dtype,
              "rngs": nnx.Rngs(0), **more}  # fmt: skip
    if layout.startswith("bridge."):
        return OWN_CELLS[like.op](like.input_size, like.hidden_size, **common, **options)
    given = {
        name: function_of(value, layout) if isinstance(value, str | Activation) else value
        for name, value in options.items()
        if name != "hn_bias"
    }
    return CLASSES[layout](like.input_size, like.hidden_size, dtype=dtype, **common, **given)


def held_parameters(cell: Any) -> dict[str, Any]:
    """The current parameters of a cell by their names in its layout."""
    from bridge.frameworks.flax_nnx_read import parameters

    return parameters(cell)
