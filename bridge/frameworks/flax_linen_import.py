"""An ONNX model as a linen module with variables: native cells and parameters in a tree of the graph's names."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import unflatten_dict

from bridge.cell import Activation
from bridge.errors import BadInput
from bridge.frameworks.door import ExportOptions
from bridge.frameworks.flax_activations import function_of
from bridge.frameworks.flax_fit import NativeCell
from bridge.frameworks.flax_import import Graph, Path, device_array
from bridge.frameworks.flax_linen_cells import OWN_CELLS
from bridge.frameworks.flax_linen_read import parameters
from bridge.frameworks.flax_native_linen import PARAMS, STATISTICS, held_module, native_module, native_variables
from bridge.frameworks.flax_scan_cells import CONV_LSTM
from bridge.ops.native import NativeModule

if TYPE_CHECKING:
    import onnx_ir as ir

Pair = tuple[nn.Module, dict[str, Any]]

CLASSES: Final = MappingProxyType(
    {"flax.linen.LSTMCell": nn.LSTMCell, "flax.linen.OptimizedLSTMCell": nn.OptimizedLSTMCell,
     "flax.linen.GRUCell": nn.GRUCell, "flax.linen.MGUCell": nn.MGUCell, "flax.linen.SimpleCell": nn.SimpleCell}
)  # fmt: skip

RESERVED: Final = (*dir(nn.Module), "name", "parent", "scope", "params", "graph", "tree", "input_names", "output_names")


@dataclass(frozen=True, slots=True, eq=False)
class ConvCell:
    """A Scan node that is linen's ConvLSTMCell."""

    options: Mapping[str, Any]
    params: Mapping[str, np.ndarray]


class Block(nn.Module):  # type: ignore[misc]
    """A level of the tree: holds cells, parameters and further levels under the graph's names."""

    tree: Any

    def setup(self) -> None:
        """Make what the tree holds."""
        _grow(self, self.tree)


class OnnxModule(nn.Module):  # type: ignore[misc]
    """An imported graph: applied to its inputs in the order of `input_names`, or by name.

    One output is an array, several a tuple in the order of `output_names`. Cells are native linen cells (bridge's
    own where linen has no place for the recurrence), other layers that own weights native linen modules where those
    compute exactly the operator.
    """

    graph: Graph

    def setup(self) -> None:
        """Make what the graph's tree holds."""
        _grow(self, Hidden(self.graph.tree))

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
        found, leaf = functools.reduce(getattr, path, self), self.graph.leaf(path)
        if isinstance(leaf, NativeModule):
            return held_module(leaf, found, self.is_initializing())
        if not isinstance(found, nn.RNNCellBase):
            return found
        if self.is_initializing():
            _make_parameters(found, leaf)
        return found.variables["params"] if isinstance(found, nn.ConvLSTMCell) else parameters(found)


class Hidden:
    """A mapping that linen neither freezes nor looks into; equal only to itself."""

    def __init__(self, tree: Mapping[str, Any]) -> None:
        self.items = tree.items


def import_pair(model: ir.Model, static: Mapping[str, object] | None, remat: int | None = None) -> Pair:
    """The module and its variables. Raises Unsupported for operators that bridge does not carry, all of them named."""
    graph = graph_of(model, static, remat)
    statistics = _statistics(graph.tree)
    return OnnxModule(graph), {PARAMS: _params(graph.tree)} | ({STATISTICS: statistics} if statistics else {})


def graph_of(model: ir.Model, static: Mapping[str, object] | None, remat: int | None) -> Graph:
    """What a linen module holds of a model."""
    return Graph(model, static, "linen", RESERVED, _scan_layer, remat, graph_of)


def _statistics(tree: Mapping[str, Any]) -> dict[str, Any]:
    found = {
        name: _statistics(value) if isinstance(value, dict) else native_variables(value, STATISTICS)
        for name, value in tree.items()
        if isinstance(value, dict | NativeModule)
    }
    return {name: held for name, held in found.items() if held}


