"""LayerNorm over the last axis as the one operator that it is, instead of the fifteen that its trace has."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import jax.numpy as jnp
from jax import lax
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import batching

from bridge.frameworks.flax_whole.sizes import is_symbolic
from bridge.frameworks.flax_whole.terms import Lowering, Term

layer_norm_p: Final = Primitive("bridge_layer_norm")
"""x [..., F], scale [F], bias [F] -> [..., F]; `epsilon` is added to the variance."""


def _shape(x: Any, scale: Any, bias: Any, *, epsilon: float) -> Any:
    del scale, bias, epsilon
    return ShapedArray(x.shape, x.dtype)


def _batched(operands: Sequence[Any], axes: Sequence[Any], *, epsilon: float) -> tuple[Any, int]:
    """Under vmap: one axis more, or a call for each row that has its own scale and bias."""
    x, scale, bias = operands
    if axes[1] is None and axes[2] is None:
        return layer_norm_p.bind(jnp.moveaxis(x, axes[0], 0), scale, bias, epsilon=epsilon), 0
    rows = next(value.shape[axis] for value, axis in zip(operands, axes, strict=True) if axis is not None)
    found = [layer_norm_p.bind(*(value if axis is None else lax.index_in_dim(value, at, axis, keepdims=False)
                                 for value, axis in zip(operands, axes, strict=True)), epsilon=epsilon)
             for at in range(int(rows))]  # fmt: skip
    return jnp.stack(found), 0


layer_norm_p.def_abstract_eval(_shape)
batching.primitive_batchers[layer_norm_p] = _batched


def layer_norm(module: Any, x: Any, scale: Any, bias: Any) -> Any:
    """What a LayerNorm of either API returns for x; None where it is another kind, which is traced.

    Flax may take the variance as E[x^2] - E[x]^2, which the operator does no worse. Its epsilon is a float32, so that
    float64 is traced.
    """
    last = (module.reduction_axes in (-1, (-1,), [-1]), module.feature_axes in (-1, (-1,), [-1]))
    size = x.shape[-1] if getattr(x, "ndim", 0) else None
    if not all(last) or module.axis_name is not None or size is None or is_symbolic(size):
        return None
    dtype = x.dtype
    given = [value.dtype for value in (scale, bias) if value is not None]
    wanted = dtype if module.dtype is None else jnp.dtype(module.dtype)
    if dtype.name != "float32" or wanted != dtype or any(each != dtype for each in given):
        return None
    scale = jnp.ones(size, dtype) if scale is None else scale
    bias = jnp.zeros(size, dtype) if bias is None else bias
    if scale.shape != (size,) or bias.shape != (size,):
        return None
    return layer_norm_p.bind(x, scale, bias, epsilon=float(module.epsilon))


def lower_layer_norm(c: Lowering, eqn: Any, x: Term, scale: Term, bias: Term) -> Term:
    """LayerNormalization, without a bias of zeros."""
    inputs = [c.full(x), c.full(scale), *([] if bias.is_zeros else [c.full(bias)])]
    return c.result(eqn, c.op("LayerNormalization", *inputs, axis=-1, epsilon=eqn.params["epsilon"]))


RULES: Final[Mapping[str, Callable[..., Any]]] = MappingProxyType({"bridge_layer_norm": lower_layer_norm})
