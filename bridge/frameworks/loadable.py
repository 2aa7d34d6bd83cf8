"""Whether onnxruntime, the judge, makes a session of an exported graph: asked before anybody gets the graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from bridge.errors import BadInput, MissingExtra, Unsupported

if TYPE_CHECKING:
    import onnx_ir as ir

IN_FLOAT32: Final = (
    "export it in float32: in torch model.float(), outside torch.autocast; in Keras the dtype policy float32; in Flax "
    "dtype=jnp.float32 and param_dtype=jnp.float32"
)
"""What to do about floats that onnxruntime does not compute with."""

OTHERWISE: Final = "write it with another operator, or with another dtype"
"""What to do about any other dtype."""

SHOWN_NAMES: Final = 4
"""Nodes of one kind that an error names."""


def check_loadable(model: ir.Model, where: str) -> None:
    """Refuse a graph that onnxruntime's CPU provider, which every machine has, makes no session of.

    Large weights are shown to it as inputs, so the question costs milliseconds. It is not asked where onnxruntime is
    not installed, which no export needs.

    Raises:
        Unsupported: onnxruntime has no kernel for a node (all such nodes are named, with their dtypes), or calls the
            graph wrong.
    """
    from bridge.graph.finishing import without_weights

    light = without_weights(model)
    try:
        _load(light)
    except MissingExtra:
        return
    except (BadInput, Unsupported) as error:
        kinds = _without_kernel(light)
        floats = any(dtype.is_floating_point() for kind in kinds for dtype in _dtypes(kind[0]))
        raise Unsupported(
            "onnxruntime cannot load the exported graph", where=where,
            got="; ".join(map(_described, kinds)) or error.got,
            expected="nodes that its CPU provider has a kernel for" if kinds else None,
            do=IN_FLOAT32 if floats else OTHERWISE,
        ) from error  # fmt: skip


def _load(model: ir.Model) -> None:
    """Make a session as `runtime.Session` does.

    Its guards are not asked: they are about values, and each run asks them.

    Raises:
        MissingExtra: onnxruntime is not installed.
        Unsupported: no kernel.
        BadInput: a graph that it calls wrong.
    """
    from bridge.graph import to_proto
    from bridge.graph.half import FATAL_OPTIMIZER
    from bridge.runtime.library import CPU, load_library, session_options, translated

    library = load_library()
    with translated("onnxruntime", library):
        library.InferenceSession(to_proto(model).SerializeToString(), session_options(library), providers=[CPU],
                                 disabled_optimizers=[FATAL_OPTIMIZER])  # fmt: skip


def _without_kernel(model: ir.Model) -> list[list[ir.Node]]:
    """The nodes that onnxruntime does not load by themselves either, those of one operator and dtype together."""
    kinds: dict[tuple[object, ...], list[ir.Node]] = {}
    for node in model.graph.all_nodes():
        values = (*node.inputs, *node.outputs)
        key = (node.domain, node.op_type, *(None if value is None else value.dtype for value in values))
        kinds.setdefault(key, []).append(node)
    return [nodes for nodes in kinds.values() if not _loads_alone(nodes[0], model)]


def _loads_alone(node: ir.Node, model: ir.Model) -> bool:
    """Whether onnxruntime has a kernel for `node`, asked with a graph of that node alone.

    One with a body is not asked: what the body reads from outside would be missing, and its nodes are asked themselves.
    """
    from bridge.graph.nodes import holds_graphs
    from bridge.graph.single import single_node

    if holds_graphs(node):
        return True
    try:
        _load(single_node(node, model))
    except Unsupported:
        return False
    except BadInput:  # a shape or a constant that it needs is not known here: that says nothing of the kernel
        return True
    return True


def _dtypes(node: ir.Node) -> list[ir.DataType]:
    """Those of its inputs and outputs, each once."""
    found = [value.dtype for value in (*node.inputs, *node.outputs) if value is not None and value.dtype is not None]
    return list(dict.fromkeys(found))


def _described(nodes: list[ir.Node]) -> str:
    """Say which nodes: "MatMul of bfloat16 (head.MatMul, tail.MatMul)"."""
    names = [str(node.name) for node in nodes]
    more = [f"{len(names) - SHOWN_NAMES} more"] if len(names) > SHOWN_NAMES else []
    dtypes = ", ".join(dtype.numpy().name for dtype in _dtypes(nodes[0]))
    return f"{nodes[0].op_type} of {dtypes} ({', '.join([*names[:SHOWN_NAMES], *more])})"
