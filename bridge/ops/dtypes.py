"""ONNX element types as numpy dtypes."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any, Final

import numpy as np

from bridge.errors import Unsupported

CARRIED: Final = MappingProxyType({
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 9: "bool", 10: "float16",
    11: "float64", 12: "uint32", 13: "uint64",
})  # fmt: skip
"""`TensorProto.DataType` to dtype name; bfloat16, float8, 4-bit, complex and string types are not carried."""


def numpy_dtype(element_type: int, where: str) -> np.dtype[Any]:
    """The numpy dtype of a `TensorProto.DataType`.

    Raises:
        Unsupported: bfloat16, float8, 4-bit, complex and string types.

    Source: onnx/onnx.proto, TensorProto.DataType (onnx 1.23.2).
    """
    if element_type not in CARRIED:
        raise Unsupported(
            "an element type that is not carried", where=where, got=element_type, expected=", ".join(CARRIED.values())
        )
    return np.dtype(CARRIED[element_type])
