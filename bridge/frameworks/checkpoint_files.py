"""Weight files as flat names to arrays, read lazily: .npz, .safetensors, and .pt/.pth through torch.

Nothing in a file is executed, and no size that a file states is believed before it is held against the file itself.
"""

from __future__ import annotations

import os
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from types import ModuleType
from typing import IO, Final

import numpy as np

from bridge.errors import BadInput, MissingExtra, UsageError

SUFFIXES: Final = (".npz", ".safetensors", ".pt", ".pth")

MODEST: Final = 64 * 2**20
"""Bytes that an .npz may unpack to without being asked how well they were compressed."""

LARGEST_RATIO: Final = 100
"""Trained weights shrink to a tenth at best, zeros a thousandfold: what unpacks to more than this is a zip bomb."""

HEADER: Final = 4096
"""Bytes of an .npy header that are read at most; numpy writes 128."""

_SAFETENSORS_DTYPES: Final = {"F16": "float16", "F32": "float32", "F64": "float64", "BF16": "bfloat16"}


@dataclass(frozen=True, slots=True)
class Entry:
    """One array of a file, not read yet."""

    shape: tuple[int, ...]
    """Its shape as the file states it, held against the size of the file."""
    dtype: str
    """numpy's name of the dtype, or the file's own where numpy has none ("bfloat16")."""
    load: Callable[[], np.ndarray]
    """Read it.

    Raises:
        BadInput: the file is not what it states.
    """


def read_entries(path: str | os.PathLike[str]) -> dict[str, Entry]:
    """The arrays of a weight file by flat dotted name; whatever is no array is left out.

    Raises:
        BadInput: no such file, or one that is truncated, malformed or hostile (a pickle with code in it).
        MissingExtra: a .pt file without torch to read it.
        UsageError: another kind of file.
    """
    file = Path(path)
    suffix = file.suffix.lower()
    if suffix not in SUFFIXES:
        raise UsageError("no weight file", where=str(file), expected="a path ending in " + ", ".join(SUFFIXES))
    if not file.is_file():
        raise BadInput("no such file", where=str(file), got="a folder" if file.is_dir() else "nothing there",
                       expected=f"a {suffix} file", do="check the path")  # fmt: skip
    try:
        if suffix == ".npz":
            return _npz_entries(file)
        if suffix == ".safetensors":
            return _safetensors_entries(file)
    except OSError as error:
        raise BadInput("the file cannot be read", where=str(file), got=str(error)) from error
    return _torch_entries(file)


def save_params(path: str | os.PathLike[str], params: Mapping[str, np.ndarray], *, overwrite: bool = False) -> Path:
    """Write flat names to arrays (`write_params`' result) into a .npz, .safetensors, .pt or .pth file; its path.

    The file is complete or not there: it is written beside `path` under another name and moved.

    Raises:
        UsageError: another suffix, a path that exists without `overwrite`, a folder that does not.
        BadInput: the file cannot be written.
    """
    file = Path(path)
    suffix = file.suffix.lower()
    if suffix not in SUFFIXES:
        raise UsageError("no weight file", where=str(file), expected="a path ending in " + ", ".join(SUFFIXES))
    if file.is_dir() or not file.parent.is_dir():
        raise UsageError("not a place for a file", where=str(file), got="a folder" if file.is_dir() else "no folder")
    if file.exists() and not overwrite:
        raise UsageError("the file exists", where=str(file), do="pass overwrite=True, or another path")
    arrays = {name: np.asarray(array, order="C") for name, array in params.items()}
    handle, partial_path = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.", suffix=".partial")
    try:
        with os.fdopen(handle, "wb") as stream:
            _write(stream, suffix, arrays)
        Path(partial_path).replace(file)
    except OSError as error:
        raise BadInput("the file cannot be written", where=str(file), got=str(error),
                       do="free space there, or pass another path") from error  # fmt: skip
    finally:
        Path(partial_path).unlink(missing_ok=True)
    return file


def _write(stream: IO[bytes], suffix: str, arrays: Mapping[str, np.ndarray]) -> None:
    if suffix == ".npz":
        np.savez(stream, allow_pickle=False, **arrays)
    elif suffix == ".safetensors":
        from safetensors.numpy import save

        stream.write(save(dict(arrays)))
    else:
        torch_files().save(arrays, stream)


# ---------------------------------------------------------------------- .pt


def _torch_entries(file: Path) -> dict[str, Entry]:
    return {name: Entry(shape, dtype, load) for name, (shape, dtype, load) in torch_files().open_tensors(file).items()}


def torch_files() -> ModuleType:
    """The module that reads and writes torch's files. Raises MissingExtra without torch."""
    try:
        from bridge.frameworks import torch_files as module
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise MissingExtra("torch is not installed, and .pt files are torch's", where="checkpoint",
                           do="pip install 'rnn-bridge[torch]'") from None  # fmt: skip
    return module


# ---------------------------------------------------------------------- .safetensors