def _params(tree: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            found[name] = _params(value)
        elif isinstance(value, NativeModule):
            found[name] = native_variables(value, PARAMS)
        elif isinstance(value, NativeCell | ConvCell):
            found[name] = nested(value.params)
        else:
            found[name] = device_array(value)
    return found


def nested(params: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Flat dotted names as linen nests them."""
    found: dict[str, Any] = unflatten_dict({name: device_array(value) for name, value in params.items()}, sep=".")
    return found


def _grow(owner: nn.Module, tree: Any) -> None:
    for name, value in tree.items():
        if isinstance(value, NativeCell):
            setattr(owner, name, empty_cell(value))
        elif isinstance(value, ConvCell):
            setattr(owner, name, _conv_cell(value))
        elif isinstance(value, NativeModule):
            setattr(owner, name, native_module(value))
        elif isinstance(value, dict):
            setattr(owner, name, Block(Hidden(value)))
        else:
            setattr(owner, name, owner.param(name, lambda _, kept=value: jnp.asarray(kept)))


def empty_cell(native: NativeCell, **more: Any) -> Any:
    """The linen cell of `native`, without variables."""
    cell, options = native.cell, dict(native.options)
    if native.layout.startswith("bridge."):
        return OWN_CELLS[cell.op](cell.hidden_size, param_dtype=cell.dtype, **more, **options)
    given = {
        name: function_of(value, native.layout) if isinstance(value, str | Activation) else value
        for name, value in options.items()
    }
    return CLASSES[native.layout](cell.hidden_size, param_dtype=cell.dtype, **given)


def _conv_cell(native: ConvCell) -> nn.ConvLSTMCell:
    options = dict(native.options)
    padding = options.pop("padding")
    kernel = tuple(options.pop("kernel_size"))
    pads = padding if isinstance(padding, str) else tuple(map(tuple, padding))
    return nn.ConvLSTMCell(kernel_size=kernel, padding=pads, param_dtype=native.params["ih.kernel"].dtype, **options)


def _make_parameters(cell: Any, native: NativeCell | ConvCell) -> None:
    """What `init` does with any linen module: one step, which draws the parameters of a cell."""
    if isinstance(native, ConvCell):
        *space, inputs, _ = native.params["ih.kernel"].shape
        shape: tuple[int, ...] = (1, *space, inputs)
    else:
        shape = (1, native.cell.input_size)
    key = jax.random.key(0)  # a carry of zeros: nothing is drawn with it
    cell(cell.initialize_carry(key, shape), jnp.zeros(shape, cell.param_dtype))


def _scan_layer(
    layer: str, options: Mapping[str, Any], weights: Mapping[str, np.ndarray], node: ir.Node
) -> tuple[ConvCell, Callable[..., Any]] | None:
    """The ConvLSTMCell that a Scan of bridge's own writing is, and how it runs; None for other layers."""
    if layer != CONV_LSTM:
        return None
    params = {name: np.ascontiguousarray(np.moveaxis(value, (0, 1), (-1, -2))) if value.ndim > 1 else value
              for name, value in weights.items()}  # fmt: skip
    _check_conv(options, params, str(node.name))
    native = ConvCell(options, params)
    directions = node.attributes.get("scan_input_directions")
    reverse = directions is not None and list(directions.value) == [1]
    return native, functools.partial(_run_conv, _conv_cell(native), reverse, len(node.outputs) - 2)


def _check_conv(options: Mapping[str, Any], params: Mapping[str, np.ndarray], where: str) -> None:
    """Refuse metadata that describe no ConvLSTMCell of these weights. Raises BadInput."""
    known = {"features", "kernel_size", "padding", "use_bias"}
    fits = set(options) == known and isinstance(options["features"], int) and isinstance(options["kernel_size"], list)
    if fits:
        kernel, width = tuple(options["kernel_size"]), 4 * options["features"]
        shapes: dict[str, tuple[int, ...]] = {"hh.kernel": (*kernel, options["features"], width)}
        if options["use_bias"]:
            shapes |= {"ih.bias": (width,), "hh.bias": (width,)}
        of_x = params.get("ih.kernel", np.empty(0)).shape
        fits = set(params) == {*shapes, "ih.kernel"} and (*of_x[:-2], *of_x[-1:]) == (*kernel, width)
        fits = fits and all(params[name].shape == shape for name, shape in shapes.items())
    if not fits:
        raise BadInput("the metadata 'bridge.layer' does not fit the weights", where=f"Scan {where!r}",
                       got=dict(options),
                       do="delete this metadata: the node is imported as a plain Scan then")  # fmt: skip


def _run_conv(
    cell: nn.ConvLSTMCell, reverse: bool, histories: int, held: Sequence[Any], h: Any, c: Any, xs: Any
) -> tuple[Any, ...]:
    """The Scan's own interface, channels first: h, c [N, F, *space] and xs [T, N, I, *space]."""
    h, c, xs = (jnp.moveaxis(jnp.asarray(value), axis, -1) for value, axis in ((h, 1), (c, 1), (xs, 2)))

    def body(carry: Any, x: Any) -> Any:
        carry, _ = cell.apply({"params": held[0]}, carry, x)
        return carry, carry

    (c, h), (all_c, all_h) = jax.lax.scan(body, (c, h), xs, reverse=reverse)
    ys = (all_h, all_c)[:histories]
    return tuple(jnp.moveaxis(value, -1, 1) for value in (h, c)) + tuple(jnp.moveaxis(y, -1, 2) for y in ys)
