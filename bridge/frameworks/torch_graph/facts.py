"""What is known of an ONNX graph before torch runs it: which values are tensors, which constants."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from bridge.ops.steps import Block, Step

if TYPE_CHECKING:
    import onnx_ir as ir

    from bridge.frameworks.torch_taken import Layers


FLOATS: Final = ("FLOAT", "DOUBLE")
LITERALS: Final = ("float32", "float64", "int32", "int64")


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a torch function; the graph's values stand for themselves among the arguments."""

    target: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of values before anything runs."""

    constants: Mapping[ir.Value, np.ndarray]
    """Not trained."""
    tensors: Collection[ir.Value]
    """What is a tensor for sure, and no static numpy array."""


def surely_tensors(block: Block, known: Collection[ir.Value], layers: Layers) -> set[ir.Value]:
    """The values that are tensors whatever is fed: where one input that is no shape is a tensor, the outputs are."""
    found = set(known)
    for step in block.steps:
        if step.node.name in layers.names:
            found.update(step.outputs)
        elif not step.handler.label.raw:
            free = [value for at, value in enumerate(step.inputs) if not step.handler.is_static(at)]
            if any(value in found for value in free if value is not None):
                found.update(step.outputs)
        for body in step.bodies.values():
            found |= surely_tensors(body, found, layers)
    return found


@dataclass(frozen=True, slots=True)
class Site:
    """One step for the rules: what is known of its inputs."""

    step: Step
    facts: Facts

    @property
    def since(self) -> int:
        """The since-version of the operator."""
        return max(self.step.handler.label.versions)

    def attribute(self, name: str) -> Any:
        """An attribute or its default."""
        return self.step.attributes.get(name, self.step.handler.attributes.get(name))

    def given(self, at: int) -> ir.Value | None:
        """An input, None where it is left out."""
        return self.step.inputs[at] if at < len(self.step.inputs) else None

    def tensor(self, at: int) -> ir.Value | None:
        """An input that is a tensor for sure."""
        value = self.given(at)
        return value if value in self.facts.tensors else None

    def floating(self, at: int) -> ir.Value | None:
        """The same, and of float32 or float64 for sure."""
        value = self.tensor(at)
        return value if value is not None and value.dtype is not None and value.dtype.name in FLOATS else None

    def constant(self, at: int) -> np.ndarray | None:
        """An input that is known and not trained."""
        value = self.given(at)
        return None if value is None else self.facts.constants.get(value)

    def literal(self, at: int) -> float | int | None:
        """A constant of rank 0 as a Python number, which takes the dtype of the tensor it meets."""
        array = self.constant(at)
        return array.item() if array is not None and array.ndim == 0 and array.dtype.name in LITERALS else None

    def numbers(self, at: int) -> tuple[int, ...] | None:
        """A constant of integers, flat."""
        array = self.constant(at)
        return None if array is None or array.dtype.kind != "i" else tuple(int(value) for value in array.reshape(-1))

    def rank(self, at: int) -> int | None:
        """How many axes an input has, where that is known."""
        value = self.given(at)
        return None if value is None or value.shape is None else len(value.shape)
