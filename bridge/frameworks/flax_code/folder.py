"""Write the folder: complete and verified, or not at all."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from bridge import graph
from bridge.errors import BadInput, Mismatch, UsageError
from bridge.frameworks import conversion
from bridge.frameworks.door import ExportOptions
from bridge.frameworks.flax_code.checking import CHECK, stored_cases
from bridge.frameworks.flax_code.code import narrowed
from bridge.frameworks.flax_code.module import module_text
from bridge.frameworks.flax_code.walking import Written, write_graph
from bridge.graph.declaring import with_sizes

FILES: Final = ("check.npz", "check.py", "model.py", "weights.safetensors")
"""What the folder holds."""

CHECK_SECONDS: Final = 600
"""Longest wait for check.py."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenCode:
    """What write_code wrote."""

    source: str
    folder: str
    layers: tuple[str, ...]
    """The attributes of the module that own weights."""
    weights: int
    """Numbers in weights.safetensors."""
    check: str
    """What check.py printed."""

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.folder}: model.py with {len(self.layers)} layers, {self.weights:,} weights\n{self.check}"


def write_code(
    source: object,
    folder: str | os.PathLike[str],
    *,
    static: Mapping[str, object] | None = None,
    shapes: Mapping[str, Sequence[int | str]] | None = None,
    inputs: Mapping[str, np.ndarray] | Sequence[Mapping[str, np.ndarray]] | None = None,
    overwrite: bool = False,
    **export: Any,
) -> WrittenCode:
    """Write `source` as readable flax.nnx code into a new folder.

    model.py holds an nnx module and `load(path)`, weights.safetensors its weights under their nnx names, check.py
    compares both with onnxruntime on the inputs and outputs of check.npz. It has passed before the folder is there.

    Args:
        source: anything that `to_onnx` takes.
        folder: to make; its parent exists.
        static: values of inputs, which leave the signature.
        shapes: sizes of inputs that the file leaves open, such as {"x": ("batch", 576)}: numbers, and names for those
            that stay symbolic. They decide an If that hangs on sizes.
        inputs: for the check, by ONNX name, one dict or several; None draws them for two (batch, time) pairs.
        overwrite: replace a folder that write_code wrote.
        export: options of `to_onnx`, for a source that is not ONNX yet.

    Raises:
        Unsupported: nodes that cannot be written as code, all of them in one error.
        UsageError: the folder exists, or `shapes` does not fit the inputs.
        Mismatch: the code does not compute what onnxruntime does; nothing is written.
    """
    target = Path(folder)
    _check_target(target, overwrite=overwrite)
    model = conversion.to_ir(source, ExportOptions(**export))
    model = graph.fold(with_sizes(model, shapes) if shapes else model, static)
    proto = graph.to_proto(model)
    written = write_graph(model.clone())
    given = [inputs] if isinstance(inputs, Mapping) else inputs
    label = os.fspath(source) if isinstance(source, str | os.PathLike) else type(source).__qualname__
    title = f"{Path(label).name} as a flax.nnx module, written by rnn-bridge."
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        weights = weights_of(written)
        (temporary / "model.py").write_text(module_text(written, title), encoding="utf-8")
        (temporary / "check.py").write_text(CHECK, encoding="utf-8")
        np.savez(temporary / "check.npz", **stored_cases(model, proto, given))  # type: ignore[arg-type]
        _save(weights, temporary / "weights.safetensors")
        report = _verified(temporary)
        _place(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return WrittenCode(source=label, folder=str(target), layers=tuple(written.code.layers), check=report,
                       weights=sum(array.size for array in weights.values()))  # fmt: skip


def weights_of(written: Written) -> dict[str, np.ndarray]:
    """The weights of the module by dotted nnx name."""
    owned = {f"{layer.name}.{name}": array for layer in written.code.layers.values()
             for name, array in layer.weights.items()}  # fmt: skip
    return {name: np.ascontiguousarray(narrowed(array)) for name, array in (owned | written.code.constants).items()}


def _save(weights: Mapping[str, np.ndarray], path: Path) -> None:
    from safetensors.numpy import save_file

    save_file(dict(weights), path)
    path.chmod(0o644)


def _verified(folder: Path) -> str:
    """What check.py prints, run as anybody would run it. Raises Mismatch where it does not pass."""
    command = [sys.executable, "-B", "check.py"]
    package = str(Path(__file__).parents[3])
    paths = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=CHECK_SECONDS, check=False,
                          env={**os.environ, "PYTHONPATH": paths})  # fmt: skip
    if done.returncode != 0:
        lines = (done.stdout + done.stderr).strip().splitlines()
        raise Mismatch("the generated code does not compute what onnxruntime does; nothing was written",
                       where="flax-code", got="\n".join(lines[-12:]), do="import the model with to_flax")  # fmt: skip
    return done.stdout.strip()


def _check_target(target: Path, *, overwrite: bool) -> None:
    if not target.parent.is_dir():
        raise BadInput("there is no such folder", where=str(target.parent), do="make it first")
    if not target.exists() and not target.is_symlink():
        return
    if not overwrite or not target.is_dir() or target.is_symlink():
        raise UsageError("the target exists", where=str(target), do="choose another name, or pass --overwrite")
    others = sorted(path.name for path in target.iterdir() if path.name not in (*FILES, "__pycache__"))
    if others:
        raise UsageError("the target holds other files, which would be lost", where=str(target),
                         got=", ".join(others[:5]), do="choose another name")  # fmt: skip


def _place(temporary: Path, target: Path) -> None:
    """Move the finished folder into place; one that was there goes only after that."""
    temporary.chmod(0o755)
    old = None
    if target.exists():
        old = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.old."))
        target.rename(old / "old")
    try:
        temporary.rename(target)
    except OSError:
        if old is not None:
            (old / "old").rename(target)
        raise
    finally:
        if old is not None:
            shutil.rmtree(old, ignore_errors=True)
