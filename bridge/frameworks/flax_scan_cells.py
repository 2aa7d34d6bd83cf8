"""Flax cells that no ONNX operator expresses, as an exact Scan with Flax's own equations."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    import onnx_ir as ir

    from bridge.frameworks.flax_lengths import Lengths
    from bridge.graph.writer import Writer

CONV_LSTM = "flax.linen.ConvLSTMCell"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvLSTM:
    """linen's ConvLSTMCell over [T, N, *space, I]. Source: flax 0.12.8 linen/recurrent.py ConvLSTMCell.

    Gates in the order i, g, f, o; 1 is added to f at run time, and stays out of the stored bias here too.
    """

    params: Mapping[str, np.ndarray]
    """ih.kernel [*k, I, 4F], hh.kernel [*k, F, 4F], and the biases [4F] where it has them."""
    pads: tuple[tuple[int, int], ...]
    """Zeros before and after each axis of space; their sum is the kernel's size - 1, so that space stays."""
    options: Mapping[str, Any]
    """The fields of the native cell: features, kernel_size, padding, use_bias."""
    initial: Sequence[np.ndarray] | None = None
    """Constant initial h and c that broadcast to [N, *space, F]; None is zeros."""
    op: Literal["LSTM"] = "LSTM"

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the parameters and of the computation."""
        return self.params["ih.kernel"].dtype

    @property
    def filters(self) -> int:
        """F."""
        return int(self.params["hh.kernel"].shape[-2])

    @property
    def input_shape(self) -> tuple[int | str, ...]:
        """Space, then the channels of the input."""
        return (*self._space, int(self.params["ih.kernel"].shape[-2]))

    @property
    def state_shape(self) -> tuple[int | str, ...]:
        """Space, then the filters."""
        return (*self._space, self.filters)

    @property
    def _space(self) -> tuple[str, ...]:
        return tuple(f"space_{at}" for at in range(len(self.pads)))

    def write(
        self, w: Writer, x: ir.Value, states: Sequence[ir.Value] | None, path: str, lengths: Lengths | None,
        reverse: bool, keep_order: bool,
    ) -> tuple[ir.Value, list[ir.Value]]:  # fmt: skip
        """Write x [T, N, *space, I] -> output [T, N, *space, F] in the layer's order of time, and final h and c."""
        from bridge.graph import sequences

        weights = self._weights(w, path)
        x = lengths.flip(x) if lengths is not None and reverse else x
        steps = w.transpose(x, _channels_first(len(x.shape or ()), 2))
        if states is None:
            states = self._initial(w, steps)
        start = [w.transpose(state, _channels_first(len(self.pads) + 2, 1)) for state in states]
        histories, finals = self._scan(w, steps, start, weights, path, reverse and lengths is None, lengths)
        ys = [w.transpose(each, _channels_last(len(self.pads) + 3, 2)) for each in histories]
        if lengths is not None:
            ends = [lengths.gather_last(y) for y in ys]
            return (lengths.flip(ys[0]) if reverse and keep_order else ys[0]), ends
        ends = [w.transpose(final, _channels_last(len(self.pads) + 2, 1)) for final in finals]
        return (sequences.flip(w, ys[0], 0) if reverse and not keep_order else ys[0]), ends

    def _weights(self, w: Writer, path: str) -> dict[str, ir.Value]:
        """The parameters in ONNX orientation: kernels [4F, I, *k]."""
        turned = {
            name: np.moveaxis(value, (-1, -2), (0, 1)) if name.endswith("kernel") else value
            for name, value in self.params.items()
        }
        return {name: w.constant(np.ascontiguousarray(value), f"{path}.{name}") for name, value in turned.items()}

    def _initial(self, w: Writer, steps: ir.Value) -> list[ir.Value]:
        """The constant states [N, *space, F] for the batch and the space of steps [T, N, I, *space]."""
        sizes = [w.dim(steps, 1), *(w.dim(steps, 3 + at) for at in range(len(self.pads)))]
        shape = [*sizes, w.constant([self.filters])]
        if self.initial is None:
            return [w.zeros(*shape)] * 2
        return [w.op("Expand", w.constant(value), w.concat(shape, 0)) for value in self.initial]

    def _scan(
        self, w: Writer, steps: ir.Value, start: Sequence[ir.Value], weights: Mapping[str, ir.Value], path: str,
        reverse: bool, lengths: Lengths | None,
    ) -> tuple[Sequence[ir.Value], Sequence[ir.Value]]:  # fmt: skip
        filters = self.filters
        shape: tuple[int | str, ...] = ("batch", filters, *self._space)
        pads = [before for before, _ in self.pads] + [after for _, after in self.pads]

        def conv(b: Writer, value: ir.Value, name: str) -> ir.Value:
            return b.op("Conv", value, weights[f"{name}.kernel"], weights.get(f"{name}.bias"), pads=pads)

        def body(
            b: Writer, states: tuple[ir.Value, ...], xs: tuple[ir.Value, ...]
        ) -> tuple[Sequence[ir.Value], Sequence[ir.Value]]:
            h, c = states
            gates = b.op("Add", conv(b, xs[0], "ih"), conv(b, h, "hh"))
            sizes = b.constant([filters] * 4)
            i, g, f, o = b.op("Split", gates, sizes, axis=1, outputs=4)
            one = b.constant(np.ones((), self.dtype))
            kept = b.op("Mul", b.op("Sigmoid", b.op("Add", f, one)), c)
            c = b.typed(b.op("Add", kept, b.op("Mul", b.op("Sigmoid", i), b.op("Tanh", g))), shape)
            h = b.typed(b.op("Mul", b.op("Sigmoid", o), b.op("Tanh", c)), shape)
            return [h, c], [h, c] if lengths is not None else [h]

        finals, histories = w.scan(
            body, start, [steps], reverse=reverse, name=path, metadata=self._metadata(path, weights)
        )
        return histories, finals

    def _metadata(self, path: str, weights: Mapping[str, ir.Value]) -> dict[str, str]:
        names = {name: str(value.name) for name, value in weights.items()}
        layer = {"layer": CONV_LSTM, "options": dict(self.options), "weights": names}
        return {"bridge.path": path, "bridge.layer": json.dumps(layer, sort_keys=True)}


def _channels_first(rank: int, leading: int) -> list[int]:
    return [*range(leading), rank - 1, *range(leading, rank - 1)]


def _channels_last(rank: int, leading: int) -> list[int]:
    return [*range(leading), *range(leading + 1, rank), leading]
