"""Dynamically quantised torch modules as their float equivalents: the weights that they stand for, read exactly.

The modules round each activation to 8 bits when they run; the equivalents do not, and a note says so.

Source: torch 2.13 torch/ao/nn/quantized/dynamic/modules/rnn.py and linear.py.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any, Final

from torch import nn

from bridge.errors import Unsupported

QUANTISED: Final = "torch.ao.nn.quantized"
DYNAMIC: Final = f"{QUANTISED}.dynamic"
INTERNAL: Final = ("PackedParameter", "LinearPackedParams")
"""Modules that only hold the weights of the others."""

SEQUENCES: Final = {"LSTM": nn.LSTM, "GRU": nn.GRU}
STEPS: Final = {"LSTMCell": nn.LSTMCell, "GRUCell": nn.GRUCell, "RNNCell": nn.RNNCell}


def as_float(module: nn.Module) -> tuple[nn.Module, list[str]]:
    """`module` itself where nothing in it is quantised, else a copy with float modules, and a note for each.

    Raises:
        Unsupported: a quantised module that has no float equivalent here.
    """
    if not any(_is_quantised(child) for child in module.modules()):
        return module, []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of its own constructors
        return _converted(copy.deepcopy(module))


def _converted(wide: nn.Module) -> tuple[nn.Module, list[str]]:
    made: dict[int, nn.Module] = {}
    notes: list[str] = []
    for path, child in list(wide.named_modules(remove_duplicate=False)):
        if not _is_quantised(child) or type(child).__name__ in INTERNAL:
            continue
        if id(child) not in made:
            made[id(child)] = _float_module(child, path).eval()
            notes.append(f"{path or type(child).__name__}: quantised dynamically, exported as its float equivalent, "
                         "which does not round activations")  # fmt: skip
        if not path:
            return made[id(child)], notes
        parent, _, name = path.rpartition(".")
        setattr(wide.get_submodule(parent), name, made[id(child)])
    return wide, notes


def _is_quantised(module: nn.Module) -> bool:
    return type(module).__module__.startswith(QUANTISED)


def _float_module(module: Any, path: str) -> nn.Module:
    kind = type(module).__name__
    if not type(module).__module__.startswith(DYNAMIC) or kind not in (*SEQUENCES, *STEPS, "Linear"):
        raise Unsupported("a quantised module without a float equivalent", where=f"{path} ({kind})".strip(),
                          expected="what quantize_dynamic makes of LSTM, GRU, their cells, RNNCell and Linear",
                          do="export the model before it is quantised")  # fmt: skip
    if kind == "Linear":
        linear = nn.Linear(module.in_features, module.out_features, bias=module.bias() is not None)
        return _filled(linear, {"weight": module.weight(), "bias": module.bias()})
    arrays = {**module.get_weight(), **module.get_bias()}
    if kind in STEPS:
        more = {"nonlinearity": module.nonlinearity} if kind == "RNNCell" else {}
        return _filled(STEPS[kind](module.input_size, module.hidden_size, bias=module.bias, **more), arrays)
    return _filled(
        SEQUENCES[kind](module.input_size, module.hidden_size, num_layers=module.num_layers, bias=module.bias,
                        batch_first=module.batch_first, bidirectional=module.bidirectional), arrays
    )  # fmt: skip


def _filled(module: nn.Module, arrays: dict[str, Any]) -> nn.Module:
    held = {name: value.dequantize() if value.is_quantized else value for name, value in arrays.items()
            if value is not None}  # fmt: skip
    module.load_state_dict({name: value.detach().float() for name, value in held.items()})
    return module
