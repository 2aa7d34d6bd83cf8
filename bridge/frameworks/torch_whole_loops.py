"""Find Python code that takes a symbolic size for a number, such as a loop over time: a trace of it fits one size."""

from __future__ import annotations

import linecache
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Final

import torch
from torch.overrides import TorchFunctionMode

LIBRARY: Final = str(Path(torch.__file__).parent)
UNROLLING: Final = (torch.unbind, torch.Tensor.unbind, torch.Tensor.__iter__)
"""What makes one tensor of each step."""


@contextmanager
def sizes_watched(places: list[str]) -> Iterator[None]:
    """Add "file:line: code" to `places` wherever code outside of torch makes a number of a symbolic size."""
    index, integer = torch.SymInt.__index__, torch.SymInt.__int__

    def watching(original: Any) -> Any:
        def convert(self: Any) -> int:
            frame = sys._getframe(1)  # noqa: SLF001 (the caller is the finding)
            if self.node.maybe_as_int() is None and not frame.f_code.co_filename.startswith(LIBRARY):
                places.append(_place(frame))
            return original(self)  # type: ignore[no-any-return]

        return convert

    try:
        torch.SymInt.__index__, torch.SymInt.__int__ = watching(index), watching(integer)
        with _Unrolling(places):
            yield
    finally:
        torch.SymInt.__index__, torch.SymInt.__int__ = index, integer


class _Unrolling(TorchFunctionMode):  # type: ignore[misc]
    """Notices tensors that are taken apart along an axis of symbolic size."""

    def __init__(self, places: list[str]) -> None:
        super().__init__()
        self._places = places

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in UNROLLING and args and isinstance(args[0], torch.Tensor):
            axis = (kwargs or {}).get("dim", args[1] if len(args) > 1 else 0)
            size = args[0].shape[axis] if args[0].dim() else 1
            frame = _outside(sys._getframe(1))  # noqa: SLF001
            if isinstance(size, torch.SymInt) and size.node.maybe_as_int() is None and frame is not None:
                self._places.append(_place(frame))
        return func(*args, **(kwargs or {}))


def _outside(frame: FrameType | None) -> FrameType | None:
    """The nearest frame that is no code of torch or of bridge."""
    while frame is not None and (frame.f_code.co_filename.startswith(LIBRARY) or frame.f_code.co_filename == __file__):
        frame = frame.f_back
    return frame


def _place(frame: FrameType) -> str:
    file, line = frame.f_code.co_filename, frame.f_lineno
    return f"{file}:{line}: {linecache.getline(file, line).strip()}"
