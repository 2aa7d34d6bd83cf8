"""What bad input must get: one error of bridge's own tree with exit code and hint, nothing written, nothing run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

import bridge

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CODES = {
    bridge.UsageError: 2,
    bridge.Unsupported: 3,
    bridge.NotRepresentable: 3,
    bridge.DeviceUnavailable: 3,
    bridge.BadInput: 4,
    bridge.MissingExtra: 5,
}


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file of the folder with its size and time."""
    return {str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns)
            for path in sorted(folder.rglob("*"))}  # fmt: skip


def refused(call: Callable[[], Any], kind: type[bridge.BridgeError], folder: Path) -> bridge.BridgeError:
    """The one error of `call`: of class `kind`, with a hint, and `folder` is as it was."""
    before = listing(folder)
    with pytest.raises(bridge.BridgeError) as caught:
        call()
    error = caught.value
    assert isinstance(error, kind), f"{type(error).__name__}: {error}"
    assert error.exit_code == CODES[type(error)]
    assert error.what
    assert error.do or error.expected is not None, f"no hint: {error}"
    assert "Traceback" not in str(error)
    assert listing(folder) == before
    return error


def reads(path: Path, folder: Path) -> bridge.BridgeError | None:
    """Read a damaged file every way and try to convert it; None where it could still be read as something whole."""
    target = folder / "converted.onnx"
    failures = []
    for call in (lambda: bridge.cells(path), lambda: bridge.to_onnx(path, target, overwrite=True)):
        try:
            call()
        except bridge.BridgeError as error:
            failures.append(error)
    if len(failures) == 2:
        assert not target.exists()
    leftovers = set(listing(folder)) - {path.name, target.name}
    assert not leftovers
    target.unlink(missing_ok=True)
    return failures[0] if failures else None
