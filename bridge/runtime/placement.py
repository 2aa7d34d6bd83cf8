"""Which recurrent nodes onnxruntime's CUDA provider takes, said before a session is made.

The provider passes a node on to the CPU with nothing but a log line, inside a session that otherwise runs on the GPU.
These are its rules (and two kinds of node that it takes and fails on), so that the refusal can say why.

Source: onnxruntime 1.31.1, cuda_execution_provider.cc RNNNeedFallbackToCPU, cudnn_rnn_base.h, lstm.h.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridge.cell import DEFAULT_ACTIVATIONS
from bridge.graph.nodes import input_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx_ir as ir

NO_KERNEL = frozenset({"BFLOAT16"})
"""Dtypes of W that the CUDA provider has no recurrent kernel for; float64 it has, unlike the CPU."""


def cuda_obstacles(node: ir.Node) -> tuple[str, ...]:
    """Why the CUDA provider would not run this LSTM, GRU or RNN, or not exactly; empty where it does."""
    return tuple(_obstacles(node))


def _obstacles(node: ir.Node) -> Iterator[str]:
    if node.op_type not in DEFAULT_ACTIVATIONS:
        yield f"the CUDA provider has no kernel for {node.op_type}"
        return
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    yield from _activation_obstacles(node.op_type, attributes)
    if "clip" in attributes:
        yield "clip is given"
    if attributes.get("input_forget", 0) != 0:
        yield "input_forget is not 0"
    if node.op_type == "GRU" and attributes.get("linear_before_reset", 0) != 1:
        yield f"linear_before_reset is {attributes.get('linear_before_reset', 0)}: cuDNN has the GRU of 1 only"
    if attributes.get("layout", 0) != 0:
        yield "layout is 1, which no kernel of onnxruntime takes"
    if input_of(node, 7) is not None:
        yield "P (peepholes) is given"
    W = input_of(node, 1)
    if W is not None and W.dtype is not None and W.dtype.name in NO_KERNEL:
        yield f"there is no kernel for {W.dtype.name.lower()}"
    yield from _bias_obstacle(node)


def _activation_obstacles(op: str, attributes: dict[str, Any]) -> Iterator[str]:
    names = tuple(attributes.get("activations") or ())
    defaults = DEFAULT_ACTIVATIONS[op] * (2 if attributes.get("direction") == "bidirectional" else 1)
    if op == "RNN":  # one direction reads the first of two names
        names = names[: len(defaults)]
    if names and tuple(name.lower() for name in names) != tuple(name.lower() for name in defaults):
        yield f"the activations are {', '.join(names)}: cuDNN has {', '.join(defaults)} only"
    for name in ("activation_alpha", "activation_beta"):
        if name in attributes:
            yield f"{name} is given, whatever its values"


def _bias_obstacle(node: ir.Node) -> Iterator[str]:
    # The provider packs constant W and R into one buffer when it loads them, and leaves no place for a later B.
    W, R, B = (input_of(node, at) for at in (1, 2, 3))
    if B is not None and B.const_value is None and all(x is not None and x.const_value is not None for x in (W, R)):
        yield "W and R are constants and B is not: the CUDA kernel would leave B out"
