"""An ONNX model prepared for either Flax API: which native layers take which nodes over, and the tree of parameters."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from bridge.cell import Cell, Direction
from bridge.errors import BadInput, UsageError
from bridge.frameworks.flax_fit import Api, NativeCell, fit_cell
from bridge.frameworks.flax_loop import one_direction
from bridge.frameworks.flax_native import run_taken
from bridge.ops.native import NativeModule, Taken, layer_paths, native_modules, running_nodes

if TYPE_CHECKING:
    import onnx_ir as ir

    from bridge.graph import Found
    from bridge.ops.backend_jax import JaxBackend

Path = tuple[str, ...]

_CURRENT: ContextVar[Callable[[Path], Any]] = ContextVar("bridge_flax_leaves")
"""During one call: from a path in the tree to what the module holds there now, tracers included."""

STAND_IN: ContextVar[Callable[..., tuple[Any, ...]] | None] = ContextVar("bridge_flax_stand_in", default=None)
"""What runs recurrent nodes instead while a model is traced: (RecurrentNode, parameters of each direction, X,
sequence_lens, initial_h, initial_c) to the outputs of the node."""


@dataclass(frozen=True, slots=True, eq=False)
class NativeLayer:
    """A node that native cells or a native module take over: where they are in the tree, forward first."""

    node: str
    paths: tuple[Path, ...]
    run: Callable[..., Any]
    """run(what each path holds, *inputs of the node) -> outputs."""
    inputs: tuple[int, ...] | None = None
    """Positions of the inputs that are given to `run`; None for those that the operator's layer takes."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class RecurrentNode:
    """A fused node that native cells take over."""

    where: str
    """The path of its layer in the tree."""
    natives: tuple[NativeCell, ...]
    """The cell of each direction, forward first."""
    direction: Direction


class Graph:
    """A compiled ONNX model and the tree of its parameters; static for JAX, equal only to itself.

    Nothing in it changes, so a copy is itself. A pickle holds the ONNX model, which is compiled again by `made_by`,
    the function of a module that made this: (model, static, remat) -> Graph.

    Raises:
        Unsupported: operators that bridge does not carry, all of them named; numbers that JAX would narrow.
    """

    def __init__(
        self,
        model: ir.Model,
        static: Mapping[str, object] | None,
        api: Api,
        reserved: Sequence[str],
        scan_layer: Callable[[str, Any, Mapping[str, np.ndarray], ir.Node], tuple[Any, Callable[..., Any]] | None],
        remat: int | None,
        made_by: Callable[[ir.Model, Mapping[str, object] | None, int | None], Graph],
    ) -> None:
        from bridge.graph import fold
        from bridge.ops.backend_jax import JaxBackend
        from bridge.ops.program import Program

        backend = JaxBackend(remat=remat)
        model = fold(model, static)
        remaining = {name: value for name, value in (static or {}).items()
                     if any(each.name == name for each in model.graph.inputs)}  # fmt: skip
        tree = Tree(reserved)
        self.layers, owned = _layers(model, api, tree, scan_layer, backend)
        self.program = Program(model, backend, layers=dict(map(_takeover, self.layers)), static=remaining)
        quiet = _zero_states(model)
        self.parameters: dict[str, Path] = {
            name: tree.insert(clean_path(name), array)
            for name, array in self.program.parameters.items()
            if name not in quiet and name not in owned
        }
        self.views = {name: owned[name] for name in self.program.parameters if name in owned}
        """Initialisers that operators read and that a native module holds: its path, and the native name."""
        self.tree: Mapping[str, Any] = tree.root
        self.model = model
        self._remade = made_by, remaining, remat

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __reduce__(self) -> tuple[Callable[..., Graph], tuple[Any, ...]]:
        from bridge.graph import to_proto

        made_by, static, remat = self._remade
        return _unpickled, (made_by, to_proto(self.model).SerializeToString(), static, remat)

    def leaf(self, path: Path) -> Any:
        """What the model itself has at `path`: the cell or array that the module's one was made of."""
        found: Any = self.tree
        for name in path:
            found = found[name]
        return found

    @property
    def input_names(self) -> tuple[str, ...]:
        """The graph's inputs in order."""
        return tuple(self.program.input_names)

    @property
    def output_names(self) -> tuple[str, ...]:
        """The graph's outputs in order."""
        return tuple(self.program.output_names)

    def run(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], leaf: Callable[[Path], Any]) -> Any:
        """One call: an array, or a tuple of several in the order of `output_names`.

        Raises:
            UsageError: too many, missing or unknown inputs.
            BadInput: an input of another dtype or shape than the graph declares.
        """
        feeds = dict(zip(self.input_names, args, strict=False)) | dict(kwargs)
        if len(args) + len(kwargs) != len(feeds) or set(feeds) != set(self.input_names):
            raise UsageError("wrong inputs", where="imported model", expected=", ".join(self.input_names),
                             got=f"{len(args)} positional, by name: {', '.join(kwargs) or 'none'}")  # fmt: skip
        # All that layers hold is read here: linen makes no submodules inside lax.cond and lax.scan.
        held = {path: leaf(path) for layer in self.layers for path in layer.paths}
        parameters = {name: leaf(path) for name, path in self.parameters.items()}
        parameters |= {name: self.leaf(path).weights[native].back(held[path].value(native))
                       for name, (path, native) in self.views.items()}  # fmt: skip
        token = _CURRENT.set(held.__getitem__)
        try:
            results = self.program(feeds, parameters)
        finally:
            _CURRENT.reset(token)
        values = tuple(results[name] for name in self.output_names)
        return values[0] if len(values) == 1 else values


