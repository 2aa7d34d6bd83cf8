# mypy: disable-error-code="untyped-decorator"
"""The opaque operators that stand for recurrent layers and packing while torch exports the rest of a model.

They are never run: torch's export asks for the shapes of their results only, and `bridge.graph.splice` replaces them.
`call` is the number of the call in the Trace, by which the splice finds the layer.
"""

# ruff: noqa: ARG001 (a fake implementation takes what its operator takes)
from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias

import torch

Tensor: TypeAlias = torch.Tensor
NAMESPACE: Final = "rnn_bridge"


@torch.library.custom_op(f"{NAMESPACE}::sequence", mutates_args=())
def sequence(x: Tensor, h: Tensor | None, c: Tensor | None, call: int, rows: int, features: int, state: int,
             cell: int, batch_axis: int) -> list[Tensor]:  # fmt: skip
    """A layer or stack over x [T,N,I] ([N,T,I] with batch_axis=0): output, h_n, c_n [rows,N,cell] (0 but for LSTM)."""
    raise NotImplementedError


@sequence.register_fake
def _sequence_shapes(x: Tensor, h: Any, c: Any, call: int, rows: int, features: int, state: int, cell: int,
                     batch_axis: int) -> list[Tensor]:  # fmt: skip
    batch = x.shape[batch_axis]
    return [x.new_empty(*x.shape[:2], features), *_states(x, rows, batch, state, cell)]


@torch.library.custom_op(f"{NAMESPACE}::packed_sequence", mutates_args=())
def packed_sequence(data: Tensor, batch_sizes: Tensor, padded: Tensor, lengths: Tensor, h: Tensor | None,
                    c: Tensor | None, order: Tensor | None, inverse: Tensor | None, call: int, rows: int, features: int,
                    state: int, cell: int, batch_axis: int) -> list[Tensor]:  # fmt: skip
    """The same over packed data [sum of lengths, I]; `padded` and `lengths` are what was packed.

    Where the batch was sorted for it, `order` and `inverse` say how; the states are in the order before.
    """
    raise NotImplementedError


@packed_sequence.register_fake
def _packed_sequence_shapes(data: Tensor, batch_sizes: Any, padded: Tensor, lengths: Tensor, h: Any, c: Any, order: Any,
                            inverse: Any, call: int, rows: int, features: int, state: int, cell: int, batch_axis: int
                            ) -> list[Tensor]:  # fmt: skip
    batch = padded.shape[batch_axis]
    return [data.new_empty(data.shape[0], features), *_states(data, rows, batch, state, cell)]


@torch.library.custom_op(f"{NAMESPACE}::step", mutates_args=())
def step(x: Tensor, h: Tensor | None, c: Tensor | None, call: int, state: int, cell: int) -> list[Tensor]:
    """One step over x [N,I]: h and c, whose features are `cell` (0 but for LSTM)."""
    raise NotImplementedError


@step.register_fake
def _step_shapes(x: Tensor, h: Any, c: Any, call: int, state: int, cell: int) -> list[Tensor]:
    return [x.new_empty(x.shape[0], size) for size in (state, cell)]


@torch.library.custom_op(f"{NAMESPACE}::collect", mutates_args=())
def collect(values: list[Tensor], total: int, axis: int) -> Tensor:
    """The steps of a sampled loop stacked along a new `axis` of `total` steps."""
    raise NotImplementedError


@collect.register_fake
def _collect_shapes(values: list[Tensor], total: Any, axis: int) -> Tensor:
    shape = list(values[0].shape)
    return values[0].new_empty(*shape[:axis], total, *shape[axis:])


@torch.library.custom_op(f"{NAMESPACE}::pack", mutates_args=())
def pack(padded: Tensor, lengths: Tensor, batch_axis: int, full: int) -> list[Tensor]:
    """Pack [T,N,...]: data [sum of lengths, ...] and batch_sizes [longest]; `full` says that longest is T."""
    raise NotImplementedError


@pack.register_fake
def _pack_shapes(padded: Tensor, lengths: Tensor, batch_axis: int, full: int) -> list[Tensor]:
    context = torch.library.get_ctx()
    longest = padded.shape[1 - batch_axis] if full else context.new_dynamic_size(min=1)
    data = padded.new_empty(context.new_dynamic_size(min=1), *padded.shape[2:])
    return [data, lengths.new_empty(longest, dtype=torch.int64)]


@torch.library.custom_op(f"{NAMESPACE}::pad", mutates_args=())
def pad(data: Tensor, batch_sizes: Tensor, padded: Tensor, lengths: Tensor, total: int,
        value: float, batch_axis: int, packed_batch_axis: int, mode: int) -> Tensor:  # fmt: skip
    """Pad packed data to `total` steps with `value`; `padded` and `lengths` are what was packed (by its own axes)."""
    raise NotImplementedError


FULL, LONGEST, GENERAL = 0, 1, 2
"""How long `pad` makes its output: as what was packed, as its longest sequence, or as `total` says."""


@pad.register_fake
def _pad_shapes(data: Tensor, batch_sizes: Tensor, padded: Tensor, lengths: Tensor, total: Any, value: float,
                batch_axis: int, packed_batch_axis: int, mode: int) -> Tensor:  # fmt: skip
    batch = padded.shape[packed_batch_axis]
    axes = (batch, total) if batch_axis == 0 else (total, batch)
    return data.new_empty(*axes, *data.shape[1:])


def _states(like: Tensor, rows: int, batch: Any, state: int, cell: int) -> list[Tensor]:
    return [like.new_empty(rows, batch, size) for size in (state, cell)]


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """The custom_translation_table of torch.onnx.export: every operator becomes one stub node."""
    from bridge.graph.stubs import collection_recorder, stub_recorder

    layer = {"call": "INT", "rows": "INT", "features": "INT", "state": "INT", "cell": "INT", "batch_axis": "INT"}
    packed = ["data", "batch_sizes", "padded", "lengths"]
    ops = torch.ops.rnn_bridge
    step_sizes = {"call": "INT", "state": "INT", "cell": "INT"}
    pad_sizes = {"value": "FLOAT", "batch_axis": "INT", "packed_batch_axis": "INT", "mode": "INT"}
    return {
        ops.sequence.default: stub_recorder("Sequence", ["x", "h", "c"], layer, 3),
        ops.packed_sequence.default: stub_recorder("PackedSequence", [*packed, "h", "c", "order", "inverse"], layer, 3),
        ops.step.default: stub_recorder("Step", ["x", "h", "c"], step_sizes, 2),
        ops.pack.default: stub_recorder("Pack", ["padded", "lengths"], {"batch_axis": "INT", "full": "INT"}, 2),
        ops.pad.default: stub_recorder("Pad", [*packed, "total"], pad_sizes, 1),
        ops.collect.default: collection_recorder(),
    }
