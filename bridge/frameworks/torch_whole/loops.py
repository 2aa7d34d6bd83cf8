"""Python loops over an axis of symbolic size: sampled, so that a trace of a few steps can become one layer.

A loop over time has no number of steps to trace. It runs `count` times here, the steps it collects are stacked by a
stub of the true length, and the splice joins the steps into one layer. That nothing hangs on `count` is proven by a
second trace with another one: both must give the same graph. Any other code that makes a number of a symbolic size is
refused with its place.
"""

from __future__ import annotations

import builtins
import linecache
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Final

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from bridge.errors import Unsupported

LIBRARY: Final = str(Path(torch.__file__).parent) + os.sep
OWN: Final = str(Path(__file__).parents[1]) + os.sep
SLICE: Final[tuple[Any, ...]] = (None, 0, None, None, 1)
"""What aten.slice takes: a tensor, the axis, start, stop and step, with their defaults."""

UNROLLING: Final = (torch.unbind, torch.Tensor.unbind)
"""What makes one tensor of each step."""

COUNTS: Final = (3, 4)
"""How many steps are traced: more than two things that are stacked for another reason, and two that differ."""


INSTEAD: Final = (
    "call the layer on the whole sequence (nn.LSTM for nn.LSTMCell), or fix the axis at the example's size: "
    "dynamic={name: {0: 'batch'}}"
)
"""What to do about a loop over time."""


class At(int):
    """The number of a step in a sampled loop: good for indexing; anything else that is done with it is noted.

    Code that compares or computes with the number may do at later steps what it did at none of the traced ones. The
    exceptions are `T - 1 - at` and `-1 - at`, which count the same steps from the end.
    """

    loops: Loops

    @classmethod
    def all(cls, loops: Loops) -> list[At]:
        """The numbers of the steps that are traced."""
        found = [cls(at) for at in builtins.range(loops.count)]
        for at in found:
            at.loops = loops
        return found

    def from_end(self) -> FromEnd:
        """The step that is as far from the last as this one from the first, as Python counts from the end."""
        found = FromEnd(-1 - int(self))
        found.loops = self.loops
        return found


class FromEnd(At):
    """The number of a step counted from the end: -1 is the last."""


def _noting(name: str) -> Any:
    original = getattr(int, name)

    def method(self: At, *others: Any) -> Any:
        if name == "__rsub__" and self.loops.is_last(others[0]) and not isinstance(self, FromEnd):
            return self.from_end()
        frame = sys._getframe(1)  # noqa: SLF001
        if not frame.f_code.co_filename.startswith(LIBRARY):
            self.loops.fixed.append(self.loops.place_of(frame))
        if any(isinstance(other, torch.SymInt) for other in others):  # neither of the two computes with the other
            raise Unsupported("a loop over time computes with its length and the number of a step",
                              where=self.loops.place_of(frame), do=INSTEAD)  # fmt: skip
        return original(self, *others)

    return method


NOTED: Final = (
    "eq", "ne", "lt", "le", "gt", "ge", "add", "radd", "sub", "rsub", "mul", "rmul", "mod", "rmod", "floordiv",
    "rfloordiv", "truediv", "rtruediv", "pow", "rpow", "neg", "bool", "float",
)  # fmt: skip
"""What may be done with a step's number beside indexing."""

for _name in NOTED:
    setattr(At, f"__{_name}__", _noting(f"__{_name}__"))
At.__hash__ = int.__hash__  # type: ignore[method-assign]


class Steps(tuple[Any, ...]):
    """The steps of a sampled loop over a tensor, which `enumerate` numbers with `At`."""

    loops: Loops

    def __iter__(self) -> _StepIterator:
        return _StepIterator(self)

    def __reversed__(self) -> _StepIterator:
        return _StepIterator(self[::-1])

    def __getitem__(self, key: Any) -> Any:
        found = super().__getitem__(key)
        if not isinstance(key, slice):
            return found
        cut = Steps(found)
        cut.loops = self.loops
        return cut


