"""The inputs and outputs of an exported graph, and the change from one framework's axis order to another's.

Bare layers of two frameworks hold the same arrays in other arrangements: torch is time-major and stacks the states of
layers and directions, Keras and Flax are batch-major with one state for each direction. The neutral arrangement here:
sequences [time, batch, features], states a list of [batch, hidden].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True, slots=True)
class Port:
    """One graph input or output."""

    name: str
    dtype: np.dtype[np.generic]
    dims: tuple[int | str | None, ...] | None
    """Fixed sizes, symbols, or None where nothing is declared; None where the rank is unknown."""

    def axis(self, symbol: str) -> int | None:
        """The axis that carries `symbol`."""
        return self.dims.index(symbol) if self.dims is not None and symbol in self.dims else None

    @property
    def is_sequence(self) -> bool:
        """Whether it has both a batch and a time axis."""
        return self.axis("batch") is not None and self.axis("time") is not None


@dataclass(frozen=True, slots=True)
class Interface:
    """The signature of a graph."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]

    @classmethod
    def of(cls, model: ir.Model) -> Interface:
        """Read off an onnx-ir model; initialisers that are also listed as inputs have values and are left out."""
        given = set(model.graph.initializers)
        return cls(
            tuple(_port(value) for value in model.graph.inputs if value.name not in given),
            tuple(_port(value) for value in model.graph.outputs),
        )

    def matches(self, other: Interface) -> bool:
        """Whether both sides take and give the same names in the same axis order."""
        mine, theirs = ({port.name: port.dims for port in (*side.inputs, *side.outputs)} for side in (self, other))
        return mine == theirs

    def conflict(self, other: Interface) -> tuple[str, str] | None:
        """The first input that no array can be for both, on either side in the neutral arrangement; None without one.

        What a side leaves open, a number of states too, is no conflict.
        """
        mine, theirs = _arrangements(self.inputs), _arrangements(other.inputs)
        for name in (name for name in mine if name in theirs):
            left, right = mine[name], theirs[name]
            if left is None or right is None:
                continue
            if len(left) != len(right):
                return f"{name}: {len(left)}", f"{name}: {len(right)}"
            for own, its in zip(left, right, strict=True):
                if _differ(own, its):
                    return f"{name}: {_shown(own)}", f"{name}: {_shown(its)}"
        return None


def neutral(ports: tuple[Port, ...], arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray | list[np.ndarray]]:
    """`arrays` of one side in the neutral arrangement; the two directions of a state become one list."""
    result: dict[str, np.ndarray | list[np.ndarray]] = {}
    for port in ports:
        array = arrays[port.name]
        kind = _state_kind(port.name)
        if kind is not None:
            parts = list(array) if array.ndim == 3 else [array]
            known = result.setdefault(kind, [])
            result[kind] = [*known, *parts] if isinstance(known, list) else known
        elif port.is_sequence:
            result[port.name] = np.moveaxis(array, (port.axis("time") or 0, port.axis("batch") or 0), (0, 1))
        else:
            result[port.name] = array
    return result


def arranged(ports: tuple[Port, ...], values: Mapping[str, np.ndarray | list[np.ndarray]]) -> dict[str, np.ndarray]:
    """Neutral values as the arrays that `ports` names; ports without a value are left out."""
    result: dict[str, np.ndarray] = {}
    taken: dict[str, int] = {}
    for port in ports:
        kind = _state_kind(port.name)
        value = values.get(kind or port.name)
        if value is None:
            continue
        if isinstance(value, list):
            if port.dims is not None and len(port.dims) == 3:
                result[port.name] = np.stack(value)
            else:
                at = taken.get(kind or port.name, 0)
                taken[kind or port.name] = at + 1
                result[port.name] = value[at]
        elif port.is_sequence:
            result[port.name] = np.moveaxis(value, (0, 1), (port.axis("time") or 0, port.axis("batch") or 0))
        else:
            result[port.name] = value
    return result


Element = tuple[np.dtype[np.generic], tuple[int | str | None, ...] | None]
"""Dtype and sizes of one neutral array."""


def _arrangements(ports: tuple[Port, ...]) -> dict[str, list[Element] | None]:
    """What `neutral` makes of arrays of these ports, by name or kind of state; None where their number is open."""
    result: dict[str, list[Element] | None] = {}
    for port in ports:
        kind, dims = _state_kind(port.name), port.dims
        name, known = kind or port.name, result.setdefault(kind or port.name, [])
        if known is None:
            continue
        if kind is not None and (dims is None or len(dims) != 2):
            is_stack = dims is not None and len(dims) == 3 and isinstance(dims[0], int)
            if dims is None or not is_stack:
                result[name] = None
                continue
            known.extend([(port.dtype, dims[1:])] * int(dims[0] or 0))
            continue
        if port.is_sequence and dims is not None:
            dims = ("time", "batch", *(dim for dim in dims if dim not in ("time", "batch")))
        known.append((port.dtype, dims))
    return result


def _differ(mine: Element, theirs: Element) -> bool:
    (own_dtype, own), (dtype, dims) = mine, theirs
    if own_dtype != dtype:
        return True
    if own is None or dims is None:
        return False
    pairs = zip(own, dims, strict=False)
    return len(own) != len(dims) or any(
        isinstance(left, int) and isinstance(right, int) and left != right for left, right in pairs
    )


def _shown(element: Element) -> str:
    dtype, dims = element
    return str(dtype) if dims is None else f"{dtype} [{', '.join(map(str, dims))}]"


def _state_kind(name: str) -> str | None:
    for kind in ("initial_h", "initial_c", "h_n", "c_n"):
        if name == kind or name in (f"{kind}_forward", f"{kind}_backward"):
            return kind
    return None


def _port(value: ir.Value) -> Port:
    dims = None if value.shape is None else tuple(
        dim if isinstance(dim, int) else dim.value for dim in value.shape
    )  # fmt: skip
    dtype = np.dtype(np.float32) if value.dtype is None else np.dtype(value.dtype.numpy())
    return Port(str(value.name), dtype, dims)
