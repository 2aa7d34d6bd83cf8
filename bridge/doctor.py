"""doctor: what is installed, what really loads, and the line that installs what is missing."""

from __future__ import annotations

import platform
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any, Final

from bridge.errors import BridgeError

EXTRAS: Final = (
    ("onnx", "onnx", ""),
    ("onnx-ir", "onnx_ir", ""),
    ("onnxruntime", "onnxruntime", "cpu"),
    ("onnxscript", "onnxscript", "fold"),
    ("torch", "torch", "torch"),
    ("keras", "keras", "keras"),
    ("tensorflow", "tensorflow", "keras"),
    ("tf2onnx", "tf2onnx", "keras"),
    ("jax", "jax", "flax"),
    ("flax", "flax", "flax"),
)
"""What a person knows it as, what Python imports, and the extra of rnn-bridge that brings it."""

WHEELS: Final = {
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "tensorflow": ("tensorflow", "tensorflow-cpu"),
}
"""Distributions that install the same import name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Library:
    """One library that bridge can use."""

    name: str
    version: str | None
    """None where it is not installed."""
    install: str
    """The line that installs it; empty where it is there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Examination:
    """What doctor found."""

    python: str
    platform: str
    libraries: tuple[Library, ...]
    providers: tuple[str, ...]
    """The onnxruntime providers whose devices are really there, not those compiled in."""
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The document of schemas/doctor.schema.json."""
        return {"schema": "rnn-bridge/doctor/1", **asdict(self)}

    def __str__(self) -> str:
        width = max(len(library.name) for library in self.libraries)
        lines = [f"Python {self.python} on {self.platform}"]
        for library in self.libraries:
            status = library.version or f"missing: {library.install}"
            lines.append(f"{library.name:{width}}  {status}")
        lines.append("onnxruntime providers that load: " + (", ".join(self.providers) or "none"))
        return "\n".join([*lines, *(f"warning: {warning}" for warning in self.warnings)])


def examine() -> Examination:
    """Look at this Python environment; only onnxruntime is imported, to ask it for its devices."""
    libraries = tuple(_library(name, module, extra) for name, module, extra in EXTRAS)
    warnings = []
    if all(_version(wheel) for wheel in WHEELS["onnxruntime"]):
        warnings.append(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other: "
            "uninstall both, then install one"
        )
    providers: tuple[str, ...] = ()
    if find_spec("onnxruntime") is not None:
        from bridge import runtime

        try:
            providers = tuple(runtime.providers())
        except BridgeError as error:
            warnings.append(str(error))
    return Examination(
        python=sys.version.partition(" ")[0],
        platform=f"{platform.system()} {platform.machine()}",
        libraries=libraries,
        providers=providers,
        warnings=tuple(warnings),
    )


def _library(name: str, module: str, extra: str) -> Library:
    found = next((v for wheel in WHEELS.get(name, (name,)) if (v := _version(wheel))), None)
    if found is not None and find_spec(module) is not None:
        return Library(name=name, version=found, install="")
    wanted = f"rnn-bridge[{extra}]" if extra else "rnn-bridge"
    line = f"pip install '{wanted}'"
    if extra == "cpu":
        line += " (or 'rnn-bridge[gpu]', never both)"
    return Library(name=name, version=None, install=line)


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
