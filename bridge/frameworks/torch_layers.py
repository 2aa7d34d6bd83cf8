"""torch's own recurrent layers under the interface of the ONNX operators: time-major X in, Y [T,D,N,H] out."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import nn
from torch.func import functional_call
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from bridge.errors import BadInput

Tensor: TypeAlias = torch.Tensor
Results: TypeAlias = tuple[Tensor, Tensor, Tensor | None]


def run_native(
    rnn: Any,
    X: Tensor,
    sequence_lens: Tensor | None = None,
    initial_h: Tensor | None = None,
    initial_c: Tensor | None = None,
    *,
    reverse: bool = False,
) -> Results:
    """Run one `nn.LSTM`, `nn.GRU` or `nn.RNN` layer as its ONNX node: Y, Y_h and Y_c (None but for LSTM).

    X [T,N,I]; lengths int32 [N]; states [D,N,H]. Outputs past a length are zeros, and a length of 0 ends in zeros
    as in onnxruntime (torch cannot pack it: it is run with one step and masked). `reverse` runs a one-direction
    layer from the last valid step to the first. float16 is computed in float32 and rounded once.

    Raises:
        BadInput: a length that is negative or above T.
    """
    if rnn.weight_ih_l0.dtype == torch.float16:
        return _in_single_precision(rnn, X, sequence_lens, initial_h, initial_c, reverse)
    states = _states(rnn, X, initial_h, initial_c)
    if sequence_lens is not None and bool((check_lengths(sequence_lens, X) == X.shape[0]).all()):
        sequence_lens = None  # nothing to pack, which costs torch many times the layer
    x = flip(X, sequence_lens) if reverse else X
    if sequence_lens is None:
        y, final = rnn(x, states)
        h, c = final if isinstance(final, tuple) else (final, None)
    else:
        y, h, c = _run_packed(rnn, x, check_lengths(sequence_lens, X), states)
    y = flip(y, sequence_lens) if reverse else y
    directions = 2 if rnn.bidirectional else 1
    return y.unflatten(2, (directions, -1)).transpose(1, 2), h, c


def check_lengths(sequence_lens: Tensor, X: Tensor) -> Tensor:
    """`sequence_lens` as int64 [N] where X is.

    Raises:
        BadInput: not one length for each sequence, or one outside 0 to T.
    """
    lengths = sequence_lens.to(X.device, torch.int64)
    if lengths.shape != (X.shape[1],):
        raise BadInput("one length for each sequence", where="lengths", got=list(lengths.shape), expected=[X.shape[1]])
    low, high = (int(value) for value in torch.aminmax(lengths))
    if low < 0 or high > X.shape[0]:
        raise BadInput(
            "a length is out of range", where="lengths", got=f"{low} to {high}", expected=f"0 to {X.shape[0]}"
        )
    return lengths


def flip(x: Tensor, sequence_lens: Tensor | None) -> Tensor:
    """X [T,N,...] with time reversed within each length; what lies beyond stays where it is."""
    if sequence_lens is None:
        return x.flip(0)
    steps = torch.arange(x.shape[0], device=x.device)[:, None]
    lengths = check_lengths(sequence_lens, x)[None, :]
    index = torch.where(steps < lengths, lengths - 1 - steps, steps)
    return torch.take_along_dim(x, index[:, :, None], 0)


def _run_packed(rnn: Any, x: Tensor, lengths: Tensor, states: Any) -> Results:
    packed = pack_padded_sequence(x, lengths.clamp(min=1).cpu(), enforce_sorted=False)
    packed_y, final = rnn(packed, states)
    y, _ = pad_packed_sequence(packed_y, total_length=x.shape[0])
    h, c = final if isinstance(final, tuple) else (final, None)
    if bool((lengths == 0).any()):
        some = (lengths > 0)[None, :, None]
        y, h, c = (None if value is None else value.where(some, value.new_zeros(())) for value in (y, h, c))
    return y, h, c


def _states(rnn: Any, X: Tensor, initial_h: Tensor | None, initial_c: Tensor | None) -> Any:
    """What torch takes as `hx`: None, h, or (h, c) with zeros for the one that is missing."""
    if initial_h is None and initial_c is None:
        return None
    directions = 2 if rnn.bidirectional else 1
    if initial_h is None:
        size = getattr(rnn, "proj_size", 0) or rnn.hidden_size
        initial_h = X.new_zeros(directions, X.shape[1], size)
    if not isinstance(rnn, nn.LSTM):
        return initial_h
    if initial_c is None:
        initial_c = X.new_zeros(directions, X.shape[1], rnn.hidden_size)
    return initial_h.contiguous(), initial_c.contiguous()


def _in_single_precision(rnn: Any, X: Tensor, lengths: Any, h: Any, c: Any, reverse: bool) -> Results:
    weights = {name: value.float() for name, value in rnn.named_parameters()}
    runner = _Runner(rnn)
    states = [None if state is None else state.float() for state in (h, c)]
    results = functional_call(
        runner, {f"rnn.{name}": value for name, value in weights.items()}, (X.float(), lengths, *states, reverse)
    )
    y, y_h, y_c = (None if value is None else value.to(X.dtype) for value in results)
    return y, y_h, y_c


class _Runner(nn.Module):  # type: ignore[misc]
    """`run_native` as a module, which is what functional_call takes."""

    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.rnn = rnn

    def forward(self, X: Tensor, lengths: Any, h: Any, c: Any, reverse: bool) -> Results:
        """Run it with whatever weights are in place."""
        return run_native(self.rnn, X, lengths, h, c, reverse=reverse)
