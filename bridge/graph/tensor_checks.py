"""Does a TensorProto hold what its dtype and dims say? Asked before anything is allocated for it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from bridge.errors import BadInput, Unsupported

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

MOST_ELEMENTS: Final = 2**48
"""More than any memory holds: also of the dimensions that are not 0, since numpy multiplies them all."""

DATA_FIELDS: Final = ("float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")
_OWN_FIELDS: Final = {
    "FLOAT": "float_data", "COMPLEX64": "float_data", "STRING": "string_data", "INT64": "int64_data",
    "DOUBLE": "double_data", "COMPLEX128": "double_data", "UINT32": "uint64_data", "UINT64": "uint64_data",
}  # fmt: skip


def check_tensor(tensor: onnx.TensorProto, where: str) -> None:
    """Compare the stored data of one tensor with its dtype and dims. Source: onnx/onnx.proto (onnx 1.23.2).

    Raises:
        BadInput: an unknown dtype, a negative or impossible dimension, more or less data than the dims say.
        Unsupported: a tensor stored in segments.
    """
    where = f"{where}, tensor {tensor.name!r}"
    dtype = dtype_of(tensor, where)
    dims = list(tensor.dims)
    if any(size < 0 for size in dims) or math.prod(size for size in dims if size) > MOST_ELEMENTS:
        raise BadInput("impossible dimensions", where=where, got=dims, do="the file is damaged or hostile")
    if tensor.HasField("segment"):
        raise Unsupported("the tensor is stored in segments, which no runtime reads", where=where)
    if tensor.data_location == tensor.EXTERNAL:
        _check_external_entries(tensor, dtype, where)
        return
    elements = math.prod(dims)
    fields = [name for name in DATA_FIELDS if len(getattr(tensor, name))]
    if tensor.HasField("raw_data"):
        if fields or dtype.name == "STRING":
            raise BadInput("raw data beside typed data", where=where, got=fields or "raw strings")
        _check_size(len(tensor.raw_data), byte_size(dtype, elements), "bytes", dims, dtype, where)
        return
    own = _OWN_FIELDS.get(dtype.name, "int32_data")
    if fields and fields != [own]:
        raise BadInput(f"{dtype.name} is stored in {own}", where=where, got=", ".join(fields), expected=own)
    _check_size(len(getattr(tensor, own)), _entries(dtype, elements), f"entries in {own}", dims, dtype, where)


def dtype_of(tensor: onnx.TensorProto, where: str) -> ir.DataType:
    """The dtype, known and not UNDEFINED."""
    import onnx_ir as ir

    if tensor.data_type == 0 or tensor.data_type not in ir.DataType.__members__.values():
        raise BadInput("unknown tensor dtype", where=where, got=tensor.data_type)
    return ir.DataType(tensor.data_type)


def byte_size(dtype: ir.DataType, elements: int) -> int:
    """Bytes of `elements` values, those of less than a byte packed."""
    return math.ceil(elements * dtype.bitwidth / 8)


def _entries(dtype: ir.DataType, elements: int) -> int:
    if dtype.name in ("COMPLEX64", "COMPLEX128"):
        return 2 * elements
    return byte_size(dtype, elements) if dtype.name != "STRING" and dtype.bitwidth in (2, 4) else elements


def _check_size(got: int, expected: int, unit: str, dims: list[int], dtype: ir.DataType, where: str) -> None:
    if got != expected:
        raise BadInput(f"the data does not fill dims {dims} of {dtype.name}", where=where, got=f"{got} {unit}",
                       expected=f"{expected} {unit}", do="the file is truncated or damaged: get it again")  # fmt: skip


def _check_external_entries(tensor: onnx.TensorProto, dtype: ir.DataType, where: str) -> None:
    if dtype.name == "STRING":
        raise BadInput("strings cannot be external data", where=where)
    entries: dict[str, str] = {}
    for entry in tensor.external_data:
        if entry.key in entries or entry.key not in ("location", "offset", "length", "checksum", "basepath"):
            raise BadInput("unknown or repeated key of external data", where=where, got=repr(entry.key))
        entries[entry.key] = entry.value
    if not entries.get("location"):
        raise BadInput("external data without a location", where=where)
    for key in ("offset", "length"):
        text = entries.get(key, "0")
        if not (text.isascii() and text.isdigit() and len(text) < 20):
            raise BadInput(f"the {key} of external data is no size", where=where, got=repr(text[:40]))
