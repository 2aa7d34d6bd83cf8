"""Layers of a graph that own weights as native modules of a framework: what each holds, and which nodes it takes over.

Which node is which layer is the graph's business and the same for every framework (`native_rules`); how the layer is
made and run is the framework's. Shapes, axes and option names are those that Flax and Keras share: kernels are [in,
out] and [*window, in, out].
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from bridge.graph.nodes import bodies, is_recurrent

if TYPE_CHECKING:
    import onnx_ir as ir

Kind = Literal["Linear", "Conv", "ConvTranspose", "BatchNorm", "LayerNorm", "Embed"]
"""What a layer computes; each framework has its class for it."""

SHARED: Final[tuple[Kind, ...]] = ("Linear", "Conv", "BatchNorm", "LayerNorm", "Embed")
"""The kinds that every framework has a layer of with these axes."""

RECURRENT_WEIGHTS: Final = (1, 2, 3, 7)
"""W, R, B and P: recurrent cells hold copies of them."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Weight:
    """One array of a native module: where the graph has it, and how the axes moved on the way."""

    value: ir.Value
    """The initialiser or the output of the Constant node."""
    array: np.ndarray
    """As the graph has it."""
    axes: tuple[int, ...]
    """Native axis k is the graph's axis axes[k]; () where only axes of size 1 are dropped."""
    statistic: bool = False
    """Not trained by gradients: a running mean or variance."""

    def native(self) -> np.ndarray:
        """The array in the module's own shape, the same bits."""
        return np.ascontiguousarray(self.array.transpose(self.axes)) if self.axes else self.array.reshape(-1)

    def back(self, native: Any) -> Any:
        """What the module holds now, in the graph's own shape; on numpy or JAX arrays."""
        return native.transpose(np.argsort(self.axes)) if self.axes else native.reshape(self.array.shape)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class NativeModule:
    """A native module before it is made: its class, how it is constructed and what it holds."""

    kind: Kind
    options: Mapping[str, Any]
    """By kind.

    Linear: use_bias. Conv: kernel_size, strides, padding (pairs, "VALID", "SAME" or "SAME_LOWER"), kernel_dilation,
    feature_group_count, use_bias. ConvTranspose: the operator's own and use_bias, its kernel as in the graph.
    BatchNorm: epsilon, momentum. LayerNorm: epsilon, use_bias.
    """
    sizes: tuple[int, ...]
    """Input and output features; Embed: rows and features; the norms: features."""
    weights: Mapping[str, Weight]
    """By native name: kernel, bias, scale, mean, var, embedding."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of all parameters."""
        return next(iter(self.weights.values())).array.dtype

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for modules that compute the same from the same initialisers: nodes that share one module."""
        held = tuple((name, weight.value, weight.axes) for name, weight in self.weights.items())
        return (self.kind, tuple(sorted(self.options.items(), key=str)), self.sizes, held)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Taken:
    """A node and the native module that takes it over."""

    node: ir.Node
    module: NativeModule
    inputs: tuple[int, ...]
    """Positions of the node's inputs that stay arguments."""
    rank: int | None = None
    """How many axes the input must have, where the operator is stricter than the layers are."""
    bias_node: ir.Node | None = None
    """An Add that the module does too: its output is the node's."""

    @property
    def where(self) -> str:
        """Operator and name, for messages."""
        return f"{self.node.op_type} node {self.node.name or self.node.outputs[0].name!r}"


@dataclass(frozen=True, eq=False)
class Weights:
    """What is constant in a graph, and who reads it."""

    nodes: tuple[ir.Node, ...]
    """Every node that runs, those of bodies too."""
    taken_elsewhere: Collection[str] = ()
    """Initialisers that other native layers hold copies of."""

    def find(self, value: ir.Value | None) -> Weight | None:
        """The float constant that `value` is, itself or through Identity and the transposition of a matrix."""
        from bridge.graph.expressions import constant_of

        root, swapped = _root(value)
        tensor = constant_of(root)
        if root is None or tensor is None or not self.is_unique(root):
            return None
        if tensor.dtype is None or tensor.dtype.name not in ("FLOAT", "DOUBLE") or 0 in tensor.shape:
            return None
        array = np.asarray(tensor.numpy())
        axes = tuple(range(array.ndim))
        return Weight(value=root, array=array, axes=axes[::-1] if swapped else axes)

    def is_unique(self, value: ir.Value) -> bool:
        """Whether no other constant of the model has this name."""
        return self._names[value.name or ""] == 1

    def readers(self, value: ir.Value) -> list[tuple[ir.Node, int]]:
        """The nodes that read `value`, through Identity and Transpose too, with the position of the input."""
        return self._readers.get(value, [])

    @cached_property
    def _names(self) -> Counter[str]:
        graphs = {node.graph for node in self.nodes if node.graph is not None}
        initializers = {value for graph in graphs for value in graph.initializers.values()}
        constants = {node.outputs[0] for node in self.nodes if node.op_type == "Constant"}
        return Counter(value.name or "" for value in initializers | constants)

    @cached_property
    def _readers(self) -> dict[ir.Value, list[tuple[ir.Node, int]]]:
        found: dict[ir.Value, list[tuple[ir.Node, int]]] = {}
        for node in self.nodes:
            for at, value in enumerate(node.inputs):
                root, _ = _root(value)
                if root is not None:
                    found.setdefault(root, []).append((node, at))
        return found


