"""Run a whole torch model's own forward pass on arrays named as its export names them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from bridge.errors import BadInput
from bridge.frameworks.torch_read import SEQUENCES, STEPS, recurrent_modules
from bridge.frameworks.torch_whole.inputs import named_leaves

STATES = ("initial_h", "initial_c")


def run_whole(module: nn.Module, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs of `module` by name; states such as `encoder.initial_h` are given to that layer, as the graph does.

    Raises:
        BadInput: names that are neither arguments of forward nor states of a layer.
    """
    device = next((value.device for value in module.parameters()), torch.device("cpu"))
    tensors = {name: torch.from_numpy(np.array(value)).to(device) for name, value in feeds.items()}
    states: dict[str, dict[str, torch.Tensor]] = {}
    for name in [name for name in tensors if name.rpartition(".")[2] in STATES]:
        path, _, state = name.rpartition(".")
        states.setdefault(path, {})[state] = tensors.pop(name)
    try:
        inspect.signature(module.forward).bind(**tensors)
    except TypeError as error:
        raise BadInput(f"forward does not take these inputs: {error}", where=type(module).__name__,
                       got=", ".join(feeds), expected=str(inspect.signature(module.forward))) from None  # fmt: skip
    finals: dict[str, torch.Tensor] = {}
    with _given(module, states, finals), torch.no_grad():
        named = named_leaves(module(**tensors)) | finals
    return {name: np.asarray(value.detach().cpu().numpy()) for name, value in named.items()
            if isinstance(value, torch.Tensor)}  # fmt: skip


@contextmanager
def _given(module: nn.Module, states: Mapping[str, Mapping[str, torch.Tensor]], finals: dict[str, torch.Tensor]
           ) -> Iterator[None]:  # fmt: skip
    """Layers start from `states`; their final states go to `finals`. The hooks are gone afterwards."""
    kinds = (*SEQUENCES, *STEPS)
    known: dict[str, Any] = {path: child for path, child in recurrent_modules(module) if isinstance(child, kinds)}
    if unknown := sorted(set(states) - set(known)):
        raise BadInput("states of no recurrent layer", where=type(module).__name__, got=", ".join(unknown),
                       expected=", ".join(known))  # fmt: skip
    handles = []
    try:
        for path, own in states.items():
            child = known[path]
            handles.append(child.register_forward_pre_hook(_start(own), with_kwargs=True))
            handles.append(child.register_forward_hook(_keep(path, child, finals)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _start(own: Mapping[str, torch.Tensor]) -> Any:
    values = tuple(own[name] for name in STATES if name in own)

    def hook(_: nn.Module, args: Any, kwargs: Any) -> Any:
        return args[:1], {**kwargs, "hx": values if len(values) > 1 else values[0]}

    return hook


def _keep(path: str, child: nn.Module, finals: dict[str, torch.Tensor]) -> Any:
    def hook(_: nn.Module, __: Any, result: Any) -> None:
        final = result if isinstance(child, tuple(STEPS)) else result[1]
        values = final if isinstance(final, tuple) else (final,)
        finals.update({f"{path}.{name}": value for name, value in zip(("h_n", "c_n"), values, strict=False)})

    return hook
