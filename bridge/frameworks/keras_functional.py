"""A compiled ONNX graph as the tensors of a Keras functional model: native layers, and one small layer for the rest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.frameworks.keras_arranging import Arranged
from bridge.frameworks.keras_clusters import Cluster, Plan
from bridge.frameworks.keras_native import Native
from bridge.ops.program import Program
from bridge.ops.steps import Step

if TYPE_CHECKING:
    import onnx_ir as ir

Make = Callable[[], Any]


class NotFunctional(Exception):
    """The graph has values of unknown type, or inputs that nothing reads: no functional model can hold it."""


@dataclass(frozen=True, slots=True, eq=False)
class Recurrent:
    """A recurrent node and its layer."""

    layer: Any
    directions: int
    inputs: int
    """Features of X."""
    time_major: bool
    """Whether the node's sequences are [T, N, ...], as all but layout=1 are."""


@dataclass(slots=True, eq=False)
class Layers:
    """What stands in the place of nodes, by the node's name."""

    recurrent: dict[str, Recurrent] = field(default_factory=dict)
    """Nodes of the main graph and of bodies."""
    scans: dict[str, Any] = field(default_factory=dict)
    """Layers that bridge wrote as a Scan."""
    native: dict[str, Native] = field(default_factory=dict)
    merged: set[str] = field(default_factory=set)
    """The Add of a bias that its layer does."""

    @property
    def inner(self) -> dict[str, Any]:
        """The layers that run inside operators too."""
        return {name: one.layer for name, one in self.recurrent.items()} | self.scans


