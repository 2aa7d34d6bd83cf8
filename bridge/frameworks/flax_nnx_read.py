"""Read recurrent nnx modules: which there are, and the layers that they compute."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from flax import nnx
from flax.nnx.nn import dtypes
from flax.nnx.nn.recurrent import _concatenate

from bridge.errors import Unsupported
from bridge.frameworks.flax_cells import constant_states, read_cell
from bridge.frameworks.flax_layers import Direction, Layer, Reader
from bridge.frameworks.flax_nnx_cells import GRUCell, LSTMCell, OwnCell, RNNCell

LAYOUTS: Final = MappingProxyType(
    {nnx.LSTMCell: "flax.nnx.LSTMCell", nnx.OptimizedLSTMCell: "flax.nnx.OptimizedLSTMCell",
     nnx.GRUCell: "flax.nnx.GRUCell", nnx.SimpleCell: "flax.nnx.SimpleCell",
     LSTMCell: "bridge.LSTMCell", GRUCell: "bridge.GRUCell", RNNCell: "bridge.RNNCell"}
)  # fmt: skip
"""The layout of each cell class."""

LAYERS: Final = (nnx.RNN, nnx.Bidirectional, nnx.RNNCellBase)


def source_name(module: nnx.Module) -> str:
    """What the model's metadata call the source."""
    name = type(module).__name__
    return f"flax.nnx.{name}" if type(module).__module__.startswith("flax.") else f"bridge.nnx.{name}"


def is_recurrent(module: nnx.Module) -> bool:
    """Whether it is an RNN, a Bidirectional, a cell, or a Sequential of nothing else."""
    if type(module) is nnx.Sequential and len(module.layers):
        return all(isinstance(each, LAYERS) for each in module.layers)
    return isinstance(module, LAYERS)


def read_layers(module: nnx.Module) -> list[Layer]:
    """The layers of a module that `is_recurrent`. Raises as `Reader.layer`."""
    if type(module) is nnx.Sequential:
        return [read_layer(each, f"layers.{at}") for at, each in enumerate(module.layers)]
    return [read_layer(module, "cell" if isinstance(module, nnx.RNNCellBase) else "rnn")]


def recurrent_modules(module: nnx.Module) -> Iterator[tuple[str, Any]]:
    """Every outermost RNN, Bidirectional and lone cell in `module` with its dotted path, shared ones once."""
    found = [(path, each) for path, each in nnx.iter_modules(module) if isinstance(each, LAYERS)]
    inside = {id(part) for path, each in found for _, part in nnx.iter_modules(each) if part is not each}
    for path, each in sorted(found, key=lambda pair: tuple(map(str, pair[0]))):
        if id(each) not in inside:
            yield ".".join(map(str, path)) or ("cell" if isinstance(each, nnx.RNNCellBase) else "rnn"), each


def read_layer(module: Any, path: str) -> Layer:
    """One RNN, Bidirectional or bare cell. Raises as `Reader.layer`."""
    return Reader(api=nnx, name="nnx", concatenate=_concatenate, rnn=_rnn, cell=_direction).layer(module, path)


def _rnn(rnn: Any, path: str) -> Direction:
    if rnn.state_axes != nnx.StateAxes({...: nnx.Carry}):
        raise Unsupported("state_axes are of the caller's own", where=path, got=rnn.state_axes,
                          do="leave state_axes at its default")  # fmt: skip
    return _direction(rnn.cell, path)


def _direction(cell: Any, path: str) -> Direction:
    layout = LAYOUTS.get(type(cell))
    if layout is None:
        raise Unsupported("this cell may compute anything", where=path, got=type(cell).__name__,
                          expected=", ".join(kind.__name__ for kind in LAYOUTS))  # fmt: skip
    if getattr(cell, "promote_dtype", dtypes.promote_dtype) is not dtypes.promote_dtype:
        raise Unsupported("promote_dtype is a function of the caller's own", where=path,
                          do="leave promote_dtype at its default")  # fmt: skip
    initial = initial_states(cell, path)
    return Direction(path=path, kind=layout, body=read_cell(layout, cell, parameters(cell), initial, path))


def parameters(cell: Any) -> dict[str, Any]:
    """Every variable of a cell but its random streams and its learned carry, by dotted name."""
    state = nnx.to_flat_state(nnx.state(cell, nnx.Not(nnx.RngState)))
    named = {".".join(map(str, path)): variable[...] for path, variable in state}
    return {name: value for name, value in named.items()
            if not (isinstance(cell, OwnCell) and name in ("initial_h", "initial_c"))}  # fmt: skip


def initial_states(cell: Any, where: str) -> Sequence[np.ndarray] | None:
    """The constant initial h[, c] of a cell, None for zeros."""
    if isinstance(cell, OwnCell):
        learned = [state[...] for state in (cell.initial_h, cell.initial_c) if state is not None]
        return [np.atleast_2d(np.asarray(state)) for state in learned] or None
    if cell.carry_init is None:
        return None

    def draw(seed: int, batch: int) -> Sequence[Any]:
        carry = cell.initialize_carry((batch, cell.in_features), nnx.Rngs(seed))
        return carry[::-1] if isinstance(carry, tuple) else [carry]

    return constant_states(draw, where)


def forward(layer: Layer, x: Any, **options: Any) -> Any:
    """What the native module itself returns for x."""
    if not layer.is_step:
        return layer.module(x, **options)
    carry = options["carry"]
    return layer.module(layer.module.initialize_carry(x.shape, nnx.Rngs(0)) if carry is None else carry, x)
