"""Steps of a sampled loop as one sequence: which values are the same thing at every step.

`Rolling.series` finds for them one value [T, ...]: the sequence that was taken apart, the output of the layer that a
chain of steps is, or the same arithmetic on one of those; a loop from the last step to the first is the same value read
backwards. It answers None for anything else, and the steps are then written as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    import onnx_ir as ir

    from bridge.graph import Writer

ELEMENTWISE: Final = frozenset(
    {"Abs", "Add", "Cast", "Clip", "Cos", "Div", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "Identity",
     "LeakyRelu", "Log", "Max", "Min", "Mul", "Neg", "Pow", "Reciprocal", "Relu", "Selu", "Sigmoid", "Sin", "Softplus",
     "Softsign", "Sqrt", "Sub", "Tanh", "Where"}
)  # fmt: skip
"""Operators that may be applied to all steps at once: axes are aligned from the last."""

OVER_LAST: Final = frozenset({"Softmax", "LogSoftmax", "Concat", "LayerNormalization"})
"""Operators with an axis, carried where that is the last."""


@dataclass(frozen=True, slots=True)
class Series:
    """All steps of something as one value."""

    value: ir.Value
    """[T, ...] in the order of time."""
    backwards: bool = False
    """Whether the loop takes the last step first."""

    def in_order(self, w: Writer) -> ir.Value:
        """[T, ...] in the order of the loop."""
        from bridge.graph.sequences import flip

        return flip(w, self.value, 0) if self.backwards else self.value


@dataclass(eq=False, slots=True)
class Chain:
    """Steps of one cell, each from the state of the one before."""

    steps: list[ir.Node]
    output: Series | None = None
    """[T,N,H], once it is written as a layer."""
    finals: Sequence[ir.Value | None] = ()


class Rolling:
    """Series of values in one graph; `chain_output` knows the layers that steps have become."""

    def __init__(self, chain_output: Callable[[Sequence[ir.Value]], Series | None]) -> None:
        self._chain_output = chain_output
        self._known: dict[tuple[int, ...], Series | None] = {}

    def series(self, w: Writer, values: Sequence[ir.Value]) -> Series | None:
        """The series whose steps are `values`, written where the Writer is; None where there is none."""
        key = tuple(map(id, values))
        if key not in self._known:
            self._known[key] = self._find(w, values)
        return self._known[key]

    def _find(self, w: Writer, values: Sequence[ir.Value]) -> Series | None:
        found = self._chain_output(values)
        if found is not None:
            return found
        nodes = [value.producer() for value in values]
        first = nodes[0]
        if first is None or len({id(node) for node in nodes}) != len(nodes):
            return None
        if any(node is None or not _alike(node, first) for node in nodes):
            return None
        if first.op_type == "Gather" and len({id(node.inputs[0]) for node in nodes if node is not None}) == 1:
            return _sequence(w, [node for node in nodes if node is not None])
        return self._together(w, [node for node in nodes if node is not None])

    def _together(self, w: Writer, nodes: Sequence[ir.Node]) -> Series | None:
        """The operator of `nodes` on all steps at once."""
        inputs: list[Any] = []
        ranks: dict[int, int] = {}
        for at, column in enumerate(zip(*(node.inputs for node in nodes), strict=True)):
            inputs.append(column[0])
            if all(value is column[0] for value in column):
                continue
            inputs[at] = None if any(value is None for value in column) else self.series(w, column)
            if inputs[at] is None or column[0].shape is None:
                return None
            ranks[at] = len(column[0].shape)
        ways = {inputs[at].backwards for at in ranks}
        if len(set(ranks.values())) != 1:
            return None
        for at in ranks:
            inputs[at] = inputs[at].value if len(ways) == 1 else inputs[at].in_order(w)
        made = _applied(w, nodes[0], inputs, set(ranks), next(iter(ranks.values())))
        if made is None:
            return None
        _keep_scope(nodes[0], made)
        return Series(made, ways == {True})


def _keep_scope(step: ir.Node, made: ir.Value) -> None:
    """Note on what is written for all steps which module the step stood in: nodes are named by it."""
    last = made.producer()
    before = None if last is None or last.op_type != "Add" or last.inputs[0] is None else last.inputs[0].producer()
    for node in (last, before if before is not None and before.op_type == "MatMul" else None):
        if node is not None and not node.metadata_props:
            node.metadata_props.update(step.metadata_props)


def _alike(node: ir.Node, first: ir.Node) -> bool:
    same = (node.domain, node.op_type, len(node.inputs), len(node.outputs)) == (
        first.domain, first.op_type, len(first.inputs), len(first.outputs))  # fmt: skip
    kinds = [{name: str(attribute.value) for name, attribute in each.attributes.items()} for each in (node, first)]
    return same and kinds[0] == kinds[1]


def _sequence(w: Writer, nodes: Sequence[ir.Node]) -> Series | None:
    """What was taken apart step by step, time first: from the first, to the first, or from the last (-1, -2, …)."""
    from bridge.graph.expressions import constant_of

    source = nodes[0].inputs[0]
    indices = [constant_of(node.inputs[1]) for node in nodes]
    if source is None or source.shape is None or any(index is None or index.size != 1 for index in indices):
        return None
    steps = [int(np.ravel(index.numpy())[0]) for index in indices if index is not None]
    if any(len(index.shape) != 0 for index in indices if index is not None):
        return None
    upward = list(range(len(nodes)))
    backwards = steps != upward
    if backwards and steps not in (upward[::-1], [-1 - at for at in upward]):
        return None
    axis = nodes[0].attributes["axis"].as_int() if "axis" in nodes[0].attributes else 0
    axis %= len(source.shape)
    order = [axis, *(at for at in range(len(source.shape)) if at != axis)]
    return Series(w.transpose(source, order), backwards)


def _applied(w: Writer, node: ir.Node, inputs: Sequence[Any], series: set[int], rank: int) -> ir.Value | None:
    attributes: dict[str, Any] = {name: attribute.value for name, attribute in node.attributes.items()}
    fixed = [value for at, value in enumerate(inputs) if at not in series and value is not None]
    if node.op_type in ELEMENTWISE and all(value.shape is not None and len(value.shape) <= rank for value in fixed):
        return _one(w, node.op_type, inputs, attributes)
    if node.op_type in OVER_LAST and attributes.get("axis", -1) in (-1, rank - 1) and (
        node.op_type != "Concat" or not fixed
    ):  # fmt: skip
        return _one(w, node.op_type, inputs, {**attributes, "axis": -1})
    matrix = series == {0} and all(value.shape is not None and len(value.shape) <= 2 for value in fixed)
    if node.op_type == "MatMul" and matrix:
        return w.op("MatMul", *inputs)
    plain = attributes.get("alpha", 1.0) == 1.0 and attributes.get("beta", 1.0) == 1.0 and not attributes.get("transA")
    if node.op_type == "Gemm" and matrix and plain:
        weight = w.transpose(inputs[1], (1, 0)) if attributes.get("transB") else inputs[1]
        product = w.op("MatMul", inputs[0], weight)
        return product if len(inputs) < 3 or inputs[2] is None else w.op("Add", product, inputs[2])
    return None


def _one(w: Writer, op_type: str, inputs: Sequence[Any], attributes: dict[str, Any]) -> ir.Value:
    value: ir.Value = w.op(op_type, *inputs, **attributes)
    return value
