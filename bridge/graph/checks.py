"""Is a ModelProto sound enough to be read? Checked on the message, before graphs are built or weights allocated."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from bridge.errors import BadInput, Unsupported
from bridge.graph.tensor_checks import check_tensor

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import onnx

DEEPEST: Final = 32
"""Graphs within graphs: protobuf parses 33 levels. silero-vad, the deepest real model at hand, has 4."""

ONNX_DOMAINS: Final = ("", "ai.onnx")
"""Both names of the domain of ONNX's own operators. Source: onnx/version_converter/convert.h (onnx 1.23.2)."""

LONGEST_CHAIN: Final = 64
"""Functions in a row, each called by the one before: inlining recurses once for each. An exporter that makes a function
of every module comes to the depth of the model."""

TEXT_OR_MESSAGE: Final = frozenset({9, 11})
"""FieldDescriptor.TYPE_STRING and TYPE_MESSAGE: the fields that hold text, and those that may hold it deeper down."""

DAMAGED: Final = "the file is damaged or hostile: get it again from its source"


@dataclass(slots=True)
class Scope:
    """The value names of one graph, and through `outer` those around it."""

    known: set[str]
    """Defined before the node under check."""
    later: set[str]
    """Defined by a node further down."""
    outer: Scope | None = None

    def find(self, name: str) -> bool | None:
        """True where `name` is known, False where it comes later, None where nobody defines it."""
        scope: Scope | None = self
        while scope is not None:
            if name in scope.known:
                return True
            if name in scope.later:
                return False
            scope = scope.outer
        return None


