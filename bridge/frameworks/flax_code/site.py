"""Site: where one node's code is being written, and what its emitter may ask for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from bridge.errors import Unsupported
from bridge.frameworks.flax_code.code import Code
from bridge.frameworks.flax_code.layers import layer_name, quiet
from bridge.frameworks.flax_code.operands import Dims, Operand, Sizes, Tensor, Zeros

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One node. Emitters take it first, then the node's inputs as operands, and its attributes by name."""

    code: Code
    name: str
    op_type: str
    inputs: tuple[ir.Value | None, ...]
    outputs: tuple[ir.Value, ...]
    metadata: dict[str, str]
    opset: int
    """Of the default domain."""

    @property
    def where(self) -> str:
        """Operator and name, for messages."""
        return f"{self.op_type} node {self.name!r}"

    def refuse(self, what: str, *, got: object = None, do: str = "") -> NoReturn:
        """Raise Unsupported in the name of this node."""
        raise Unsupported(what, where=self.where, got=got, do=do)

    def ref(self, operand: Operand) -> str:
        """An expression for an operand."""
        return self.code.ref(operand)

    def dims(self, at: int = 0) -> Dims:
        """What shape inference says of an output."""
        return dims_of(self.outputs[at])

    def dtype(self, at: int = 0) -> np.dtype[np.generic]:
        """The dtype of an output; float32 where nothing says."""
        return dtype_of(self.outputs[at])

    def emit(self, text: str, dims: Dims = None, at: int = 0) -> Tensor:
        """Write `text` as the node's output."""
        return self.code.assign(text, self.dims(at) if dims is None else dims, self.dtype(at))

    def used(self, at: int) -> bool:
        """Whether anybody reads an output."""
        return at < len(self.outputs) and (bool(self.outputs[at].uses()) or self.outputs[at].is_graph_output())

    def read_once(self, at: int) -> bool:
        """Whether this node is the only reader of its input."""
        value = self.inputs[at]
        return value is not None and len(list(value.uses())) == 1 and not value.is_graph_output()

    def through(self, operand: Operand, template: Callable[[str], str]) -> Operand:
        """An elementwise function of one tensor: done before a view of it, so that transpositions can meet."""
        if isinstance(operand, Tensor) and operand.view is not None:
            base, axes = operand.view
            return self.code.view(self.code.assign(template(self.ref(base)), base.dims, self.dtype()), axes)
        dims = operand.dims if isinstance(operand, Tensor) else None
        return self.emit(template(self.ref(operand)), dims)

    def on_last_axis(self, x: Tensor, template: Callable[[str], str], size: int | str | None = None) -> Tensor:
        """A layer over the last axis, which becomes `size`: done before a view that leaves that axis where it is."""
        if x.view is not None and x.view[0].rank is not None and x.view[1][-1] == x.view[0].rank - 1:
            base, axes = x.view
            made = self.code.assign(template(self.ref(base)), resized(base.dims, size), self.dtype())
            return self.code.view(made, axes)
        return self.emit(template(self.ref(x)), resized(x.dims, size))

    def weight_names(self, *positions: int) -> list[str]:
        """Names of the node's weights, for naming the layer, and the node's own."""
        values = [self.inputs[at] for at in positions if at < len(self.inputs)]
        return [str(value.name) for value in values if value is not None] + [self.name]

    def layer_name(self, fallback: str, *positions: int) -> str:
        """A name for the layer that this node becomes."""
        return layer_name(self.weight_names(*positions), fallback)

    def sizes(self, operand: Operand, what: str) -> Sizes:
        """An operand that says sizes or positions, refused where only running would tell."""
        found = as_sizes(operand)
        if found is None:
            self.refuse(f"{what} depends on the values of the inputs")
        return found

    def known(self, operand: Operand, what: str) -> Any:
        """An operand as plain numbers, refused where it is not constant; None stays None."""
        found = None if operand is None else as_sizes(operand)
        if operand is not None and (found is None or any(isinstance(item, str) for item in found.items)):
            self.refuse(f"{what} is not constant")
        return None if found is None else list(found.items)


def as_sizes(operand: Operand) -> Sizes | None:
    """An operand as Sizes, None where it is something else."""
    if isinstance(operand, Sizes):
        return operand
    if isinstance(operand, np.ndarray) and operand.ndim < 2 and operand.dtype.kind in "iu":
        return Sizes(tuple(int(item) for item in operand.reshape(-1)), operand.ndim == 0)
    return None


def resized(dims: Dims, size: int | str | None) -> Dims:
    """`dims` with another last size."""
    return dims if dims is None or size is None else (*dims[:-1], size)


def dims_of(value: ir.Value) -> Dims:
    """The declared or inferred sizes of a value."""
    if value.shape is None:
        return None
    named = [dim if isinstance(dim, int) else quiet(str(dim.value)) if dim.value else "?" for dim in value.shape]
    return tuple("?" if isinstance(dim, str) and dim.startswith("unk__") else dim for dim in named)


def dtype_of(value: ir.Value) -> np.dtype[np.generic]:
    """The dtype of a value; float32 where nothing says."""
    return np.dtype(np.float32 if value.dtype is None else value.dtype.numpy())


def is_zero(operand: Operand) -> bool:
    """Whether an operand is nothing but zeros."""
    return isinstance(operand, Zeros) or (isinstance(operand, np.ndarray) and not operand.any())