class Loops:
    """What one trace met: loops that were sampled, and places where a symbolic size became a number."""

    def __init__(self, count: int, module: nn.Module) -> None:
        self.count = count
        self._paths = {id(child): path for path, child in module.named_modules()}
        self.sampled: list[str] = []
        self.size: torch.SymInt | None = None
        """The size of the loop met last."""
        self.fixed: list[str] = []

    def steps(self, size: torch.SymInt, frame: FrameType | None) -> list[At]:
        """The steps to trace of a loop over `size`.

        Raises:
            Unsupported: the example has fewer.
        """
        place = "" if frame is None else self.place_of(frame)
        hint = size.node.hint
        if hint is not None and hint < max(COUNTS):
            raise Unsupported("a loop over time needs a longer example", where=place, got=int(hint),
                              expected=f"at least {max(COUNTS)} steps")  # fmt: skip
        self.sampled.append(place)
        self.size = size
        return At.all(self)

    def is_last(self, number: Any) -> bool:
        """Whether `number` is the last step's, from the end or from the beginning of the loop met last."""
        if isinstance(number, torch.SymInt):
            return self.size is not None and bool(number.node.expr == (self.size - 1).node.expr)
        return bool(number == -1)

    def place_of(self, frame: FrameType) -> str:
        """Say where a frame is: "file:line: code", and the path of the submodule whose forward it is."""
        path = self._paths.get(id(frame.f_locals.get("self")), "")
        return f"{path + ', ' if path else ''}{line_of(frame)}"


@contextmanager
def watched(module: nn.Module, loops: Loops) -> Iterator[None]:
    """Sample loops and note fixed sizes; `range` and `enumerate` of the model's own code are put back afterwards."""
    index, integer = torch.SymInt.__index__, torch.SymInt.__int__
    spaces = _namespaces(module)

    def watching(original: Any) -> Any:
        def convert(self: Any) -> int:
            frame = sys._getframe(1)  # noqa: SLF001 (the caller is the finding)
            if _is_symbolic(self) and not frame.f_code.co_filename.startswith((LIBRARY, __file__)):
                loops.fixed.append(loops.place_of(frame))
            return original(self)  # type: ignore[no-any-return]

        return convert

    def sampling(*bounds: Any) -> Any:
        size = _whole_range(bounds)
        if size is not None:
            steps = loops.steps(size, sys._getframe(1))  # noqa: SLF001
            return steps[::-1] if len(bounds) == 3 and bounds[2] == -1 else steps
        if any(_is_symbolic(bound) for bound in bounds):
            loops.fixed.append(loops.place_of(sys._getframe(1)))  # noqa: SLF001
        return builtins.range(*bounds)

    def numbering(items: Any, start: int = 0) -> Any:
        items = iter(items) if isinstance(items, torch.Tensor) else items
        steps = items.steps if isinstance(items, _StepIterator) else items
        if not isinstance(steps, Steps):
            return builtins.enumerate(items, start)
        if start != 0:
            loops.fixed.append(loops.place_of(sys._getframe(1)))  # noqa: SLF001
        return zip(At.all(loops), steps, strict=False)

    replaced = {"range": sampling, "enumerate": numbering}
    taken = [(space, name) for space in spaces for name in replaced if name not in space]
    try:
        torch.SymInt.__index__, torch.SymInt.__int__ = watching(index), watching(integer)
        for space, name in taken:
            space[name] = replaced[name]
        with _Unrolling(loops):
            yield
    finally:
        torch.SymInt.__index__, torch.SymInt.__int__ = index, integer
        for space, name in taken:
            space.pop(name, None)


def without_whole_slices(program: Any) -> None:
    """Take `x[:]` out of an exported program: `x[:, at]` slices before it selects, and hides what it selects from."""
    graph = program.graph_module.graph
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target is torch.ops.aten.slice.Tensor:
            source, _, start, stop, step = (*tuple(node.args), *SLICE[len(node.args) :])
            if start in (None, 0) and (stop is None or stop == sys.maxsize) and step == 1:
                node.replace_all_uses_with(source)
                graph.erase_node(node)
    graph.lint()


