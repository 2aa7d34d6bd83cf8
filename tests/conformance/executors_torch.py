"""PyTorch's own layers and cells with given parameters. Source: torch 2.13.0, torch/nn/modules/rnn.py."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from tests.conformance.native import Options, Params, Result, States, reject, zeros_or


def _load(module: Any, params: Params, suffix: str) -> Any:
    import torch

    state = {name + suffix: torch.from_numpy(np.array(value)) for name, value in params.items()}
    module.load_state_dict(state, strict=True)
    return module.eval()


def _sizes(params: Params, x: np.ndarray) -> tuple[int, int, int]:
    return x.shape[2], params["weight_hh"].shape[1], x.shape[1]


def layer(kind: str, params: Params, x: np.ndarray, states: States, options: Options) -> Result:
    """torch.nn.LSTM, GRU or RNN, one layer, one direction."""
    import torch

    reject(options, ("nonlinearity",) if kind == "RNN" else ())
    inputs, hidden, batch = _sizes(params, x)
    module = getattr(torch.nn, kind)(inputs, hidden, bias="bias_ih" in params, **options)
    _load(module, params, "_l0")
    h, c = (torch.from_numpy(zeros_or(state, batch, hidden))[None] for state in states)
    with torch.no_grad():
        output, final = module(torch.from_numpy(x), (h, c) if kind == "LSTM" else h)
    final_h, final_c = final if kind == "LSTM" else (final, None)
    return Result(output.numpy(), final_h[0].numpy(), None if final_c is None else final_c[0].numpy())


def cell(kind: str, params: Params, x: np.ndarray, states: States, options: Options) -> Result:
    """torch.nn.LSTMCell, GRUCell or RNNCell in a loop over time."""
    import torch

    reject(options, ("nonlinearity",) if kind == "RNNCell" else ())
    inputs, hidden, batch = _sizes(params, x)
    module = getattr(torch.nn, kind)(inputs, hidden, bias="bias_ih" in params, **options)
    _load(module, params, "")
    h, c = (torch.from_numpy(zeros_or(state, batch, hidden)) for state in states)
    outputs = []
    with torch.no_grad():
        for step in torch.from_numpy(x):
            if kind == "LSTMCell":
                h, c = module(step, (h, c))
            else:
                h = module(step, h)
            outputs.append(h.numpy())
    return Result(np.stack(outputs), h.numpy(), c.numpy() if kind == "LSTMCell" else None)


EXECUTORS = {
    **{f"torch.{kind}": partial(layer, kind) for kind in ("LSTM", "GRU", "RNN")},
    **{f"torch.{kind}": partial(cell, kind) for kind in ("LSTMCell", "GRUCell", "RNNCell")},
}
