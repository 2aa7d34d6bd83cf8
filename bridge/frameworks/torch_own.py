"""Bridge's own torch modules: every recurrence that ONNX can say, for graphs and cells that torch has no place for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from bridge.cell import Cell
from bridge.frameworks.torch_layers import Results, Tensor
from bridge.ops import recurrent
from bridge.ops.backend_torch import TorchBackend

ARRAYS: Final = ("W", "R", "B", "P", "initial_h", "initial_c")
"""The fields of Cell that are parameters here, in ONNX's own layout."""


class Whole(nn.Module):  # type: ignore[misc]
    """A module of bridge's own whose recurrent parts are read through it and not one by one."""

    def cells(self) -> dict[str, Cell]:
        """The cells of its present weights by path inside the module, "" being the module itself."""
        raise NotImplementedError


class OwnLayer(Whole):
    """One recurrent operator with its attributes; parameters W, R[, B][, P][, initial_h][, initial_c] as in Cell.

    `forward(X, sequence_lens, initial_h, initial_c)` takes X [T,N,I] and gives Y [T,D,N,H], Y_h and Y_c [D,N,H]
    (Y_c is None but for LSTM).
    """

    def __init__(self, cell: Cell) -> None:
        super().__init__()
        self.op = cell.op
        self.attributes: dict[str, Any] = {
            name: getattr(cell, name)
            for name in ("direction", "activations", "activation_alpha", "activation_beta", "clip")
        }
        own = {"LSTM": "input_forget", "GRU": "linear_before_reset"}.get(cell.op)
        self.attributes |= {} if own is None else {own: int(getattr(cell, own))}
        for name in ARRAYS:
            value = getattr(cell, name)
            self.register_parameter(name, None if value is None else nn.Parameter(torch.tensor(value)))

    def cells(self) -> dict[str, Cell]:
        """The one cell."""
        return {"": self.cell()}

    def cell(self) -> Cell:
        """The layer as a Cell of its present weights."""
        arrays: dict[str, Any] = {
            name: as_numpy(value) for name in ARRAYS if (value := getattr(self, name)) is not None
        }
        return Cell(self.op, **arrays, **self.attributes)

    def forward(
        self,
        X: Tensor,
        sequence_lens: Tensor | None = None,
        initial_h: Tensor | None = None,
        initial_c: Tensor | None = None,
    ) -> Results:
        """Run the layer; its own initial states serve where none are given."""
        h = self.initial_h if initial_h is None else initial_h
        if self.op != "LSTM":
            run = recurrent.gru if self.op == "GRU" else recurrent.rnn
            y, y_h = run(TorchBackend(), X, self.W, self.R, self.B, sequence_lens, h, **self.attributes)
            return y, y_h, None
        c = self.initial_c if initial_c is None else initial_c
        return recurrent.lstm(TorchBackend(), X, self.W, self.R, self.B, sequence_lens, h, c, self.P, **self.attributes)

    def extra_repr(self) -> str:
        """What `print` shows."""
        inputs, hidden = self.W.shape[2], self.R.shape[2]
        shown = {name: value for name, value in self.attributes.items() if value}
        return f"{self.op}, {inputs}, {hidden}, " + ", ".join(f"{key}={value}" for key, value in shown.items())


class OwnStack(Whole):
    """Own layers one on the other, with the interface of `nn.LSTM`, `nn.GRU` and `nn.RNN` (time-major).

    `forward(input [T,N,I], hx=None, lengths=None)` gives `(output [T,N,D*H], h_n)`, for LSTM `(output, (h_n, c_n))`,
    states [layers*D, N, H]; `lengths` int [N] zeroes the output past each length.
    """

    def __init__(self, cells: Sequence[Cell]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(OwnLayer(cell) for cell in cells)
        self.op = cells[0].op

    def cells(self) -> dict[str, Cell]:
        """The layers as Cells of their present weights."""
        return {f"l{at}": layer.cell() for at, layer in enumerate(self.layers)}

    def forward(self, input: Tensor, hx: Any = None, lengths: Tensor | None = None) -> tuple[Tensor, Any]:  # noqa: A002
        """Run all layers."""
        x, count = input, len(self.layers)
        given = hx if isinstance(hx, tuple) else (hx,)
        states = [[None] * count if state is None else list(state.chunk(count)) for state in given]
        finals: list[tuple[Tensor, ...]] = []
        for at, layer in enumerate(self.layers):
            y, *final = layer(x, lengths, *(state[at] for state in states))
            x = y.transpose(1, 2).flatten(2)
            finals.append(tuple(value for value in final if value is not None))
        h, *c = (torch.cat(values) for values in zip(*finals, strict=True))
        return x, (h, *c) if c else h


def as_numpy(tensor: Tensor) -> np.ndarray:
    """A copy of `tensor` as numpy."""
    return np.array(tensor.detach().cpu().numpy())
