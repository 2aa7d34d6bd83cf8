"""Functions inlined: those that a model brings, and those by which ONNX itself defines operators."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from bridge.errors import BadInput
from bridge.graph.typed import with_types

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import onnx
    import onnx_ir as ir

MOST_NODES: Final = 10**6
"""After inlining: functions that call functions twice each grow by powers of two."""

DEEPEST: Final = 8
"""Operators defined by operators that are defined by others in turn; ONNX's own need three rounds."""


def inline(model: ir.Model) -> ir.Model:
    """A copy of the model with the bodies of its functions in place of their calls.

    Raises:
        BadInput: too many nodes, or functions that cannot be inlined.
    """
    from onnx_ir.passes import PassError, PreconditionError
    from onnx_ir.passes.common import InlinePass

    if _inlined_size(model) > MOST_NODES:
        raise BadInput("the functions of the model inline into too many nodes", where="fold",
                       expected=f"at most {MOST_NODES}")  # fmt: skip
    try:
        return InlinePass()(model.clone()).model
    except (PassError, PreconditionError, ValueError) as error:
        cause = error.__cause__ or error
        raise BadInput("functions that the model holds cannot be inlined", where="fold", got=str(cause)[:200]
                       ) from error  # fmt: skip


def expand(model: ir.Model, carried: Callable[[ir.Node], bool]) -> ir.Model:
    """The model with every node that is not `carried` replaced by its body, where it is a function.

    The function is one of the model, or the definition that ONNX gives the operator in terms of others. The nodes of
    such a body note their own opset as `version`. A model that needs none of this is returned itself.
    """
    if any(node.op_identifier() in model.functions for node in model.graph.all_nodes()):
        model = inline(model)
    for _ in range(DEEPEST):
        waiting = [node for node in model.graph.all_nodes() if not carried(node) and _versions(node, model)]
        if not waiting:
            return model
        if any(value is not None and value.type is None for node in waiting for value in node.inputs):
            model = with_types(model)
        model = model.clone()
        for at, node in enumerate(list(model.graph.all_nodes())):
            if not carried(node) and (versions := _versions(node, model)):
                _define(node, model, max(versions), f"defined{at}")
        model = inline(model)
    return model


def _opset(node: ir.Node, model: ir.Model) -> int:
    return node.version or model.opset_imports.get("", 0)


def _schema(node: ir.Node, model: ir.Model) -> Any:
    """The OpSchema, whose stubs lack what is said of functions; None for operators that are not ONNX's own."""
    import onnx

    opset = _opset(node, model)
    known = node.domain == "" and onnx.defs.has(node.op_type, opset, "")
    return onnx.defs.get_schema(node.op_type, opset, "") if known else None


def _versions(node: ir.Node, model: ir.Model) -> list[int]:
    """The opsets for which ONNX defines the node by other operators, up to the model's own."""
    schema = _schema(node, model)
    if schema is None:
        return []
    versions = [*schema.function_opset_versions, *schema.context_dependent_function_opset_versions]
    return [version for version in versions if version <= _opset(node, model)]


def _define(node: ir.Node, model: ir.Model, version: int, overload: str) -> None:
    """Make the node a call of a function of the model, which has the body that ONNX gives it."""
    import onnx
    from onnx_ir import serde

    schema = _schema(node, model)
    if schema is None:
        return
    if version in schema.function_opset_versions:
        body = schema.get_function_with_opset_version(version)
    else:
        types = [onnx.TypeProto() if value is None else serde.serialize_value(value).type for value in node.inputs]
        body = schema.get_context_dependent_function_with_opset_version(
            version, serde.serialize_node(node).SerializeToString(), [entry.SerializeToString() for entry in types]
        )
    proto = onnx.FunctionProto()
    proto.ParseFromString(body if isinstance(body, bytes) else body.SerializeToString())
    _close(proto, len(node.outputs))
    opsets = {entry.domain: entry.version for entry in proto.opset_import}
    proto.domain, proto.name, proto.overload = "", node.op_type, overload
    function = serde.deserialize_function(proto)
    for inner in function.all_nodes():
        inner.version = opsets.get(inner.domain, version)
    function.opset_imports.clear()
    function.opset_imports.update(model.opset_imports)
    _give_defaults(function, schema)
    node.overload = overload
    model.functions[function.identifier()] = function


def _close(proto: onnx.FunctionProto, outputs: int) -> None:
    """ONNX leaves out of a body what the call does not ask for: those outputs become a constant that nothing reads."""
    import onnx

    del proto.output[outputs:]
    made = {*proto.input, *(name for node in proto.node for name in node.output)}
    for name in proto.output:
        if name not in made:
            proto.node.append(onnx.helper.make_node("Constant", [], [name], value_float=0.0))


def _give_defaults(function: ir.Function, schema: onnx.defs.OpSchema) -> None:
    """Attributes that the body refers to, and a call may leave out, have the defaults of the schema."""
    from onnx_ir import serde

    for name, attribute in schema.attributes.items():
        known = function.attributes.get(name)
        if attribute.default_value.name and (known is None or known.value is None):
            function.attributes[name] = serde.deserialize_attribute(attribute.default_value)


def _inlined_size(model: ir.Model) -> int:
    sizes: dict[tuple[str, str, str], int] = {}

    def size(nodes: Iterator[ir.Node]) -> int:
        total = 0
        for node in nodes:
            key = node.op_identifier()
            if key in model.functions and key not in sizes:
                sizes[key] = 0  # what a call inside itself counts: the loader refuses such models
                sizes[key] = size(model.functions[key].all_nodes())
            total += 1 + sizes.get(key, 0)
        return total

    return size(model.graph.all_nodes())
