"""LSTM, GRU and RNN nodes. On numpy the referee computes them, elsewhere the kernels of `recurrent.py`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from bridge import reference
from bridge.cell import Cell, Op, settled
from bridge.errors import BadInput
from bridge.ops import recurrent
from bridge.ops.backend import Array
from bridge.ops.node import Node
from bridge.ops.registry import handles

VERSIONS = frozenset({7, 14, 22})


@handles("LSTM", versions=VERSIONS, check=partial(recurrent.check_attributes, "LSTM"))
def lstm(
    node: Node,
    X: Array,
    W: Array,
    R: Array,
    B: Array | None = None,
    sequence_lens: Array | None = None,
    initial_h: Array | None = None,
    initial_c: Array | None = None,
    P: Array | None = None,
    *,
    activations: Sequence[str] | None = None,
    activation_alpha: Sequence[float] | None = None,
    activation_beta: Sequence[float] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    input_forget: int = 0,
    layout: int = 0,
) -> tuple[Array, ...]:
    """Run one ONNX LSTM node. Source: onnx/defs/rnn/defs.cc, LSTM-22."""
    attributes: dict[str, Any] = {
        "activations": activations,
        "activation_alpha": activation_alpha,
        "activation_beta": activation_beta,
        "clip": clip,
        "direction": direction,
        "input_forget": input_forget,
    }
    if node.backend.name == "numpy":
        blocks, states = {"W": W, "R": R, "B": B, "P": P}, (initial_h, initial_c)
        return _referee("LSTM", X, sequence_lens, states, layout, hidden_size, blocks, attributes)
    return recurrent.lstm(
        node.backend, X, W, R, B, sequence_lens, initial_h, initial_c, P,
        hidden_size=hidden_size, layout=layout, **attributes,
    )  # fmt: skip


@handles("GRU", versions=VERSIONS, check=partial(recurrent.check_attributes, "GRU"))
def gru(
    node: Node,
    X: Array,
    W: Array,
    R: Array,
    B: Array | None = None,
    sequence_lens: Array | None = None,
    initial_h: Array | None = None,
    *,
    activations: Sequence[str] | None = None,
    activation_alpha: Sequence[float] | None = None,
    activation_beta: Sequence[float] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    layout: int = 0,
    linear_before_reset: int = 0,
) -> tuple[Array, ...]:
    """Run one ONNX GRU node. Source: onnx/defs/rnn/defs.cc, GRU-22."""
    attributes: dict[str, Any] = {
        "activations": activations,
        "activation_alpha": activation_alpha,
        "activation_beta": activation_beta,
        "clip": clip,
        "direction": direction,
        "linear_before_reset": linear_before_reset,
    }
    if node.backend.name == "numpy":
        blocks = {"W": W, "R": R, "B": B}
        return _referee("GRU", X, sequence_lens, (initial_h,), layout, hidden_size, blocks, attributes)
    return recurrent.gru(
        node.backend, X, W, R, B, sequence_lens, initial_h, hidden_size=hidden_size, layout=layout, **attributes
    )


@handles("RNN", versions=VERSIONS, check=partial(recurrent.check_attributes, "RNN"))
def rnn(
    node: Node,
    X: Array,
    W: Array,
    R: Array,
    B: Array | None = None,
    sequence_lens: Array | None = None,
    initial_h: Array | None = None,
    *,
    activations: Sequence[str] = ("Tanh", "Tanh"),
    activation_alpha: Sequence[float] | None = None,
    activation_beta: Sequence[float] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    layout: int = 0,
) -> tuple[Array, ...]:
    """Run one ONNX RNN node. Source: onnx/defs/rnn/defs.cc, RNN-22."""
    attributes: dict[str, Any] = {
        "activations": activations,
        "activation_alpha": activation_alpha,
        "activation_beta": activation_beta,
        "clip": clip,
        "direction": direction,
    }
    if node.backend.name == "numpy":
        blocks = {"W": W, "R": R, "B": B}
        return _referee("RNN", X, sequence_lens, (initial_h,), layout, hidden_size, blocks, attributes)
    return recurrent.rnn(
        node.backend, X, W, R, B, sequence_lens, initial_h, hidden_size=hidden_size, layout=layout, **attributes
    )


def _referee(
    op: Op,
    X: np.ndarray,
    lengths: np.ndarray | None,
    states: tuple[np.ndarray | None, ...],
    layout: int,
    hidden_size: int | None,
    blocks: dict[str, np.ndarray | None],
    attributes: dict[str, Any],
) -> tuple[np.ndarray, ...]:
    """The node in float64, rounded once to the dtype of X."""
    cell = Cell(op, **blocks, **settled(op, attributes))  # type: ignore[arg-type]
    if hidden_size not in (None, cell.hidden_size):
        raise BadInput("hidden_size and R disagree", where=op, got=hidden_size, expected=cell.hidden_size)
    if layout:
        X, states = X.swapaxes(0, 1), tuple(None if state is None else state.swapaxes(0, 1) for state in states)
    names: dict[str, Any] = dict(zip(("initial_h", "initial_c"), states, strict=False))
    Y, *finals = (value for value in reference.evaluate(cell, X, lengths=lengths, **names) if value is not None)
    if layout:
        Y, finals = Y.transpose(2, 0, 1, 3), [final.swapaxes(0, 1) for final in finals]
    return tuple(value.astype(X.dtype) for value in (Y, *finals))
