"""The table of emitters: the modules, named."""

from __future__ import annotations

from typing import Final

from bridge.frameworks.flax_code import (
    emit_elementwise,
    emit_indexing,
    emit_layers,
    emit_pooling,
    emit_quantised,
    emit_recurrent,
    emit_reduction,
    emit_selecting,
    emit_shape,
)
from bridge.frameworks.flax_code.registry import build_table

EMITTERS: Final = build_table(
    (
        emit_elementwise,
        emit_indexing,
        emit_layers,
        emit_pooling,
        emit_quantised,
        emit_recurrent,
        emit_reduction,
        emit_selecting,
        emit_shape,
    )
)
"""(domain, operator) -> emitter."""
