"""ONNX files and graphs: load and save, find cells, fold constants, write. The only place of onnx and onnx_ir."""

from __future__ import annotations

from bridge.graph.finding import Found, find_cells, recurrent_nodes
from bridge.graph.folding import fold
from bridge.graph.functions import expand
from bridge.graph.loading import as_model, load, parse
from bridge.graph.saving import save, to_proto
from bridge.graph.typed import with_types
from bridge.graph.writer import Writer

__all__ = [
    "Found",
    "Writer",
    "as_model",
    "expand",
    "find_cells",
    "fold",
    "load",
    "parse",
    "recurrent_nodes",
    "save",
    "to_proto",
    "with_types",
]
