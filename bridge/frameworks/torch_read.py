"""Read torch's recurrent modules: which there are, and the cells that they compute with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
import torch
from torch import nn
from torch.nn.utils.weight_norm import WeightNorm

from bridge.cell import Cell
from bridge.errors import BadInput, Unsupported
from bridge.frameworks.stack import SUFFIXES, Layer, Stack, check_dtype, read_layer
from bridge.frameworks.torch_own import OwnStack, Whole

SEQUENCES: Final = {nn.LSTM: "torch.LSTM", nn.GRU: "torch.GRU", nn.RNN: "torch.RNN"}
"""The modules that run over time, with the layouts of one direction of one layer."""

STEPS: Final = {nn.LSTMCell: "torch.LSTMCell", nn.GRUCell: "torch.GRUCell", nn.RNNCell: "torch.RNNCell"}
"""The modules that run one step."""


def recurrent_modules(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every recurrent module in `module` with its path, itself included (path ""); shared ones once."""
    inside: set[int] = set()
    for path, child in module.named_modules():
        if id(child) in inside:
            continue
        if isinstance(child, Whole):
            inside.update(id(part) for part in child.modules())
        if kind_of(child) is not None:
            yield path, child


def refuse_scripted(module: nn.Module, *, parts: bool) -> None:
    """Refuse what torch.jit traced or scripted: it has no forward in Python, and no classes that could be known.

    Args:
        module: any module.
        parts: whether scripted parts without a recurrent layer are refused too. Traced ones never are: a trace is
            operators, which torch's exporter reads.

    Raises:
        Unsupported: `module` itself, a recurrent layer in it, or such a part.
    """
    recurrent = {kind.__name__ for kind in (*SEQUENCES, *STEPS)}
    for path, child in module.named_modules():
        if not isinstance(child, torch.jit.ScriptModule):
            continue
        kind = child.original_name
        if not path or kind in recurrent or (parts and not isinstance(child, torch.jit.TracedModule)):
            raise Unsupported("a module that torch.jit traced or scripted", where=f"{path} ({kind})" if path else kind,
                              do="export the nn.Module that it was made from")  # fmt: skip


def kind_of(module: nn.Module) -> type[nn.Module] | None:
    """The recurrent class that `module` is, or None."""
    known = (*SEQUENCES, *STEPS, Whole)
    return next((kind for kind in known if isinstance(module, kind)), None)


def layout_of(module: nn.Module) -> str:
    """The layout of a native recurrent module."""
    return next(layout for kind, layout in (SEQUENCES | STEPS).items() if isinstance(module, kind))


def layout_options(module: nn.Module) -> dict[str, Any]:
    """What the layout must be told beside the parameters."""
    nonlinearity = getattr(module, "nonlinearity", None)
    return {"nonlinearity": nonlinearity} if isinstance(module, nn.RNN | nn.RNNCell) else {}


def read_cells(module: nn.Module) -> dict[str, Cell]:
    """Every cell in `module` by path. See `recurrent_modules` and `read_stack`.

    Raises:
        Unsupported: beside what `read_stack` refuses, what `refuse_scripted` does.
    """
    refuse_scripted(module, parts=False)
    found: dict[str, Cell] = {}
    for path, child in recurrent_modules(module):
        if isinstance(child, Whole):
            found |= {".".join(filter(None, (path, name))) or "cell": cell for name, cell in child.cells().items()}
        else:
            found |= read_stack(child, path).cells
    return found


def read_stack(module: nn.Module, path: str = "") -> Stack:
    """The layers of a recurrent module, named from its path.

    Weights are what the forward pass computes with: parametrised and normalised ones are evaluated.

    Raises:
        Unsupported: a subclass with its own forward, hooks, a dtype that is not carried.
        BadInput: weights without values (device "meta"), NaN or inf.
    """
    if isinstance(module, OwnStack):
        layers = tuple(Layer(name=name, cell=cell) for name, cell in module.cells().items())
        return Stack(source="bridge.torch.OwnStack", version=torch.__version__, layers=layers)
    _check_plain(module, path)
    return read_weights(module, path)


