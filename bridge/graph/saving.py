"""Serialise models, and write them to files: complete or not at all."""

from __future__ import annotations

import errno
import os
import secrets
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

from bridge.errors import BadInput, BridgeError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx
    import onnx_ir as ir

LARGEST_PROTO: Final = 2**31 - 1
"""Protobuf refuses more in one message."""

LARGEST_INLINE: Final = 2**30
"""Weights past 1 GB go beside the model unless the caller says otherwise."""

SMALLEST_EXTERNAL: Final = 256
"""Bytes of a tensor that is worth a place in the external file: shapes and axes stay inline."""

SUFFIX: Final = ".data"
"""Weights of `model.onnx` lie in `model.onnx.data`."""


def to_proto(model: ir.Model, *, consume: bool = False) -> onnx.ModelProto:
    """The whole model in memory, every tensor inline.

    Args:
        model: is not changed, unless it is consumed.
        consume: take the tensors of the main graph out of `model` and let each go when it is in the message, so that
            the next one finds its memory free: a 67 MB export spends most of its time on fresh pages.

    Raises:
        UsageError: more than 2 GB, which no protobuf message holds.
    """
    from onnx_ir import serde

    _check_size(model)
    proto, tensors = _skeleton(model)
    if consume:
        for value in model.graph.initializers.values():
            value.const_value = None
    tensors.reverse()
    while tensors:
        name, tensor = tensors.pop()
        entry = proto.graph.initializer.add()
        serde.serialize_tensor_into(entry, tensor)
        entry.name = name
        del tensor
    return proto


def _check_size(model: ir.Model) -> None:
    size = weight_bytes(model)
    if size > LARGEST_PROTO:
        raise UsageError("the weights do not fit into one ModelProto", where="to_proto", got=f"{size} bytes",
                         expected="less than 2 GB", do="give a path: large weights go beside it")  # fmt: skip


def weight_bytes(model: ir.Model) -> int:
    """Bytes of all initialisers, those of subgraphs too."""
    return sum(tensor.nbytes for value in _initializers(model) if (tensor := value.const_value) is not None)


def save(
    model: ir.Model, path: str | os.PathLike[str], *, external: bool | None = None, overwrite: bool = False
) -> onnx.ModelProto:
    """Write `model` to `path`; returns what was written (with external data: the small message that refers to it).

    Everything goes to temporary files beside the target, which are moved into place at the end and removed on any
    failure, an interrupt too.

    Args:
        model: is not changed.
        path: of the .onnx file.
        external: weights into `path` + ".data", one after another, without a second copy in memory; None does so past
            1 GB.
        overwrite: replace what is there.

    Raises:
        UsageError: the target exists, is a folder, or its folder does not exist; too large for one file.
        BridgeError: the system refuses to write (a full disk, no permission).
    """
    target = Path(path)
    outside = weight_bytes(model) > LARGEST_INLINE if external is None else external
    data = target.with_name(target.name + SUFFIX)
    targets = [data, target] if outside else [target]
    _check_targets(targets, overwrite)
    with _replacing(targets) as files:
        if outside:
            proto = _write_external(model, files[0], data.name)
            files[1].write(proto.SerializeToString())
        else:
            _check_size(model)
            _write_inline(model, files[0])
    return proto if outside else to_proto(model)


def _check_targets(targets: list[Path], overwrite: bool) -> None:
    folder = targets[-1].parent
    if not folder.is_dir():
        raise UsageError("the folder of the target does not exist" if not folder.exists() else "a file, not a folder",
                         where=str(folder), do="make the folder first")  # fmt: skip
    for target in targets:
        if target.is_dir():
            raise UsageError("the target is a folder", where=str(target), expected="the name of a file")
        if not overwrite and (target.exists() or target.is_symlink()):
            raise UsageError("the target exists", where=str(target), do="choose another name, or pass overwrite=True")


