"""What stands for an ONNX value while code is written: numbers, sizes, zeros, or a Python expression."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from bridge.frameworks.flax_code.layers import Layer

Dims: TypeAlias = "tuple[int | str, ...] | None"
"""Sizes of each axis: a number, the graph's symbol, or "?"; None where not even the rank is known."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """An int64 scalar or vector that is known up to the sizes of inputs: each item a number or a Python expression."""

    items: tuple[int | str, ...]
    is_scalar: bool = False


@dataclass(frozen=True, slots=True)
class Zeros:
    """Zeros of some shape: initial states that a recurrent layer starts from anyway."""

    sizes: Sizes


@dataclass(slots=True, eq=False)
class Tensor:
    """An array that the code computes. In expressions it is a token, which becomes a name when all is written."""

    number: int
    dims: Dims
    dtype: np.dtype[np.generic]
    hint: str = "x"
    """The name it would like."""
    depth: int = 0
    """In how many functions it is made."""
    late: Callable[[], str] | None = field(default=None, repr=False)
    """Gives the expression that makes it, called when somebody asks for the tensor."""
    view: tuple[Tensor, tuple[int | None, ...]] | None = None
    """A base and, for each axis, the base's axis, or None for a new one of size 1: nothing is computed."""
    split_of: Tensor | None = None
    """The tensor whose last axis was cut in two (directions, units) to make this one."""
    parts: tuple[Tensor, ...] = ()
    """The tensors that are stacked along axis 0 to make this one."""
    constant: np.ndarray | None = None
    """The array that is repeated over the batch to make this one."""
    sigmoid_of: Tensor | None = None
    """The tensor whose sigmoid this is: the product of both is SiLU."""
    linear: Layer | None = field(default=None, repr=False)
    """The layer without bias whose output this is: an Add that follows is its bias."""

    @property
    def token(self) -> str:
        """How expressions refer to it."""
        return f"§{self.number}§"

    @property
    def rank(self) -> int | None:
        """The number of axes."""
        return None if self.dims is None else len(self.dims)


Operand: TypeAlias = "np.ndarray | Sizes | Zeros | Tensor | None"
