"""The table of handlers: the modules, named."""

from __future__ import annotations

from typing import Final

from bridge.ops import (
    activation,
    arithmetic,
    bits,
    comparison,
    control,
    convolution,
    gather,
    iteration,
    matrix,
    normalisation,
    padding,
    pooling,
    quantisation,
    quantised_lstm,
    rearranging,
    recurrent_nodes,
    reduction,
    resizing,
    scatter,
    selection,
    shape,
    spectral,
    transposed,
    trigonometry,
)
from bridge.ops.registry import build_table

HANDLERS: Final = build_table(
    (
        activation,
        arithmetic,
        bits,
        comparison,
        control,
        convolution,
        gather,
        iteration,
        matrix,
        normalisation,
        padding,
        pooling,
        quantisation,
        quantised_lstm,
        rearranging,
        recurrent_nodes,
        reduction,
        resizing,
        scatter,
        selection,
        shape,
        spectral,
        transposed,
        trigonometry,
    )
)
"""(domain, operator, since-version) -> Handler."""
