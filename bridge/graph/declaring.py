"""Say what is known of a value: its number, or its sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from bridge.errors import UsageError

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


def declare_dtype(value: ir.Value, dtype: np.dtype[np.generic]) -> None:
    """`value` is a tensor of this dtype."""
    import onnx_ir as ir

    value.type = ir.TensorType(ir.DataType.from_numpy(dtype))


def with_sizes(model: ir.Model, shapes: Mapping[str, Sequence[int | str]]) -> ir.Model:
    """A copy with sizes of inputs that the file leaves open: numbers, and names for those that stay symbolic.

    Raises:
        UsageError: no such input, another rank, a size below 1, or another number than the file has.
    """
    model = model.clone()
    inputs = {str(value.name): value for value in model.graph.inputs}
    for name, dims in shapes.items():
        if name not in inputs:
            raise UsageError(f"no input is called {name!r}", where="shapes", got=name, expected=", ".join(inputs))
        found = inputs[name].shape
        known = [None] * len(dims) if found is None else [dim if isinstance(dim, int) else None for dim in found]
        agree = len(known) == len(dims) and all(
            had in (None, dim) and (isinstance(dim, str) or dim > 0) for had, dim in zip(known, dims, strict=True)
        )
        if not agree:
            raise UsageError("these sizes are not those of the input", where=f"shapes, input {name!r}",
                             got=list(dims), expected="any rank" if found is None else str(found))  # fmt: skip
        declare_shape(inputs[name], dims)
        settle(model.graph, found, dims)
    return model


def settle(graph: ir.Graph, symbols: ir.Shape | None, sizes: Sequence[int | str]) -> None:
    """Inputs of `graph` have the `sizes` that are numbers wherever they have the same symbols."""
    import onnx_ir as ir

    # Not 1: that may be meant for all, as one initial state for every sequence.
    known = {dim.value: size for dim, size in zip(symbols or (), sizes, strict=False)
             if isinstance(dim, ir.SymbolicDim) and dim.value is not None and isinstance(size, int) and size != 1
             }  # fmt: skip
    for value in graph.inputs:
        if known and value.shape is not None:
            value.shape = ir.Shape([dim if isinstance(dim, int) else known.get(str(dim.value), dim)
                                    for dim in value.shape])  # fmt: skip
