"""A graph that another exporter made: its operators looked over, its ends and inner values named, its sizes inferred.

Names of operators there begin with a scope and a number, `scope.7/…`: which of a list of paths it comes from.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from bridge.errors import Unsupported
from bridge.graph.naming import Names
from bridge.graph.recurrent import PATH
from bridge.graph.writer import Writer

if TYPE_CHECKING:
    import onnx_ir as ir


def path_of(name: str, scope: str, paths: Sequence[str]) -> str:
    """The path that `name` comes from; "" where it says none."""
    found = re.findall(rf"{re.escape(scope)}\.(\d+)/", f"{name}/")
    return paths[int(found[-1])] if found and int(found[-1]) < len(paths) else ""


def unknown_operators(model: ir.Model, scope: str, paths: Sequence[str]) -> list[tuple[str, str]]:
    """Path and name of every operator that ONNX does not have: what the exporter left as it was."""
    import onnx

    opset = model.opset_imports.get("", 1)
    return [(path_of(str(node.name), scope, paths), node.op_type) for node in model.graph.all_nodes()
            if node.domain == "" and not onnx.defs.has(node.op_type, opset, "")]  # fmt: skip


def named_operators(model: ir.Model, names: Sequence[str], scope: str, paths: Sequence[str]) -> list[tuple[str, str]]:
    """Path and name of every operator that is one of `names`."""
    return [(path_of(str(node.name), scope, paths), node.op_type) for node in model.graph.all_nodes()
            if node.domain == "" and node.op_type in names]  # fmt: skip


def settle_inputs(
    model: ir.Model, old: Sequence[str], new: Sequence[str], dtypes: Sequence[str],
    shapes: Sequence[Sequence[int | str]], constants: Mapping[str, np.ndarray],
) -> None:  # fmt: skip
    """Give the graph exactly these inputs, in this order: renamed, typed, and those that nothing reads as well.

    Inputs that are `constants` become initialisers. What the exporter believed of all other sizes is forgotten.

    Raises:
        Unsupported: another input.
    """
    import onnx_ir as ir

    from bridge.graph.values import tensor_type

    known = {str(value.name): value for value in model.graph.inputs}
    for graph in model.graphs():
        for node in graph:
            for value in node.outputs:
                value.shape = None
    model.graph.inputs.clear()
    for label, value in known.items():
        if label in constants:
            value.const_value = ir.Tensor(np.ascontiguousarray(constants[label]), name=label)
            value.type, value.shape = ir.TensorType(value.const_value.dtype), ir.Shape(constants[label].shape)
            model.graph.register_initializer(value)
        elif label not in old:
            raise Unsupported("the exporter made an input of something", where=label)
    held = {str(value.name): value for node in model.graph.all_nodes() for value in node.outputs}
    held |= {str(name): value for name, value in model.graph.initializers.items()}
    for before, name, dtype, shape in zip(old, new, dtypes, shapes, strict=True):
        value = known.get(before) or ir.Value(name=before)
        if name in held:
            held[name].name = f"{name}.inner"
        value.name = name
        value.type, value.shape = tensor_type(dtype), ir.Shape(shape)
        model.graph.inputs.append(value)


def remove_unused(model: ir.Model) -> None:
    """Remove nodes and constants that nothing reads."""
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    RemoveUnusedNodesPass()(model)


def name_by_scope(model: ir.Model, scope: str, paths: Sequence[str], weights: Mapping[str, np.ndarray]) -> None:
    """Name nodes `path.Operator` and what they give alike; a constant by the weight that it is, where it is one.

    The inputs of the graph keep their names.
    """
    nodes, values = Names(), Names()
    for value in model.graph.inputs:
        values.fresh(str(value.name))
    by_content = {_key(array): name for name, array in weights.items() if array.size > 1}
    wanted: list[tuple[ir.Value, str]] = []
    for value in list(model.graph.initializers.values()):
        array = None if value.const_value is None else value.const_value.numpy()
        found = by_content.get(_key(array)) if array is not None and array.size > 1 else None
        path = path_of(str(value.name), scope, paths)
        wanted.append((value, values.fresh(found or ".".join(filter(None, (path, "constant"))))))
    for node in model.graph.all_nodes():
        path = path_of(str(node.name), scope, paths)
        node.name = nodes.fresh(".".join(filter(None, (path, node.op_type))))
        wanted += [(value, values.fresh(str(node.name) if len(node.outputs) == 1 else f"{node.name}.{at}"))
                   for at, value in enumerate(node.outputs)]  # fmt: skip
    for at, (value, _) in enumerate(wanted):
        value.name = f"rnn-bridge {at}"  # so that no new name is still another's
    for value, name in wanted:
        value.name = name


def name_written(w: Writer, path: str) -> None:
    """Put `path` before the names of nodes that a Writer has just named by their operators alone."""
    values, nodes = w.names
    for node in w.graph.all_nodes():
        if "." in str(node.name) or PATH in node.metadata_props:
            continue
        node.name = nodes.fresh(f"{path}.{node.op_type}")
        for at, value in enumerate(node.outputs):
            value.name = values.fresh(node.name if len(node.outputs) == 1 else f"{node.name}.{at}")


def _key(array: np.ndarray) -> tuple[str, tuple[int, ...], bytes]:
    return array.dtype.name, array.shape, array.tobytes()


def infer_shapes(model: ir.Model, outputs: Sequence[Sequence[int | None]]) -> None:
    """Infer the sizes of all values; `outputs` is what else is known of the first outputs: their ranks and numbers.

    Raises:
        Unsupported: ONNX's inference refuses the graph.
    """
    import onnx
    import onnx_ir as ir
    from onnx_ir.passes.common import ShapeInferencePass

    try:
        ShapeInferencePass(data_prop=True)(model)
    except onnx.shape_inference.InferenceError as error:
        raise Unsupported("ONNX's inference refuses the exported graph", where=str(model.graph.name),
                          got=str(error).strip()[:800]) from error  # fmt: skip
    for value, known in zip(model.graph.outputs, outputs, strict=False):
        shape = list(value.shape) if value.shape is not None and len(value.shape) == len(known) else [None] * len(known)
        sizes = [size if isinstance(size, int) else _label(own) for size, own in zip(known, shape, strict=True)]
        value.shape = ir.Shape(["batch" if at == 0 and size is None else size for at, size in enumerate(sizes)])


def _label(dim: object) -> int | str | None:
    if isinstance(dim, int):
        return dim
    label = getattr(dim, "value", None)
    return label if isinstance(label, str) and not label.startswith("unk__") else None
