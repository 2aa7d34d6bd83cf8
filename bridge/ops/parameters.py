"""Which initialisers are parameters: floats of rank 1 or more that reach an output differentiably."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx_ir as ir

    from bridge.ops.steps import Block, Step


def trainable(block: Block, constants: Mapping[ir.Value, np.ndarray]) -> list[ir.Value]:
    """The parameters among `constants`, in the order of the graph; shapes, indices and scalars are none."""
    reached = _reached(block, set(block.outputs))
    return [value for value, array in constants.items() if value in reached and array.dtype.kind == "f" and array.ndim]


def _reached(block: Block, wanted: set[ir.Value]) -> set[ir.Value]:
    """Everything that a gradient of the wanted outputs flows into, captured values of bodies too."""
    reached = set(wanted)
    for step in reversed(block.steps):
        if reached.isdisjoint(step.outputs) or not _passes_gradient(step):
            continue
        reached.update(_differentiable_inputs(step))
        for body in step.bodies.values():
            reached |= _reached(body, set(body.outputs))
    return reached


def _differentiable_inputs(step: Step) -> Iterable[ir.Value]:
    return (value for at, value in enumerate(step.inputs) if value is not None and step.handler.trains(at))


def _passes_gradient(step: Step) -> bool:
    if not step.handler.label.differentiable:
        return False
    dtypes = [output.dtype for output in step.outputs]
    return not all(dtype is not None and not dtype.is_floating_point() for dtype in dtypes)
