"""torch's weight files: read without executing anything, and written."""

from __future__ import annotations

import pickle
import pickletools
import re
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import torch

from bridge.errors import BadInput

Opened = tuple[tuple[int, ...], str, Callable[[], np.ndarray]]

MALFORMED: Final = (
    pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, IndexError, TypeError, AttributeError,
    AssertionError, OverflowError, MemoryError, ImportError, struct.error, zipfile.BadZipFile, OSError,
)  # fmt: skip
"""What `torch.load` raises on files that are none of its own: its parsers check little by themselves."""

GLOBAL: Final = re.compile(r"GLOBAL (\w+(?:\.\w+)*)")
"""What its unpickler calls a class or a function that it does not load. Source: torch 2.13
torch/_weights_only_unpickler.py, Unpickler.load."""

SHOWN_BYTES: Final = 16
"""How much of a file that is none of torch's an error shows."""


def open_tensors(file: Path) -> dict[str, Opened]:
    """Shape, dtype and reader of every tensor in a .pt file, nested dicts flattened with dots.

    Raises:
        BadInput: a file that needs code to be run, is truncated or no torch file at all.
    """
    content = _load(file)
    size = file.stat().st_size
    if not isinstance(content, Mapping):
        content = {"": content} if isinstance(content, torch.Tensor) else {}
    return {name: _opened(f"{file}: {name}", tensor, size) for name, tensor in _flat(content, "")}


def save(arrays: Mapping[str, np.ndarray], stream: IO[bytes]) -> None:
    """Write a state dict."""
    torch.save({name: torch.tensor(array) for name, array in arrays.items()}, stream)


def _load(file: Path) -> Any:
    try:
        mapped = zipfile.is_zipfile(file)
        if mapped:
            _check_archive(file)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of deprecated storages in files that it still reads
            return torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except MALFORMED as error:
        raise _refusal(file, error) from error


def _refusal(file: Path, error: Exception) -> BadInput:
    """Why `torch.load` did not take a file: a pickle that it calls unsafe, or no pickle of torch's at all."""
    try:
        with file.open("rb") as stream:
            head = stream.read(SHOWN_BYTES)
    except OSError as failure:
        return BadInput("the file cannot be read", where=str(file), got=str(failure), do="check its permissions")
    if isinstance(error, pickle.UnpicklingError) and _holds_whole_pickle(file):
        found = GLOBAL.search(str(error))
        got = f"a pickle that asks for {found.group(1)}" if found else "a pickle that torch.save did not write"
        return BadInput("no torch file that is safe to read: bridge never runs a pickle's code", where=str(file),
                        got=got, do="in an environment that trusts it: torch.save(model.state_dict(), path)"
                        )  # fmt: skip
    return BadInput("the file is truncated, damaged or no torch file", where=str(file),
                    got=f"{file.stat().st_size} bytes, the first of them {head!r}",
                    expected="what torch.save(model.state_dict(), path) writes", do="get or save it again"
                    )  # fmt: skip


def _holds_whole_pickle(file: Path) -> bool:
    """Whether the pickle that torch reads first has an end. It is taken apart into its opcodes and not run."""
    try:
        with ExitStack() as stack:
            stream: IO[bytes] = stack.enter_context(file.open("rb"))
            if zipfile.is_zipfile(file):
                archive = stack.enter_context(zipfile.ZipFile(stream))
                name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
                stream = stack.enter_context(archive.open(name))
            for _ in pickletools.genops(stream):
                pass
    except (*MALFORMED, StopIteration):  # no such record, an unknown opcode, an argument that is cut off, no STOP
        return False
    return True


def _check_archive(file: Path) -> None:
    """Torch stores its records plainly; what is compressed or lies elsewhere was not written by it."""
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
                raise BadInput("a record is compressed: torch.save writes none, torch.jit.save does",
                               where=f"{file}: {info.filename}", do="save the state dict: "
                               "torch.save(module.state_dict(), path)")  # fmt: skip
            if info.header_offset + info.file_size > file.stat().st_size:
                raise BadInput("a record ends past the file", where=f"{file}: {info.filename}")


def _flat(content: Mapping[Any, Any], prefix: str, depth: int = 0) -> Iterator[tuple[str, torch.Tensor]]:
    if depth > 32:
        raise BadInput("dicts in dicts in dicts, without end", where=prefix[:80])
    for key, value in content.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, torch.Tensor):
            yield name, value
        elif isinstance(value, Mapping):
            yield from _flat(value, name, depth + 1)


def _opened(where: str, tensor: torch.Tensor, size: int) -> Opened:
    if tensor.layout is not torch.strided:
        dtype = str(tensor.layout)
    else:
        dtype = str(tensor.dtype).removeprefix("torch.")
        if tensor.numel() * tensor.element_size() > size:
            raise BadInput("a tensor is larger than the file that holds it", where=where, got=list(tensor.shape))
    return tuple(tensor.shape), dtype, partial(_read, where, tensor)


def _read(where: str, tensor: torch.Tensor) -> np.ndarray:
    try:
        return np.array(tensor.detach().contiguous().numpy())
    except (TypeError, RuntimeError) as error:
        raise BadInput("the tensor has no numbers that numpy holds", where=where, got=str(error)) from error


def module_of(layout: str, layers: list[list[Mapping[str, np.ndarray]]], options: Mapping[str, Any]) -> torch.nn.Module:
    """A time-major torch module with a checkpoint's own arrays as its parameters, in torch's own names."""
    kind = {"LSTM": torch.nn.LSTM, "GRU": torch.nn.GRU, "RNN": torch.nn.RNN}[
        layout[len("torch.") :].removesuffix("Cell")
    ]
    first = layers[0][0]
    proj_size = first["weight_hr"].shape[0] if "weight_hr" in first else 0
    hidden = first["weight_hr"].shape[1] if proj_size else first["weight_hh"].shape[1]
    sizes = {"proj_size": proj_size} if proj_size else {}
    module = kind(first["weight_ih"].shape[1], hidden, num_layers=len(layers), bias="bias_ih" in first,
                  bidirectional=len(layers[0]) == 2, device="meta", **sizes, **options)  # fmt: skip
    tensors = {
        f"{name}_l{at}{suffix}": torch.tensor(array)
        for at, layer in enumerate(layers)
        for suffix, arrays in zip(("", "_reverse"), layer, strict=False)
        for name, array in arrays.items()
    }
    module.load_state_dict(tensors, assign=True)
    return module.eval()