def _unpickled(
    made_by: Callable[..., Graph], model: bytes, static: Mapping[str, object] | None, remat: int | None
) -> Graph:
    from bridge.graph import as_model

    return made_by(as_model(model), static, remat)


class Tree:
    """Nested dicts of NativeCells and arrays under names that Python and both Flax APIs accept."""

    def __init__(self, reserved: Sequence[str]) -> None:
        self.root: dict[str, Any] = {}
        self._reserved = frozenset(reserved)

    def insert(self, path: Path, leaf: Any) -> Path:
        """Put `leaf` at `path`, or near it where the names are taken; the path that it got."""
        inner, got = self.root, []
        for name in path[:-1]:
            name = self._free(inner, name, reuse=True)
            inner = inner.setdefault(name, {})
            got.append(name)
        name = self._free(inner, path[-1], reuse=False)
        inner[name] = leaf
        return (*got, name)

    def _free(self, inner: Mapping[str, Any], wanted: str, *, reuse: bool) -> str:
        name, count = wanted, 0
        while name in self._reserved or (name in inner and not (reuse and isinstance(inner[name], dict))):
            count += 1
            name = f"{wanted}_{count}"
        return name


def clean_path(name: str) -> Path:
    """A node's or initialiser's name as attribute names: "/enc/rnn.l0" is enc, rnn, l0; "layers.0" is layers_0."""
    parts: list[str] = []
    for part in re.split(r"[./:]+", name):
        cleaned = re.sub(r"\W", "_", part).strip("_")
        if cleaned.isdigit() and parts:
            parts[-1] += f"_{cleaned}"
        elif cleaned:
            parts.append(f"n{cleaned}" if cleaned[0].isdigit() else cleaned)
    return tuple(parts) or ("unnamed",)


def device_array(value: np.ndarray) -> Any:
    """`value` on the device. Raises Unsupported for 64 bits while x64 is off, which JAX would narrow silently."""
    from bridge.ops.backend_jax import JaxBackend

    return JaxBackend().asarray(value)


def _dispatch(layer: NativeLayer, *inputs: Any, **named: Any) -> Any:
    leaf = _CURRENT.get()
    return layer.run([leaf(path) for path in layer.paths], *inputs, **named)


