"""The last proof of a loop over time that has become one layer: the model's own forward pass at two other lengths.

Two traces of a few steps give the same graph, but code that looks at a Python counter of its own (`len(outputs)`) may
do at a later step what it did at none of the traced ones. The example's own length and three times it are run.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import nn

from bridge.errors import Unsupported
from bridge.frameworks.torch_whole_execute import run_whole
from bridge.ops.program import evaluate

if TYPE_CHECKING:
    import onnx_ir as ir

    from bridge.frameworks.torch_whole_inputs import Args

TIMES: Final = (1, 3)
"""How many times the example's sizes are run: at its own length, and well past it."""

LARGEST: Final = 1e-3
"""Error over max|value| that is still float32 rounding: verify calls a network chaotic from here on. A step that
computes something else is off by the size of its values."""


def prove_loops(module: nn.Module, model: ir.Model, args: Args, places: Sequence[str], do: str) -> None:
    """Refuse a model whose graph does not compute what the module does at other lengths.

    Args:
        module: the user's.
        model: its graph, in which a loop has become a layer.
        args: the example that it was traced with.
        places: where the loops are.
        do: what the refusal advises.

    Raises:
        Unsupported: another result, or inputs that are no plain arrays, which cannot be run at other lengths.
    """
    where = type(module).__name__
    bound = inspect.signature(module.forward).bind(*args[0], **args[1]).arguments
    ports = {str(value.name): value for value in model.graph.inputs}
    if not all(isinstance(bound.get(name), torch.Tensor) for name in ports):
        raise Unsupported("a Python loop over time in a model whose inputs are no plain arrays", where=where,
                          got=", ".join(ports), do=do)  # fmt: skip
    others = {name: value for name, value in bound.items() if name not in ports and value is not None}
    if others:
        raise Unsupported("a Python loop over time beside arguments that are fixed", where=where,
                          got=", ".join(others), do=do)  # fmt: skip
    for times in TIMES:
        feeds = {name: _resized(bound[name], port, times) for name, port in ports.items()}
        _compare(run_whole(module, feeds), evaluate(model, feeds), where, places, do)


def _resized(example: torch.Tensor, port: ir.Value, times: int) -> np.ndarray:
    """The example `times` as large along every symbolic axis; noise where it holds floats, which zeros would hide."""
    array = example.detach().cpu().numpy()
    dims = port.shape if port.shape is not None else ()
    array = np.tile(array, [1 if isinstance(dim, int) else times for dim in dims])
    if array.dtype.kind == "f":
        array = np.random.default_rng(times).standard_normal(array.shape).astype(array.dtype)
    return array


def _compare(
    own: Mapping[str, np.ndarray], graph: Mapping[str, Any], where: str, places: Sequence[str], do: str
) -> None:
    for name, computed in graph.items():
        expected, actual = np.asarray(own[name], np.float64), np.asarray(computed, np.float64)
        scale = max(1.0, float(np.max(np.abs(expected), initial=0.0)))
        if expected.shape != actual.shape or not np.max(np.abs(expected - actual), initial=0.0) <= LARGEST * scale:
            found = "; ".join([f"another {name} at other lengths", *dict.fromkeys(places)])
            raise Unsupported("a Python loop over time does something else at later steps, and cannot become one layer",
                              where=where, got=found, do=do)  # fmt: skip
