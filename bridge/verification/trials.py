"""The inputs that a verification runs on: several (batch, time) pairs, ragged lengths, non-zero states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from bridge.errors import UsageError
from bridge.graph.interface import Interface, Port

PAIRS: Final = ((1, 7), (3, 5), (2, 24))
"""(batch, time): one sequence, an odd batch that fills no vector lane, and length for errors to grow."""

STATE_SCALE: Final = 0.5
"""Initial states lie where trained hidden states do, inside (-1, 1)."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One set of inputs by name, with the sizes that made it; None for inputs that the caller gave."""

    batch: int | None
    time: int | None
    feeds: dict[str, np.ndarray]

    @property
    def lengths(self) -> tuple[int, ...] | None:
        """The valid steps of each sequence."""
        given = self.feeds.get("lengths")
        return None if given is None else tuple(int(length) for length in given)

    @property
    def states(self) -> bool:
        """Whether a non-zero initial state is among the inputs."""
        return any(name.startswith("initial_") and np.any(array) for name, array in self.feeds.items())


def make_trial(interface: Interface, batch: int, time: int, seed: int = 0, *, right_padded: bool = False) -> Trial:
    """Random inputs for a signature.

    Floats are standard normal, states half of that; `lengths` are ragged from 1 to `time` with both ends present where
    the batch allows; other integers are 0 or 1, which every vocabulary has. With `right_padded` those in two axes, as
    tokens and masks are, are 1 up to a length and 0 from there on.

    Raises:
        UsageError: an input whose rank is not declared.
    """
    rng = np.random.default_rng([seed, batch, time])
    sizes = dict.fromkeys(("batch", "N", "n", "b"), batch) | dict.fromkeys(("time", "T", "t"), time)
    feeds = {}
    for port in interface.inputs:
        shape = _shape(port, sizes, batch, time)
        if port.name == "lengths":
            feeds[port.name] = _ragged(shape, time, rng).astype(port.dtype)
        elif right_padded and len(shape) == 2 and not np.issubdtype(port.dtype, np.floating):
            valid = np.arange(shape[1]) < _ragged(shape[:1], shape[1], rng)[:, None]
            feeds[port.name] = valid.astype(port.dtype)
        elif np.issubdtype(port.dtype, np.floating):
            scale = STATE_SCALE if port.name.startswith("initial_") else 1.0
            feeds[port.name] = (scale * rng.standard_normal(shape)).astype(port.dtype)
        else:
            feeds[port.name] = rng.integers(0, 2, shape).astype(port.dtype)
    return Trial(batch, time, feeds)


def _shape(port: Port, sizes: dict[str, int], batch: int, time: int) -> tuple[int, ...]:
    if port.dims is None:
        raise UsageError(f"input {port.name!r} declares no rank", where="verify", do="give inputs={name: array}")
    by_position = (batch, time)
    shape = []
    for axis, dim in enumerate(port.dims):
        if isinstance(dim, int):
            shape.append(dim)
        else:
            # A symbol that is met again means the same size again; an unknown one goes by its position.
            size = sizes.get(dim) if dim is not None else None
            if size is None:
                size = by_position[axis] if axis < len(by_position) else time
                if dim is not None:
                    sizes[dim] = size
            shape.append(size)
    return tuple(shape)


def _ragged(shape: tuple[int, ...], time: int, rng: np.random.Generator) -> np.ndarray:
    lengths = rng.integers(1, time + 1, shape)
    if lengths.size > 1:
        lengths[0], lengths[-1] = 1, time
    return lengths