def _takeover(layer: NativeLayer) -> tuple[str, Callable[..., Any]]:
    from bridge.ops.layers import Takeover

    run = partial(_dispatch, layer)
    return layer.node, run if layer.inputs is None else Takeover(run, layer.inputs)


def _layers(
    model: ir.Model, api: Api, tree: Tree, scan_layer: Callable[..., Any], backend: JaxBackend
) -> tuple[tuple[NativeLayer, ...], dict[str, tuple[Path, str]]]:
    """Every native layer, and where the initialisers are that native modules hold: (path, native name)."""
    from bridge.graph import recurrent_nodes
    from bridge.ops.steps import node_name

    names = Counter(map(node_name, running_nodes(model.graph)))
    scans = [node for node in model.graph if node.op_type == "Scan" and "bridge.layer" in node.metadata_props]
    scan_layers = {layer.node: layer for layer in _scan_layers(model, tree, scan_layer)}
    native_scans = [node for node in scans if node_name(node) in scan_layers]
    described = [json.loads(node.metadata_props["bridge.layer"]) for node in native_scans]
    copied = {name for layer in described for name in layer["weights"].values()}
    nodes = list(running_nodes(model.graph, native_scans))
    taken = native_modules(nodes, lambda node: names[node_name(node)] == 1, copied)
    cells = [found for found in recurrent_nodes(model) if found.cell is not None
             and found.node.op_type == found.cell.op and names[node_name(found.node)] == 1]  # fmt: skip
    paths = {found.node: clean_path(found.name) for found in cells}
    paths = layer_paths(paths | {each.node: clean_path(node_name(each.node)) for each in taken})
    recurrent = tuple(_recurrent_layers(cells, paths, api, tree, backend))
    modules, owned = _module_layers(taken, paths, tree)
    return (*recurrent, *scan_layers.values(), *modules), owned


def _module_layers(
    taken: Sequence[Taken], paths: Mapping[ir.Node, Path], tree: Tree
) -> tuple[list[NativeLayer], dict[str, tuple[Path, str]]]:
    """The layers of native modules; nodes of the same module share it."""
    from bridge.ops.steps import node_name

    layers: list[NativeLayer] = []
    placed: dict[NativeModule, Path] = {}
    owned: dict[str, tuple[Path, str]] = {}
    for each in taken:
        if each.module not in placed:
            placed[each.module] = path = tree.insert(paths[each.node], each.module)
            owned |= {weight.value.name or "": (path, name) for name, weight in each.module.weights.items()}
        layers.append(NativeLayer(node_name(each.node), (placed[each.module],), partial(run_taken, each), each.inputs))
        if each.bias_node is not None:
            at = 0 if each.bias_node.inputs[0] is each.node.outputs[0] else 1
            layers.append(NativeLayer(node_name(each.bias_node), (), _as_it_is, (at,)))
    return layers, owned


def _as_it_is(held: Sequence[Any], value: Any) -> Any:  # noqa: ARG001
    return value


def _recurrent_layers(
    cells: Collection[Found], layer_paths: Mapping[ir.Node, Path], api: Api, tree: Tree, backend: JaxBackend
) -> Iterator[NativeLayer]:
    """The layers of the fused nodes; nodes with the same weights share one cell."""
    from bridge.ops.steps import node_name

    placed: dict[tuple[object, ...], tuple[Path, ...]] = {}
    natives: dict[Path, NativeCell] = {}
    for found in cells:
        if found.cell is None:
            continue
        key = _weights_key(found.node, found.cell)
        if key not in placed:
            preferred = found.node.metadata_props.get("bridge.layout", "")
            halves = [fit_cell(half, api, preferred=preferred) for half in found.cell.split()]
            names = ("cell",) if len(halves) == 1 else ("forward_cell", "backward_cell")
            placed[key] = tuple(
                tree.insert((*layer_paths[found.node], name), half) for name, half in zip(names, halves, strict=True)
            )
            natives |= dict(zip(placed[key], halves, strict=True))
        paths = placed[key]
        node = RecurrentNode(where=".".join(paths[0][:-1]), natives=tuple(natives[path] for path in paths),
                             direction=found.cell.direction)  # fmt: skip
        run = partial(_run_recurrent, backend, node)
        yield NativeLayer(node_name(found.node), paths, run)


