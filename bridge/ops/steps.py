"""A graph as steps: each node resolved to its handler once, with the attributes it declares and nothing else."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from bridge.errors import BadInput, Unsupported, within
from bridge.ops.backend import Array, Backend, is_static
from bridge.ops.node import Body, Node
from bridge.ops.registry import Handler
from bridge.ops.sizes import has_symbols

if TYPE_CHECKING:
    import onnx_ir as ir

Scope: TypeAlias = "dict[ir.Value, Array]"
"""What is known so far; Values are keys by identity, so names may repeat in sibling branches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """What one node computes, apart from the graph it stands in: on its backend, or on numpy where all is static."""

    node: Node
    static_node: Node
    handler: Handler
    attributes: Mapping[str, Any]

    def run(
        self,
        values: Sequence[Array | None],
        captured: Sequence[Array] = (),
        bodies: Mapping[str, Body] = MappingProxyType({}),
        sources: Callable[[int], Collection[str]] = lambda _: (),
    ) -> tuple[Array, ...]:
        """The outputs.

        Args:
            values: the inputs, None for those left out.
            captured: what the bodies read beside their inputs.
            bodies: the subgraphs.
            sources: names of the graph inputs on which input number k hangs, for messages.
        """
        node, placed = self._placed(values, captured, sources)
        try:
            results = self.handler.function(node, *placed, **self.attributes, **bodies)
        except Exception as error:
            error.add_note(f"while running {self.node.where}")
            raise
        results = results if isinstance(results, tuple) else (results,)
        return tuple(map(node.backend.asarray, results)) if node.backend.name == "numpy" else results

    def _placed(
        self, values: Sequence[Array | None], captured: Sequence[Array], sources: Callable[[int], Collection[str]]
    ) -> tuple[Node, Sequence[Array | None]]:
        """The node to run as, and the inputs where it wants them: static ones as numpy, the rest on its backend."""
        free = [value for at, value in enumerate(values) if not self.handler.is_static(at)]
        like = next((value for value in [*free, *captured] if value is not None and not is_static(value)), None)
        making = any(has_symbols(value) for at, value in enumerate(values) if self.handler.is_static(at))
        if like is None and not self.handler.native and not making:
            return self.static_node, [self._known(at, value, sources) for at, value in enumerate(values)]
        if self.handler.label.raw:
            return self.node, values
        backend = self.node.backend
        return self.node, [
            value if value is None else
            self._known(at, value, sources) if self.handler.is_static(at) else
            backend.asarray(value, like=like) if is_static(value) else value
            for at, value in enumerate(values)
        ]  # fmt: skip

    def _known(self, at: int, value: Array | None, sources: Callable[[int], Collection[str]]) -> np.ndarray | None:
        if value is None or is_static(value):
            return value
        known = self.node.backend.concrete(value)
        if known is not None:
            return known
        names = sorted(sources(at))
        fixed = ", ".join(f"{name!r}: value" for name in names)
        reason = self.handler.label.reason
        raise Unsupported(
            f"input {self.handler.inputs[at]!r} must be known while tracing{f' ({reason})' if reason else ''}, "
            f"and depends on the values of {', '.join(map(repr, names)) or 'a graph input'}",
            where=self.node.where,
            do=f"fix it at import: static={{{fixed}}}, or call the model without jit",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One node in its graph: what it computes, from which values to which."""

    operation: Operation
    inputs: tuple[ir.Value | None, ...]
    outputs: tuple[ir.Value, ...]
    bodies: Mapping[str, Block]
    captures: tuple[ir.Value, ...]
    """Outer values that the bodies read."""

    @property
    def handler(self) -> Handler:
        """What carries the operator."""
        return self.operation.handler

    @property
    def node(self) -> Node:
        """The node on its backend."""
        return self.operation.node

    @property
    def attributes(self) -> Mapping[str, Any]:
        """The node's attributes, subgraphs left out."""
        return self.operation.attributes

    def run(self, scope: Scope) -> None:
        """Compute the outputs and put them into `scope`."""
        values = [None if value is None else scope[value] for value in self.inputs]
        bodies = {name: block.bind(scope) for name, block in self.bodies.items()}
        captured = [scope[value] for value in self.captures]
        results = self.operation.run(values, captured, bodies, lambda at: graph_inputs(self.inputs[at]))
        scope.update(zip(self.outputs, results, strict=False))


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A graph or subgraph: inputs, steps in order, outputs, and the outer values it reads."""

    inputs: tuple[ir.Value, ...]
    outputs: tuple[ir.Value, ...]
    steps: tuple[Step, ...]
    captures: tuple[ir.Value, ...]

    @property
    def declared(self) -> tuple[tuple[int | None, tuple[int | None, ...] | None], ...]:
        """Element type and sizes of the outputs, as `Body` has them."""
        return tuple(map(_declared, self.outputs))

    def run(self, scope: Scope) -> tuple[Array, ...]:
        """Run every step in `scope`, which holds the inputs and captures; the outputs."""
        for step in self.steps:
            step.run(scope)
        return tuple(scope[value] for value in self.outputs)

    def bind(self, outer: Scope) -> Body:
        """This block as a function of its inputs, reading its captures from `outer`."""

        def run(*values: Array) -> tuple[Array, ...]:
            captured = {value: outer[value] for value in self.captures}
            return self.run({**captured, **dict(zip(self.inputs, values, strict=True))})

        return Body(run=run, declared=self.declared)

    def walk(self) -> Iterator[Step]:
        """Every step, those of bodies too."""
        for step in self.steps:
            yield step
            for block in step.bodies.values():
                yield from block.walk()


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiler:
    """Turns graphs into Blocks; the choice of handler is the caller's, so that native layers can take nodes over."""

    backend: Backend
    static_backend: Backend
    choose: Callable[[ir.Node], tuple[Handler, Sequence[int]] | None]
    """The handler of a node with the positions of the inputs it takes; None where nothing carries it."""
    constants: dict[ir.Value, np.ndarray] = field(default_factory=dict)
    """Initialisers and Constant nodes of every graph compiled, filled on the way."""

    def block(self, graph: ir.Graph) -> Block:
        """Compile `graph` and the subgraphs in it."""
        for value in graph.initializers.values():
            if value.const_value is None:
                raise BadInput("an initialiser without a value", where=value.name or "graph")
            self.constants[value] = value.const_value.numpy()
        steps = []
        for node in graph:
            step = self._step(node)
            if node.op_type == "Constant" and not step.inputs:
                self.constants[step.outputs[0]] = step.handler.function(step.operation.static_node, **step.attributes)
            else:
                steps.append(step)
        own = {*graph.inputs, *(output for step in steps for output in step.outputs)}
        read = [value for step in steps for value in (*step.inputs, *step.captures) if value is not None]
        captures = tuple(dict.fromkeys(value for value in [*read, *graph.outputs] if value not in own))
        return Block(inputs=tuple(graph.inputs), outputs=tuple(graph.outputs), steps=tuple(steps), captures=captures)

    def _step(self, node: ir.Node) -> Step:
        chosen = self.choose(node)
        if chosen is None:
            raise Unsupported("is not carried", where=f"{node.op_type} node {node_name(node)!r}")
        handler, taken = chosen
        given = list(node.inputs)
        inputs = tuple(given[at] if at < len(given) else None for at in taken)
        attributes, bodies = self._attributes(node, handler)
        blocks = {name: self.block(graph) for name, graph in bodies.items()}
        record = {"name": node_name(node), "op_type": node.op_type, "outputs": len(node.outputs)}
        operation = Operation(
            node=Node(backend=self.backend, **record),  # type: ignore[arg-type]
            static_node=Node(backend=self.static_backend, **record),  # type: ignore[arg-type]
            handler=handler,
            attributes=attributes,
        )
        return Step(
            operation=operation,
            inputs=inputs,
            outputs=tuple(node.outputs),
            bodies=blocks,
            captures=tuple(dict.fromkeys(value for block in blocks.values() for value in block.captures)),
        )

    def _attributes(self, node: ir.Node, handler: Handler) -> tuple[dict[str, Any], dict[str, ir.Graph]]:
        if handler.native:
            return {}, {}
        where = f"{node.op_type} node {node_name(node)!r}"
        values = {name: _plain(attribute.value) for name, attribute in node.attributes.items()}
        unknown = sorted(set(values) - set(handler.attributes))
        if unknown:
            raise Unsupported("attributes that are not carried", where=where, got=", ".join(unknown),
                              expected=", ".join(handler.attributes) or "none")  # fmt: skip
        required = {name for name, default in handler.attributes.items() if default is inspect.Parameter.empty}
        if missing := sorted(required - set(values)):
            raise BadInput("required attributes are missing", where=where, got=", ".join(missing))
        if handler.label.check is not None:
            with within(where):
                handler.label.check({**handler.attributes, **values})
        graphs = {name: value for name, value in values.items() if hasattr(value, "initializers")}
        return {name: value for name, value in values.items() if name not in graphs}, graphs


def node_name(node: ir.Node) -> str:
    """The node's name, or its first output's where it has none."""
    return node.name or next((value.name for value in node.outputs if value.name), "") or node.op_type


def graph_inputs(value: ir.Value | None) -> set[str]:
    """Names of the graph inputs that the numbers of `value` depend on; what Shape reads is not among them."""
    found: set[str] = set()
    seen: set[ir.Value] = set()
    pending = [value]
    while pending:
        value = pending.pop()
        if value is None or value in seen:
            continue
        seen.add(value)
        producer = value.producer()
        if producer is None:
            found |= {value.name or ""} if value.is_graph_input() else set()
        elif producer.op_type not in ("Shape", "Size"):
            pending += list(producer.inputs)
    return found


def _declared(value: ir.Value) -> tuple[int | None, tuple[int | None, ...] | None]:
    sizes = None if value.shape is None else tuple(size if isinstance(size, int) else None for size in value.shape)
    return None if value.dtype is None else int(value.dtype), sizes


def _plain(value: Any) -> Any:
    """An attribute's value as Python or numpy; a graph stays a graph."""
    if hasattr(value, "numpy"):
        return value.numpy()
    return tuple(value) if isinstance(value, list) else value
