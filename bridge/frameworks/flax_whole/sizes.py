"""Symbolic sizes of JAX as ONNX values: arithmetic over the shapes of the graph's inputs."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jax import export

from bridge.errors import Unsupported

if TYPE_CHECKING:
    import onnx_ir as ir

    from bridge.graph.writer import Writer

Size = Any
"""An int, or a symbolic dimension of JAX such as `2*time - 1`."""

ARITHMETIC = {ast.Add: "Add", ast.Sub: "Sub", ast.Mult: "Mul"}
CALLS = {"max": "Max", "min": "Min", "mod": "Mod"}


def is_symbolic(value: object) -> bool:
    """Whether `value` is a size that only a run knows."""
    return bool(export.is_symbolic_dim(value))


def is_static(shape: Sequence[Size]) -> bool:
    """Whether every size is a number."""
    return not any(is_symbolic(size) for size in shape)


def label(size: Size) -> int | str:
    """How a graph declares the size."""
    return str(size) if is_symbolic(size) else int(size)


class Sizes:
    """The sizes of one model, each computed once, in the main graph."""

    def __init__(self, w: Writer, symbols: Mapping[str, tuple[ir.Value, int]]) -> None:
        """`symbols` names the input and the axis that each symbol is the size of."""
        self._w, self._symbols = w, symbols
        self._known: dict[str, ir.Value] = {}

    def value(self, size: Size) -> ir.Value:
        """The size as int64 [1]."""
        if not is_symbolic(size):
            return self._w.constant([int(size)])
        # The text of a symbolic dimension is public: it is what jax.export.symbolic_shape reads.
        return self._of(ast.parse(str(size).replace("^", "**"), mode="eval").body)

    def _of(self, tree: ast.expr) -> ir.Value:
        text = ast.unparse(tree)
        if text not in self._known:
            self._known[text] = self._made(tree, text)
        return self._known[text]

    def _made(self, tree: ast.expr, text: str) -> ir.Value:
        w = self._w
        if isinstance(tree, ast.Constant) and isinstance(tree.value, int):
            return w.constant([tree.value])
        if isinstance(tree, ast.Name) and tree.id in self._symbols:
            value, axis = self._symbols[tree.id]
            return w.op("Shape", value, start=axis, end=axis + 1, name=f"{tree.id}.size")
        if isinstance(tree, ast.UnaryOp) and isinstance(tree.op, ast.USub):
            if isinstance(tree.operand, ast.Constant) and isinstance(tree.operand.value, int):
                return w.constant([-tree.operand.value])
            return w.op("Neg", self._of(tree.operand))
        if isinstance(tree, ast.BinOp) and type(tree.op) in ARITHMETIC:
            return w.op(ARITHMETIC[type(tree.op)], self._of(tree.left), self._of(tree.right))
        if isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.Pow) and isinstance(tree.right, ast.Constant):
            return self._power(tree.left, int(str(tree.right.value)))
        if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name):
            return self._call(tree.func.id, [self._of(each) for each in tree.args], text)
        raise Unsupported("a size that is no arithmetic of the inputs' sizes", where="to_onnx", got=text)

    def _power(self, base: ast.expr, exponent: int) -> ir.Value:
        value = result = self._of(base)
        for _ in range(exponent - 1):
            result = self._w.op("Mul", result, value)
        return result

    def _call(self, name: str, values: Sequence[ir.Value], text: str) -> ir.Value:
        w = self._w
        if name in CALLS:
            return w.op(CALLS[name], *values)
        if name == "floordiv":  # ONNX truncates: what is left over, of the divisor's sign, goes first
            return w.op("Div", w.op("Sub", values[0], w.op("Mod", *values)), values[1])
        raise Unsupported("a size that is no arithmetic of the inputs' sizes", where="to_onnx", got=text)
