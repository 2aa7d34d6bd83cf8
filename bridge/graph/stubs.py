"""Stubs: opaque nodes that a framework's own exporter writes where bridge puts a recurrent layer afterwards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from bridge.errors import UsageError
from bridge.graph.writer import Writer

if TYPE_CHECKING:
    import onnx_ir as ir

DOMAIN: Final = "bridge.stub"
"""The operator domain of stubs; no model that leaves bridge has a node of it."""

KINDS: Final = ("float", "double", "float16", "bfloat16", "int64", "int32", "bool")
"""The element types that stubs take and give."""

Written = Sequence["ir.Value | None"]
WriteStub = Callable[[Writer, "ir.Node"], Written]


def stub_recorder(name: str, inputs: Sequence[str], attributes: Mapping[str, str], outputs: int) -> Callable[..., Any]:
    """What torch.onnx calls to translate one operator: it records one node `name` of the domain of stubs.

    Args:
        name: of the operator; its schema takes `inputs` (all optional) and gives `outputs` values.
        inputs: names of the tensors, which come first among the operator's arguments.
        attributes: names, in the order of the arguments after the tensors, and kinds ("INT", "FLOAT").
        outputs: how many.
    """
    import onnx
    from onnx.defs import OpSchema
    from onnxscript.values import Op, Opset

    kinds = OpSchema.AttrType
    types = [f"tensor({kind})" for kind in KINDS]
    schema = onnx.defs.OpSchema(
        name, DOMAIN, 1,
        inputs=[OpSchema.FormalParameter(label, f"T{at}", param_option=OpSchema.FormalParameterOption.Optional)
                for at, label in enumerate(inputs)],
        outputs=[OpSchema.FormalParameter(f"y{at}", f"Y{at}") for at in range(outputs)],
        type_constraints=[(f"T{at}", types, "") for at in range(len(inputs))]
        + [(f"Y{at}", types, "") for at in range(outputs)],
        attributes=[OpSchema.Attribute(label, getattr(kinds, kind), required=False)
                    for label, kind in attributes.items()],
    )  # fmt: skip
    operator = Op(Opset(DOMAIN, 1), name, op_schema=schema)

    def record(*arguments: Any) -> Any:
        tensors, values = arguments[: len(inputs)], arguments[len(inputs) :]
        return operator(*tensors, **dict(zip(attributes, values, strict=True)))

    return record


def collection_recorder() -> Callable[..., Any]:
    """The same for an operator that takes a list of tensors, a size and an axis: the stub `Collect`."""
    import onnx
    from onnx.defs import OpSchema
    from onnxscript.values import Op, Opset

    types = [f"tensor({kind})" for kind in KINDS]
    values = OpSchema.FormalParameter("values", "T", param_option=OpSchema.FormalParameterOption.Variadic)
    schema = onnx.defs.OpSchema(
        "Collect", DOMAIN, 1, inputs=[values], outputs=[OpSchema.FormalParameter("y", "T")],
        type_constraints=[("T", types, "")],
        attributes=[OpSchema.Attribute("axis", OpSchema.AttrType.INT, required=False)],
    )  # fmt: skip
    operator = Op(Opset(DOMAIN, 1), "Collect", op_schema=schema)

    def record(values: Any, _total: Any, axis: int) -> Any:
        return operator(*values, axis=axis)

    return record


def splice(model: ir.Model, opset: int, dtype: str, write: WriteStub) -> None:
    """Put what `write(writer, stub)` writes in the place of every stub of `model`, in graph order.

    `write` returns one value for each output of the stub, None for one that only stubs read. All stubs share one
    Writer: its constants are shared, its graph inputs become inputs of the model, its outputs outputs. Stubs in
    control-flow bodies stay there.

    Raises:
        UsageError: None for an output that more than stubs read.
    """
    w = Writer(opset, dtype, str(model.graph.name or "bridge"))
    _take_names(w, model)
    stubs = [node for node in model.graph.all_nodes() if node.domain == DOMAIN]
    for node in stubs:
        results = write(w, node)
        _move(w, node)
        for old, new in zip(node.outputs, results, strict=True):
            _replace(old, new)
    for node in reversed(stubs):
        if node.graph is not None:
            node.graph.remove(node, safe=True)
    for value in list(w.graph.initializers.values()):
        w.graph.initializers.pop(str(value.name))
        model.graph.register_initializer(value)
    for ours, theirs in ((w.graph.inputs, model.graph.inputs), (w.graph.outputs, model.graph.outputs)):
        taken = list(ours)
        ours.clear()
        theirs.extend(taken)
    model.opset_imports.pop(DOMAIN, None)


def read_by_others(value: ir.Value) -> bool:
    """Whether anything but stubs reads `value`."""
    return value.is_graph_output() or any(use.node.domain != DOMAIN for use in value.uses())


def _take_names(w: Writer, model: ir.Model) -> None:
    """Let the Writer know every name of the model, so that what it writes is new."""
    values, nodes = w.names
    for graph in model.graphs():
        for value in (*graph.inputs, *graph.initializers.values()):
            values.fresh(str(value.name))
    for node in model.graph.all_nodes():
        nodes.fresh(str(node.name))
        for value in node.outputs:
            values.fresh(str(value.name))


def _move(w: Writer, stub: ir.Node) -> None:
    written = list(w.graph)
    w.graph.remove(written)
    if stub.graph is not None:
        stub.graph.insert_before(stub, written)


def _replace(old: ir.Value, new: ir.Value | None) -> None:
    from onnx_ir.convenience import replace_all_uses_with

    if new is None:
        if read_by_others(old):
            raise UsageError("an output of a stub is read and was not written", where=str(old.name))
        return
    if old.shape is not None:
        new.shape = old.shape if new.shape is None else _merged(new.shape, old.shape)
    replace_all_uses_with(old, new, replace_graph_outputs=True)


def _merged(new: ir.Shape, old: ir.Shape) -> ir.Shape:
    import onnx_ir as ir

    if len(new) != len(old):
        return new
    return ir.Shape([theirs if not isinstance(own, int) and own.value is None else own
                     for own, theirs in zip(new, old, strict=True)])  # fmt: skip
