"""Native linen modules with the weights of an imported graph."""

from __future__ import annotations

import functools
from types import MappingProxyType
from typing import Any, Final

import jax
import jax.numpy as jnp
from flax import linen as nn

from bridge.frameworks.flax_native import Held, options_of
from bridge.ops.backend_jax import JaxBackend
from bridge.ops.native import NativeModule

CLASSES: Final = MappingProxyType(
    {"Linear": nn.Dense, "Conv": nn.Conv, "BatchNorm": nn.BatchNorm, "LayerNorm": nn.LayerNorm, "Embed": nn.Embed}
)  # fmt: skip

PARAMS, STATISTICS = "params", "batch_stats"


def native_module(native: NativeModule, **more: Any) -> Any:
    """The linen module of `native`, without variables."""
    more["param_dtype"] = native.dtype
    if native.kind in ("Linear", "Conv"):
        more["precision"] = jax.lax.Precision.HIGHEST
    first = {"Linear": native.sizes[1:], "Conv": native.sizes[1:], "Embed": native.sizes}.get(native.kind, ())
    return CLASSES[native.kind](*first, **options_of(native), **more)


def native_variables(native: NativeModule, collection: str) -> dict[str, Any]:
    """What `native` has in one collection of variables, by native name."""
    return {name: JaxBackend().asarray(weight.native()) for name, weight in native.weights.items()
            if weight.statistic == (collection == STATISTICS)}  # fmt: skip


def held_module(native: NativeModule, module: Any, is_initializing: bool) -> Held:
    """A bound module as a call finds it; where the model is being initialised, its variables are drawn first."""
    if is_initializing:
        module(_example(native))
    variables = module.variables
    # Applied by itself and not as a part of the model: linen allows that inside lax.cond and lax.scan too.
    call = functools.partial(native_module(native, parent=None).apply, variables)
    values = {name: value for collection in variables.values() for name, value in collection.items()}
    return Held(call, values.__getitem__)


def _example(native: NativeModule) -> Any:
    if native.kind == "Embed":
        return jnp.zeros((1,), jnp.int32)
    if native.kind == "Conv":
        sizes = native.options["kernel_size"]
        extents = [(size - 1) * dilation + 1
                   for size, dilation in zip(sizes, native.options["kernel_dilation"], strict=True)]  # fmt: skip
        return jnp.zeros((1, *extents, native.sizes[0]), native.dtype)
    return jnp.zeros((1, native.sizes[0]), native.dtype)
