"""TensorFlow operators that tf2onnx 1.17.0 lacks or writes inexactly, as handlers for it; and its log, kept."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import tf2onnx


def where(graph: Any, node: Any, _name: str, _args: Any) -> None:
    """Select as ONNX's Where: tf2onnx's own, c * x + (1 - c) * y, is NaN where what is not chosen is not finite."""
    condition, value = graph.get_rank(node.input[0]), graph.get_rank(node.output[0])
    if node.type == "Select" and condition == 1 and value is not None and value > 1:
        shape = graph.make_const(tf2onnx.utils.make_name(node.name), _column(value)).output[0]
        column = graph.make_node("Reshape", [node.input[0], shape], op_name_scope=node.name).output[0]
        graph.replace_input(node, node.input[0], column, 0)
    if graph.get_dtype(node.output[0]) == graph.get_dtype(node.input[0]):
        _where_bool(graph, node)
    else:
        node.type = "Where"


def _where_bool(graph: Any, node: Any) -> None:
    """Select of bools, which onnxruntime's Where lacks: (c and x) or (not c and y)."""
    condition, first, second = node.input
    name, outputs, shape = node.name, list(node.output), graph.get_shape(node.output[0])
    dtype = graph.get_dtype(node.output[0])
    graph.remove_node(name)
    other = graph.make_node("Not", [condition], op_name_scope=name).output[0]
    parts = [graph.make_node("And", pair, op_name_scope=name).output[0]
             for pair in ([condition, first], [other, second])]  # fmt: skip
    graph.make_node("Or", parts, outputs=outputs, name=name, shapes=[shape], dtypes=[dtype])


def erfc(graph: Any, node: Any, _name: str, _args: Any) -> None:
    """1 - erf(x), which tf2onnx lacks: GELU on TensorFlow is written with it."""
    _less_one(graph, node, "Erf", of_one=True)


def expm1(graph: Any, node: Any, _name: str, _args: Any) -> None:
    """exp(x) - 1, which tf2onnx lacks: CELU on TensorFlow is written with it."""
    _less_one(graph, node, "Exp", of_one=False)


def _less_one(graph: Any, node: Any, operator: str, *, of_one: bool) -> None:
    """1 - operator(x), or operator(x) - 1."""
    shape, dtype, outputs = graph.get_shape(node.output[0]), graph.get_dtype(node.output[0]), list(node.output)
    number = np.array(1, tf2onnx.utils.map_onnx_to_numpy_type(dtype))
    one = graph.make_const(tf2onnx.utils.make_name(node.name), number).output[0]
    inner = graph.make_node(operator, [node.input[0]], op_name_scope=node.name).output[0]
    graph.remove_node(node.name)
    pair = [one, inner] if of_one else [inner, one]
    graph.make_node("Sub", pair, outputs=outputs, name=node.name, shapes=[shape], dtypes=[dtype])


def _column(rank: int) -> Any:
    return np.array([-1, *[1] * (rank - 1)], np.int64)


REWRITERS: Final = (
    "rewriter_lstm_tf2", "rewrite_gru_tf2", "rewrite_single_direction_lstm", "rewrite_bi_direction_lstm",
    "rewrite_single_direction_gru", "rewrite_bi_direction_gru", "rewrite_custom_rnn_cell",
)  # fmt: skip
"""What in tf2onnx takes loops for recurrent layers by their look, and takes a ConvLSTM2D for an LSTM."""


@contextmanager
def loops_as_they_are() -> Iterator[None]:
    """tf2onnx without guesses at what a loop is: the recurrent layers are stubs already."""
    from tf2onnx import tfonnx

    kept = {name: getattr(tfonnx, name) for name in REWRITERS if hasattr(tfonnx, name)}
    try:
        for name in kept:
            setattr(tfonnx, name, _untouched)
        yield
    finally:
        for name, function in kept.items():
            setattr(tfonnx, name, function)


def _untouched(_graph: Any, ops: Any) -> Any:
    return ops


@contextmanager
def complaints_of() -> Iterator[list[str]]:
    """What tf2onnx logs as errors, instead of its log on stderr."""
    found: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage()[:500])

    log, handler = logging.getLogger("tf2onnx"), Collect(logging.ERROR)
    kept = log.handlers, log.level, log.propagate, logging.root.manager.disable
    logging.disable(logging.NOTSET)  # an operator that could not be converted is told of by the log alone
    log.handlers, log.propagate = [handler], False
    log.setLevel(logging.ERROR)
    try:
        yield found
    finally:
        log.handlers, log.propagate = kept[0], kept[2]
        log.setLevel(kept[1])
        logging.disable(kept[3])
