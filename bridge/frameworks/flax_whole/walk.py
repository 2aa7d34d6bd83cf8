"""Go through a jaxpr: what nobody reads stays out, constants are evaluated, calls entered, rules write the rest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxprs_in_params

from bridge.errors import Unsupported
from bridge.frameworks.flax_whole.signature import CARRIED
from bridge.frameworks.flax_whole.sizes import is_static, is_symbolic
from bridge.frameworks.flax_whole.terms import Lowering, Term, broadcast, constant

Rule = Callable[..., Any]
"""rule(lowering, equation, *terms) -> one Term, or one for each result."""

MARK: Final = "bridge:"
"""What the scope of a module begins with in a name stack."""

CALLS: Final = MappingProxyType(
    {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "core_call": "call_jaxpr", "remat2": "jaxpr",
     "checkpoint": "jaxpr", "remat": "jaxpr", "custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr",
     "custom_vjp_call_jaxpr": "fun_jaxpr", "custom_lin": "call_jaxpr"}
)  # fmt: skip
"""Primitives that are a call, and the parameter that holds what is called."""

RANDOM: Final = frozenset(
    {"random_bits", "random_seed", "random_split", "random_fold_in", "random_wrap", "random_unwrap", "random_gamma",
     "threefry2x32", "rng_bit_generator", "rng_uniform", "random_clone"}
)  # fmt: skip

LARGEST: Final = 2**24
"""Elements that a constant may grow to; larger ones are computed by the graph."""


def called(eqn: Any) -> ClosedJaxpr | None:
    """The jaxpr that an equation calls, None where it is no call."""
    inner = eqn.params.get(CALLS[eqn.primitive.name]) if eqn.primitive.name in CALLS else None
    return ClosedJaxpr(inner, ()) if isinstance(inner, Jaxpr) else inner


def module_path(eqn: Any, outer: str) -> str:
    """The dotted path of the innermost module around an equation."""
    parts = [part for part in str(eqn.source_info.name_stack).split("/") if part.startswith(MARK)]
    return parts[-1].removeprefix(MARK) if parts else outer


def live_equations(jaxpr: Jaxpr, wanted: Sequence[bool]) -> list[Any]:
    """The equations that the wanted results hang on, in order."""
    needed = {var for var, want in zip(jaxpr.outvars, wanted, strict=True) if want and not isinstance(var, Literal)}
    found = []
    for eqn in reversed(jaxpr.eqns):
        if any(var in needed for var in eqn.outvars):
            found.append(eqn)
            needed.update(var for var in eqn.invars if not isinstance(var, Literal))
    return found[::-1]


def lower(
    c: Lowering, closed: ClosedJaxpr, terms: Sequence[Term], rules: Mapping[str, Rule],
    wanted: Sequence[bool] | None = None,
) -> list[Term]:  # fmt: skip
    """The Terms of the results of `closed` over `terms`; those not wanted are their own shape's zeros."""
    jaxpr = closed.jaxpr
    wanted = [True] * len(jaxpr.outvars) if wanted is None else wanted
    env: dict[Any, Term] = dict(zip(jaxpr.invars, terms, strict=True))
    env |= {var: constant(array_of(value)) for var, value in zip(jaxpr.constvars, closed.consts, strict=True)}
    alive = live_equations(jaxpr, wanted)
    read = {var for eqn in alive for var in eqn.invars if not isinstance(var, Literal)}
    read |= {var for var, want in zip(jaxpr.outvars, wanted, strict=True) if want and not isinstance(var, Literal)}
    outer = c.path
    for eqn in alive:
        c.path = module_path(eqn, outer)
        operands = [_read(env, var) for var in eqn.invars]
        results = _equation(c, eqn, operands, rules, [var in read for var in eqn.outvars])
        env.update(zip(eqn.outvars, results, strict=True))
    c.path = outer
    return [_read(env, var) if want else _nothing(var) for var, want in zip(jaxpr.outvars, wanted, strict=True)]


def array_of(value: Any) -> Any:
    """`value` as numpy; what has no numpy dtype (random keys) as it is."""
    dtype = getattr(value, "dtype", None)
    if dtype is not None and jax.dtypes.issubdtype(dtype, jax.dtypes.extended):
        return value
    return np.asarray(value)


def _read(env: Mapping[Any, Term], var: Any) -> Term:
    return constant(np.asarray(var.val, var.aval.dtype)) if isinstance(var, Literal) else env[var]


def _nothing(var: Any) -> Term:
    dtype = np.dtype(np.float32)
    return Term(shape=tuple(var.aval.shape), dtype=dtype, thin=(), array=np.zeros((), dtype))


def _equation(c: Lowering, eqn: Any, terms: Sequence[Term], rules: Mapping[str, Rule], wanted: Sequence[bool]
              ) -> Sequence[Term]:  # fmt: skip
    inner = called(eqn)
    if inner is not None:
        return lower(c, inner, terms, rules, wanted)
    name = eqn.primitive.name
    if all(term.is_constant for term in terms) and can_evaluate(eqn, [term.shape for term in terms]):
        return _evaluated(eqn, terms)
    if name in ELEMENTWISE and all(term.is_constant for term in terms):
        return _evaluated_thin(eqn, terms)
    if name not in rules:
        raise Unsupported("not carried", where=c.path, got=name)
    result = rules[name](c, eqn, *terms)
    return [result] if isinstance(result, Term) else list(result)


