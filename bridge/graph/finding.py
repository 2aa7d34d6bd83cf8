"""The recurrent nodes of any model, in any subgraph, as Cells."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from bridge.cell import Cell, settled
from bridge.errors import BadInput, BridgeError, Unsupported, within
from bridge.graph.expressions import constant_of
from bridge.graph.folding import fold
from bridge.graph.naming import Names
from bridge.graph.nodes import input_of, is_recurrent
from bridge.graph.recurrent import ARRAYS, ATTRIBUTES, CELL, PATH

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx_ir as ir

INPUTS: Final = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
"""The inputs of LSTM in order; GRU and RNN have the first six."""

READABLE: Final = (7, 14, 22)
"""Versions of the operators whose meaning a Cell holds; 14 adds layout, 22 adds bfloat16."""


class Found(NamedTuple):
    """One recurrent node."""

    name: str
    """Unique in the model: the node's module path ("bridge.path"), or its name."""
    node: ir.Node
    """LSTM, GRU or RNN, or the first Scan of a cell that bridge wrote as Scans."""
    cell: Cell | None
    """None where the node cannot be a Cell."""
    problem: BridgeError | None
    """Why not."""


def find_cells(model: ir.Model) -> dict[str, Cell]:
    """Every recurrent node of the model as a Cell, in graph order; one for a layer that is called several times.

    Raises:
        Unsupported: a node whose weights are no constants, or whose operator version or attribute is not carried; all
            such nodes are named.
        BadInput: weights that do not fit together.
    """
    found = list(recurrent_nodes(model))
    problems = [entry for entry in found if entry.problem is not None]
    if len(problems) == 1 and problems[0].problem is not None:
        raise problems[0].problem
    if problems:
        kind = BadInput if any(isinstance(entry.problem, BadInput) for entry in problems) else Unsupported
        raise kind(f"{len(problems)} recurrent nodes cannot be read as cells", where="find_cells",
                   got="".join(f"\n    {entry.problem}" for entry in problems))  # fmt: skip
    return {entry.name: entry.cell for entry in _called_once(found) if entry.cell is not None}


def _called_once(found: list[Found]) -> Iterator[Found]:
    """`found` without further calls of a layer: nodes of one path that read the same weights."""
    known: set[tuple[str, tuple[int, ...]]] = set()
    for entry in found:
        path = entry.node.metadata_props.get(PATH)
        key = (path or "", tuple(id(value) for value in entry.node.inputs[1:4]))
        if path is None or entry.node.op_type == "Scan" or key not in known:
            yield entry
        known.add(key)


def recurrent_nodes(model: ir.Model) -> Iterator[Found]:
    """Every recurrent node: those of the bodies of If, Loop and Scan too, and of functions (which are inlined).

    The nodes belong to `fold(model)`, which is `model` itself where all weights are initialisers: fold it yourself
    first to keep working with them. One cell that bridge wrote several times under one path (a Scan per direction, or a
    node and a Scan in the branches of an If) is found once.
    """
    model = fold(model)
    names = Names()
    layers: dict[str, list[tuple[bool, Cell]]] = {}
    for node in model.graph.all_nodes():
        described = node.metadata_props.get(CELL) if node.op_type == "Scan" else None
        if described is None and not is_recurrent(node):
            continue
        path = node.metadata_props.get(PATH) or node.name or f"{node.op_type}_{len(names)}"
        try:
            cell = _cell_of_node(node, model, path) if described is None else _cell_of_scan(described, model, path)
        except BridgeError as error:
            yield Found(names.fresh(path), node, None, error)
            continue
        known = layers.setdefault(path, [])
        if not any((scan or described is not None) and cell == other for scan, other in known):
            yield Found(names.fresh(path), node, cell, None)
        known.append((described is not None, cell))


