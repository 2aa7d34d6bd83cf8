"""The table of handlers: the modules, named."""

from __future__ import annotations

from typing import Final

from bridge.ops import control, recurrent_nodes, shape
from bridge.ops.registry import build_table

HANDLERS: Final = build_table((control, recurrent_nodes, shape))
