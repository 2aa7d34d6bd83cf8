"""What an executor takes and returns. Executors run a framework's own code and know nothing of bridge."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

Params = Mapping[str, np.ndarray]
"""Flat native parameters of one direction of one layer, by dotted name."""

Options = Mapping[str, Any]
"""The options that a layout declares."""


class States(NamedTuple):
    """Initial states [N, H]; None is zeros."""

    h: np.ndarray | None = None
    c: np.ndarray | None = None


class Result(NamedTuple):
    """Outputs of one layer: Y [T, N, H], Y_h [N, H], Y_c [N, H] or None, float32."""

    Y: np.ndarray
    Y_h: np.ndarray
    Y_c: np.ndarray | None = None


Executor = Callable[[Params, np.ndarray, States, Options], Result]
"""run(params, x [T, N, I], states, options) -> Result, with the options of the layout."""


def nested(params: Params) -> dict[str, Any]:
    """`{"a.b": x}` as `{"a": {"b": x}}`."""
    tree: dict[str, Any] = {}
    for name, value in params.items():
        *path, leaf = name.split(".")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[leaf] = value
    return tree


def zeros_or(state: np.ndarray | None, batch: int, hidden: int) -> np.ndarray:
    """The state, or zeros [N, H]."""
    return np.zeros((batch, hidden), np.float32) if state is None else np.asarray(state, np.float32)


def reject(options: Options, known: tuple[str, ...] = ()) -> None:
    """An option that an executor would drop is a hole in the matrix."""
    unknown = set(options) - set(known)
    if unknown:
        raise NotImplementedError(f"the executor does not know the options {sorted(unknown)}")
