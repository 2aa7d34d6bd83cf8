"""The last proof of a loop that tf2onnx wrote: the model's own forward pass at two sizes, against the graph.

Native recurrent layers are written by bridge. A cell or an activation of the caller's own becomes a Loop, and tf2onnx
1.17.0 was seen to write loops that compute something else (TimeDistributed over an open time axis, ConvLSTM2D).
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from bridge.errors import BridgeError, Unsupported
from bridge.frameworks.keras_read import keras_array
from bridge.frameworks.keras_whole.execute import execute_whole
from bridge.frameworks.keras_whole.inputs import is_functional
from bridge.frameworks.whole import differing
from bridge.ops.program import evaluate

if TYPE_CHECKING:
    import onnx_ir as ir

SIZES: Final = ((2, 13), (3, 34))
"""(batch, time) of the runs, long enough for kernels and windows; further open axes are as long as time."""

CONTROL: Final = ("Loop", "Scan", "If")


def has_loops(model: ir.Model) -> bool:
    """Whether control flow of another exporter is in the graph."""
    return any(node.op_type in CONTROL and node.domain == "" for node in model.graph.all_nodes())


def prove_loops(source: Any, model: ir.Model, do: str) -> None:
    """Refuse a graph that does not compute what the model does.

    Raises:
        Unsupported: another result.
    """
    for batch, time in SIZES:
        feeds = _feeds(model, batch, time)
        own = {name: keras_array(value) for name, value in execute_whole(source, feeds).items()}
        other = differing(own, evaluate(model, feeds))
        if other:
            raise Unsupported("tf2onnx writes a loop that computes something else than the model", where=source.name,
                              got=f"another {other}", do=do)  # fmt: skip


def opens_more(source: Any, model: ir.Model) -> bool:
    """Whether the graph leaves an axis open without the model's word.

    A Sequential model declares another size for it; a subclassed one declares nothing.
    """
    import keras

    if not is_functional(source):
        return True
    if not isinstance(source, keras.Sequential):
        return False
    declared, dims = source.inputs[0].shape, list(model.graph.inputs[0].shape or ())
    return any(size is not None and not isinstance(dim, int) for size, dim in zip(declared[1:], dims[1:], strict=False))


def runs_at_other_sizes(source: Any, model: ir.Model) -> bool:
    """Whether the model itself runs at sizes that it does not declare, and the graph with it."""
    failures: tuple[type[Exception], ...] = (BridgeError, ArithmeticError, *_failures())
    try:
        prove_loops(source, model, "")
    except failures:
        return False
    return True


def _failures() -> tuple[type[Exception], ...]:
    """What Keras' backends raise on sizes that do not fit."""
    tensorflow = sys.modules.get("tensorflow")
    own = (ValueError, TypeError, RuntimeError, IndexError, AttributeError)
    return own if tensorflow is None else (*own, tensorflow.errors.OpError)


def _feeds(model: ir.Model, batch: int, time: int) -> dict[str, np.ndarray]:
    rng, sizes, feeds = np.random.default_rng([batch, time]), {"batch": batch}, {}
    for value in model.graph.inputs:
        shape = [dim if isinstance(dim, int) else sizes.setdefault(str(dim.value), batch if at == 0 else time)
                 for at, dim in enumerate(value.shape or ())]  # fmt: skip
        dtype = np.dtype(np.float32) if value.dtype is None else value.dtype.numpy()
        numbers = rng.standard_normal(shape) if dtype.kind == "f" else rng.integers(0, 2, shape)
        feeds[str(value.name)] = np.asarray(numbers).astype(dtype)
    return feeds
