"""What the exports of whole models have in common, whatever their framework."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from bridge.errors import Unsupported

Fixed = tuple[str, int, int]
"""An input, an axis of it, and the size at which the model itself fixes that axis."""

LARGEST: Final = 1e-3
"""Error over max|value| that is still float32 rounding: verify calls a network chaotic from here on. A loop that
computes something else is off by the size of its values."""


def named_outputs(leaves: Iterable[tuple[Sequence[object], Any]]) -> dict[str, Any]:
    """What a model returns by name: `output` for one, `output_0`, … for several, its keys where it is a mapping.

    Args:
        leaves: each array with the keys and numbers under which it lies, from the outside in.

    >>> named_outputs([((), 7)]), named_outputs([((0,), 7), ((1, "h"), 8)]), named_outputs([(("h",), 7)])
    ({'output': 7}, {'output_0': 7, 'output_1_h': 8}, {'h': 7})
    """
    named: dict[str, Any] = {}
    for path, leaf in leaves:
        parts = [str(part) for part in path]
        own = bool(parts) and not parts[0].isdigit()
        name = "_".join(parts if own else ["output", *parts])
        while name in named:  # {"a": {"b": …}, "a_b": …}
            name += "_"
        named[name] = leaf
    return named


def dtype_among(dtypes: Collection[str]) -> str:
    """The dtype of a graph whose weights have `dtypes`: float32 where it is among them, and where there are none."""
    return next((name for name in ("float32", "float64", "float16") if name in dtypes), "float32")


def fixed_notes(fixed: Iterable[Fixed]) -> list[str]:
    """What a report says of axes that might have been symbolic."""
    return [f"{name}: axis {axis} is fixed at {size} by the model" for name, axis, size in fixed]


def check_unrolled(steps: Mapping[str, int], fixed: Sequence[Fixed], where: str, do: str) -> None:
    """Refuse a cell that is stepped as often as an axis is long which the trace has fixed: a Python loop over time.

    Args:
        steps: how often the cell at each path is stepped.
        fixed: what the model fixes.
        where: the model.
        do: what the refusal advises.

    Raises:
        Unsupported: there is one.
    """
    for path, count in steps.items():
        for name, axis, size in fixed:
            if count == size > 1:
                raise Unsupported(f"{path} is stepped over axis {axis} of {name}, which a loop fixes at {size}",
                                  where=where, do=do)  # fmt: skip


def differing(own: Mapping[str, np.ndarray], graph: Mapping[str, Any]) -> str:
    """The first output of `graph` that is another than the model's own by more than rounding; "" for none."""
    for name, computed in graph.items():
        expected, actual = np.asarray(own[name], np.float64), np.asarray(computed, np.float64)
        scale = max(1.0, float(np.max(np.abs(expected), initial=0.0)))
        if expected.shape != actual.shape or not np.max(np.abs(expected - actual), initial=0.0) <= LARGEST * scale:
            return name
    return ""