def _safetensors_entries(file: Path) -> dict[str, Entry]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 (no mapping)
            return {
                name: Entry(tuple(one.get_shape()), _dtype(one.get_dtype()), partial(_load_safetensors, file, name))
                for name, one in slices.items()
            }
    except SafetensorError as error:
        raise BadInput("no valid safetensors file", where=str(file), got=str(error)) from error


def _load_safetensors(file: Path, name: str) -> np.ndarray:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as opened:
            return np.asarray(opened.get_tensor(name))
    except (SafetensorError, TypeError, OSError) as error:
        raise BadInput("the array cannot be read", where=f"{file}: {name}", got=str(error)) from error


def _dtype(name: str) -> str:
    return _SAFETENSORS_DTYPES.get(name, name.lower())


# ---------------------------------------------------------------------- .npz


def _npz_entries(file: Path) -> dict[str, Entry]:
    try:
        with zipfile.ZipFile(file) as archive:
            members = [info for info in archive.infolist() if not info.filename.endswith("/")]
            _check_unpacked_size(file, members)
            return {info.filename.removesuffix(".npy"): _npz_entry(file, archive, info) for info in members}
    except (
        zipfile.BadZipFile,
        NotImplementedError,
        RuntimeError,
        EOFError,
        zlib.error,
        ValueError,
        struct.error,
    ) as error:
        raise BadInput("no valid .npz file", where=str(file), got=str(error)) from error


def _check_unpacked_size(file: Path, members: list[zipfile.ZipInfo]) -> None:
    total, actual = sum(info.file_size for info in members), file.stat().st_size
    if total > MODEST and total > LARGEST_RATIO * actual:
        raise BadInput(
            "the file unpacks to more than it can honestly hold",
            where=str(file),
            got=f"{total} bytes from {actual}",
            expected=f"at most {LARGEST_RATIO} times the file",
        )


def _npz_entry(file: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Entry:
    where = f"{file}: {info.filename}"
    if not info.filename.endswith(".npy"):
        raise BadInput("a member is no .npy array", where=where)
    with archive.open(info) as stream:
        shape, _, dtype, start = _npy_header(stream, where)
    if dtype.hasobject:
        raise BadInput("the array holds Python objects, which only a pickle could restore", where=where,
                       do="save it as an array of numbers")  # fmt: skip
    size = start + prod(shape) * dtype.itemsize
    if size != info.file_size:
        raise BadInput("the array's size is not its member's", where=where, got=f"{info.file_size} bytes",
                       expected=f"{size} for shape {list(shape)} of {dtype}")  # fmt: skip
    return Entry(shape, dtype.name, partial(_load_npz, file, info.filename))


def _npy_header(stream: IO[bytes], where: str) -> tuple[tuple[int, ...], bool, np.dtype[np.generic], int]:
    """Shape, Fortran order, dtype and length of an .npy header."""
    magic = stream.read(8)
    if magic[:6] != b"\x93NUMPY" or magic[6:] not in (b"\x01\x00", b"\x02\x00", b"\x03\x00"):
        raise BadInput("no .npy header", where=where, got=magic)
    width = 2 if magic[6] == 1 else 4
    length = int.from_bytes(stream.read(width), "little")
    if length > HEADER:
        raise BadInput("the .npy header is too long", where=where, got=length, expected=f"at most {HEADER}")
    text = stream.read(length)
    shape, fortran, dtype = _parse_header(text, where)
    return shape, fortran, dtype, 8 + width + length


def _parse_header(text: bytes, where: str) -> tuple[tuple[int, ...], bool, np.dtype[np.generic]]:
    import ast

    try:
        header = ast.literal_eval(text.decode("utf-8").strip())
        shape, fortran, dtype = tuple(header["shape"]), bool(header["fortran_order"]), np.dtype(header["descr"])
        if not all(type(size) is int and size >= 0 for size in shape):
            raise ValueError(f"shape {shape}")
    except (ValueError, SyntaxError, KeyError, TypeError, AttributeError, RecursionError, MemoryError) as error:
        raise BadInput("a malformed .npy header", where=where, got=str(error) or type(error).__name__) from error
    return shape, fortran, dtype


def _load_npz(file: Path, member: str) -> np.ndarray:
    where = f"{file}: {member}"
    try:
        with zipfile.ZipFile(file) as archive, archive.open(member) as stream:
            shape, fortran, dtype, _ = _npy_header(stream, where)
            data = stream.read(prod(shape) * dtype.itemsize)
    except (zipfile.BadZipFile, KeyError, EOFError, zlib.error, RuntimeError, OSError) as error:
        raise BadInput("the array cannot be read", where=where, got=str(error)) from error
    if len(data) != prod(shape) * dtype.itemsize:
        raise BadInput("the array ends before its shape is full", where=where, got=f"{len(data)} bytes")
    array = np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")
    return np.asarray(array.astype(dtype.newbyteorder("="), copy=False), order="C")