def _weights_key(node: ir.Node, cell: Cell) -> tuple[object, ...]:
    weights = tuple(id(node.inputs[at]) if at < len(node.inputs) and node.inputs[at] is not None else None
                    for at in (1, 2, 3, 7))  # fmt: skip
    table = tuple(cell.activation_table())
    return (cell.op, *weights, table, cell.clip, cell.input_forget, cell.linear_before_reset)


def _run_recurrent(
    backend: JaxBackend,
    node: RecurrentNode,
    held: Sequence[Mapping[str, Any]],
    X: Any,
    sequence_lens: Any = None,
    initial_h: Any = None,
    initial_c: Any = None,
) -> tuple[Any, ...]:
    """A fused node by its native cells: Y [T, D, N, H], Y_h and, for LSTM, Y_c [D, N, H]."""
    import jax.numpy as jnp

    other = STAND_IN.get()
    if other is not None:
        return other(node, held, X, sequence_lens, initial_h, initial_c)
    both: tuple[Literal["forward", "reverse"], ...] = ("forward", "reverse")
    ways = {"bidirectional": both, "forward": both[:1], "reverse": both[1:]}[node.direction]
    runs = []
    for at, (native, params, way) in enumerate(zip(node.natives, held, ways, strict=True)):
        h, c = (None if state is None else state[at : at + 1] for state in (initial_h, initial_c))
        runs.append(one_direction(native.layout, params, native.options, X, sequence_lens, h, c, way, backend))
    return tuple(jnp.concatenate(parts, 1 if at == 0 else 0) for at, parts in enumerate(zip(*runs, strict=True)))


def _scan_layers(model: ir.Model, tree: Tree, scan_layer: Callable[..., Any]) -> Iterator[NativeLayer]:
    """The layers of Scan nodes that say which native layer they are."""
    from bridge.ops.steps import node_name

    for node in model.graph:
        described = node.metadata_props.get("bridge.layer") if node.op_type == "Scan" else None
        if described is None:
            continue
        name, options, arrays = _described_layer(model, described, node_name(node))
        native = scan_layer(name, options, arrays, node)
        if native is not None:
            leaf, run = native
            path = tree.insert((*clean_path(node.metadata_props.get("bridge.path") or node_name(node)), "cell"), leaf)
            yield NativeLayer(node_name(node), (path,), run)


def _described_layer(model: ir.Model, described: str, where: str) -> tuple[str, Any, dict[str, np.ndarray]]:
    """The layer's name, options and weights that a node's metadata say. Raises BadInput where they do not fit."""
    try:
        layer = json.loads(described)
        tensors = {name: model.graph.initializers[stored].const_value for name, stored in layer["weights"].items()}
        arrays = {name: np.asarray(tensor.numpy()) for name, tensor in tensors.items() if tensor is not None}
        return str(layer["layer"]), dict(layer["options"]), arrays
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadInput("the metadata 'bridge.layer' does not fit the model", where=f"Scan {where!r}",
                       got=str(error)[:200], do="delete this metadata: the node is imported as a plain Scan then",
                       ) from error  # fmt: skip


def _zero_states(model: ir.Model) -> set[str]:
    """Initialisers of zeros that are nothing but the initial states of recurrent nodes: no parameters."""
    found = set()
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None or len(tensor.shape) < 1 or not _only_state(value):
            continue
        if not np.any(tensor.numpy()):
            found.add(name)
    return found


def _only_state(value: ir.Value) -> bool:
    uses = list(value.uses())
    return bool(uses) and not value.is_graph_output() and all(
        (node.op_type in ("LSTM", "GRU", "RNN") and at in (5, 6))
        or (node.op_type in ("Expand", "Tile", "Identity") and at == 0 and _only_state(node.outputs[0]))
        for node, at in uses
    )  # fmt: skip
