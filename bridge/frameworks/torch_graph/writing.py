"""A compiled ONNX graph as a `torch.fx.Graph` over a tree of modules: one line of code a node."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import fx, nn

from bridge.frameworks.torch_graph import calls
from bridge.frameworks.torch_graph.facts import Call, Facts, surely_tensors
from bridge.frameworks.torch_graph.names import Path, clean_path, place, shortened, variable
from bridge.frameworks.torch_graph.operator import Constant, Operator
from bridge.frameworks.torch_graph.rules import call_of
from bridge.frameworks.torch_taken import Layers, Projected, Recurrent
from bridge.ops.native import NativeModule, Weight
from bridge.ops.program import Program
from bridge.ops.steps import Block, Step

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(slots=True)
class Places:
    """Where an imported module has what: dotted paths."""

    plain: dict[str, str] = field(default_factory=dict)
    """Parameters by the name of their initialiser."""
    natives: list[tuple[str, str, Weight]] = field(default_factory=list)
    """Initialiser, path of the parameter or buffer, and how it turned."""
    recurrent: dict[str, str] = field(default_factory=dict)
    """Layers by the name of their node."""
    projected: dict[str, Mapping[str, str]] = field(default_factory=dict)
    """The initialisers of each projected layer by block, by the layer's path."""
    kinds: dict[str, type[nn.Module]] = field(default_factory=dict)
    """The class of every native module by path."""


def written(program: Program, layers: Layers, reserved: Collection[str]) -> tuple[nn.Module, fx.Graph, Places]:
    """The tree of modules and the graph over it: `program` with `layers` in the place of their nodes."""
    root, places = nn.Module(), Places()
    writer = _Writer(program, layers, places)
    level = _Level(writer, program.block, root, "", reserved)
    level.place_all()
    for name in program.parameter_values:
        if name not in writer.views:
            value = nn.Parameter(torch.tensor(program.parameters[name]))
            places.plain[name] = place(root, clean_path(name), value, reserved)
    for value in writer.inputs:
        level.add_input(value, str(value.name))
    level.write()
    outputs = tuple(level.tensor(value) for value in program.block.outputs)
    level.graph.output(outputs[0] if len(outputs) == 1 else outputs)
    return root, level.graph, places


class _Writer:
    """What all levels of one import share."""

    def __init__(self, program: Program, layers: Layers, places: Places) -> None:
        self.layers, self.places = layers, places
        self.parameters = {value: name for name, value in program.parameter_values.items()}
        self.constants = {value: array for value, array in program.constants.items() if value not in self.parameters}
        self.built: dict[NativeModule, nn.Module] = {}
        self.views: dict[str, tuple[str, Weight]] = {}
        """Initialisers that native modules hold: path of the parameter, and how it turned."""
        self.inputs = [value for value in program.block.inputs if value not in program.constants]
        self.facts = Facts(self.constants, surely_tensors(program.block, {*self.inputs, *self.parameters}, layers))

    def module_of(self, step: Step, level_prefix: str, put: Callable[[nn.Module], str]) -> str | None:
        """The path of the native module that `step` calls, placed by `put`; None where it calls none."""
        name, layers, places = step.node.name, self.layers, self.places
        if name in layers.recurrent:
            path = put(layers.recurrent[name].module)
            places.recurrent[name] = level_prefix + path
            places.kinds[level_prefix + path] = type(layers.recurrent[name].module)
            return path
        if name in layers.projected:
            path = put(layers.projected[name].module)
            places.projected[level_prefix + path] = layers.projected[name].weights
            places.kinds[level_prefix + path] = nn.LSTM
            return path
        if name not in layers.native:
            return None
        native = layers.native[name]
        first = native.taken.module not in self.built
        module = self.built.setdefault(native.taken.module, native.built() if first else nn.Module())
        path = put(module)
        if first:
            places.kinds[level_prefix + path] = type(module)
            for own, weight in native.weights.items():
                full = f"{level_prefix}{path}.{own}"
                places.natives.append((str(weight.value.name), full, weight))
                self.views[str(weight.value.name)] = (full, weight)
        return path


