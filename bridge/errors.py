"""Every error that bridge raises on purpose.

::

    BridgeError
    ├── UsageError           exit 2   the call itself is wrong: an option, an opset, a name, a target that exists
    ├── Refused              exit 3
    │   ├── Unsupported               bridge does not carry this yet
    │   ├── NotRepresentable          the target framework has no place for it
    │   └── DeviceUnavailable         the device asked for cannot run this, and falling back would hide it
    ├── BadInput             exit 4   a file, an array or a graph that is malformed or hostile
    ├── MissingExtra         exit 5   a library is not installed; the message holds the line that installs it
    └── Mismatch             exit 1   a conversion disagrees with onnxruntime

A message says where, what, got, expected, and what to do::

    flax.nnx.GRUCell: gate 'h' has a non-zero Rb (max |Rb| = 1.9) and this layout has no slot for it
      do: use flax.linen.GRUCell, or build(cell, "flax.nnx", own_cells=True): both store both biases of this gate
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import ClassVar


class BridgeError(Exception):
    """Base of all errors of bridge; `exit_code` is what the command line returns."""

    exit_code: ClassVar[int] = 3

    def __init__(
        self,
        what: str,
        *,
        where: str = "",
        got: object = None,
        expected: object = None,
        do: str = "",
    ) -> None:
        self.what, self.where, self.got, self.expected, self.do = what, where, got, expected, do
        lines = [f"{where}: {what}" if where else what]
        lines += [f"  {label}: {value}" for label, value in (("got", got), ("expected", expected)) if value is not None]
        lines += [f"  do: {do}"] if do else []
        super().__init__("\n".join(lines))


class UsageError(BridgeError):
    """The call is wrong: an unknown name or option, an opset out of range, a target that already exists."""

    exit_code = 2


class Refused(BridgeError):
    """Understood, and declined because the result could not be exact."""


class Unsupported(Refused):
    """Bridge does not carry this yet."""


class NotRepresentable(Refused):
    """The target has no place for it."""


class DeviceUnavailable(Refused):
    """The device asked for cannot run this model, and a silent fallback would hide it."""


class BadInput(BridgeError):
    """A file, an array or a graph is malformed, hostile or inconsistent."""

    exit_code = 4


class MissingExtra(BridgeError):
    """A library is not installed; `do` is the exact line that installs it."""

    exit_code = 5


class Mismatch(BridgeError):
    """A conversion disagrees with onnxruntime."""

    exit_code = 1


@contextmanager
def within(where: str) -> Iterator[None]:
    """Errors of bridge from inside say that they came from `where`."""
    try:
        yield
    except BridgeError as error:
        inside = f"{where}: {error.where}" if error.where else where
        raise type(error)(error.what, where=inside, got=error.got, expected=error.expected, do=error.do) from error


def check_mapping(value: object, where: str, names: str) -> None:
    """Raise UsageError where `value` is no mapping from `names`."""
    if not isinstance(value, Mapping):
        raise UsageError("no mapping", where=where, got=type(value).__qualname__, expected=f"a dict from {names}")
