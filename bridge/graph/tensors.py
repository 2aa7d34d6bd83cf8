"""Tensors that give their bytes without a copy where they already lie in a bytes object.

A protobuf message takes `bytes` and nothing else. Weights that a layout has laid down as bytes (bridge.layout.reading)
go into it as they are; an export of 67 MB saves one copy in time and in memory.
"""

from __future__ import annotations

import sys

import numpy as np
import onnx_ir as ir


class ArrayTensor(ir.Tensor[np.ndarray]):
    """An `onnx_ir.Tensor` on a numpy array."""

    def tobytes(self) -> bytes:
        """The elements, little endian; the very object that holds the array where there is one."""
        array = self.numpy()
        owner = owner_of(array)
        whole = owner is not None and array.flags.c_contiguous and array.nbytes == len(owner)
        if whole and owner is not None and sys.byteorder == "little" and array.dtype.isnative:
            return owner
        return bytes(super().tobytes())


def owner_of(array: np.ndarray) -> bytes | None:
    """The bytes object in which the memory of `array` lies; None where it lies elsewhere."""
    base: object = array
    while isinstance(base, np.ndarray):
        base = base.base
    return base if isinstance(base, bytes) else None
