"""What a value of the traced program is while it is lowered, and what every rule may ask for.

JAX writes broadcasts out. A Term may be *thin*: its axes of size 1 stand for axes of any size, as ONNX's own
broadcasting reads them, and only a rule that needs the full array pays for the Expand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.frameworks.flax_whole.sizes import Size, Sizes, is_static, is_symbolic, label

if TYPE_CHECKING:
    import onnx_ir as ir

    from bridge.frameworks.door import ExportOptions
    from bridge.graph.writer import Writer


@dataclass(frozen=True, eq=False, kw_only=True)
class Term:
    """A constant or a value of the graph."""

    shape: tuple[Size, ...]
    """The shape that the program gives it."""
    dtype: Any
    thin: tuple[Size, ...] = ()
    """The shape that it has: where it differs from `shape` it is 1."""
    array: Any = None
    """The constant, of shape `thin`: numpy, or a JAX array where numpy has no such dtype (random keys)."""
    value: ir.Value | None = None
    name: str = ""
    """The path of the parameter that the constant is."""
    origin: tuple[str, tuple[Term, ...]] | None = None
    """The primitive and the operands that made it, where a rule may want to know."""

    @property
    def is_constant(self) -> bool:
        """Whether its value is known now."""
        return self.value is None

    @property
    def is_thin(self) -> bool:
        """Whether an axis is broadcast."""
        return self.thin != self.shape

    @property
    def is_zeros(self) -> bool:
        """Whether it is known to be nothing but zeros."""
        return self.is_constant and not np.any(self.array)


def constant(array: Any, shape: Sequence[Size] | None = None, name: str = "") -> Term:
    """A constant; with `shape`, one that is broadcast to it."""
    thin = tuple(array.shape)
    return Term(shape=thin if shape is None else tuple(shape), dtype=array.dtype, thin=thin, array=array, name=name)


@dataclass(slots=True)
class Lowering:
    """One model while it is written."""

    w: Writer
    """Of the graph or body that is being written."""
    sizes: Sizes
    options: ExportOptions
    path: str = ""
    """The module that the present equation belongs to."""
    steps: list[str] = field(default_factory=list)
    """The path of every cell that is stepped once, as often as it is."""
    outputs: list[tuple[ir.Value, str]] = field(default_factory=list)
    """Final states that become outputs."""
    cells: dict[Any, Any] = field(default_factory=dict)
    """What cells compute, by their weights: the calls of a shared layer share its initialisers."""
    written: dict[Any, ir.Value] = field(default_factory=dict)
    """Constants that are in the graph."""

    # ------------------------------------------------------------------ values

    def known(self, array: Any, name: str = "") -> ir.Value:
        """A constant in the graph; the same bits of the same parameter are one initialiser."""
        values = np.asarray(array)
        key = (values.__array_interface__["data"][0], values.shape, values.strides, values.dtype.str)
        if key not in self.written:
            self.written[key] = self.w.constant(np.ascontiguousarray(values).reshape(values.shape), name or None)
            self.written[key, "kept"] = values  # type: ignore[assignment]  # its address stays its own
        return self.written[key]

    def narrow(self, term: Term, *, rank: int | None = None) -> ir.Value:
        """The value in its thin shape; a constant without leading axes of size 1 down to `rank`."""
        if term.value is not None:
            return term.value
        array = term.array
        while rank is not None and array.ndim > rank and array.ndim and array.shape[0] == 1:
            array = array[0]
        return self.known(array, term.name)

    def full(self, term: Term) -> ir.Value:
        """The value in its full shape."""
        value = self.narrow(term)
        if not term.is_thin:
            return value
        target = [1 if have == want else want for have, want in zip(term.thin, term.shape, strict=True)]
        return self.typed(self.op("Expand", value, self.shape(target)), term.shape, term.dtype)

    def op(self, op_type: str, *inputs: ir.Value | None, **attributes: Any) -> Any:
        """One node, named after the module and the operator."""
        return self.w.op(op_type, *inputs, name=".".join(filter(None, (self.path, op_type))), **attributes)

    def typed(self, value: ir.Value, shape: Sequence[Size], dtype: Any = None) -> ir.Value:
        """Declare the shape that the program gives to a value."""
        return self.w.typed(value, [label(size) for size in shape], None if dtype is None else np.dtype(dtype).name)

    def number(self, number: float, dtype: Any) -> ir.Value:
        """A scalar of a dtype."""
        return self.w.constant(np.asarray(number, dtype))

    def ints(self, numbers: Sequence[int]) -> ir.Value:
        """int64 [n]."""
        return self.w.constant(np.asarray(numbers, np.int64))

    # ------------------------------------------------------------------ shapes

    def shape(self, shape: Sequence[Size]) -> ir.Value:
        """A shape as int64 [rank]."""
        if is_static(shape):
            return self.ints([int(size) for size in shape])
        parts: list[ir.Value] = []
        run: list[int] = []
        for size in shape:
            if not is_symbolic(size):
                run.append(int(size))
                continue
            if run:
                parts.append(self.ints(run))
                run = []
            parts.append(self.sizes.value(size))
        if run:
            parts.append(self.ints(run))
        return self.w.concat(parts, 0)

    def reshaped(self, value: ir.Value, old: Sequence[Size], new: Sequence[Size]) -> ir.Value:
        """`value` of shape `old` in the shape `new`; sizes that stay or that are the only unknown cost nothing."""
        if tuple(old) == tuple(new):
            return value
        entries: list[Any] = [0 if is_symbolic(size) and at < len(old) and old[at] == size else size
                              for at, size in enumerate(new)]  # fmt: skip
        open_ = [at for at, size in enumerate(entries) if is_symbolic(size)]
        if len(open_) == 1:
            entries[open_[0]] = -1
        target = self.shape(entries) if not is_static(entries) else self.ints([int(size) for size in entries])
        return self.typed(self.op("Reshape", value, target), new)

    # ------------------------------------------------------------------ results

    def result(self, eqn: Any, value: ir.Value, *, at: int = 0, thin: Sequence[Size] | None = None,
               origin: tuple[str, tuple[Term, ...]] | None = None) -> Term:  # fmt: skip
        """The Term of an equation's result."""
        aval = eqn.outvars[at].aval
        shape = tuple(aval.shape)
        own = shape if thin is None else tuple(thin)
        self.typed(value, own)
        return Term(shape=shape, dtype=aval.dtype, thin=own, value=value, origin=origin)

    def elementwise(self, eqn: Any, terms: Sequence[Term], write: Callable[..., ir.Value]) -> Term:
        """`write(*values)` over operands that ONNX broadcasts itself."""
        thin = broadcast([term.thin for term in terms])
        leading = any(not term.is_constant and len(term.thin) == len(thin) for term in terms)
        values = [self.narrow(term, rank=0 if leading else None) for term in terms]
        value = write(*values)
        if any(value is given for given in values):
            value = self.op("Identity", value)
        return self.result(eqn, value, thin=thin, origin=(eqn.primitive.name, tuple(terms)))


def broadcast(shapes: Sequence[tuple[Size, ...]]) -> tuple[Size, ...]:
    """The shape that these broadcast to; no two disagree but by a 1."""
    rank = max(len(shape) for shape in shapes)
    result: list[Size] = [1] * rank
    for shape in shapes:
        for at, size in enumerate(shape, rank - len(shape)):
            if is_symbolic(size) or size != 1:
                result[at] = size
    return tuple(result)
