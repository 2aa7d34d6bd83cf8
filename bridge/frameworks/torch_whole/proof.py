"""The last proof of a loop over time that has become one layer: the model's own forward pass at two other lengths.

Two traces of a few steps give the same graph, but code that looks at a Python counter of its own (`len(outputs)`) may
do at a later step what it did at none of the traced ones. The example's own length and three times it are run, and
inputs whose axes the graph calls by different names at sizes of their own: a loop over the length of one input that
steps through another is as long as the wrong one.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import nn

from bridge.errors import BridgeError, Unsupported
from bridge.frameworks.torch_whole.capture import FAILURES
from bridge.frameworks.torch_whole.execute import run_whole
from bridge.frameworks.whole import differing
from bridge.ops.program import evaluate

if TYPE_CHECKING:
    import onnx_ir as ir

    from bridge.frameworks.torch_whole.inputs import Args

TIMES: Final = (1, 3)
"""How many times the example's sizes are run: at its own length, and well past it."""

ONE_NAME: Final = (
    "loop over the size of the tensor that is indexed, or call both axes by one name: "
    "dynamic={'x': {0: 'batch', 1: 'time'}, 'z': {0: 'batch', 1: 'time'}}"
)
"""What to do about a loop over the size of another tensor."""


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
    symbols = sorted({str(dim.value) for port in ports.values() for dim in _dims(port) if not isinstance(dim, int)})
    for times in TIMES:
        feeds = _feeds(bound, ports, dict.fromkeys(symbols, times))
        try:
            own = run_whole(module, feeds)
        except FAILURES as error:
            raise Unsupported("a Python loop over time fails where its axes are longer", where=where,
                              got=f"{str(error).splitlines()[0] if str(error) else type(error).__name__}; "
                              + "; ".join(dict.fromkeys(places)), do=ONE_NAME) from error  # fmt: skip
        other = differing(own, evaluate(model, feeds))
        if other:
            found = "; ".join([f"another {other} at other lengths", *dict.fromkeys(places)])
            raise Unsupported("a Python loop over time does something else at later steps, and cannot become one layer",
                              where=where, got=found, do=do)  # fmt: skip
    for order in (symbols, symbols[::-1]) if len(symbols) > 1 else ():
        feeds = _feeds(bound, ports, {symbol: at for at, symbol in enumerate(order, 1)})
        other = _differing_apart(module, model, feeds)
        if other:
            found = "; ".join([f"another {other} where {', '.join(symbols)} differ", *dict.fromkeys(places)])
            raise Unsupported("a Python loop over the size of one tensor steps through another", where=where, got=found,
                              do=ONE_NAME)  # fmt: skip


def _dims(port: ir.Value) -> Sequence[Any]:
    return () if port.shape is None else list(port.shape)


def _feeds(
    bound: Mapping[str, torch.Tensor], ports: Mapping[str, ir.Value], times: Mapping[str, int]
) -> dict[str, np.ndarray]:
    """The example, as often along each symbolic axis as `times` says of its symbol.

    Noise where it holds floats, which zeros would hide.
    """
    rng, feeds = np.random.default_rng(0), {}
    for name, port in ports.items():
        array = bound[name].detach().cpu().numpy()
        array = np.tile(array, [1 if isinstance(dim, int) else times[str(dim.value)] for dim in _dims(port)])
        if array.dtype.kind == "f":
            array = rng.standard_normal(array.shape).astype(array.dtype)
        feeds[name] = array
    return feeds


def _differing_apart(module: nn.Module, model: ir.Model, feeds: Mapping[str, np.ndarray]) -> str:
    """`differing`, "" too where the module does not take such sizes, or the graph refuses them as loudly."""
    try:
        own = run_whole(module, feeds)
    except FAILURES:
        return ""
    try:
        graph = evaluate(model, feeds)
    except (BridgeError, ValueError):  # ValueError: numpy's, of sizes that do not fit together
        return ""
    return differing(own, graph)
