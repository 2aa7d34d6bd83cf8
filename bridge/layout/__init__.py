"""Layouts: where each framework keeps each gate. schemas/layouts/*.toml says it, this package reads and writes it.

layouts()                    the names
read_params, read_blocks     a framework's parameters -> Cell, or ONNX blocks in any array namespace
read_columns                 the same for time loops: [in, out], moved as little as can be
write_params, fit            Cell -> a framework's parameters, and the options under which they mean the cell
activation                   a framework's activation names <-> ONNX
explain                      gate by gate, from which array to which
"""

from __future__ import annotations

from bridge.layout.columns import Columns
from bridge.layout.convert import (
    fit,
    layouts,
    read_blocks,
    read_columns,
    read_directions,
    read_params,
    template,
    write_params,
)
from bridge.layout.explaining import Place, Step, describe, explain, op_of
from bridge.layout.options import activation
from bridge.layout.reading import Blocks
from bridge.layout.writing import Fit

__all__ = [
    "Blocks",
    "Columns",
    "Fit",
    "Place",
    "Step",
    "activation",
    "describe",
    "explain",
    "fit",
    "layouts",
    "op_of",
    "read_blocks",
    "read_columns",
    "read_directions",
    "read_params",
    "template",
    "write_params",
]
