"""One node for calls of one recurrent layer on the same inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridge.graph.nodes import is_recurrent

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx_ir as ir


def merge_equal_calls(model: ir.Model) -> bool:
    """Make one of recurrent nodes with the same inputs and attributes, whichever outputs each of them names.

    Says whether there were any: what reads them may now be equal too.

    Elimination of common subexpressions merges nodes with equally many outputs only; onnxruntime 1.31.1 merges the
    others when it loads the model, and refuses the session: "Argument type mismatch when adding edge".
    """
    merged = False
    for graph in (model.graph, *model.graph.subgraphs()):
        equal: dict[tuple[Any, ...], list[ir.Node]] = {}
        for node in graph:
            if is_recurrent(node):
                attributes = sorted((name, repr(each.value)) for name, each in node.attributes.items())
                equal.setdefault((node.op_type, *map(id, node.inputs), *attributes), []).append(node)
        for nodes in equal.values():
            if len(nodes) > 1:
                _merge(graph, nodes)
                merged = True
    return merged


def _merge(graph: ir.Graph, nodes: Sequence[ir.Node]) -> None:
    import onnx_ir as ir

    first = nodes[0]
    made = ir.Node("", first.op_type, first.inputs, first.attributes.values(), name=first.name,
                   num_outputs=max(len(node.outputs) for node in nodes), version=first.version)  # fmt: skip
    made.metadata_props.update(first.metadata_props)
    made.doc_string = first.doc_string
    graph.insert_before(first, made)
    for at, output in enumerate(made.outputs):
        olds = [node.outputs[at] for node in nodes if at < len(node.outputs)]
        _stand_in(graph, output, [old for old in olds if old.name or old.uses() or old.is_graph_output()])
    graph.remove(list(nodes), safe=True)


def _stand_in(graph: ir.Graph, output: ir.Value, olds: Sequence[ir.Value]) -> None:
    """Let `output` take the place of `olds`; a graph output after the first goes by an Identity, with its name."""
    import onnx_ir as ir
    from onnx_ir.convenience import replace_all_uses_with

    ends = [old for old in olds if old.is_graph_output()]
    output.name = "" if not olds else (ends or olds)[0].name
    for old in olds:
        output.type, output.shape = old.type, old.shape
        replace_all_uses_with(old, output)
        for at in [at for at, end in enumerate(graph.outputs) if end is old]:
            end = output
            if output.is_graph_output():
                node = ir.Node("", "Identity", [output], name=f"{old.name}.identity")
                graph.append(node)
                end = node.outputs[0]
                end.name, end.type, end.shape = old.name, old.type, old.shape
            graph.outputs[at] = end
