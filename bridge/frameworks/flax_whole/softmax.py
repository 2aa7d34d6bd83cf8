"""Softmax and LogSoftmax, found in the equations that jax.nn writes them with.

With m constant along the axis, exp(x - m) / sum(exp(x - m)) is softmax(x) whatever m is, and x - m - log(sum(exp(x -
m))) its logarithm: nothing more has to be known of m, which is the maximum.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bridge.frameworks.flax_whole.sizes import is_symbolic
from bridge.frameworks.flax_whole.terms import Lowering, Term


def softmax(c: Lowering, eqn: Any, *terms: Term) -> Term | None:
    """The one operator that a `div` or a `sub` completes; None where it completes none."""
    first, second = terms
    exponential: Term | None
    if eqn.primitive.name == "div":
        exponential, total, op_type = first, second, "Softmax"
    else:
        logarithm = _made(second, "log")
        if logarithm is None:
            return None
        total, op_type = logarithm[0], "LogSoftmax"
        exponential = _summed(total)
        if exponential is None or _only(exponential, "exp") is not first:
            return None
    shifted, axis = _only(exponential, "exp"), _axis(total)
    if shifted is None or axis is None or _summed(total) is not exponential:
        return None
    parts = _made(shifted, "sub")
    if parts is None or parts[0].shape != shifted.shape or parts[0].is_thin or np.dtype(parts[0].dtype).kind != "f":
        return None
    if len(parts[1].thin) != len(shifted.shape) or not _is_one(parts[1].thin[axis]):
        return None
    return c.result(eqn, c.op(op_type, c.full(parts[0]), axis=axis))


def _made(term: Term, name: str) -> tuple[Term, ...] | None:
    return term.origin[1] if term.origin is not None and term.origin[0] == name else None


def _only(term: Term, name: str) -> Term | None:
    operands = _made(term, name)
    return None if operands is None else operands[0]


def _summed(total: Term) -> Term | None:
    """What a sum over one axis, put in its place again, was taken of."""
    inner = _only(total, "broadcast_in_dim") or _only(total, "reshape")
    axis = _axis(total)
    return None if inner is None or axis is None else _only(inner, f"reduce_sum {axis}")


def _axis(total: Term) -> int | None:
    """The only axis along which a sum was taken, where it has size 1 again and all others are as they were."""
    inner = _only(total, "broadcast_in_dim") or _only(total, "reshape")
    if inner is None or inner.origin is None or not inner.origin[0].startswith("reduce_sum "):
        return None
    axis = int(inner.origin[0].removeprefix("reduce_sum "))
    source = inner.origin[1][0].shape
    kept = (*source[:axis], 1, *source[axis + 1 :])
    return axis if total.thin == kept else None


def _is_one(size: Any) -> bool:
    return not is_symbolic(size) and size == 1