def _namespaces(module: nn.Module) -> list[dict[str, Any]]:
    """The globals of every forward that is no code of torch."""
    found = {}
    for child in module.modules():
        for kind in type(child).__mro__:
            forward = vars(kind).get("forward")
            space = getattr(forward, "__globals__", None)
            if space is not None and not str(space.get("__name__", "")).startswith("torch."):
                found[id(space)] = space
    return list(found.values())


def _whole_range(bounds: tuple[Any, ...]) -> torch.SymInt | None:
    """The size of the axis that `range(*bounds)` counts over from end to end, in either direction."""
    start, stop, step = (0, *bounds, 1) if len(bounds) == 1 else (*bounds, 1)[:3]
    if _is_symbolic(stop) and (start, step) == (0, 1):
        return stop
    if _is_symbolic(start) and (stop, step) == (-1, -1):
        size: torch.SymInt = start + 1
        return size
    return None


def _is_symbolic(size: Any) -> bool:
    return isinstance(size, torch.SymInt) and size.node.maybe_as_int() is None


class _StepIterator:
    """Iterates over Steps, and is known to `enumerate`."""

    def __init__(self, steps: Steps) -> None:
        self.steps, self._inner = steps, tuple.__iter__(steps)

    def __iter__(self) -> _StepIterator:
        return self

    def __next__(self) -> Any:
        return next(self._inner)


class _Unrolling(TorchFunctionMode):  # type: ignore[misc]
    """Samples tensors that are taken apart along an axis of symbolic size, and stacks such steps at full length."""

    def __init__(self, loops: Loops) -> None:
        super().__init__()
        self._loops = loops

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in UNROLLING and args and isinstance(args[0], torch.Tensor) and args[0].dim():
            axis = kwargs.get("dim", args[1] if len(args) > 1 else 0)
            if _is_symbolic(args[0].shape[axis]):
                frame = outside(sys._getframe(1))  # noqa: SLF001
                numbers = self._loops.steps(args[0].shape[axis], frame)
                steps = Steps(args[0].select(axis, at) for at in numbers)
                steps.loops = self._loops
                return steps
        if func in (torch.tensor, torch.as_tensor) and args and _holds_sizes(args[0]):
            return _tensor_of_sizes(args[0], kwargs.get("dtype"))
        if func in (torch.stack, torch.cat) and self._loops.size is not None:
            return self._collected(func, args, kwargs)
        return func(*args, **kwargs)

    def _collected(self, func: Any, args: Any, kwargs: Any) -> Any:
        values = kwargs.get("tensors", args[0] if args else ())
        axis = kwargs.get("dim", args[1] if len(args) > 1 else 0)
        if not isinstance(values, list | tuple) or len(values) != self._loops.count:
            return func(*args, **kwargs)
        if func is torch.cat:
            if any(_is_symbolic(value.shape[axis]) or value.shape[axis] != 1 for value in values):
                return func(*args, **kwargs)
            values = [value.squeeze(axis) for value in values]
        rank = values[0].dim() + 1
        return torch.ops.rnn_bridge.collect(list(values), self._loops.size, axis % rank)


def _holds_sizes(value: Any) -> bool:
    """Whether `value` is a symbolic size or a list of numbers with one in it (torch would take the example's)."""
    if isinstance(value, list | tuple):
        return any(map(_is_symbolic, value)) and all(isinstance(each, int | torch.SymInt) for each in value)
    return _is_symbolic(value)


def _tensor_of_sizes(value: Any, dtype: torch.dtype | None) -> torch.Tensor:
    if isinstance(value, list | tuple):
        return torch.stack([_tensor_of_sizes(each, dtype) for each in value])
    return torch.full((), value, dtype=dtype or torch.int64)


def line_of(frame: FrameType) -> str:
    """Say where a frame is: "file:line: code"."""
    file, line = frame.f_code.co_filename, frame.f_lineno
    return f"{file}:{line}: {linecache.getline(file, line).strip()}"


def outside(frame: FrameType | None) -> FrameType | None:
    """The nearest frame that is no code of torch or of bridge."""
    while frame is not None and frame.f_code.co_filename.startswith((LIBRARY, OWN)):
        frame = frame.f_back
    return frame
