"""Run a torch module's own forward pass on numpy arrays, with inputs and outputs named as its export names them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from bridge.errors import BadInput
from bridge.frameworks.torch_import import OnnxModule
from bridge.frameworks.torch_own import OwnStack
from bridge.frameworks.torch_read import SEQUENCES, STEPS

STATES = ("initial_h", "initial_c")


def run_module(source: nn.Module, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs of `source` by name; the module, its training mode included, is as it was afterwards."""
    if isinstance(source, OnnxModule):
        with _inference(source):
            results = source(**feeds)
        values = results if isinstance(results, tuple) else (results,)
        return {name: _as_numpy(value) for name, value in zip(source.output_names, values, strict=True)}
    run = next((run for kinds, run in _RUNNERS if isinstance(source, kinds)), None)
    if run is None:
        from bridge.frameworks.torch_whole.execute import run_whole

        with _inference(source):
            return run_whole(source, feeds)
    has_cell_state = isinstance(source, nn.LSTM | nn.LSTMCell) or (isinstance(source, OwnStack) and source.op == "LSTM")
    _check_names(source, feeds, has_cell_state)
    device = next(source.parameters()).device
    tensors = {name: torch.from_numpy(np.array(value)).to(device) for name, value in feeds.items()}
    with _inference(source):
        named = run(source, tensors, _states(tensors, has_cell_state))
    return {name: _as_numpy(value) for name, value in named.items()}


def _run_sequence(module: Any, tensors: dict[str, torch.Tensor], states: Any) -> dict[str, torch.Tensor]:
    x, lengths = tensors["input"], tensors.get("lengths")
    if lengths is None:
        y, final = module(x, states)
        return {"output": y, **_named(final)}
    if int(lengths.min()) < 1:
        raise BadInput("torch cannot pack a sequence of length 0", where="lengths", got=int(lengths.min()),
                       do="leave empty sequences out")  # fmt: skip
    packed = pack_padded_sequence(x, lengths.cpu(), batch_first=module.batch_first, enforce_sorted=False)
    packed_y, final = module(packed, states)
    time = x.shape[1 if module.batch_first else 0]
    y, _ = pad_packed_sequence(packed_y, batch_first=module.batch_first, total_length=time)
    return {"output": y, **_named(final)}


def _run_step(module: Any, tensors: dict[str, torch.Tensor], states: Any) -> dict[str, torch.Tensor]:
    return _named(module(tensors["input"], states))


def _run_own(module: Any, tensors: dict[str, torch.Tensor], states: Any) -> dict[str, torch.Tensor]:
    y, final = module(tensors["input"], states, tensors.get("lengths"))
    return {"output": y, **_named(final)}


_RUNNERS = ((tuple(SEQUENCES), _run_sequence), (tuple(STEPS), _run_step), ((OwnStack,), _run_own))


def _named(final: Any) -> dict[str, torch.Tensor]:
    return dict(zip(("h_n", "c_n"), final if isinstance(final, tuple) else (final,), strict=False))


def _states(tensors: dict[str, torch.Tensor], has_cell_state: bool) -> Any:
    """Torch's `hx`: None, h, or (h, c)."""
    given = [tensors.get(name) for name in STATES]
    if all(state is None for state in given):
        return None
    if not has_cell_state:
        return given[0]
    if any(state is None for state in given):
        raise BadInput("torch takes both states of an LSTM or none", where="initial_h, initial_c")
    return tuple(given)


def _check_names(source: nn.Module, feeds: Mapping[str, np.ndarray], has_cell_state: bool) -> None:
    known = {"input", "initial_h", *(["initial_c"] if has_cell_state else [])}
    known |= set() if isinstance(source, tuple(STEPS)) else {"lengths"}
    unknown = sorted(set(feeds) - known)
    if unknown or "input" not in feeds:
        raise BadInput("unknown or missing inputs", where=type(source).__name__, got=", ".join(sorted(feeds)),
                       expected=", ".join(sorted(known)))  # fmt: skip


@contextmanager
def _inference(module: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; every submodule's own mode is restored."""
    modes = [(child, child.training) for child in module.modules()]
    try:
        module.eval()
        with torch.no_grad():
            yield
    finally:
        for child, training in modes:
            child.training = training


def _as_numpy(tensor: torch.Tensor) -> np.ndarray:
    return np.asarray(tensor.detach().cpu().numpy())