ELEMENTWISE: Final = frozenset(
    {"add", "sub", "mul", "div", "max", "min", "neg", "convert_element_type", "exp", "log", "sqrt", "rsqrt", "tanh",
     "logistic", "select_n", "eq", "ne", "lt", "le", "gt", "ge", "and", "or", "not", "pow", "integer_pow", "square",
     "abs", "sign", "rem", "clamp", "is_finite", "log1p", "expm1", "copy", "copy_p", "stop_gradient", "floor", "ceil"}
)  # fmt: skip
"""Primitives whose constants stay thin."""


def can_evaluate(eqn: Any, shapes: Sequence[tuple[Any, ...]]) -> bool:
    """Whether an equation over constants is a constant that JAX can compute now."""
    own = [*shapes, *(tuple(var.aval.shape) for var in eqn.outvars)]
    if not all(is_static(shape) for shape in own) or eqn.primitive.name.startswith("bridge_"):
        return False
    return not _holds_symbol(eqn.params) and sum(int(np.prod(shape)) for shape in own) <= LARGEST


def _holds_symbol(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(_holds_symbol(each) for each in value.values())
    if isinstance(value, (tuple, list)):
        return any(_holds_symbol(each) for each in value)
    if isinstance(value, ClosedJaxpr):
        return _holds_symbol(value.jaxpr)
    if isinstance(value, Jaxpr):
        shapes = [var.aval.shape for var in (*value.invars, *value.outvars) if hasattr(var.aval, "shape")]
        return not all(is_static(shape) for shape in shapes) or any(
            eqn.primitive.name.startswith("bridge_") or _holds_symbol(eqn.params)
            or not all(is_static(var.aval.shape) for var in eqn.outvars) for eqn in value.eqns
        )  # fmt: skip
    return is_symbolic(value)


def bind(eqn: Any, operands: Sequence[Any]) -> list[Any]:
    """The results of an equation's primitive over other operands."""
    bound = eqn.primitive.get_bind_params(eqn.params)
    functions, params = bound if isinstance(bound, tuple) else ((), bound)  # a pair before jax 0.9
    found = eqn.primitive.bind(*functions, *operands, **params)
    return list(found) if eqn.primitive.multiple_results else [found]


def _evaluated(eqn: Any, terms: Sequence[Term]) -> list[Term]:
    arrays = [np.broadcast_to(term.array, term.shape) if term.is_thin else term.array for term in terms]
    names = {term.name for term in terms if term.name}
    name = names.pop() if len(names) == 1 and eqn.primitive.name in RENAMING else ""
    return [constant(array_of(value), name=name) for value in bind(eqn, arrays)]


RENAMING: Final = frozenset({"reshape", "broadcast_in_dim", "squeeze", "convert_element_type", "transpose", "copy"})
"""What leaves a parameter the parameter that it is."""


def _evaluated_thin(eqn: Any, terms: Sequence[Term]) -> list[Term]:
    thin = broadcast([term.thin for term in terms])
    arrays = [np.broadcast_to(term.array, thin) for term in terms]
    return [constant(array_of(value), tuple(var.aval.shape))
            for value, var in zip(bind(eqn, arrays), eqn.outvars, strict=True)]  # fmt: skip


def missing(closed: ClosedJaxpr, is_constant: Sequence[bool], rules: Mapping[str, Rule], outer: str = ""
            ) -> Iterator[tuple[str, str]]:  # fmt: skip
    """Primitive and module path of every equation that has no rule and is no constant, bodies of loops included."""
    jaxpr = closed.jaxpr
    fixed = {var for var, known in zip(jaxpr.invars, is_constant, strict=True) if known} | set(jaxpr.constvars)
    for eqn in live_equations(jaxpr, [True] * len(jaxpr.outvars)):
        path = module_path(eqn, outer)
        known = [isinstance(var, Literal) or var in fixed for var in eqn.invars]
        if all(known) and can_evaluate(eqn, [var.aval.shape for var in eqn.invars]):
            fixed.update(eqn.outvars)
            continue
        inner = called(eqn)
        if inner is not None:
            yield from missing(inner, known, rules, path)
            continue
        if eqn.primitive.name not in rules:
            yield eqn.primitive.name, path
        elif _uncarried(eqn):
            yield f"{eqn.primitive.name} of {_uncarried(eqn)}", path
        for body in jaxprs_in_params(eqn.params) if eqn.primitive.name in BODIES else ():
            yield from missing(ClosedJaxpr(body, ()), [False] * len(body.invars), rules, path)


def _uncarried(eqn: Any) -> str:
    """A dtype among the results that no kernel of onnxruntime computes; "" where there is none."""
    for var in eqn.outvars:
        dtype = var.aval.dtype
        if not jax.dtypes.issubdtype(dtype, jax.dtypes.extended) and str(dtype) not in CARRIED:
            return str(dtype)
    return ""


BODIES: Final = frozenset({"scan", "while", "cond"})


def refuse_missing(found: Sequence[tuple[str, str]], where: str) -> None:
    """One error for all of them.

    Raises:
        Unsupported: there is one.
    """
    if not found:
        return
    paths = dict.fromkeys(path or where for name, path in found if name in RANDOM)
    if paths:
        raise Unsupported("the model draws random numbers", where=next(iter(paths)), got=", ".join(paths),
                          do="switch it off for inference: module.eval(), deterministic=True") from None  # fmt: skip
    counts = Counter(name for name, _ in found)
    lines = [f"{name} ({count}x, first in {next(path or where for other, path in found if other == name)})"
             for name, count in sorted(counts.items())]  # fmt: skip
    raise Unsupported("primitives of JAX that bridge does not carry", where=where, got="; ".join(lines),
                      do="compute this part outside the exported model")  # fmt: skip