@dataclass(slots=True)
class ModelCheck:
    """One walk over a model."""

    where: str
    """What the messages name: the path, or "ModelProto"."""
    unsorted: bool = False
    """Some node stands before a node that it reads: legal nowhere, but harmless unless there is a cycle."""
    calls: dict[tuple[str, str, str], set[tuple[str, str, str]]] = field(default_factory=dict)
    """Which function calls which."""

    def run(self, model: onnx.ModelProto) -> None:
        """Check everything that hangs on `model`.

        Raises:
            BadInput: no ONNX model; tensors, names, nesting or functions that cannot be right.
            Unsupported: sparse tensors, a graph as an attribute of a function.
        """
        if not model.HasField("graph") or model.ir_version < 1:
            raise BadInput("this is no ONNX model", where=self.where, expected="a ModelProto with a graph",
                           do="check that the file is complete and really ONNX")  # fmt: skip
        _check_text(model, self.where)
        domains = [entry.domain for entry in model.opset_import]
        versions = {entry.version for entry in model.opset_import if entry.domain in ONNX_DOMAINS}
        if not domains or len(set(domains)) != len(domains) or len(versions) > 1:
            raise BadInput("the operator sets are missing or repeated", where=self.where, got=domains, do=DAMAGED)
        for function in model.functions:
            key = (function.domain, function.name, function.overload)
            if key in self.calls:
                raise BadInput("two functions of one name", where=self.where, got=key, do=DAMAGED)
            self.calls[key] = set()
        for function in model.functions:
            self._function(function)
        self._graph(model.graph, None, 0, None)
        self._refuse_long_chains()

    def _graph(self, graph: onnx.GraphProto, outer: Scope | None, depth: int, owner: set[tuple[str, str, str]] | None
               ) -> None:  # fmt: skip
        where = f"{self.where}, graph {graph.name!r}"
        if depth > DEEPEST:
            raise BadInput(
                "graphs are nested too deeply", where=where, expected=f"at most {DEEPEST} levels", do=DAMAGED
            )
        if len(graph.sparse_initializer):
            raise Unsupported("sparse initialisers are not read", where=where, do="store the weights as dense tensors")
        inputs = [value.name for value in graph.input]
        initializers = [tensor.name for tensor in graph.initializer]
        for tensor in graph.initializer:
            check_tensor(tensor, self.where)
        _refuse_repeats(inputs, "graph inputs", where)
        _refuse_repeats(initializers, "initialisers", where)
        produced = [name for node in graph.node for name in node.output if name]
        _refuse_repeats([*dict.fromkeys([*inputs, *initializers]), *produced], "values", where)
        scope = Scope({*inputs, *initializers}, set(produced), outer)
        self._nodes(graph.node, scope, depth, where, owner)
        self._outputs([value.name for value in graph.output], scope, where)

    def _function(self, function: onnx.FunctionProto) -> None:
        where = f"{self.where}, function {function.domain}::{function.name}"
        produced = [name for node in function.node for name in node.output if name]
        _refuse_repeats([*function.input, *produced], "values", where)
        scope = Scope(set(function.input), set(produced))
        owner = self.calls[function.domain, function.name, function.overload]
        self._nodes(function.node, scope, 0, where, owner)
        self._outputs(function.output, scope, where)

    def _nodes(self, nodes: Iterable[onnx.NodeProto], scope: Scope, depth: int, where: str,
               owner: set[tuple[str, str, str]] | None) -> None:  # fmt: skip
        for node in nodes:
            here = f"{where}, node {node.name!r} ({node.op_type})"
            for name in node.input:
                self._see(name, scope, here)
            _refuse_repeats([attribute.name for attribute in node.attribute], "attributes", here)
            for attribute in node.attribute:
                self._attribute(attribute, scope, depth, here, owner)
            called = (node.domain, node.op_type, node.overload)
            if owner is not None and called in self.calls:
                owner.add(called)
            scope.known.update(node.output)
            scope.later.difference_update(node.output)

    def _attribute(self, attribute: onnx.AttributeProto, scope: Scope, depth: int, where: str,
                   owner: set[tuple[str, str, str]] | None) -> None:  # fmt: skip
        if attribute.HasField("sparse_tensor") or len(attribute.sparse_tensors):
            raise Unsupported("sparse tensors are not read", where=where)
        if attribute.ref_attr_name and attribute.type in (attribute.GRAPH, attribute.GRAPHS):
            raise Unsupported("a function takes a graph as an attribute, which is not read", where=where,
                              got=attribute.ref_attr_name, do="inline the functions before")  # fmt: skip
        for tensor in [*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors]:
            check_tensor(tensor, where)
        for graph in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
            self._graph(graph, scope, depth + 1, owner)

    def _see(self, name: str, scope: Scope, where: str) -> None:
        found = scope.find(name) if name else True
        if found is None:
            raise BadInput(f"the input {name!r} is defined nowhere", where=where, do=DAMAGED)
        self.unsorted |= not found

    def _outputs(self, names: Sequence[str], scope: Scope, where: str) -> None:
        for name in names:
            if scope.find(name) is None:
                raise BadInput(f"the output {name!r} is defined nowhere", where=where, do=DAMAGED)

    def _refuse_long_chains(self) -> None:
        # Functions without calls go away, round by round; what is left calls itself, or stands too far up.
        left = {key: set(called) for key, called in self.calls.items()}
        for _ in range(LONGEST_CHAIN):
            leaves = {key for key, called in left.items() if not called}
            left = {key: called - leaves for key, called in left.items() if called}
        if left:
            raise BadInput("functions that call themselves, or one another too deeply", where=self.where,
                           got=sorted(left)[:5], expected=f"at most {LONGEST_CHAIN} in a row", do=DAMAGED)  # fmt: skip


def _check_text(model: onnx.ModelProto, where: str) -> None:
    # Protobuf hands a string that is no UTF-8 over as bytes, and names would no longer be names.
    import onnx

    waiting: list[Any] = [model]
    while waiting:
        message = waiting.pop()
        if isinstance(message, onnx.TensorProto):  # ListFields would copy the weights
            fields: list[Any] = [message.name, message.doc_string, message.external_data, message.metadata_props]
        else:
            fields = [value for field, value in message.ListFields() if field.type in TEXT_OR_MESSAGE]
        for value in fields:
            entries = [value] if isinstance(value, str | bytes) or hasattr(value, "ListFields") else value
            if any(isinstance(entry, bytes) for entry in entries):
                raise BadInput("a name or a text is not UTF-8", where=where, got=repr(value)[:80], do=DAMAGED)
            waiting += [entry for entry in entries if not isinstance(entry, str)]


def _refuse_repeats(names: Sequence[str], what: str, where: str) -> None:
    if len(set(names)) != len(names):
        repeated = [name for name, count in Counter(names).items() if count > 1]
        raise BadInput(f"{what} of one name", where=where, got=", ".join(map(repr, repeated[:5])), do=DAMAGED)
