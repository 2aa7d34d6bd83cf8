"""Say what is known of a value: its number, or its sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir


def declare_constant(value: ir.Value, array: np.ndarray) -> None:
    """`value` is `array`, though a node may make it."""
    import onnx_ir as ir

    value.shape = ir.Shape(array.shape)
    value.const_value = ir.Tensor(array, name=value.name)
    value.type = ir.TensorType(value.const_value.dtype)


def declare_shape(value: ir.Value, dims: Sequence[int | str | None]) -> None:
    """`value` has these sizes: numbers, symbols, or None for what is not known."""
    import onnx_ir as ir

    value.shape = ir.Shape(dims)