def read_weights(module: nn.Module, path: str = "") -> Stack:
    """`read_stack` of a native module without a look at what surrounds its forward: hooks, a forward of its own."""
    if isinstance(module, tuple(STEPS)):
        layer = read_layer(path or "cell", layout_of(module), [_arrays(module, path, "")], layout_options(module))
        return Stack(source=_source(module), version=torch.__version__, layers=(layer,), one_step=True)
    return _read_sequence(module, path)


def _read_sequence(module: Any, path: str) -> Stack:
    layers = []
    for at in range(module.num_layers):
        suffixes = SUFFIXES[: 2 if module.bidirectional else 1]
        directions = [_arrays(module, path, f"_l{at}{suffix}") for suffix in suffixes]
        layers.append(read_layer(_layer_name(path, at), layout_of(module), directions, layout_options(module)))
    notes: list[str] = []
    if module.dropout > 0 and module.num_layers > 1:
        mode = " although the module is in training mode" if module.training else ""
        notes += [
            f"{path or _source(module)}: dropout={module.dropout:g} between layers is left out, as in inference{mode}"
        ]
    return Stack(source=_source(module), version=torch.__version__, layers=tuple(layers),
                 batch_first=bool(module.batch_first), notes=tuple(notes))  # fmt: skip


def _layer_name(path: str, at: int) -> str:
    return f"{path}.l{at}" if path else f"l{at}"


def _source(module: nn.Module) -> str:
    return "torch.nn." + layout_of(module).removeprefix("torch.")


def _arrays(module: nn.Module, path: str, suffix: str) -> Mapping[str, np.ndarray]:
    """The arrays of one direction of one layer without the suffix, copied out of the module's memory."""
    names = ["weight_ih", "weight_hh"]
    names += ["bias_ih", "bias_hh"] if module.bias else []
    names += ["weight_hr"] if getattr(module, "proj_size", 0) else []
    where = f"{path}.{suffix}".strip("._") or type(module).__name__
    return {name: _as_numpy(effective(module, name + suffix), where) for name in names}


def effective(module: nn.Module, name: str) -> torch.Tensor:
    """The tensor that forward computes with: `weight_norm` and `spectral_norm` of old set theirs in a hook."""
    for hook in module._forward_pre_hooks.values():  # noqa: SLF001 (torch keeps them nowhere else)
        if getattr(hook, "name", None) == name and isinstance(hook, WeightNorm):
            return hook.compute_weight(module)
    with torch.no_grad():
        tensor: torch.Tensor = getattr(module, name)
    return tensor


def _as_numpy(tensor: torch.Tensor, where: str) -> np.ndarray:
    if tensor.device.type == "meta":
        raise BadInput("the weights are on the device 'meta' and have no values", where=where,
                       do="load the weights first")  # fmt: skip
    check_dtype(where, str(tensor.dtype).removeprefix("torch."))
    return np.asarray(tensor.detach().cpu().contiguous().numpy())  # shares the module's memory: read_layer copies


def _check_plain(module: nn.Module, path: str) -> None:
    """Refuse what would change the numbers and is not in the weights."""
    where, kind = path or type(module).__name__, kind_of(module)
    if kind is None or type(module).forward is not kind.forward:
        raise Unsupported("the class has a forward of its own", where=where,
                          do="copy its weights into the plain torch module")  # fmt: skip
    hooks = [*module._forward_hooks.values()]  # noqa: SLF001
    hooks += [hook for hook in module._forward_pre_hooks.values()  # noqa: SLF001
              if not isinstance(hook, WeightNorm)]  # fmt: skip
    if hooks:
        raise Unsupported("it has forward hooks, which may change its values", where=where,
                          got=", ".join(getattr(hook, "__qualname__", type(hook).__qualname__) for hook in hooks),
                          do="remove the hooks before the export")  # fmt: skip
