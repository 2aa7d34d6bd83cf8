"""Port: an input of a graph as the graph declares it, apart from the graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.errors import BadInput
from bridge.ops.backend import Array, Backend
from bridge.ops.dtypes import numpy_dtype

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """Name, shape and element type of one input."""

    name: str
    sizes: tuple[int | None, ...] | None
    """None for an axis that is symbolic, or where nothing is declared."""
    element: int | None
    """`TensorProto.DataType`."""
    shown: str
    """The shape in the graph's own symbols, for messages."""

    @classmethod
    def of(cls, name: str, value: ir.Value) -> Port:
        """The port of a graph input."""
        sizes = None if value.shape is None else tuple(dim if isinstance(dim, int) else None for dim in value.shape)
        element = None if value.dtype is None else int(value.dtype)
        return cls(name=name, sizes=sizes, element=element, shown=str(value.shape))

    def placed(self, array: Array, backend: Backend) -> Array:
        """A call's input on the backend.

        Raises:
            BadInput: another rank, size or dtype than the graph declares.
        """
        array = array_like(array, f"input {self.name!r}")
        if not self._fits(tuple(array.shape)):
            raise BadInput("wrong shape", where=f"input {self.name!r}", got=list(array.shape), expected=self.shown)
        dtype = array.dtype if isinstance(array, np.ndarray) else backend.dtype(array)
        if self.element is not None:
            wanted = numpy_dtype(self.element, f"input {self.name!r}")
            if dtype not in (wanted, backend.dtype(backend.asarray(np.zeros(0, wanted)))):
                raise BadInput("wrong dtype", where=f"input {self.name!r}", got=str(dtype), expected=str(wanted))
        return backend.asarray(array)

    def _fits(self, shape: tuple[int, ...]) -> bool:
        if self.sizes is None:
            return True
        return len(self.sizes) == len(shape) and all(d in (None, s) for d, s in zip(self.sizes, shape, strict=True))


def array_like(value: Any, where: str) -> Array:
    """A call's input as an array of numpy or of a framework. Raises BadInput for what is none."""
    if isinstance(value, list | tuple | int | float):
        value = np.asarray(value)
    if not hasattr(value, "shape") or not hasattr(value, "dtype"):
        raise BadInput("no array of numbers", where=where, got=type(value).__qualname__, expected="an array")
    return value
