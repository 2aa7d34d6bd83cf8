"""Code: the module while it is written: its statements in order, its layers and constants, its imports."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from bridge.errors import Unsupported
from bridge.frameworks.flax_code.layers import RESERVED, Layer
from bridge.frameworks.flax_code.operands import Dims, Operand, Sizes, Tensor, Zeros

NO_DTYPE: Final = np.dtype(np.object_)
"""Of names that stand for no array: functions, and tuples of arrays."""

TOKEN: Final = re.compile(r"§(\d+)§")

LITERAL_SIZE: Final = 8
"""Constants of up to this many elements are written out; larger ones are loaded with the weights."""


@dataclass(slots=True, eq=False)
class Statement:
    """`target = text`; the target may be a pattern of several tokens."""

    target: str
    text: str
    makes: tuple[Tensor, ...]


@dataclass(slots=True, eq=False)
class Function(Statement):
    """`def target(parameters)`: statements of its own, which read what stands before it."""

    parameters: tuple[Tensor, ...]
    statements: list[Statement]
    results: tuple[str, ...]


@dataclass(slots=True, eq=False)
class Code:
    """What has been written so far."""

    blocks: list[list[Statement]] = field(default_factory=lambda: [[]])
    """The statements of the call, then those of each function that is being written in it."""
    tensors: list[Tensor] = field(default_factory=list)
    layers: dict[str, Layer] = field(default_factory=dict)
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    """Arrays that are attributes of the module themselves, by name."""
    imports: set[str] = field(default_factory=set)
    helpers: set[str] = field(default_factory=set)
    symbols: dict[str, str] = field(default_factory=dict)
    """The graph's symbolic sizes, each as the expression that reads it off an input."""
    _shared: dict[Hashable, object] = field(default_factory=dict)

    def tensor(self, dims: Dims, dtype: np.dtype[np.generic], hint: str = "x") -> Tensor:
        """A new tensor."""
        made = Tensor(number=len(self.tensors), dims=dims, dtype=dtype, hint=hint, depth=len(self.blocks) - 1)
        self.tensors.append(made)
        return made

    def assign(self, text: str, dims: Dims, dtype: np.dtype[np.generic], hint: str = "x") -> Tensor:
        """Write `name = text`; the tensor that holds it."""
        made = self.tensor(dims, dtype, hint)
        self.blocks[-1].append(Statement(made.token, text, (made,)))
        return made

    def assign_many(self, target: str, text: str, makes: tuple[Tensor, ...]) -> None:
        """Write `target = text`, which makes several tensors."""
        self.blocks[-1].append(Statement(target, text, makes))

    def define(self, hint: str, write: Callable[[], tuple[Sequence[Tensor], Sequence[str]]]) -> Tensor:
        """Write a function: `write` makes its parameters, writes its statements and gives its results."""
        self.blocks.append([])
        try:
            parameters, results = write()
        finally:
            statements = self.blocks.pop()
        made = self.tensor(None, NO_DTYPE, hint)
        self.blocks[-1].append(Function(made.token, "", (made,), tuple(parameters), statements, tuple(results)))
        return made

    def ref(self, operand: Operand) -> str:
        """An expression for any operand. Raises Unsupported for constants that JAX would narrow."""
        if isinstance(operand, Tensor):
            return self._written(operand).token
        if isinstance(operand, Sizes):
            items = ", ".join(map(str, operand.items))
            return items if operand.is_scalar else f"jnp.array([{items}])"
        if isinstance(operand, Zeros):
            return f"jnp.zeros({shape_text(operand.sizes.items)})"
        if operand is None:
            return "None"
        return self._constant(operand)

    def array_ref(self, operand: Operand) -> str:
        """An expression for an operand that is an array where a plain number would do elsewhere."""
        text = self.ref(operand)
        if isinstance(operand, Sizes) and operand.is_scalar:
            return f"jnp.array({unwrapped(text)})"
        if isinstance(operand, np.ndarray) and operand.ndim == 0:
            plain = operand.dtype in (np.float32, np.bool_, np.int32, np.int64)
            return f"jnp.array({text}{'' if plain else f', jnp.{operand.dtype}'})"
        return text

    def _written(self, tensor: Tensor) -> Tensor:
        """`tensor` with its statement in place."""
        if tensor.view is not None:
            base, axes = tensor.view
            tensor.view = None
            tensor.late = lambda: view_text(self.ref(base), axes)
        if tensor.late is not None:
            late, tensor.late = tensor.late, None
            self.blocks[tensor.depth].append(Statement(tensor.token, late(), (tensor,)))
        return tensor

    def view(self, base: Tensor, axes: Sequence[int | None]) -> Tensor:
        """`base` with its axes in another order and new ones of size 1 (None): free until it is asked for."""
        if base.view is not None:
            inner, places = base.view
            base, axes = inner, [None if axis is None else places[axis] for axis in axes]
        if tuple(axes) == tuple(range(len(axes))) and base.rank == len(axes):
            return base
        dims = None if base.dims is None else tuple(1 if axis is None else base.dims[axis] for axis in axes)
        made = self.tensor(dims, base.dtype, base.hint)
        made.view, made.depth = (base, tuple(axes)), base.depth
        return made

    def shared(self, key: Hashable, make: object) -> object:
        """What is kept under `key`: `make()` once."""
        if key not in self._shared:
            self._shared[key] = make() if callable(make) else make
        return self._shared[key]

    def layer(self, name: str, kind: str, arguments: Sequence[str], weights: Mapping[str, np.ndarray]) -> Layer:
        """A new layer under `name`, or near it where it is taken."""
        made = Layer(self.free_name(name), kind, [*arguments], dict(weights))
        self.layers[made.name] = made
        return made

    def rename(self, layer: Layer, wanted: str) -> None:
        """Give a layer a better name, where it is free."""
        names = [*self.layers, *self.constants]
        if wanted not in names and wanted not in RESERVED:
            self.layers = {wanted if each is layer else name: each for name, each in self.layers.items()}
            layer.name = wanted

    def free_name(self, wanted: str) -> str:
        """`wanted`, with a number where it is taken."""
        name, count = wanted, 1
        while name in self.layers or name in self.constants or name in RESERVED:
            count += 1
            name = f"{wanted}_{count}"
        return name

    def parameter(self, wanted: str, array: np.ndarray) -> str:
        """An array as an attribute of the module: the expression that reads it."""
        name = self.free_name(wanted)
        self.constants[name] = narrowed(array)
        return f"self.{name}[...]"

    def _constant(self, array: np.ndarray) -> str:
        array = narrowed(array)
        if array.ndim == 0:
            return literal(array.reshape(1)[0])
        if array.size <= LITERAL_SIZE:
            dtype = "" if array.dtype in (np.bool_, np.int32) else f", jnp.{array.dtype}"
            return f"jnp.array({nested_text(array)}{dtype})"
        key = ("constant", array.dtype.str, array.shape, array.tobytes())
        return str(self.shared(key, lambda: self.parameter("constant", array)))


