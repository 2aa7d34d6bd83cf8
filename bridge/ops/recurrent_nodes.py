"""LSTM, GRU and RNN nodes. On numpy the referee computes them, elsewhere the kernels of `recurrent.py`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from bridge import reference
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
    attributes = {
        "activations": activations,
        "activation_alpha": activation_alpha,
        "activation_beta": activation_beta,
        "clip": clip,
        "direction": direction,
        "hidden_size": hidden_size,
        "input_forget": input_forget,
        "layout": layout,
    }
    inputs = (X, W, R, B, sequence_lens, initial_h, initial_c, P)
    return _run(node, reference.lstm, recurrent.lstm, inputs, attributes)


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
    attributes = {
        "activations": activations,
        "activation_alpha": activation_alpha,
        "activation_beta": activation_beta,
        "clip": clip,
        "direction": direction,
        "hidden_size": hidden_size,
        "layout": layout,
        "linear_before_reset": linear_before_reset,
    }
    inputs = (X, W, R, B, sequence_lens, initial_h)
    return _run(node, reference.gru, recurrent.gru, inputs, attributes)


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
    attributes = {
        "activations": activations,
        "activation_alpha": activation_alpha,
        "activation_beta": activation_beta,
        "clip": clip,
        "direction": direction,
        "hidden_size": hidden_size,
        "layout": layout,
    }
    inputs = (X, W, R, B, sequence_lens, initial_h)
    return _run(node, reference.rnn, recurrent.rnn, inputs, attributes)


def _run(
    node: Node,
    referee: Callable[..., tuple[Array, ...]],
    kernel: Callable[..., tuple[Array, ...]],
    inputs: tuple[Array | None, ...],
    attributes: dict[str, Any],
) -> tuple[Array, ...]:
    """The outputs of a kernel on the node's backend, or of the referee, rounded once to the dtype of X."""
    if node.backend.name != "numpy":
        return kernel(node.backend, *inputs, **attributes)
    X: Any = inputs[0]
    return tuple(value.astype(X.dtype) for value in referee(*inputs, **attributes))
