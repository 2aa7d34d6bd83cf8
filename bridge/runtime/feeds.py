"""The inputs of a run, checked against what the model declares."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from bridge.errors import BadInput, Unsupported

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

DTYPES: Final = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(bool)": "bool",
    **{f"tensor({name})": name for name in ("float16", "int8", "int16", "int32", "int64")},
    **{f"tensor({name})": name for name in ("uint8", "uint16", "uint32", "uint64")},
}
"""onnxruntime's names of element types, and numpy's."""


def checked_feeds(declared: Sequence[Any], inputs: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Arrays by input name, and the sizes of the symbolic dimensions.

    Args:
        declared: the session's inputs: name, type ("tensor(float)"), shape (sizes, names, None).
        inputs: what the caller gives.

    Raises:
        BadInput: a missing or unexpected name, or another dtype, rank or size than declared; naming the input.
        Unsupported: an input that is no tensor of numbers.
    """
    names = [value.name for value in declared]
    missing, unexpected = [n for n in names if n not in inputs], [n for n in inputs if n not in names]
    if missing or unexpected:
        found = [f"missing {missing}"] * bool(missing) + [f"unexpected {unexpected}"] * bool(unexpected)
        raise BadInput("the inputs are not those of the model", where="run", got=", ".join(found), expected=names)
    feeds = {value.name: _checked(value, inputs[value.name]) for value in declared}
    return feeds, _dimensions(declared, feeds)


def _checked(declared: Any, given: Any) -> np.ndarray:
    where = f"input {declared.name!r}"
    if declared.type not in DTYPES:
        raise Unsupported("no tensor of numbers", where=where, got=declared.type)
    array = np.asarray(given)
    if array.dtype != np.dtype(DTYPES[declared.type]):
        raise BadInput("another dtype than the model's", where=where, got=array.dtype, expected=DTYPES[declared.type],
                       do=f"cast it: .astype({DTYPES[declared.type]!r})")  # fmt: skip
    fits = array.ndim == len(declared.shape) and all(
        not isinstance(size, int) or size == actual for size, actual in zip(declared.shape, array.shape, strict=True)
    )
    if not fits:
        raise BadInput("another shape than the model's", where=where, got=list(array.shape), expected=declared.shape)
    return array


def _dimensions(declared: Sequence[Any], feeds: Mapping[str, np.ndarray]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    owners: dict[str, str] = {}
    for value in declared:
        for symbol, size in zip(value.shape, feeds[value.name].shape, strict=True):
            if not isinstance(symbol, str):
                continue
            if sizes.setdefault(symbol, size) != size:
                raise BadInput(f"the inputs disagree in the size of {symbol!r}", where=f"input {value.name!r}",
                               got=size, expected=f"{sizes[symbol]}, as in {owners[symbol]!r}")  # fmt: skip
            owners.setdefault(symbol, value.name)
    return sizes
