"""Stack: what a torch recurrent module (or a checkpoint with one inside) is, as cells and numpy arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bridge.cell import Cell
from bridge.errors import BadInput, NotRepresentable, Unsupported
from bridge.layout import read_directions, read_params

SUFFIXES = ("", "_reverse")
"""What torch appends to a parameter's name in each direction."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One layer, both directions of it where there are two."""

    name: str
    """The module path of the cell and the name of its node: `l0`, `encoder.rnn.l1`."""
    cell: Cell
    """The recurrence; where there is a projection, the columns of R past its size are zeros."""
    projection: np.ndarray | None = None
    """torch's weight_hr of each direction [D, P, H], P < H: the hidden state is this times the LSTM's."""

    @property
    def state_size(self) -> int:
        """Units of the hidden state: P where it is projected, else H."""
        return self.cell.hidden_size if self.projection is None else int(self.projection.shape[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """Layers, one on the other, with torch's interface around them.

    Raises:
        BadInput: layers whose sizes or dtypes do not follow from one another.
    """

    source: str
    """Where it comes from, for the model's metadata: "torch.nn.LSTM"."""
    version: str
    """The version of the framework that it comes from; "" where a file does not tell."""
    layers: tuple[Layer, ...]
    batch_first: bool = False
    """Whether `input` and `output` are [batch, time, features]; the states never are."""
    one_step: bool = False
    """Whether it is a Cell module: one step, no time axis."""
    notes: tuple[str, ...] = ()
    """What an export leaves out by its meaning (dropout), for the report."""

    def __post_init__(self) -> None:
        for below, above in zip(self.layers, self.layers[1:], strict=False):
            width = below.state_size * below.cell.num_directions
            if above.cell.input_size != width:
                raise BadInput(f"layer {above.name} does not fit on {below.name}", where=self.source,
                               got=f"input size {above.cell.input_size}", expected=width)  # fmt: skip
            if (above.cell.dtype, above.cell.op) != (below.cell.dtype, below.cell.op):
                raise BadInput(
                    f"layers {below.name} and {above.name} differ in operator or dtype",
                    where=self.source,
                    got=f"{below.cell.op} {below.cell.dtype}, {above.cell.op} {above.cell.dtype}",
                )

    @property
    def cells(self) -> dict[str, Cell]:
        """The cells by name.

        Raises:
            NotRepresentable: a projected LSTM, whose recurrence is no single operator.
        """
        for layer in self.layers:
            if layer.projection is not None:
                raise NotRepresentable("an LSTM with proj_size is no ONNX LSTM, so it has no Cell", where=layer.name,
                                       do="export it with to_onnx: it is carried as an exact Scan")  # fmt: skip
        return {layer.name: layer.cell for layer in self.layers}


def read_layer(
    name: str, layout: str, directions: Sequence[Mapping[str, np.ndarray]], options: Mapping[str, Any]
) -> Layer:
    """The layer whose directions (forward first) hold these arrays, in the names of `layout`.

    `weight_hr` is taken out first: rows of R belong to gates and its columns to the projected state, so R is padded
    with zero columns up to [nH, H] and the layout says the rest.

    Raises:
        BadInput: missing or unexpected names, shapes that disagree.
        Unsupported: a dtype that is not carried.
    """
    for array in directions[0].values():
        check_dtype(name, array.dtype.name)
    if "weight_hr" in directions[0]:
        return _read_projected(name, layout, directions, options)
    return Layer(name=name, cell=read_directions(layout, directions, **options))


def check_dtype(where: str, dtype: str) -> None:
    """Refuse a dtype that no cell has, before numpy or torch fails on it."""
    if dtype not in ("float16", "float32", "float64"):
        reason = ": no kernel of onnxruntime computes it" if dtype == "bfloat16" else ""
        raise Unsupported(f"weights of dtype {dtype}{reason}", where=where, expected="float16, float32 or float64",
                          do="convert the weights to float32 first")  # fmt: skip


def _read_projected(
    name: str, layout: str, directions: Sequence[Mapping[str, np.ndarray]], options: Mapping[str, Any]
) -> Layer:
    halves, projections = [], []
    for params in directions:
        own = dict(params)
        projection = own.pop("weight_hr")
        recurrent = own["weight_hh"]
        if projection.ndim != 2 or recurrent.ndim != 2 or recurrent.shape[1] != projection.shape[0]:
            raise BadInput("weight_hr and weight_hh disagree", where=name,
                           got=f"weight_hr {list(projection.shape)}, weight_hh {list(recurrent.shape)}",
                           expected="weight_hr [P, H], weight_hh [4H, P]")  # fmt: skip
        if not np.isfinite(projection).all():
            raise BadInput("weight_hr holds NaN or inf, which onnxruntime would hide", where=name)
        padding = projection.shape[1] - projection.shape[0]
        own["weight_hh"] = np.pad(recurrent, ((0, 0), (0, max(padding, 0))))
        halves.append(read_params(layout, own, **options))
        projections.append(projection)
    cell = halves[0] if len(halves) == 1 else Cell.join(*halves)
    return Layer(name=name, cell=cell, projection=np.stack(projections))
