"""Functions that an imported graph calls: what stands around native layers where ONNX and torch differ.

They are called by the code of the GraphModule, by their names here. Values that are known without inputs are numpy
arrays in such a graph, and become tensors where a layer takes them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from bridge.frameworks.torch_layers import Tensor, run_native
from bridge.frameworks.torch_own import OwnLayer
from bridge.ops.backend_torch import TorchBackend


def as_tensor(value: Any, like: Tensor | None = None) -> Tensor:
    """`value` as a tensor, on the device of `like` where it was none."""
    if isinstance(value, torch.Tensor):
        return value
    tensor: Tensor = TorchBackend().asarray(np.asarray(value), like)
    return tensor


def by_direction(result: Any, directions: int) -> tuple[Tensor, ...]:
    """What torch's layer gives, (output [T,N,D*H], state), as ONNX has it: Y [T,D,N,H], Y_h[, Y_c] [D,N,H]."""
    output, final = result
    Y = output.unflatten(2, (directions, -1)).transpose(1, 2)
    return (Y, *final) if isinstance(final, tuple) else (Y, final)


def recurrent(
    rnn: Any,
    X: Any,
    sequence_lens: Any = None,
    initial_h: Any = None,
    initial_c: Any = None,
    *,
    reverse: bool = False,
    batch_major: bool = False,
) -> tuple[Tensor, ...]:
    """A recurrent node by its layer: Y [T,D,N,H], Y_h[, Y_c] [D,N,H]; batch first everywhere with `batch_major`.

    Raises:
        BadInput: a length that is negative or above T.
    """
    X = as_tensor(X, next(rnn.parameters()))
    lens, h, c = (None if value is None else as_tensor(value, X) for value in (sequence_lens, initial_h, initial_c))
    if batch_major:
        X = X.transpose(0, 1)
        h, c = (None if value is None else value.transpose(0, 1) for value in (h, c))
    results = rnn(X, lens, h, c) if isinstance(rnn, OwnLayer) else run_native(rnn, X, lens, h, c, reverse=reverse)
    Y, *finals = (value for value in results if value is not None)
    if batch_major:
        return Y.permute(2, 0, 1, 3), *(final.transpose(0, 1) for final in finals)
    return Y, *finals


def projected(rnn: Any, h: Any, c: Any, x: Any, valid: Any = None, *, reverse: bool = False) -> tuple[Tensor, ...]:
    """The Scan of an LSTM with `proj_size` by `nn.LSTM`: final h and c [N,·], output [T,N,P]; valid bool [T,N,1]."""
    x = as_tensor(x, next(rnn.parameters()))
    h, c = as_tensor(h, x), as_tensor(c, x)
    lengths = None if valid is None else as_tensor(valid, x)[..., 0].sum(0)
    Y, final_h, final_c = run_native(rnn, x, lengths, h[None], c[None], reverse=reverse)
    if final_c is None:
        raise TypeError("an LSTM has two states")
    return final_h[0], final_c[0], Y[:, 0]


def from_the_end(indices: Tensor, rows: int) -> Tensor:
    """Indices of rows as torch takes them: negative ones count from the end."""
    return torch.where(indices < 0, indices + rows, indices)
