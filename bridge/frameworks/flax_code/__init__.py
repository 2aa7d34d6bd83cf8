"""Readable Flax code from an ONNX graph: a folder with model.py, weights.safetensors and check.py.

write_code        the folder, verified before it is there
operands, site    what stands for a value, and where a node is written
emit_*            one small emitter for each operator; table.py lists them
bodies            subgraphs as functions for jax.lax
walking           numbers are computed, everything else is written
render, module    names, folded expressions, comments, the text
checking          check.py and what it compares with
"""

from __future__ import annotations

from bridge.frameworks.flax_code.folder import WrittenCode, write_code

__all__ = ["WrittenCode", "write_code"]
