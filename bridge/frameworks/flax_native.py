"""Native Flax modules in the place of nodes: what both APIs are told beside the layer's options, and the run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import jax.numpy as jnp

from bridge.errors import BadInput
from bridge.ops.gather import from_start
from bridge.ops.native import NativeModule, Taken

MORE: Final[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {"BatchNorm": {"use_running_average": True, "axis": 1}, "LayerNorm": {"use_fast_variance": False}}
)  # fmt: skip
"""Options of a kind that are the same for every node."""


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """A native module as an imported model holds it during one call."""

    call: Callable[..., Any]
    """The module's own forward pass."""
    value: Callable[[str], Any]
    """From a native name to the current array."""


def options_of(native: NativeModule) -> dict[str, Any]:
    """What both APIs call the same."""
    return {**native.options, **MORE.get(native.kind, {})}


def run_taken(taken: Taken, held: Sequence[Held], *inputs: Any) -> Any:
    """The output of a node by its native module.

    Raises:
        BadInput: an input of another rank or number of channels than the operator takes.
    """
    (value,), module = inputs, taken.module
    if taken.rank not in (None, value.ndim):
        raise BadInput("wrong shape", where=taken.where, got=list(value.shape), expected=f"{taken.rank} axes")
    if module.kind in ("Conv", "BatchNorm") and (value.ndim < 2 or value.shape[1] != module.sizes[0]):
        raise BadInput("wrong shape", where=taken.where, got=list(value.shape),
                       expected=f"a second axis of {module.sizes[0]}")  # fmt: skip
    if module.kind == "Conv":  # the graph is channels first, Flax channels last
        return jnp.moveaxis(held[0].call(jnp.moveaxis(value, 1, -1)), -1, 1)
    if module.kind == "BatchNorm":
        return held[0].call(value).astype(value.dtype)
    if module.kind == "Embed":
        return held[0].call(from_start(jnp, value, module.sizes[0]))
    return held[0].call(value)
