"""Read ONNX models. Files are hostile until checked: every failure is one BridgeError, before anything big is made."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridge.errors import BadInput, UsageError
from bridge.graph.checks import DAMAGED, ONNX_DOMAINS, ModelCheck
from bridge.graph.external import map_external
from bridge.graph.saving import LARGEST_PROTO

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir


def load(path: str | os.PathLike[str]) -> ir.Model:
    """Read an .onnx file. Weights in external data are mapped, and come into memory when they are used.

    Raises:
        BadInput: no such file, no ONNX, truncated, tensors that disagree with their shapes, external data outside the
            model's folder or shorter than it should be, names or graphs that cannot be right.
        Unsupported: sparse or segmented tensors.
    """
    where = os.fspath(path)
    try:
        if Path(where).is_dir():
            raise BadInput("this is a folder", where=where, expected="an .onnx file")
        if Path(where).stat().st_size > LARGEST_PROTO:
            raise BadInput("the file is larger than a protobuf message can be", where=where, expected="at most 2 GB",
                           do="store the weights as external data")  # fmt: skip
        data = Path(where).read_bytes()
    except (OSError, ValueError) as error:
        raise BadInput("the file cannot be read", where=repr(where), got=str(error), do="check the path") from error
    return _build(_decode(data, where), where, Path(where).parent)


def parse(source: onnx.ModelProto | bytes) -> ir.Model:
    """Read a model that is in memory; it has no folder, so all its weights must be inside.

    Raises:
        BadInput, Unsupported: as `load`.
    """
    proto = _decode(source, "ONNX bytes") if isinstance(source, bytes) else source
    return _build(proto, "ModelProto", None)


def as_model(source: object) -> ir.Model:
    """Read `source`: a path, a ModelProto, bytes; an `onnx_ir.Model` is itself.

    Raises:
        UsageError: something else.
        BadInput, Unsupported: as `load`.
    """
    import onnx
    import onnx_ir as ir

    if isinstance(source, ir.Model):
        return source
    if isinstance(source, onnx.ModelProto | bytes):
        return parse(source)
    if isinstance(source, str | os.PathLike):
        return load(source)
    raise UsageError("this is no ONNX model", where="as_model", got=type(source).__name__,
                     expected="a path, an onnx.ModelProto, bytes or an onnx_ir.Model")  # fmt: skip


def _decode(data: bytes, where: str) -> onnx.ModelProto:
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError as error:
        raise BadInput("this is no ONNX model, or only a part of one", where=where, got=f"{len(data)} bytes",
                       do="check that the file is complete and really ONNX") from error  # fmt: skip
    return proto


def _build(proto: onnx.ModelProto, where: str, folder: Path | None) -> ir.Model:
    from onnx_ir import serde

    check = ModelCheck(where)
    try:
        check.run(proto)
        model = serde.deserialize_model(proto)
    except UnicodeDecodeError as error:
        raise BadInput("a name is not UTF-8", where=where, got=_first_line(error), do=DAMAGED) from error
    except (serde.SerdeError, ValueError, TypeError) as error:
        raise BadInput("the model cannot be read", where=where, got=_first_line(_root(error)), do=DAMAGED) from error
    for imports in (model.opset_imports, *(function.opset_imports for function in model.functions.values())):
        _name_onnx_domain(imports)
    if check.unsorted:
        _sort(model, where)
    map_external(model, folder, where)
    return model


def _name_onnx_domain(opset_imports: dict[str, int]) -> None:
    """Call ONNX's own operators "", as onnx_ir does where a node says "ai.onnx"."""
    short, long = ONNX_DOMAINS
    if long in opset_imports:
        opset_imports.setdefault(short, opset_imports.pop(long))


def _sort(model: ir.Model, where: str) -> None:
    parts: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for part in parts:
        try:
            part.sort()
        except ValueError as error:
            raise BadInput("the graph has a cycle", where=where, got=_first_line(error), do=DAMAGED) from error


def _root(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _first_line(error: Any) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]
