"""Matrix products and determinants."""

from __future__ import annotations

from bridge.ops.backend import Array
from bridge.ops.node import Node
from bridge.ops.registry import handles


@handles("MatMul", versions={1, 9, 13})
def mat_mul(node: Node, A: Array, B: Array) -> Array:
    """Matrix product with numpy's broadcasting."""
    return node.backend.matmul(A, B)


@handles("Gemm", versions={7, 9, 11, 13})
def gemm(
    node: Node,
    A: Array,
    B: Array,
    C: Array | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Array:
    """Alpha * A' @ B' + beta * C, each primed matrix transposed where its flag is set."""
    A = node.xp.permute_dims(A, (1, 0)) if transA else A
    B = node.xp.permute_dims(B, (1, 0)) if transB else B
    product = node.backend.matmul(A, B)
    product = product if alpha == 1 else _scaled(node, alpha, product)
    if C is None or beta == 0:
        return product
    return product + (C if beta == 1 else _scaled(node, beta, C))


@handles("Einsum", versions={12})
def einsum(node: Node, *Inputs: Array, equation: str) -> Array:
    """Products summed over the letters that the result lacks."""
    return node.backend.einsum(equation.replace(" ", ""), *Inputs)


@handles("Det", versions={11, 22})
def det(node: Node, X: Array) -> Array:
    """The determinant of each matrix."""
    return node.xp.linalg.det(X)


def _scaled(node: Node, factor: float, value: Array) -> Array:
    """Factor * value in the dtype of `value`, integers too."""
    kind = node.backend.dtype(value).kind
    return (factor if kind == "f" else int(factor)) * value