def _cell_of_node(node: ir.Node, model: ir.Model, name: str) -> Cell:
    import onnx

    where = f"{node.op_type} {name!r}"
    opset = node.version or model.opset_imports.get("", 0)
    try:
        version = onnx.defs.get_schema(node.op_type, opset, "").since_version
    except onnx.defs.SchemaError:
        version = 0
    if version not in READABLE:
        raise Unsupported("this version of the operator is not read", where=where, got=f"opset {opset}",
                          expected="opset 7 or newer", do="convert the model with onnx.version_converter")  # fmt: skip
    attributes = _attributes(node, version, where)
    batch_first = attributes.pop("layout", 0) == 1
    hidden = attributes.pop("hidden_size", None)
    arrays: dict[str, Any] = {block: _weight(node, at, where) for at, block in enumerate(INPUTS[: len(node.inputs)])
              if block in ("W", "R", "B", "P") and node.inputs[at] is not None}  # fmt: skip
    for block in ("W", "R"):
        if block not in arrays:
            raise BadInput(f"{block} is missing", where=where)
    for at, block in ((5, "initial_h"), (6, "initial_c")):
        state = _constant_state(input_of(node, at))
        if state is not None:
            arrays[block] = state.transpose(1, 0, 2) if batch_first and state.ndim == 3 else state
    if hidden is not None and arrays["R"].ndim == 3 and arrays["R"].shape[2] != hidden:
        raise BadInput("hidden_size disagrees with R", where=where, got=hidden, expected=arrays["R"].shape[2])
    with within(where):
        return Cell(**{"op": node.op_type, **arrays, **attributes})


def _attributes(node: ir.Node, version: int, where: str) -> dict[str, Any]:
    kinds = {
        "direction": "STRING", "activations": "STRINGS", "activation_alpha": "FLOATS", "activation_beta": "FLOATS",
        "clip": "FLOAT", "hidden_size": "INT", "input_forget": "INT", "linear_before_reset": "INT", "layout": "INT",
    }  # fmt: skip
    own = {"input_forget": "LSTM", "linear_before_reset": "GRU"}
    found: dict[str, Any] = {}
    for name, attribute in node.attributes.items():
        if name not in kinds or own.get(name, node.op_type) != node.op_type or (name == "layout" and version < 14):
            raise BadInput(f"the operator has no attribute {name!r}", where=where)
        if attribute.is_ref() or attribute.type.name != kinds[name]:
            raise BadInput(f"the attribute {name!r} is no {kinds[name]}", where=where, got=attribute.type.name)
        found[name] = attribute.value
    for name in ("input_forget", "linear_before_reset"):
        if name in found:
            found[name] = bool(found[name])
    with within(where):
        return settled(node.op_type, found)


def _weight(node: ir.Node, at: int, where: str) -> np.ndarray:
    value = node.inputs[at]
    tensor = constant_of(value)
    if value is None or tensor is None:
        origin = "a graph input" if value is not None and value.is_graph_input() else "computed from the model's inputs"
        raise Unsupported(f"{INPUTS[at]} is {origin} and no constant", where=where, got=repr(value and value.name),
                          do="bake the weights into the model as initialisers")  # fmt: skip
    return _array(tensor, f"{where}, {INPUTS[at]}")


def _constant_state(value: ir.Value | None) -> np.ndarray | None:
    """A constant state, also one that is only expanded to the batch; zeros are no state, and neither is an input."""
    tensor = constant_of(value)
    if tensor is None and value is not None:
        producer = value.producer()
        if producer is not None and producer.op_type == "Expand" and producer.domain == "":
            tensor = constant_of(producer.inputs[0])
            if tensor is not None and (len(tensor.shape) != 3 or tensor.shape[1] != 1):
                tensor = None
    if tensor is None:
        return None
    array = _array(tensor, "initial state")
    return array if array.any() else None


def _array(tensor: ir.TensorProtocol, where: str) -> np.ndarray:
    try:
        return np.asarray(tensor.numpy())
    except (ValueError, TypeError) as error:
        raise BadInput("the tensor cannot be read", where=where, got=str(error)[:200]) from error


def _cell_of_scan(described: str, model: ir.Model, name: str) -> Cell:
    where = f"Scan {name!r}"
    try:
        data = json.loads(described)
        names = data["arrays"]
        attributes = {key: data[key] for key in ATTRIBUTES}
        values = {block: model.graph.initializers[names[block]] for block in ARRAYS if block in names}
        for key in ("activations", "activation_alpha", "activation_beta"):
            attributes[key] = None if attributes[key] is None else tuple(attributes[key])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadInput(f"the metadata {CELL!r} does not fit the model", where=where, got=str(error)[:200]) from error
    arrays: dict[str, Any] = {block: _array(tensor, f"{where}, {block}") for block, value in values.items()
              if (tensor := value.const_value) is not None}  # fmt: skip
    for block in ("initial_h", "initial_c"):
        if block in arrays and not arrays[block].any():
            del arrays[block]
    try:
        return Cell(**attributes, **arrays)
    except (TypeError, ValueError, AttributeError) as error:
        raise BadInput(f"the metadata {CELL!r} is no cell", where=where, got=str(error)[:200]) from error
