"""Operators that pick or place elements by what other tensors say."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any, Final

import numpy as np

from bridge.frameworks.flax_code.code import jax_name, literal
from bridge.frameworks.flax_code.emit_shape import rank_of
from bridge.frameworks.flax_code.operands import Operand, Tensor
from bridge.frameworks.flax_code.registry import emits
from bridge.frameworks.flax_code.site import Site

PLACING: Final = MappingProxyType({"none": "set", "add": "add", "mul": "multiply", "max": "max", "min": "min"})
"""How ScatterND joins -> the method of x.at[...]."""


@emits("TopK")
def top_k(site: Site, X: Operand, K: Operand = None, *, k: int | None = None, axis: int = -1, largest: int = 1,
          sorted: int = 1) -> Any:  # noqa: A002, ARG001  # fmt: skip
    """The largest or smallest along an axis and where they are; of equals the first comes first."""
    if not isinstance(X, Tensor):
        site.refuse("TopK of something that is no tensor")
    count = k if k is not None else site.sizes(K, "how many").items[0]
    last = axis % rank_of(site, X) == rank_of(site, X) - 1
    along = "" if last else f", axis={axis}"
    if not largest and X.dtype.kind != "f":
        site.refuse("the smallest of integers: their negatives may overflow")
    values, places = (site.code.tensor(site.dims(at), site.dtype(at)) for at in range(2))
    x = site.ref(X)
    if X.dtype.kind == "f":  # JAX has -0.0 below 0.0, and ONNX has them equal
        x = f"jnp.where({x} == 0, 0.0, {x})" if largest else f"jnp.where({x} == 0, 0.0, -{x})"
    text = f"jax.lax.top_k({x}, {count}{along})"
    site.code.assign_many(f"{values.token}, {places.token}", text, (values, places))
    return (values if largest else site.emit(f"-{values.token}")), places


@emits("GatherElements")
def gather_elements(site: Site, data: Operand, indices: Operand, *, axis: int = 0) -> Operand:
    """One element for each index, from the place along an axis that it says."""
    if not isinstance(data, Tensor) or not isinstance(indices, Tensor):
        site.refuse("GatherElements of something that is no tensor")
    rank, at = rank_of(site, data), axis % rank_of(site, data)
    others = [other for other in range(rank) if other != at]
    known = data.dims is not None and indices.dims is not None
    if known and all(data.dims[other] == indices.dims[other] != "?" for other in others):  # type: ignore[index]
        text = site.ref(data)
    else:  # the indices may reach less far than the data
        cuts = [":" if other == at else f": {site.ref(indices)}.shape[{other}]" for other in range(rank)]
        text = f"{site.ref(data)}[{', '.join(cuts)}]"
    return site.emit(f"jnp.take_along_axis({text}, {site.ref(indices)}, axis={at})", indices.dims)


@emits("ScatterND")
def scatter_nd(site: Site, data: Operand, indices: Operand, updates: Operand, *, reduction: Any = "none") -> Operand:
    """Data with elements set or joined at tuples of indices, which lie along the last axis."""
    name = reduction.decode() if isinstance(reduction, bytes) else reduction
    places = f"tuple(jnp.moveaxis({site.ref(indices)}, -1, 0))"
    return site.emit(f"{site.ref(data)}.at[{places}].{PLACING[name]}({site.ref(updates)})")


@emits("OneHot")
def one_hot(site: Site, indices: Operand, depth: Operand, values: Operand, *, axis: int = -1) -> Operand:
    """values[1] where the new axis equals the index, which may count from the end, values[0] elsewhere."""
    (count,) = site.known(depth, "the depth")
    if not isinstance(values, np.ndarray) or not isinstance(indices, Tensor):
        site.refuse("OneHot whose values are not constant, or of something that is no tensor")
    rank = rank_of(site, indices) + 1
    off, on = values.reshape(-1)
    text = site.ref(indices)
    wanted = f"jnp.where({text} < 0, {text} + {count}, {text})"
    marked = f"jax.nn.one_hot({wanted}, {count}, axis={axis % rank}, dtype=jnp.{jax_name(values.dtype)})"
    if (off, on) == (0, 1):
        return site.emit(marked)
    return site.emit(f"jnp.where({marked} == 1, {_typed(on)}, {_typed(off)})")


def _typed(value: Any) -> str:
    name = jax_name(value.dtype)
    return literal(value) if name in ("float32", "int32", "bool_") else f"jnp.{name}({literal(value)})"


@emits("Trilu")
def trilu(site: Site, input: Operand, k: Operand = None, *, upper: int = 1) -> Operand:  # noqa: A002
    """The upper or lower triangle of each matrix, 0 elsewhere."""
    (diagonal,) = site.known(k, "the diagonal") or (0,)
    name = "triu" if upper else "tril"
    return site.emit(f"jnp.{name}({site.ref(input)}{f', {diagonal}' if diagonal else ''})")


@emits("ReverseSequence")
def reverse_sequence(
    site: Site,
    input: Operand,  # noqa: A002
    sequence_lens: Operand,
    *,
    batch_axis: int = 1,
    time_axis: int = 0,
) -> Operand:
    """The first steps of each sequence in reverse, as many as its length says."""
    if {time_axis, batch_axis} != {0, 1}:
        site.refuse("time and batch that are not the first two axes")
    site.code.helpers.add("reversed_sequences")
    dims = input.dims if isinstance(input, Tensor) else None
    return site.emit(f"reversed_sequences({site.ref(input)}, {site.ref(sequence_lens)}, {time_axis})", dims)
