"""A batch that is sorted and put back into its order: the sort goes away where nothing between depends on the order.

Packing sorts sequences by length because packed data must be; padded ones with lengths need no order. The proof labels
every value that hangs on the sort with the axis along which its rows are sorted. It is complete: one node between that
has no rule, or a sorted value that leaves the graph, and all stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from bridge.graph.expressions import constant_of
from bridge.graph.nodes import holds_graphs, input_of

if TYPE_CHECKING:
    import onnx_ir as ir

ORDER, INVERSE, COLUMN = "order", "inverse", "column"
"""Labels of indices: the sorted order, the order that undoes it, and the latter as a column [N, 1]."""

Label = int | str | None
"""The axis that is sorted, a label of indices, or None for what does not change with the order."""

ELEMENTWISE: Final = frozenset(
    {"Abs", "Add", "And", "Cast", "Ceil", "Clip", "Cos", "Div", "Elu", "Equal", "Erf", "Exp", "Floor", "Gelu",
     "Greater", "GreaterOrEqual", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Less", "LessOrEqual", "Log",
     "Max", "Min", "Mul", "Neg", "Not", "Or", "Pow", "Reciprocal", "Relu", "Selu", "Sigmoid", "Sin", "Softplus",
     "Softsign", "Sqrt", "Sub", "Tanh", "Where"}
)  # fmt: skip


class _Stuck(Exception):
    """A node that the proof has no rule for."""


def without_sorting(model: ir.Model) -> int:
    """Take sorts of the batch that are undone out of `model`; how many. Dead nodes are left for `tidy`."""
    count = 0
    for node in list(model.graph):
        if node.op_type == "TopK" and node.domain == "" and _sorts_everything(node):
            count += _without(node)
    return count


def _without(sort: ir.Node) -> int:
    try:
        labels = _labels(sort)
    except _Stuck:
        return 0
    for node in {use.node for value in labels for use in value.uses()}:
        if _reorders(node, labels):
            _replace(node.outputs[0], node.inputs[0])
    _replace(sort.outputs[0], sort.inputs[0])
    return 1


def _replace(old: ir.Value, new: Any) -> None:
    from onnx_ir.convenience import replace_all_uses_with

    if old.is_graph_output():
        node = old.producer()
        if node is not None:  # the value keeps its name: the node becomes an Identity
            node.op_type, node.domain = "Identity", ""
            node.attributes.clear()
            node.replace_input_with(0, new)
            node.resize_inputs(1)
        return
    replace_all_uses_with(old, new)


def _labels(sort: ir.Node) -> dict[ir.Value, Label]:
    """The label of every value that hangs on the sort. Raises _Stuck where the order shows."""
    labels: dict[ir.Value, Label] = {sort.outputs[0]: 0, sort.outputs[1]: ORDER}
    graph = sort.graph
    for node in list(graph or ()):
        given = [None if value is None else labels.get(value) for value in node.inputs]
        if node is sort or not any(value in labels for value in node.inputs if value is not None):
            continue
        labels.update(zip(node.outputs, _of_node(node, given), strict=False))
    for value, label in labels.items():
        inside = all(use.node.graph is graph for use in value.uses())
        if not inside or (value.is_graph_output() and label is not None):
            raise _Stuck
    return labels


def _of_node(node: ir.Node, given: list[Label]) -> list[Label]:
    if node.domain != "" or holds_graphs(node):
        raise _Stuck
    if node.op_type in ("Shape", "Size") or all(label is None for label in given):
        return [None] * len(node.outputs)
    if any(isinstance(label, str) for label in given):
        return [_of_indices(node, given)]
    rule = RULES.get(node.op_type, _elementwise if node.op_type in ELEMENTWISE else None)
    if rule is None:
        raise _Stuck
    return rule(node, given)


def _of_indices(node: ir.Node, given: list[Label]) -> Label:
    """What is made of the order, or ordered by it."""
    op, last = node.op_type, given[1] if len(given) > 1 else None
    if op in ("Reshape", "Cast", "Identity") and given[0] in (ORDER, INVERSE) and _is_flat(node):
        return given[0]
    if op == "Unsqueeze" and given[0] == INVERSE and _numbers(node, 1) in ((1,), (-1,)):
        return COLUMN
    if op == "ScatterElements" and last == ORDER and given[0] is None and given[2] is None and _counts(node.inputs[2]):
        return INVERSE
    axis = _axis(node, 0) % _rank(node.inputs[0])
    if op == "Gather" and last == ORDER and given[0] is None:
        return axis
    if op == "Gather" and last == INVERSE and given[0] == axis:
        return None
    if op == "GatherND" and last == COLUMN and given[0] == 0 and not _attribute(node, "batch_dims", 0):
        return None
    raise _Stuck


def _reorders(node: ir.Node, labels: Mapping[ir.Value, Label]) -> bool:
    """Whether a node only brings rows into an order or back."""
    order = input_of(node, 1)
    index = None if order is None else labels.get(order)
    return node.op_type in ("Gather", "GatherND") and isinstance(index, str)


def _is_flat(node: ir.Node) -> bool:
    return node.op_type != "Reshape" or _numbers(node, 1) == (-1,)


def _sorts_everything(node: ir.Node) -> bool:
    """Whether a TopK keeps all of a vector."""
    vector, count = node.inputs
    if vector is None or vector.shape is None or len(vector.shape) != 1:
        return False
    while count is not None and (maker := count.producer()) is not None:
        if maker.op_type == "Shape":
            return maker.inputs[0] is vector
        if maker.op_type not in ("Reshape", "Gather", "Squeeze", "Unsqueeze", "Identity", "Cast", "Slice"):
            return False
        count = maker.inputs[0]
    fixed = constant_of(count)
    return fixed is not None and isinstance(vector.shape[0], int) and int(fixed.numpy().reshape(())) == vector.shape[0]


def _counts(value: ir.Value | None) -> bool:
    """Whether a vector counts from 0."""
    fixed = constant_of(value)
    if fixed is not None:
        return bool(np.array_equal(fixed.numpy(), np.arange(fixed.size)))
    node = None if value is None else value.producer()
    if node is None or node.op_type != "Range":
        return False
    start, step = constant_of(node.inputs[0]), constant_of(node.inputs[2])
    return start is not None and step is not None and int(start.numpy()) == 0 and int(step.numpy()) == 1


# ---------------------------------------------------------------------- rules for values with a sorted axis


def _elementwise(node: ir.Node, given: list[Label]) -> list[Label]:
    """Broadcasting aligns axes from the last; what is not sorted must be the same for all rows."""
    ranks = [_rank(value) if value is not None else 0 for value in node.inputs]
    places = {label - rank for label, rank in zip(given, ranks, strict=True) if isinstance(label, int)}
    if len(places) != 1:
        raise _Stuck
    (place,) = places
    for value, label, rank in zip(node.inputs, given, ranks, strict=True):
        if value is not None and label is None and -place <= rank and (value.shape is None or value.shape[place] != 1):
            raise _Stuck
    return [place + max(ranks)]


def _transpose(node: ir.Node, given: list[Label]) -> list[Label]:
    perm = _attribute(node, "perm", None)
    if perm is None:
        perm = range(_rank(node.inputs[0]))[::-1]
    return [list(perm).index(given[0])]


def _unsqueeze(node: ir.Node, given: list[Label]) -> list[Label]:
    axes = _numbers(node, 1)
    rank = _rank(node.inputs[0]) + len(axes)
    added = {axis % rank for axis in axes}
    return [[at for at in range(rank) if at not in added][_sorted_axis(given[0])]]


def _squeeze(node: ir.Node, given: list[Label]) -> list[Label]:
    rank = _rank(node.inputs[0])
    gone = {axis % rank for axis in _numbers(node, 1)}
    return [[at for at in range(rank) if at not in gone].index(_other(given[0], gone))]


def _reshape(node: ir.Node, given: list[Label]) -> list[Label]:
    """Axes that are kept one by one from the first."""
    shape, axis = _numbers(node, 1), _sorted_axis(given[0])
    kept = next((at for at, size in enumerate(shape) if size != 0), len(shape))
    if given[1] is not None or axis >= kept or _attribute(node, "allowzero", 0):
        raise _Stuck
    return [axis]


def _recurrent(node: ir.Node, given: list[Label]) -> list[Label]:
    x, *weights = given[:4]
    lengths, *states = [*given[4:7], None, None, None][:3]
    present = [value is not None for value in (*node.inputs[4:7], None, None, None)][:3]
    fits = x == 1 and not any(label is not None for label in (*weights, *given[7:])) and lengths == 0
    fits = fits and all(label == 1 for label, there in zip(states, present[1:], strict=False) if there)
    if not fits or _attribute(node, "layout", 0):
        raise _Stuck
    labels: list[Label] = [2, 1, 1]
    return labels[: len(node.outputs)]


def _concat(node: ir.Node, given: list[Label]) -> list[Label]:
    if len(set(given)) != 1:
        raise _Stuck
    return [_other(given[0], {_axis(node, None) % _rank(node.inputs[0])})]


def _split(node: ir.Node, given: list[Label]) -> list[Label]:
    if any(label is not None for label in given[1:]):
        raise _Stuck
    return [_other(given[0], {_axis(node, 0) % _rank(node.inputs[0])})] * len(node.outputs)


def _slice(node: ir.Node, given: list[Label]) -> list[Label]:
    if any(label is not None for label in given[1:]):
        raise _Stuck
    return [_other(given[0], {axis % _rank(node.inputs[0]) for axis in _numbers(node, 3)})]


def _gather(node: ir.Node, given: list[Label]) -> list[Label]:
    """By indices that have no order, along another axis."""
    axis, indices = _axis(node, 0) % _rank(node.inputs[0]), _rank(node.inputs[1])
    if given[1] is not None:
        raise _Stuck
    own = _other(given[0], {axis})
    return [own if own < axis else own + indices - 1]


def _extreme(node: ir.Node, given: list[Label]) -> list[Label]:
    """The largest or smallest over all rows is that of any order."""
    rank, axis = _rank(node.inputs[0]), _sorted_axis(given[0])
    by_input = input_of(node, 1) is not None
    given_axes = _numbers(node, 1) if by_input else tuple(_attribute(node, "axes", range(rank)))
    gone = {each % rank for each in given_axes}
    if axis in gone:
        return [None]
    return [axis if _attribute(node, "keepdims", 1) else axis - sum(each < axis for each in gone)]


def _product(node: ir.Node, given: list[Label]) -> list[Label]:
    """Rows times one matrix."""
    axis, rank = _sorted_axis(given[0]), _rank(node.inputs[0])
    if any(label is not None for label in given[1:]) or axis >= rank - 1 or _rank(node.inputs[1]) != 2:
        raise _Stuck
    if node.op_type == "Gemm" and _attribute(node, "transA", 0):
        raise _Stuck
    return [axis]


def _over_axis(node: ir.Node, given: list[Label]) -> list[Label]:
    """Along another axis, and every axis behind it."""
    axis = _axis(node, -1) % _rank(node.inputs[0])
    if any(label is not None for label in given[1:]) or _sorted_axis(given[0]) >= axis:
        raise _Stuck
    return [given[0]]


RULES: Final[Mapping[str, Callable[[Any, list[Label]], list[Label]]]] = MappingProxyType({
    "Transpose": _transpose, "Unsqueeze": _unsqueeze, "Squeeze": _squeeze, "Reshape": _reshape, "LSTM": _recurrent,
    "GRU": _recurrent, "RNN": _recurrent, "Concat": _concat, "Split": _split, "Slice": _slice,
    "Gather": _gather, "ReduceMax": _extreme,
    "ReduceMin": _extreme, "MatMul": _product, "Gemm": _product, "Softmax": _over_axis, "LogSoftmax": _over_axis,
    "LayerNormalization": _over_axis,
})  # fmt: skip


def _rank(value: ir.Value | None) -> int:
    if value is None or value.shape is None:
        raise _Stuck
    return len(value.shape)


def _sorted_axis(label: Label) -> int:
    if not isinstance(label, int):
        raise _Stuck
    return label


def _other(label: Label, axes: set[int]) -> int:
    """The sorted axis, which is none of `axes`."""
    axis = _sorted_axis(label)
    if axis in axes:
        raise _Stuck
    return axis


def _numbers(node: ir.Node, at: int) -> tuple[int, ...]:
    fixed = constant_of(input_of(node, at))
    if fixed is None:
        raise _Stuck
    return tuple(int(value) for value in fixed.numpy().reshape(-1))


def _attribute(node: ir.Node, name: str, default: Any) -> Any:
    return node.attributes[name].value if name in node.attributes else default


def _axis(node: ir.Node, default: Any) -> int:
    axis: int = _attribute(node, "axis", default)
    return axis
