"""What must be known of a model before onnxruntime sees it, because onnxruntime would abort, or hide it.

On a dimension of 0 its LSTM and GRU end the whole process. NaN they swallow where B is present: weights of NaN give
finite outputs. Lengths out of range the CUDA provider does not check.

Source: measured with onnxruntime 1.31.1; tests/test_deviations.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from bridge.cell import GATES, is_finite
from bridge.errors import BadInput
from bridge.graph.nodes import bodies, input_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import onnx_ir as ir

SEQUENCE_LENS: Final = 4
"""The input of LSTM, GRU and RNN that holds the lengths."""

RECURRENT: Final = frozenset({*(("", op) for op in GATES), ("com.microsoft", "DynamicQuantizeLSTM")})
"""(domain, operator) of the kernels that abort; what quantize_dynamic makes of an LSTM shares its code."""

MULTIPLIED: Final = frozenset({*GATES, "MatMul", "Gemm", "Conv", "ConvTranspose"})
"""Operators whose constant operands are weights: inf is refused there. Elsewhere it may be a mask, and only NaN is."""


class Place(NamedTuple):
    """A node and the nodes whose bodies it stands in, outermost first."""

    node: ir.Node
    owners: tuple[ir.Node, ...] = ()


@dataclass(frozen=True, slots=True)
class Guards:
    """What the inputs of one model must satisfy."""

    recurrent: tuple[ir.Node, ...]
    """Every LSTM, GRU and RNN (a quantised LSTM too), those of bodies and functions among them."""
    reaching: frozenset[str]
    """Graph inputs on which a recurrent node hangs: no dimension of 0, no NaN, no inf."""
    lengths: tuple[tuple[str, str | int | None], ...]
    """Graph inputs that are sequence lengths, with the dimension (its size or its name) that bounds them."""

    @classmethod
    def of(cls, model: ir.Model) -> Guards:
        """Read `model`.

        Raises:
            BadInput: a weight holds NaN or inf, or one of a recurrent node a dimension of 0.
        """
        places = list(_places(model))
        for node, _ in places:
            _check_finite(node)
        recurrent = [place for place in places if (place.node.domain, place.node.op_type) in RECURRENT]
        for node, _ in recurrent:
            _check_not_empty(node)
        inputs = {id(value): str(value.name) for value in model.graph.inputs}
        in_functions = {id(node) for function in model.functions.values() for node in function.all_nodes()}
        if any(id(node) in in_functions for node, _ in recurrent):
            reaching = frozenset(inputs.values())  # who calls the function, and with what, is not followed
        else:
            reaching = frozenset(inputs[at] for at in _ancestors(recurrent) if at in inputs)
        lengths = {entry for node, _ in recurrent for entry in _lengths_of(node, inputs)}
        return cls(tuple(node for node, _ in recurrent), reaching, tuple(sorted(lengths, key=str)))

    def check(self, feeds: dict[str, np.ndarray], dims: dict[str, int]) -> None:
        """Refuse inputs that onnxruntime's recurrent kernels would die of, hide or ignore.

        Args:
            feeds: arrays by input name.
            dims: sizes of the symbolic dimensions of the inputs.

        Raises:
            BadInput: a dimension of 0, NaN or inf, or a length out of range; naming the input.
        """
        for name in sorted(self.reaching & feeds.keys()):
            array = feeds[name]
            if 0 in array.shape:
                raise BadInput("a dimension of 0 reaches a recurrent node, on which onnxruntime aborts the process",
                               where=f"input {name!r}", got=list(array.shape), do="leave it out")  # fmt: skip
            if array.dtype.kind == "f" and not is_finite(array):
                raise BadInput("NaN or inf reaches a recurrent node, and onnxruntime may hide it",
                               where=f"input {name!r}", do="fill the padding with zeros")  # fmt: skip
        for name, bound in self.lengths:
            longest = dims.get(bound) if isinstance(bound, str) else bound
            if name in feeds:
                _check_lengths(name, feeds[name], longest)


def _check_lengths(name: str, lengths: np.ndarray, longest: int | None) -> None:
    if lengths.min() < 0 or (longest is not None and lengths.max() > longest):
        raise BadInput("a length is out of range", where=f"input {name!r}", got=lengths.tolist(),
                       expected=f"0 to {longest if longest is not None else 'the number of steps'}")  # fmt: skip


def _places(model: ir.Model) -> Iterator[Place]:
    yield from _within(model.graph, ())
    for function in model.functions.values():
        yield from _within(function, ())


def _within(nodes: Iterable[ir.Node], owners: tuple[ir.Node, ...]) -> Iterator[Place]:
    for node in nodes:
        yield Place(node, owners)
        for body in bodies(node):
            yield from _within(body, (*owners, node))


def _ancestors(places: Iterable[Place]) -> set[int]:
    """Identities of all values that the nodes hang on; a body hangs on everything that its owner reads."""
    pending = [value for node, owners in places for reader in (node, *owners) for value in _operands(reader)]
    seen: set[int] = set()
    while pending:
        value = pending.pop()
        if id(value) not in seen:
            seen.add(id(value))
            producer = value.producer()
            pending += [] if producer is None else _operands(producer)
    return seen


def _operands(node: ir.Node) -> list[ir.Value]:
    """The inputs of a node and of every node in its bodies."""
    inside = [value for body in bodies(node) for inner in body for value in _operands(inner)]
    return [value for value in node.inputs if value is not None] + inside


def _lengths_of(node: ir.Node, inputs: dict[int, str]) -> Iterator[tuple[str, str | int | None]]:
    lengths = input_of(node, SEQUENCE_LENS)
    if lengths is None or id(lengths) not in inputs:
        return
    X, time_axis = node.inputs[0], 1 if "layout" in node.attributes and node.attributes["layout"].value == 1 else 0
    dim = None if X is None or X.shape is None else X.shape[time_axis]
    yield inputs[id(lengths)], dim if isinstance(dim, int) or dim is None else dim.value


def _check_not_empty(node: ir.Node) -> None:
    for value in node.inputs:
        if value is not None and value.const_value is not None and 0 in value.const_value.shape:
            raise BadInput("a dimension of 0 reaches a recurrent node, on which onnxruntime aborts the process",
                           where=f"initialiser {value.name!r} of {node.op_type} {node.name!r}",
                           got=list(value.const_value.shape))  # fmt: skip


def _check_finite(node: ir.Node) -> None:
    for value in node.inputs:
        tensor = None if value is None else value.const_value
        if value is None or tensor is None or not tensor.dtype.is_floating_point() or len(tensor.shape) == 0:
            continue
        array = tensor.numpy()
        if array.dtype.kind != "f":
            continue
        multiplied = node.domain == "" and node.op_type in MULTIPLIED
        if not (is_finite(array) if multiplied else not np.isnan(array.max(initial=-np.inf))):
            raise BadInput("a weight holds NaN or inf" if multiplied else "a constant holds NaN",
                           where=f"initialiser {value.name!r} of {node.op_type} {node.name!r}",
                           do="onnxruntime's LSTM and GRU would hide it: mend the weights")  # fmt: skip
