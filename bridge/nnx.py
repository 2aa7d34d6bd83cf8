"""Bridge's own flax.nnx cells: every recurrence of the ONNX operators, for those that nnx has no place for.

>>> from bridge.nnx import GRUCell
>>> GRUCell.__mro__[1].__name__
'OwnCell'
"""

from __future__ import annotations

from bridge.frameworks.flax_nnx_cells import GRUCell, LSTMCell, RNNCell

__all__ = ["GRUCell", "LSTMCell", "RNNCell"]
