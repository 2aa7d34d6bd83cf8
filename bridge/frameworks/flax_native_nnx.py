"""Native nnx modules with the weights of an imported graph."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any, Final

import jax
from flax import nnx

from bridge.frameworks.flax_native import Held, options_of
from bridge.ops.backend_jax import JaxBackend
from bridge.ops.native import NativeModule

CLASSES: Final = MappingProxyType(
    {"Linear": nnx.Linear, "Conv": nnx.Conv, "BatchNorm": nnx.BatchNorm, "LayerNorm": nnx.LayerNorm,
     "Embed": nnx.Embed}
)  # fmt: skip


def native_module(native: NativeModule) -> nnx.Module:
    """The nnx module of `native`, its parameters and statistics in place."""
    zeros = nnx.initializers.zeros_init()
    more: dict[str, Any] = {"param_dtype": native.dtype, "rngs": nnx.Rngs(0)}
    if native.kind in ("Linear", "Conv"):
        more |= {"precision": jax.lax.Precision.HIGHEST, "kernel_init": zeros}
    if native.kind == "Embed":
        more["embedding_init"] = zeros
    module = CLASSES[native.kind](*native.sizes, **options_of(native), **more)
    for name, weight in native.weights.items():
        getattr(module, name).set_value(JaxBackend().asarray(weight.native()))
    return module


def held_module(module: Any) -> Held:
    """The module as a call finds it."""
    return Held(module, lambda name: getattr(module, name)[...])