def narrowed(array: np.ndarray) -> np.ndarray:
    """int64 as the int32 that JAX computes with. Raises Unsupported for numbers that do not fit, and for float64."""
    if array.dtype == np.float64:
        raise Unsupported("float64 needs x64, and generated code is float32", where="flax-code")
    if array.dtype in (np.int64, np.uint64):
        small: np.ndarray = array.astype(np.int32)
        if not np.array_equal(small, array):
            raise Unsupported("an integer does not fit into JAX's 32 bits", where="flax-code", got=array.max())
        return small
    return array


def jax_name(dtype: np.dtype[Any]) -> str:
    """The attribute of jax.numpy that a dtype is; 64-bit integers are JAX's 32.

    >>> jax_name(np.dtype(np.int64)), jax_name(np.dtype(np.bool_)), jax_name(np.dtype(np.float16))
    ('int32', 'bool_', 'float16')
    """
    return {"int64": "int32", "uint64": "uint32", "bool": "bool_"}.get(dtype.name, dtype.name)


def literal(value: Any) -> str:
    """A scalar as Python writes it: the shortest number that rounds to the same value.

    >>> literal(np.float32(0.1)), literal(np.float32("inf")), literal(np.int64(3))
    ('0.1', 'jnp.inf', '3')
    """
    if isinstance(value, np.bool_):
        return str(bool(value))
    if isinstance(value, np.integer):
        return str(int(value))
    if not np.isfinite(value):
        return "jnp.nan" if np.isnan(value) else "-jnp.inf" if value < 0 else "jnp.inf"
    return str(float(str(value)))


def nested_text(array: np.ndarray) -> str:
    """An array as nested lists."""
    if array.ndim == 0:
        return literal(array.reshape(1)[0])
    return f"[{', '.join(nested_text(each) for each in array)}]"


def shape_text(items: Sequence[int | str]) -> str:
    """Sizes as a tuple.

    >>> shape_text([3]), shape_text(["x.shape[0]", 4])
    ('(3,)', '(x.shape[0], 4)')
    """
    return f"({', '.join(map(str, items))}{',' if len(items) == 1 else ''})"


def unwrapped(text: str) -> str:
    """An expression without the parentheses around all of it.

    >>> unwrapped("(a + (b * c))"), unwrapped("(a) + (b)")
    ('a + (b * c)', '(a) + (b)')
    """
    depth = 0
    for at, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0 and at < len(text) - 1:
            return text
    return text[1:-1] if text.startswith("(") else text


def view_text(base: str, axes: Sequence[int | None]) -> str:
    """The expression for axes of `base` in another order with new ones of size 1.

    >>> view_text("x", [0, None, 1]), view_text("x", [1, 0, None])
    ('x[:, None]', 'x.transpose(1, 0)[..., None]')
    """
    order = [axis for axis in axes if axis is not None]
    text = base if order == sorted(order) else f"{base}.transpose({', '.join(map(str, order))})"
    if None not in axes:
        return text
    if None not in axes[: len(order)]:
        return f"{text}[..., {', '.join('None' for axis in axes if axis is None)}]"
    last = max(at for at, axis in enumerate(axes) if axis is None)
    return f"{text}[{', '.join('None' if axis is None else ':' for axis in axes[: last + 1])}]"
