"""A sorted batch: the sort goes where it is undone and nothing between shows the order, and stays everywhere else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from bridge.cell import Cell
from bridge.graph import Writer, to_proto
from bridge.graph.sorting import without_sorting
from tests.cells import random_cell

BATCH, TIME, INPUTS = 4, 5, 3


def model(between: Callable[[Writer, Any, Any, Any], list[Any]], *, whole: bool = True) -> Any:
    """x [T,N,I] and lengths [N] sorted by length, what `between` makes of them put back; [axis, value] each."""
    w = Writer()
    x, lengths = w.input("x", "float32", ("time", "batch", INPUTS)), w.input("lengths", "int64", ("batch",))
    count = w.op("Shape", lengths) if whole else w.constant([2])
    values, order = w.op("TopK", lengths, count, outputs=2, axis=0, largest=1, sorted=1)
    one, zero = w.constant(np.asarray(1)), w.constant(np.asarray(0))
    ascending = w.op("Range", zero, w.squeeze(w.op("Shape", lengths), 0), one)
    zeros = w.cast(w.op("Expand", zero, w.op("Shape", order)), "int64")
    back = w.op("ScatterElements", zeros, order, ascending, axis=0)
    results = between(w, w.op("Gather", x, order, axis=1), w.cast(values, "int32"), order)
    for number, (axis, value) in enumerate(results):
        w.output(value if axis is None else w.op("Gather", value, back, axis=axis), f"y{number}")
    return w.model()


def cell() -> Cell:
    return random_cell("GRU", INPUTS, 2, np.random.default_rng(0), direction="bidirectional", linear_before_reset=True)


def layer(w: Writer, x: Any, lengths: Any, _: Any) -> list[Any]:
    y, h, _ = w.recurrent(cell(), x, lengths=lengths, name="rnn")
    return [(2, w.op("Tanh", y)), (1, h), (None, w.op("ReduceMax", lengths, keepdims=1))]


def masked(w: Writer, x: Any, lengths: Any, _: Any) -> list[Any]:
    steps = w.constant(np.arange(TIME, dtype=np.int32)[:, None])
    valid = w.op("Less", steps, w.unsqueeze(lengths, 0))
    y = w.op("Where", w.unsqueeze(valid, 2), x, w.constant(np.zeros((), np.float32)))
    flat = w.op("Reshape", w.transpose(y, (1, 0, 2)), w.constant([0, -1]))
    parts = w.op("Split", x, outputs=3, axis=2, num_outputs=3)
    return [(1, y), (1, parts[2]), (0, flat), (0, w.squeeze(w.slice(w.transpose(y, (1, 0, 2)), 1, 0, 1), 1))]


def product(w: Writer, x: Any, lengths: Any, _: Any) -> list[Any]:
    return [(1, w.op("MatMul", x, w.constant(np.ones((INPUTS, 2), np.float32))))]


GOES = {"a layer": layer, "masks and axes": masked, "a product": product}


def rows_of_another(w: Writer, x: Any, lengths: Any, _: Any) -> list[Any]:
    """Sorted rows meet rows that are not."""
    return [(1, w.op("Add", x, w.constant(np.arange(BATCH, dtype=np.float32)[:, None])))]


STAYS: dict[str, Any] = {
    "rows that are not sorted": rows_of_another,
    "a sorted output": lambda w, x, lengths, order: [(None, x), (1, x)],
    "the order itself": lambda w, x, lengths, order: [(None, order), (1, x)],
    "another axis put back": lambda w, x, lengths, order: [(0, w.transpose(x, (0, 2, 1)))],
    "a running sum": lambda w, x, lengths, order: [(1, w.op("CumSum", x, w.constant(np.asarray(1))))],
    "lengths that are not the sorted ones": lambda w, x, lengths, order: [
        (2, w.recurrent(cell(), x, lengths=w.constant(np.array([5, 1, 2, 4], np.int32)), name="rnn")[0])
    ],
    "rows cut off": lambda w, x, lengths, order: [
        (1, w.op("Concat", w.slice(x, 1, 1, 4), w.slice(x, 1, 0, 1), axis=1))
    ],
    "a mean over rows": lambda w, x, lengths, order: [(None, w.op("ReduceMean", x, w.constant([1]), keepdims=0))],
}


def outputs(built: Any) -> list[Any]:
    x = np.random.default_rng(1).standard_normal((TIME, BATCH, INPUTS)).astype(np.float32)
    session = ort.InferenceSession(to_proto(built).SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, {"x": x, "lengths": np.array([2, 5, 1, 3])}))


@pytest.mark.parametrize("name", GOES)
def test_the_sort_goes_and_the_outputs_stay(name: str) -> None:
    built = model(GOES[name])
    before = outputs(built)
    assert without_sorting(built) == 1
    for mine, expected in zip(outputs(built), before, strict=True):
        np.testing.assert_array_equal(mine, expected)
    assert not any(node.op_type == "Gather" and node.outputs[0].uses() for node in built.graph)


@pytest.mark.parametrize("name", STAYS)
def test_the_sort_stays_where_the_order_shows(name: str) -> None:
    built = model(STAYS[name])
    assert without_sorting(built) == 0


def test_the_longest_of_a_batch_are_no_sort_of_it() -> None:
    assert without_sorting(model(lambda w, x, lengths, order: [(1, x)], whole=False)) == 0
