"""External data: mapped lazily, and only from files inside the model's folder."""

from __future__ import annotations

import mmap
import os
import stat
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING

import numpy as np

from bridge.errors import BadInput
from bridge.graph.tensor_checks import byte_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx_ir as ir

HERE = "external data has to lie in the model's own folder: put it there, or get the model from a source you trust"


def map_external(model: ir.Model, folder: Path | None, where: str) -> None:
    """Replace every external tensor of `model` by one that is mapped from its file.

    Args:
        model: changed in place.
        folder: of the model's file; None where the model came without one.
        where: for messages.

    Raises:
        BadInput: a location outside the folder (absolute, "..", a link out), no such file, a range beyond its end, or
            a length that disagrees with dtype and shape.
    """
    import onnx_ir as ir

    files: dict[Path, mmap.mmap] = {}
    for value in (value for graph in model.graphs() for value in graph.initializers.values()):
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = _map(value.const_value, folder, files, where)
    for node in _all_nodes(model):
        for attribute in list(node.attributes.values()):
            if attribute.type == ir.AttributeType.TENSOR and isinstance(attribute.value, ir.ExternalTensor):
                node.attributes[attribute.name] = ir.AttrTensor(
                    attribute.name, _map(attribute.value, folder, files, where))  # fmt: skip
            elif attribute.type == ir.AttributeType.TENSORS and not attribute.is_ref():
                tensors = [_map(tensor, folder, files, where) if isinstance(tensor, ir.ExternalTensor) else tensor
                           for tensor in attribute.as_tensors()]  # fmt: skip
                node.attributes[attribute.name] = ir.AttrTensors(attribute.name, tensors)


def _all_nodes(model: ir.Model) -> Iterator[ir.Node]:
    yield from model.graph.all_nodes()
    for function in model.functions.values():
        yield from function.all_nodes()


def _map(tensor: ir.ExternalTensor, folder: Path | None, files: dict[Path, mmap.mmap], where: str) -> ir.TensorProtocol:
    import onnx_ir as ir

    where = f"{where}, tensor {tensor.name!r}"
    if folder is None:
        raise BadInput("the model keeps its weights in another file, and came without a path", where=where,
                       got=str(tensor.location), do="pass the path of the .onnx file")  # fmt: skip
    shape, size = tensor.shape.numpy(), byte_size(tensor.dtype, tensor.size)
    if tensor.length not in (None, size):
        raise BadInput("the length of external data disagrees with dtype and shape", where=where, got=tensor.length,
                       expected=f"{size} for {tensor.dtype} {list(shape)}")  # fmt: skip
    packed = tensor.dtype.bitwidth < 8
    dtype = np.dtype(np.uint8) if packed else np.dtype(tensor.dtype.numpy())
    if size == 0:
        flat = np.empty(0, dtype)
    else:
        flat = _view(_inside(str(tensor.location), folder, where), tensor.offset or 0, size, dtype, files, where)
    if packed:
        return ir.PackedTensor(flat, tensor.dtype, shape=shape, name=tensor.name, doc_string=tensor.doc_string,
                               metadata_props=dict(tensor.metadata_props))  # fmt: skip
    return ir.Tensor(flat.reshape(shape), tensor.dtype, name=tensor.name, doc_string=tensor.doc_string,
                     metadata_props=dict(tensor.metadata_props))  # fmt: skip


def _inside(location: str, folder: Path, where: str) -> Path:
    for flavour in (PurePosixPath(location), PureWindowsPath(location)):
        if flavour.is_absolute() or flavour.drive or flavour.root or ".." in flavour.parts or "\0" in location:
            raise BadInput("external data outside the model's folder", where=where, got=repr(location), do=HERE)
    try:
        root = folder.resolve(strict=True)
        path = (root / location).resolve(strict=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle, before Python 3.13
        raise BadInput("the file of external data cannot be found", where=where, got=repr(location),
                       do=f"put {location!r} beside the model") from error  # fmt: skip
    if not path.is_relative_to(root):
        raise BadInput("a link leads external data out of the model's folder", where=where, got=repr(location), do=HERE)
    return path


def _view(
    path: Path, offset: int, size: int, dtype: np.dtype[np.generic], files: dict[Path, mmap.mmap], where: str
) -> np.ndarray:
    if path not in files:
        files[path] = _open(path, offset + size, where)
    mapped = files[path]
    if offset + size > len(mapped):
        raise BadInput("external data ends before the tensor does", where=where, got=f"{len(mapped)} bytes",
                       expected=f"{offset} + {size}", do="the file is truncated: get it again")  # fmt: skip
    array = np.frombuffer(mapped, dtype, count=size // dtype.itemsize, offset=offset)
    return array if array.flags.aligned else array.copy()


def _open(path: Path, needed: int, where: str) -> mmap.mmap:
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except OSError as error:
        raise BadInput("external data cannot be read", where=where, got=str(error)) from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size == 0:
            raise BadInput("external data ends before the tensor does", where=where, got=f"{status.st_size} bytes",
                           expected=f"a file of at least {needed} bytes", do="get the file again")  # fmt: skip
        return mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise BadInput("external data cannot be mapped", where=where, got=str(error)) from error
    finally:
        os.close(descriptor)
