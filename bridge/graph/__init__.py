"""ONNX files and graphs: load and save, find cells, fold constants, write. The only place of onnx and onnx_ir."""

from __future__ import annotations

from bridge.graph.saving import to_proto
from bridge.graph.writer import Writer

__all__ = ["Writer", "to_proto"]
