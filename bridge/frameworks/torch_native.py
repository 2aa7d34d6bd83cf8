"""Native torch modules with the weights of an imported graph, and their weights on the way back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from bridge.ops.native import Kind, NativeModule, Taken, Weight

KINDS: Final[tuple[Kind, ...]] = ("Linear", "Conv", "ConvTranspose", "BatchNorm", "LayerNorm", "Embed")

NAMES: Final[Mapping[Kind, Mapping[str, str]]] = MappingProxyType({
    "Linear": {"kernel": "weight", "bias": "bias"},
    "Conv": {"kernel": "weight", "bias": "bias"},
    "ConvTranspose": {"kernel": "weight", "bias": "bias"},
    "BatchNorm": {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"},
    "LayerNorm": {"scale": "weight", "bias": "bias"},
    "Embed": {"embedding": "weight"},
})  # fmt: skip
"""Names of the shared rules to torch's."""

CONVOLUTIONS: Final = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED: Final = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
BATCH_NORMS: Final = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


@dataclass(frozen=True, slots=True, eq=False)
class Native:
    """A node's layer in torch, before it stands in a tree."""

    taken: Taken
    make: Callable[[], Any]
    """The class with its options, on the device "meta"."""
    weights: Mapping[str, Weight]
    """By torch's name, axes turned to torch's."""
    pads: tuple[int, ...] = ()
    """What `torch.nn.functional.pad` does first: padding that differs between the sides of an axis."""

    def built(self) -> nn.Module:
        """The module with the graph's weights, in inference mode."""
        with torch.device("meta"):
            module: nn.Module = self.make()
        tensors = {name: torch.tensor(weight.native()) for name, weight in self.weights.items()}
        if isinstance(module, tuple(BATCH_NORMS.values())):
            tensors["num_batches_tracked"] = torch.tensor(0)
        module.load_state_dict(tensors, assign=True)
        return module.eval()


def native_of(taken: Taken) -> Native | None:
    """The layer of a node that the shared rules give to a native module; None where torch has none that is the same."""
    return MAKERS[taken.module.kind](taken)


def _weights(module: NativeModule, turned: Mapping[str, tuple[int, ...]] = MappingProxyType({})) -> dict[str, Weight]:
    """The weights by torch's names; `turned` says which native axis each axis of torch's array is."""
    found = {}
    for name, weight in module.weights.items():
        order = turned.get(name)
        axes = weight.axes if order is None else tuple(weight.axes[at] for at in order)
        found[NAMES[module.kind][name]] = replace(weight, axes=axes)
    return found


def _linear(taken: Taken) -> Native:
    module = taken.module
    inputs, outputs = module.sizes

    def make() -> nn.Module:
        return nn.Linear(inputs, outputs, bias=module.options["use_bias"])

    return Native(taken, make, _weights(module, {"kernel": (1, 0)}))


def _conv(taken: Taken) -> Native | None:
    module, options = taken.module, taken.module.options
    rank = len(options["kernel_size"])
    padding: Any = options["padding"]
    pads: tuple[int, ...] = ()
    if padding == "SAME" and all(stride == 1 for stride in options["strides"]):
        padding = "same"  # the odd one behind, as SAME_UPPER
    elif padding == "VALID":
        padding = 0
    elif isinstance(padding, str):
        return None  # depends on the size of the input
    elif all(low == high for low, high in padding):
        padding = tuple(low for low, _ in padding)
    else:
        pads = tuple(side for pair in reversed(padding) for side in pair)
        padding = 0

    def make() -> Any:
        return CONVOLUTIONS[rank - 1](
            *module.sizes, options["kernel_size"], stride=options["strides"], padding=padding,
            dilation=options["kernel_dilation"], groups=options["feature_group_count"], bias=options["use_bias"],
        )  # fmt: skip

    return Native(taken, make, _weights(module, {"kernel": (rank + 1, rank, *range(rank))}), pads)


def _conv_transpose(taken: Taken) -> Native | None:
    module, options = taken.module, taken.module.options
    rank = len(options["kernel_shape"])
    low, high = options["pads"][:rank], options["pads"][rank:]
    fits = all(added < max(stride, dilation) for added, stride, dilation in
               zip(options["output_padding"], options["strides"], options["dilations"], strict=True))  # fmt: skip
    if low != high or not fits:
        return None

    def make() -> Any:
        return TRANSPOSED[rank - 1](
            *module.sizes, options["kernel_shape"], stride=options["strides"], padding=low,
            output_padding=options["output_padding"], groups=options["group"], bias=options["use_bias"],
            dilation=options["dilations"],
        )  # fmt: skip

    return Native(taken, make, _weights(module))


def _batch_norm(taken: Taken) -> Native | None:
    module, source = taken.module, taken.node.inputs[0]
    rank = None if source is None or source.shape is None else len(source.shape)
    kind = BATCH_NORMS.get(rank) if rank is not None else None
    if kind is None:
        return None

    def make() -> Any:
        momentum = round(1 - _decimal(module.options["momentum"]), 7)
        return kind(module.sizes[0], eps=_decimal(module.options["epsilon"]), momentum=momentum)

    return Native(taken, make, _weights(module))


def _layer_norm(taken: Taken) -> Native:
    module = taken.module

    def make() -> nn.Module:
        return nn.LayerNorm(module.sizes, eps=_decimal(module.options["epsilon"]), bias=module.options["use_bias"])

    return Native(taken, make, _weights(module))


def _decimal(value: float) -> float:
    """A float32 attribute as whoever wrote it meant it: 1e-05 and not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _embed(taken: Taken) -> Native:
    module = taken.module

    def make() -> nn.Module:
        return nn.Embedding(*module.sizes)

    return Native(taken, make, _weights(module))


MAKERS: Final[Mapping[Kind, Callable[[Taken], Native | None]]] = MappingProxyType(
    {"Linear": _linear, "Conv": _conv, "ConvTranspose": _conv_transpose, "BatchNorm": _batch_norm,
     "LayerNorm": _layer_norm, "Embed": _embed}
)  # fmt: skip
