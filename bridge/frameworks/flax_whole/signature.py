"""The example of a whole model: arguments of `__call__` as named arrays, and everything else as it is."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from bridge.errors import BadInput, Unsupported, UsageError
from bridge.frameworks.whole import named_outputs

CARRIED = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32",
           "float64")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Input:
    """One array among the arguments."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def traced(self) -> np.dtype[Any]:
        """The dtype that JAX computes in."""
        dtype: np.dtype[Any] = np.dtype(jax.dtypes.canonicalize_dtype(self.dtype))
        return dtype


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """What `__call__` is given: arrays in order, and how they stand among the rest."""

    inputs: Sequence[Input]
    place: Callable[[Sequence[Any]], tuple[tuple[Any, ...], dict[str, Any]]]
    """place(arrays) -> positional and keyword arguments."""


def arguments_of(function: Callable[..., Any], example: object, where: str) -> Arguments:
    """The arguments of an example.

    Raises:
        UsageError: no example, or one that `__call__` does not take.
        BadInput: an array with an axis of size 0.
        Unsupported: a dtype that ONNX models of bridge do not have.
    """
    if example is None:
        raise UsageError("a whole model is traced, and needs an example of its inputs", where=where,
                         do="pass example=(x, ...), arrays of any valid batch and time")  # fmt: skip
    signature = inspect.signature(function)
    try:
        if isinstance(example, Mapping):
            bound = signature.bind(**example)
        else:
            bound = signature.bind(*(example if isinstance(example, (tuple, list)) else (example,)))
    except TypeError as error:
        raise UsageError(f"__call__ does not take the example: {error}", where=where, expected=str(signature)
                         ) from None  # fmt: skip
    leaves, tree = jax.tree_util.tree_flatten_with_path(dict(bound.arguments))
    at = [n for n, (_, leaf) in enumerate(leaves) if isinstance(leaf, (np.ndarray, np.generic, jax.Array))]
    order = sorted(at, key=lambda n: list(bound.arguments).index(leaves[n][0][0].key))
    inputs = [_input(leaves[n][0], leaves[n][1], where) for n in order]

    def place(arrays: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        values = [leaf for _, leaf in leaves]
        for n, array in zip(order, arrays, strict=True):
            values[n] = array
        bound.arguments.update(jax.tree_util.tree_unflatten(tree, values))
        return bound.args, bound.kwargs

    return Arguments(inputs=inputs, place=place)


def _input(path: Any, leaf: Any, where: str) -> Input:
    name = "_".join(_key(part) for part in path)
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended) or np.dtype(leaf.dtype).name not in CARRIED:
        raise Unsupported(f"input {name} is {leaf.dtype}, which no kernel of onnxruntime takes", where=where,
                          expected=", ".join(CARRIED))  # fmt: skip
    if 0 in leaf.shape:
        raise BadInput("an array of the example is empty", where=where, got=f"{name} {list(leaf.shape)}")
    return Input(name=name, shape=tuple(leaf.shape), dtype=np.dtype(leaf.dtype))


def _key(part: Any) -> str:
    return str(getattr(part, "key", getattr(part, "idx", getattr(part, "name", ""))))


def named_leaves(result: Any) -> dict[str, Any]:
    """What a model returns by name. See `named_outputs`."""
    return named_outputs(
        (list(map(_key, path)), leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(result)[0]
    )
