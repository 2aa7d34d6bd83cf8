"""What of a compiled graph becomes one Keras layer: a node, with the shape arithmetic that only it needs.

Values that hang on nothing but shapes are numpy while a layer runs and no tensors of a functional model; the steps
that make them run inside each layer that reads them. So do steps whose results have no known type.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bridge.ops.program import Program
from bridge.ops.steps import Step

if TYPE_CHECKING:
    import onnx_ir as ir

SHAPES = ("Shape", "Size")


@dataclass(frozen=True, slots=True, eq=False)
class Cluster:
    """The steps of one layer, in order; the last gives its outputs."""

    steps: tuple[Step, ...]
    inputs: tuple[ir.Value, ...]
    """Tensors that it takes."""
    parameters: tuple[ir.Value, ...]
    """Trainable constants that it reads."""
    outputs: tuple[ir.Value, ...]

    @property
    def node_names(self) -> Iterator[str]:
        """The names of all nodes that it runs, those of bodies too."""
        for step in self.steps:
            yield step.node.name
            for block in step.bodies.values():
                yield from (inner.node.name for inner in block.walk())


class Plan:
    """Which values of a program are tensors between layers, and the cluster of any step."""

    def __init__(self, program: Program, native: Collection[str]) -> None:
        """`native`: names of nodes that are layers of their own, whatever they read."""
        self._constants = program.constants
        self._parameters = set(program.parameter_values.values())
        self._makers: dict[ir.Value, tuple[int, Step]] = {}
        self._static: set[ir.Value] = set()
        for at, step in enumerate(program.block.steps):
            if step.node.name in native:
                continue
            shapes = step.node.op_type in SHAPES or self._only_shapes(step)
            self._static.update(step.outputs if shapes else ())
            if shapes or not all(is_typed(value) for value in step.outputs if value.uses() or value.is_graph_output()):
                self._makers.update((value, (at, step)) for value in step.outputs)

    def is_inlined(self, value: ir.Value) -> bool:
        """Whether `value` is no tensor between layers, but made again inside each that reads it."""
        return value in self._makers

    def is_static(self, value: ir.Value) -> bool:
        """Whether `value` hangs on shapes and constants only."""
        return value in self._static or value in self._constants

    @property
    def has_shapes(self) -> bool:
        """Whether anything hangs on the shapes of tensors."""
        return bool(self._static)

    def cluster(self, step: Step) -> Cluster:
        """`step` with what must run inside its layer."""
        return self._gathered(
            (step,), tuple(value for value in step.outputs if value.uses() or value.is_graph_output())
        )

    def cluster_of(self, value: ir.Value) -> Cluster:
        """The inlined `value`, or a constant, as a layer of its own."""
        made = self._makers.get(value)
        return self._gathered((made[1],) if made else (), (value,))

    def _gathered(self, steps: tuple[Step, ...], outputs: tuple[ir.Value, ...]) -> Cluster:
        inside: dict[int, Step] = {}
        inputs: dict[ir.Value, None] = {}
        parameters: dict[ir.Value, None] = {}
        pending = [value for step in steps for value in _reads(step)] or list(outputs)
        while pending:
            value = pending.pop(0)
            if value in self._parameters:
                parameters[value] = None
            elif value in self._makers:
                at, maker = self._makers[value]
                if at not in inside and maker not in steps:
                    inside[at] = maker
                    pending += _reads(maker)
            elif value not in self._constants:
                inputs[value] = None
        ordered = tuple(inside[at] for at in sorted(inside))
        return Cluster((*ordered, *steps), tuple(inputs), tuple(parameters), outputs)

    def _only_shapes(self, step: Step) -> bool:
        read = list(_reads(step))
        return bool(read) and not step.handler.native and all(self.is_static(value) for value in read)


def is_typed(value: ir.Value) -> bool:
    """Whether the element type and the rank of `value` are known."""
    return value.dtype is not None and value.shape is not None


def _reads(step: Step) -> Iterator[ir.Value]:
    yield from (value for value in (*step.inputs, *step.captures) if value is not None)