def _root(value: ir.Value | None) -> tuple[ir.Value | None, bool]:
    """What `value` is a copy or a transposed matrix of, and whether it is transposed."""
    swapped = False
    while value is not None and (node := value.producer()) is not None and not node.domain:
        if node.op_type == "Transpose" and _swaps_a_matrix(node):
            swapped = not swapped
        elif node.op_type != "Identity":
            break
        value = node.inputs[0]
    return value, swapped


def _swaps_a_matrix(node: ir.Node) -> bool:
    perm = node.attributes.get("perm")
    if perm is not None:
        return list(perm.value) == [1, 0]
    source = node.inputs[0]
    return source is not None and source.shape is not None and len(source.shape) == 2


@dataclass(slots=True)
class Owners:
    """Which module holds which initialiser; an initialiser has one."""

    modules: dict[tuple[object, ...], NativeModule] = field(default_factory=dict)
    values: dict[ir.Value, NativeModule] = field(default_factory=dict)

    def admit(self, module: NativeModule, weights: Weights) -> NativeModule | None:
        """The module itself, or the one that is the same; None where its weights are not free to be moved."""
        same = self.modules.get(module.key)
        if same is not None:
            return same
        if not all(self._is_free(weight, weights) for weight in module.weights.values()):
            return None
        trained = [weight.value for weight in module.weights.values() if not weight.statistic]
        if len(set(trained)) < len(trained):
            return None
        self.modules[module.key] = module
        self.values |= dict.fromkeys(trained, module)
        return module

    def _is_free(self, weight: Weight, weights: Weights) -> bool:
        readers = weights.readers(weight.value)
        if weight.statistic:
            return all(node.op_type == "BatchNormalization" and at in (3, 4) for node, at in readers)
        copied = any((is_recurrent(node) and at in RECURRENT_WEIGHTS)
                     or (node.op_type == "BatchNormalization" and at in (3, 4)) for node, at in readers)  # fmt: skip
        return not copied and weight.value not in self.values and weight.value.name not in weights.taken_elsewhere


def native_modules(
    nodes: Sequence[ir.Node],
    unique: Callable[[ir.Node], bool],
    taken_elsewhere: Collection[str],
    kinds: Collection[Kind] = SHARED,
) -> list[Taken]:
    """The nodes among `nodes` that native modules compute exactly; nodes with the same weights share a module.

    A weight that another module holds already, or that a recurrent cell copies, leaves its node as it is: the graph's
    other readers of a weight see what its module holds.

    Args:
        nodes: every node that runs.
        unique: whether a node is the only one of its name.
        taken_elsewhere: initialisers that other native layers hold copies of.
        kinds: what the framework has a layer for.
    """
    from bridge.ops.native_rules import matches

    weights, owners, found = Weights(tuple(nodes), taken_elsewhere), Owners(), []
    for node in nodes:
        if not unique(node):
            continue
        for match in matches(node, weights):
            if match.module.kind not in kinds or (match.bias_node is not None and not unique(match.bias_node)):
                continue
            module = owners.admit(match.module, weights)
            if module is not None:
                found.append(replace(match, module=module))
                break
    return found


def running_nodes(graph: Iterable[ir.Node], skipped: Collection[ir.Node] = ()) -> Iterator[ir.Node]:
    """Every node, those of bodies too, but not the bodies of `skipped`."""
    for node in graph:
        yield node
        if node in skipped:
            continue
        for body in bodies(node):
            yield from running_nodes(body, skipped)


def layer_paths(paths: Mapping[ir.Node, tuple[str, ...]]) -> dict[ir.Node, tuple[str, ...]]:
    """Where each layer goes, given the cleaned names: "/fc1/MatMul" is fc1 where no other layer is below fc1."""
    below = Counter(path[:-1] for path in paths.values())
    below.update(path[:at] for path in paths.values() for at in range(1, len(path) - 1))
    return {
        node: path[:-1] if len(path) > 1 and path[-1] == node.op_type and below[path[:-1]] == 1
        and path[:-1] not in paths.values() else path
        for node, path in paths.items()
    }  # fmt: skip