class _Level:
    """One graph or subgraph being written."""

    def __init__(self, writer: _Writer, block: Block, owner: nn.Module, prefix: str, reserved: Collection[str] = ()
                 ) -> None:  # fmt: skip
        self.writer, self.block, self.owner, self.prefix, self.reserved = writer, block, owner, prefix, reserved
        self.graph = fx.Graph()
        self.known: dict[ir.Value, fx.Node] = {}
        self.paths: dict[int, str] = {}
        self.calls: dict[int, Call] = {}
        self.shells: dict[int, tuple[Operator, dict[str, _Level]]] = {}

    # ------------------------------------------------------------------ modules

    def place_all(self) -> None:
        """Put native modules, then operators, into the tree."""
        steps = dict(enumerate(self.block.steps))
        wanted = {
            at: self._wanted(step) for at, step in steps.items() if step.node.name not in self.writer.layers.merged
        }
        wanted = shortened(wanted, {at: step.node.op_type for at, step in steps.items()})
        shared: dict[int, str] = {}
        for at, path in wanted.items():
            found = self.writer.module_of(steps[at], self.prefix, partial(self._put, path, shared))
            if found is not None:
                self.paths[at] = found
        for at, path in wanted.items():
            if at in self.paths:
                continue
            call = call_of(steps[at], self.writer.facts)
            if call is not None:
                self.calls[at] = call
            else:
                self._place_operator(at, steps[at], path)

    def _wanted(self, step: Step) -> Path:
        layer = self.writer.layers.recurrent.get(step.node.name)
        return clean_path(step.node.name if layer is None else layer.name)

    def _put(self, path: Path, shared: dict[int, str], module: nn.Module) -> str:
        """Place a module once a level; nodes that share it call it by one path."""
        if id(module) not in shared:
            shared[id(module)] = place(self.owner, path, module, self.reserved)
        return shared[id(module)]

    def _place_operator(self, at: int, step: Step, path: Path) -> None:
        fixed, positions = {}, []
        for position, value in enumerate(step.inputs):
            if value is None:
                continue
            if value in self.writer.constants:
                fixed[position] = self.writer.constants[value]
            else:
                positions.append(position)
        outer = self._captured(step.captures)
        levels, bodies = {}, {}
        for name, block in step.bodies.items():
            inside = nn.Module()
            levels[name] = _Level(self.writer, block, inside, "", self.reserved)
            bodies[name] = (inside, [outer.index(value) for value in self._captured(block.captures)])
        shell = Operator(step, fixed, positions, bodies)
        self.paths[at] = place(self.owner, path, shell, self.reserved)
        for name, level in levels.items():
            level.prefix = f"{self.prefix}{self.paths[at]}.{name}."
            level.place_all()
        self.shells[at] = (shell, levels)

    def _captured(self, values: Sequence[ir.Value]) -> list[ir.Value]:
        return [value for value in values if value not in self.writer.constants]

    # ------------------------------------------------------------------ code

    def add_input(self, value: ir.Value, name: str) -> None:
        """One more argument of forward."""
        node = self.graph.placeholder(variable(name))
        node.target = node.name
        self.known[value] = node

    def write(self) -> None:
        """Write all steps."""
        for at, step in enumerate(self.block.steps):
            self._write_step(at, step)

    def written_body(self) -> fx.GraphModule:
        """A subgraph as a module: its inputs and what it captures in, a tuple out."""
        for value in (*self.block.inputs, *self._captured(self.block.captures)):
            self.add_input(value, str(value.name))
        self.write()
        self.graph.output(tuple(self.value(value) for value in self.block.outputs))
        return fx.GraphModule(self.owner, self.graph, "Subgraph")

    def _write_step(self, at: int, step: Step) -> None:
        layers = self.writer.layers
        if step.node.name in layers.merged:
            self.known[step.outputs[0]] = self.value(step.inputs[0])  # the output of the layer before
            return
        label = variable(self.paths.get(at) or ".".join(self._wanted(step)))
        if at in self.calls:
            results = [self._call(label, self.calls[at])]
        elif step.node.name in layers.recurrent:
            results = self._unpacked(self._recurrent(label, at, step, layers.recurrent[step.node.name]), step)
        elif step.node.name in layers.projected:
            results = self._unpacked(self._projected(label, at, step, layers.projected[step.node.name]), step)
        elif step.node.name in layers.native:
            results = [self._native(label, at, step)]
        else:
            results = self._operator(label, at, step)
        self.known.update(
            (output, node) for output, node in zip(step.outputs, results, strict=False) if node is not None
        )

    def _operator(self, label: str, at: int, step: Step) -> list[fx.Node | None]:
        shell, levels = self.shells[at]
        for name, level in levels.items():
            setattr(shell, name, level.written_body())
        given = [self.value(step.inputs[position]) for position in shell.positions]
        outer = [self.value(value) for value in self._captured(step.captures)]
        node = self._node("call_module", self.paths[at], (*given, *outer), {}, label)
        return [node] if len(step.outputs) == 1 else self._unpacked(node, step)

    def _native(self, label: str, at: int, step: Step) -> fx.Node:
        native = self.writer.layers.native[step.node.name]
        x = self._placed(step.inputs[0], f"{self.paths[at]}.weight")
        if native.taken.module.kind == "Embed":
            x = self._node("call_function", calls.from_the_end, (x, native.taken.module.sizes[0]), {}, "indices")
        if native.pads:
            x = self._node("call_function", nn.functional.pad, (x, native.pads), {}, "padded")
        return self._node("call_module", self.paths[at], (x,), {}, label)

    def _recurrent(self, label: str, at: int, step: Step, layer: Recurrent) -> fx.Node:
        x, *others = (None if value is None else self.value(value) for value in step.inputs)
        direct = layer.plain and not any(others) and step.inputs[0] in self.writer.facts.tensors
        if direct:
            result = self._node("call_module", self.paths[at], (x,), {}, label)
            return self._node("call_function", calls.by_direction, (result, layer.directions), {}, label)
        while others and others[-1] is None:
            others.pop()
        options = {name: True for name in ("reverse", "batch_major") if getattr(layer, name)}
        rnn = self.graph.create_node("get_attr", self.paths[at], (), {}, f"{label}_layer")
        return self._node("call_function", calls.recurrent, (rnn, x, *others), options, label)

    def _projected(self, label: str, at: int, step: Step, layer: Projected) -> fx.Node:
        rnn = self.graph.create_node("get_attr", self.paths[at], (), {}, f"{label}_layer")
        given = [self.value(value) for value in step.inputs if value is not None]
        return self._node("call_function", calls.projected, (rnn, *given),
                          {"reverse": True} if layer.reverse else {}, label)  # fmt: skip

    def _unpacked(self, node: fx.Node, step: Step) -> list[fx.Node | None]:
        """The outputs of a node that gives several, those that are read."""
        read = [bool(value.uses()) or value.is_graph_output() for value in step.outputs]
        names = [variable(str(value.name)) for value in step.outputs]
        return [self._node("call_function", operator.getitem, (node, at), {}, name) if used else None
                for at, (name, used) in enumerate(zip(names, read, strict=True))]  # fmt: skip

    def _call(self, label: str, call: Call) -> fx.Node:
        args, kwargs = self._arguments(call.args), self._arguments(call.kwargs)
        node: fx.Node = self._node("call_function", call.target, args, kwargs, label)
        return node

    def _arguments(self, value: Any) -> Any:
        """Arguments with the graph's values as what they are in the code."""
        if isinstance(value, tuple):
            return tuple(map(self._arguments, value))
        if isinstance(value, Mapping):
            return {name: self._arguments(each) for name, each in value.items()}
        return self.value(value) if hasattr(value, "producer") else value

    def _node(self, kind: str, target: Any, args: Any, kwargs: Any, name: str) -> Any:
        return self.graph.create_node(kind, target, tuple(args), kwargs, name)

    def value(self, value: Any) -> Any:
        """A value of the graph in the code: a variable, a parameter, a constant."""
        if value not in self.known:
            self.known[value] = self._constant(value)
        return self.known[value]

    def tensor(self, value: ir.Value) -> fx.Node:
        """The same, as a tensor for sure."""
        node: fx.Node = self.value(value)
        if value in self.writer.facts.tensors:
            return node
        converted: fx.Node = self._node("call_function", calls.as_tensor, (node,), {}, variable(str(value.name)))
        return converted

    def _placed(self, value: Any, weight: str) -> Any:
        """The same, on the device of a weight where it was none."""
        if value in self.writer.facts.tensors:
            return self.value(value)
        like = self.graph.create_node("get_attr", weight, (), {}, "like")
        return self._node("call_function", calls.as_tensor, (self.value(value), like), {}, "placed")

    def _constant(self, value: ir.Value) -> fx.Node:
        writer, name = self.writer, self.writer.parameters.get(value)
        if name is None:
            path = place(self.owner, clean_path(str(value.name)), Constant(writer.constants[value]), self.reserved)
            return self.graph.create_node("call_module", path, (), {}, variable(path))
        path = writer.places.plain.get(name) or writer.views[name][0]
        node = self.graph.create_node("get_attr", path, (), {}, variable(path))
        label = variable(name)
        turned = name in writer.views and writer.views[name][1]
        if turned and not turned.axes:
            return cast("fx.Node", self._node("call_function", torch.reshape, (node, turned.array.shape), {}, label))
        if turned and turned.axes != tuple(range(turned.array.ndim)):
            order = tuple(int(axis) for axis in np.argsort(turned.axes))
            return cast("fx.Node", self._node("call_function", torch.permute, (node, order), {}, label))
        return node
