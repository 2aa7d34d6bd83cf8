"""Move trained recurrent networks between PyTorch, Keras and JAX/Flax through ONNX, proven in onnxruntime.

`import bridge` costs numpy and nothing more: every other library is imported by the call that needs it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from bridge.cell import Cell
from bridge.errors import (
    BadInput,
    BridgeError,
    DeviceUnavailable,
    Mismatch,
    MissingExtra,
    NotRepresentable,
    Refused,
    Unsupported,
    UsageError,
)

if TYPE_CHECKING:
    from bridge.frameworks.conversion import (
        assign,
        build,
        cells,
        run,
        to_flax,
        to_keras,
        to_onnx,
        to_torch,
    )
    from bridge.frameworks.flax_stream import flax_stream
    from bridge.layout import layouts, read_params, write_params
    from bridge.verification.inspection import Inspection, inspect
    from bridge.verification.report import Report
    from bridge.verification.verifier import verify

__version__ = "0.1.0"

__all__ = [
    "BadInput",
    "BridgeError",
    "Cell",
    "DeviceUnavailable",
    "Inspection",
    "Mismatch",
    "MissingExtra",
    "NotRepresentable",
    "Refused",
    "Report",
    "Unsupported",
    "UsageError",
    "assign",
    "build",
    "cells",
    "flax_stream",
    "inspect",
    "layouts",
    "read_params",
    "run",
    "to_flax",
    "to_keras",
    "to_onnx",
    "to_torch",
    "verify",
    "write_params",
]

_HOMES = {
    "bridge.frameworks.conversion": ("assign", "build", "cells", "run", "to_flax", "to_keras", "to_onnx", "to_torch"),
    "bridge.frameworks.flax_stream": ("flax_stream",),
    "bridge.layout": ("layouts", "read_params", "write_params"),
    "bridge.verification.inspection": ("Inspection", "inspect"),
    "bridge.verification.report": ("Report",),
    "bridge.verification.verifier": ("verify",),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module 'bridge' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