class Tensors:
    """The tensors of one functional model, made step by step."""

    def __init__(self, program: Program, layers: Layers, names: Callable[[str, str], str]) -> None:
        """`names(node's name, operator)` is a free name for a layer."""
        self._program, self._layers, self._names = program, layers, names
        own = {*layers.recurrent, *layers.scans, *layers.native, *layers.merged}
        self._plan = Plan(program, own)
        self._parameters = {value: name for name, value in program.parameter_values.items()}
        self._made: dict[ir.Value, Any] = {}
        self._arranged = Arranged(program.constants, self._plan.is_inlined, self.value)
        self.operators: dict[str, Any] = {}
        self.shared: dict[str, Any] = {}
        self._sizes = _sizes_that_layers_know(program, layers)

    @property
    def has_shapes(self) -> bool:
        """Whether anything hangs on the shapes of tensors."""
        return self._plan.has_shapes

    def run(self) -> tuple[list[Any], list[Any]]:
        """The tensors of the inputs and of the outputs.

        Raises:
            NotFunctional: a value between layers whose type the graph does not tell.
        """
        import keras

        inputs = []
        for value in self._program.block.inputs:
            if value in self._program.constants:
                continue
            shape, dtype = self._spec(value)
            self._made[value] = keras.Input(batch_shape=shape, dtype=dtype, name=self._names(str(value.name), ""))
            inputs.append(self._made[value])
        if not inputs:
            raise NotFunctional
        self._inputs = inputs
        steps = self._program.block.steps
        self._clusters = {at: self._plan.cluster(step) for at, step in enumerate(steps) if self._is_layer(step)}
        self._held = self._holders()
        for at, step in enumerate(steps):
            self._step(at, step)
        return inputs, [self._output(value) for value in self._program.block.outputs]

    def _is_layer(self, step: Step) -> bool:
        return not all(
            self._plan.is_inlined(value) for value in step.outputs if value.uses() or value.is_graph_output()
        )

    # ------------------------------------------------------------------ values

    def value(self, value: ir.Value) -> Any:
        """The tensor of a value of the graph."""
        if value not in self._made and value in self._arranged:
            self._made[value] = self._arranged.made(value)
        if value not in self._made:  # constants, and what is made again wherever it is read
            self._made[value] = self._operator(self._plan.cluster_of(value), str(value.name), "Constant")
        return self._made[value]

    def _output(self, value: ir.Value) -> Any:
        tensor = self.value(value)
        if any(tensor is one for one in self._inputs):
            from keras import layers

            return layers.Identity(name=self._names(str(value.name), ""))(tensor)
        return tensor

    def _spec(self, value: ir.Value) -> tuple[tuple[int | None, ...], str]:
        if value.dtype is None or value.shape is None:
            raise NotFunctional
        name = str(value.dtype.numpy().name)
        if value.dtype.name in ("STRING", "FLOAT4E2M1", "INT4", "UINT4") or name.startswith(("complex", "object")):
            raise NotFunctional
        known = self._sizes.get(value, {})
        return tuple(dim if isinstance(dim, int) else known.get(at) for at, dim in enumerate(value.shape)), _dtype(name)

    # ------------------------------------------------------------------ steps

    def _step(self, at: int, step: Step) -> None:
        name = step.node.name
        if name in self._layers.merged:
            (source,) = (value for value in step.inputs if value is not None)
            self._made[step.outputs[0]] = self._made[source]
        elif name in self._layers.native:
            native = self._layers.native[name]
            self._made[step.outputs[0]] = native.call(self.value(native_input(step)))
        elif name in self._layers.recurrent and self._recurrent(step, self._layers.recurrent[name]):
            return
        elif at in self._clusters and not self._arranged.takes(step):
            results = self._operator(self._clusters[at], name, step.node.op_type)
            results = results if isinstance(results, tuple) else (results,)
            self._made.update(zip(self._clusters[at].outputs, results, strict=True))

    def _operator(self, cluster: Cluster, name: str, op_type: str) -> Any:
        from bridge.frameworks.keras_operator import operator_class

        inside: list[Any] = [self._layers.inner[one] for one in cluster.node_names if one in self._layers.inner]
        held: dict[Any, Make] = {}
        for value in cluster.parameters:
            if value in self._held:
                layer, held[value] = self._held[value]
                inside.append(layer)
        layer = operator_class(op_type)(
            cluster, [self._spec(value) for value in cluster.outputs], self._program.constants, self._parameters, held,
            inside,
            name=self._names(name, op_type),
        )  # fmt: skip
        self.operators[name] = layer
        tensors = [self.value(value) for value in cluster.inputs]
        return layer(tensors or [self._inputs[0]])

    def _holders(self) -> dict[ir.Value, tuple[Any, Make]]:
        """Trainable constants that more than one layer reads: who holds them, and what gives their present value."""
        from bridge.frameworks.keras_operator import Weight

        readers = Counter(value for cluster in self._clusters.values() for value in cluster.parameters)
        owned = {str(weight.value.name): (native, name) for native in self._layers.native.values()
                 for name, weight in native.module.weights.items()}  # fmt: skip
        held: dict[ir.Value, tuple[Any, Make]] = {}
        for value, count in readers.items():
            if str(value.name) in owned:
                native, name = owned[str(value.name)]
                held[value] = (native.layer, partial(native.tensor, name))
            elif count > 1:
                label = self._parameters[value]
                layer = Weight(label, self._program.constants[value], name=self._names(label, ""))
                self.shared[label] = layer
                held[value] = (layer, layer.present)
        return held

    # ------------------------------------------------------------------ recurrent layers and what stands around them

    def _recurrent(self, step: Step, one: Recurrent) -> bool:
        """Call the layer directly; False where lengths or constant states want the operator's adapter."""
        X, lengths, *states = (*step.inputs, None, None)[:4]
        if X is None or lengths is not None or not one.time_major:
            return False
        states = [None if state is None or self._is_zero(state) else state for state in states]
        if any(state is not None and (self._plan.is_inlined(state) or self._plan.is_static(state)) for state in states):
            return False
        if states[0] is None and states[1] is not None:
            return False
        from keras import ops

        given: dict[str, Any] = {}
        x = self._arranged.batch_major(X)
        if states[0] is not None:
            if step.node.op_type == "LSTM" and states[1] is None:
                return False
            parts = [self.value(state) for state in states if state is not None]
            given["initial_state"] = [part[at] for at in range(one.directions) for part in parts]
        values = list(one.layer(x, **given))
        outputs, finals = values[: one.directions], values[one.directions :]
        if one.directions == 1 and one.layer.go_backwards:
            outputs = [ops.flip(outputs[0], 1)]
        self._arranged.remember(step.outputs[0], "TDNH", outputs)
        kinds = len(finals) // one.directions
        for at, value in enumerate(step.outputs[1 : kinds + 1]):
            self._arranged.remember(value, "DNH", finals[at::kinds])
        return True

    def _is_zero(self, value: ir.Value) -> bool:
        """Whether a state is zeros of whatever size."""
        known = self._program.constants.get(value)
        if known is not None:
            return not np.any(known)
        node = value.producer()
        if node is None or not self._plan.is_static(value):
            return False
        if node.op_type == "ConstantOfShape":
            filled = node.attributes.get("value")
            return filled is None or not np.any(filled.value.numpy())
        first = node.inputs[0] if node.inputs else None
        kept = ("Expand", "Tile", "Identity", "Unsqueeze", "Squeeze", "Reshape", "Transpose", "Slice")
        return node.op_type in kept and first is not None and self._is_zero(first)


def _sizes_that_layers_know(program: Program, layers: Layers) -> dict[ir.Value, dict[int, int]]:
    """Axes that the graph leaves open and a layer that reads the value fixes."""
    sizes: dict[ir.Value, dict[int, int]] = {}
    for step in program.block.steps:
        name, value = step.node.name, step.inputs[0] if step.inputs else None
        if value is None or value.shape is None:
            continue
        if name in layers.recurrent:
            sizes.setdefault(value, {})[2] = layers.recurrent[name].inputs
        elif name in layers.native and layers.native[name].module.kind != "Embed":
            module = layers.native[name].module
            axis = 1 if module.kind in ("Conv", "BatchNorm") else len(value.shape) - 1
            sizes.setdefault(value, {})[axis] = module.sizes[0]
    return sizes


def _dtype(name: str) -> str:
    """A dtype as Keras' backend holds it: JAX has no 64 bits unless they are switched on."""
    import keras

    if str(keras.backend.backend()) != "jax" or name not in ("int64", "uint64"):
        return name
    import sys

    enabled = bool(sys.modules["jax"].config.jax_enable_x64)
    return name if enabled else name.replace("64", "32")


def native_input(step: Step) -> ir.Value:
    """The tensor that a native layer is called on."""
    (value,) = (value for value in step.inputs if value is not None)
    return value