@contextmanager
def _replacing(targets: list[Path]) -> Iterator[list[BinaryIO]]:
    """Open one temporary file beside each target; move all of them into place where the block ends well."""
    temporary = [target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp") for target in targets]
    files: list[BinaryIO] = []
    placed: list[Path] = []
    try:
        files.extend(name.open("xb") for name in temporary)
        yield files
        for file in files:
            file.close()
        for name, target in zip(temporary, targets, strict=True):
            fresh = not target.exists()
            name.replace(target)
            placed += [target] if fresh else []
        placed = []
    except OSError as error:
        full = " (the disk is full)" if error.errno == errno.ENOSPC else ""
        raise BridgeError(f"the file cannot be written{full}", where=str(targets[-1]), got=str(error),
                          do="nothing was left behind: make room or choose another folder") from error  # fmt: skip
    finally:
        for file in files:
            with suppress(OSError):
                file.close()
        for name in (*temporary, *placed):
            with suppress(OSError):
                name.unlink(missing_ok=True)


def _write_external(model: ir.Model, file: BinaryIO, location: str) -> onnx.ModelProto:
    # A clone shares the tensors and nothing else: its initialisers become references, tensor by tensor.
    import onnx_ir as ir

    clone = model.clone()
    offset = 0
    for value in _initializers(clone):
        tensor = value.const_value
        if tensor is None or not _is_large(tensor):
            continue
        _write_tensor(tensor, file)
        value.const_value = ir.ExternalTensor(
            location, offset, tensor.nbytes, tensor.dtype, name=str(value.name), shape=ir.Shape(tensor.shape.numpy()),
            doc_string=tensor.doc_string, metadata_props=dict(tensor.metadata_props),
        )  # fmt: skip
        offset += tensor.nbytes
    return _serialized(clone)


def _skeleton(model: ir.Model) -> tuple[onnx.ModelProto, list[tuple[str, ir.TensorProtocol]]]:
    """The message without the main graph's initialisers, and these."""
    clone = model.clone()
    stored = [(name, value.const_value) for name, value in clone.graph.initializers.items()]
    for name, _ in stored:
        del clone.graph.initializers[name]
    return _serialized(clone), [(name, tensor) for name, tensor in stored if tensor is not None]


def _serialized(model: ir.Model) -> onnx.ModelProto:
    from onnx_ir import serde

    try:
        return serde.serialize_model(model)
    except serde.SerdeError as error:
        cause = error.__cause__
        while cause is not None and cause.__cause__ is not None:
            cause = cause.__cause__
        raise BadInput("the model cannot be written as protobuf", where="to_proto", got=str(cause)[:200]) from error


def _write_inline(model: ir.Model, file: BinaryIO) -> None:
    """The bytes of one ModelProto, its initialisers written from where they lie.

    Serialising the message would hold the weights three times. Fields of a message may stand in any order; those used:
    ModelProto.graph = 7, GraphProto.initializer = 5, TensorProto.raw_data = 9. Source: onnx/onnx.proto.
    """
    proto, tensors = _skeleton(model)
    graph = proto.graph.SerializeToString()
    proto.ClearField("graph")
    heads = [_head(name, tensor) for name, tensor in tensors]
    payloads = [tensor for _, tensor in tensors if _is_large(tensor)]
    total = len(graph) + sum(map(len, heads)) + sum(tensor.nbytes for tensor in payloads)
    file.write(proto.SerializeToString() + _field(7, total) + graph)
    for head, (_, tensor) in zip(heads, tensors, strict=True):
        file.write(head)
        if _is_large(tensor):
            _write_tensor(tensor, file)


def _is_large(tensor: ir.TensorProtocol) -> bool:
    return tensor.nbytes >= SMALLEST_EXTERNAL and tensor.dtype.name != "STRING"


def _head(name: str, tensor: ir.TensorProtocol) -> bytes:
    """One initialiser of a graph: whole where it is small, else up to its raw data."""
    import onnx
    from onnx_ir import serde

    if not _is_large(tensor):
        entry = serde.serialize_tensor(tensor)
        entry.name = name
        whole: bytes = entry.SerializeToString()
        return _field(5, len(whole)) + whole
    described = onnx.TensorProto(name=name, data_type=tensor.dtype, dims=tensor.shape.numpy())
    if tensor.doc_string:
        described.doc_string = tensor.doc_string
    for key, value in tensor.metadata_props.items():
        described.metadata_props.add(key=key, value=value)
    start: bytes = described.SerializeToString() + _field(9, tensor.nbytes)
    return _field(5, len(start) + tensor.nbytes) + start


def _field(number: int, size: int) -> bytes:
    """The start of a length-delimited field: tag, then size as a varint."""
    data = bytearray([number << 3 | 2])
    while size > 0x7F:
        data.append(size & 0x7F | 0x80)
        size >>= 7
    data.append(size)
    return bytes(data)


def _write_tensor(tensor: ir.TensorProtocol, file: BinaryIO) -> None:
    array = tensor.numpy() if tensor.dtype.bitwidth >= 8 else None
    if array is not None and array.flags.c_contiguous and array.dtype.isnative:
        file.write(array.reshape(-1).view("uint8").data)  # no copy
    else:
        file.write(tensor.tobytes())


def _initializers(model: ir.Model) -> Iterator[ir.Value]:
    for graph in model.graphs():
        yield from graph.initializers.values()
