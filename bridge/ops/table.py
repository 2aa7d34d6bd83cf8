"""The table of handlers: the modules, named."""

from __future__ import annotations

from typing import Final

from bridge.ops import (
    activation,
    arithmetic,
    comparison,
    control,
    convolution,
    gather,
    matrix,
    padding,
    recurrent_nodes,
    reduction,
    shape,
)
from bridge.ops.registry import build_table

HANDLERS: Final = build_table(
    (
        activation,
        arithmetic,
        comparison,
        control,
        convolution,
        gather,
        matrix,
        padding,
        recurrent_nodes,
        reduction,
        shape,
    )
)
"""(domain, operator, since-version) -> Handler."""
