"""Python values as the types, attributes and arrays of a graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx_ir as ir


def tensor_type(dtype: str) -> ir.TensorType:
    """The tensor type of a numpy dtype name."""
    import onnx_ir as ir

    return ir.TensorType(ir.DataType.from_numpy(np.dtype(dtype)))


def as_attribute(value: Any) -> Any:
    """What onnx_ir takes for an attribute: arrays become tensors, bool and numpy integers int."""
    import onnx_ir as ir

    if isinstance(value, np.ndarray):
        return ir.Tensor(value)
    return int(value) if isinstance(value, bool | np.integer) else value


def as_array(value: object, dtype: str | None) -> np.ndarray:
    """`value` as an array; Python floats take `dtype`, and a numpy array is itself where it has that dtype."""
    array = np.asarray(value)
    if isinstance(value, np.ndarray | np.generic):
        return array if dtype is None else array.astype(dtype, copy=False)
    if array.dtype == np.float64:
        return array.astype(dtype or np.float32)
    return array
