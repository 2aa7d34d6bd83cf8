"""Primitives that work element by element."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from bridge.errors import Unsupported
from bridge.frameworks.flax_whole.softmax import softmax
from bridge.frameworks.flax_whole.terms import Lowering, Term, constant

if TYPE_CHECKING:
    import onnx_ir as ir

DIRECT: Final = MappingProxyType(
    {"add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "max": "Max", "min": "Min", "neg": "Neg", "abs": "Abs",
     "sign": "Sign", "exp": "Exp", "log": "Log", "tanh": "Tanh", "logistic": "Sigmoid", "sqrt": "Sqrt",
     "floor": "Floor", "ceil": "Ceil", "erf": "Erf", "sin": "Sin", "cos": "Cos", "tan": "Tan", "asin": "Asin",
     "acos": "Acos", "atan": "Atan", "sinh": "Sinh", "cosh": "Cosh", "asinh": "Asinh", "acosh": "Acosh",
     "atanh": "Atanh", "pow": "Pow", "add_any": "Add"}
)  # fmt: skip
"""Primitives that are one operator. Integer Div truncates in onnxruntime, as it does in JAX."""

COMPARISONS: Final = MappingProxyType({"eq": "Equal", "lt": "Less", "le": "LessOrEqual", "gt": "Greater",
                                       "ge": "GreaterOrEqual", "lt_to": "Less", "le_to": "LessOrEqual"})  # fmt: skip
"""lt_to and le_to differ from lt and le in the order of NaN and of the two zeros, which jnp takes out before."""
LOGICAL: Final = MappingProxyType({"and": ("And", "BitwiseAnd"), "or": ("Or", "BitwiseOr"),
                                   "xor": ("Xor", "BitwiseXor")})  # fmt: skip
BOOLEAN: Final = MappingProxyType({"max": "Or", "min": "And", "mul": "And", "add": "Or"})
"""What arithmetic is on booleans."""


def direct(c: Lowering, eqn: Any, *terms: Term) -> Term:
    """One operator."""
    name = eqn.primitive.name
    whole = softmax(c, eqn, *terms) if name in ("div", "sub") else None
    if whole is not None:
        return whole
    boolean = np.dtype(terms[0].dtype) == np.bool_
    op_type = BOOLEAN.get(name, DIRECT[name]) if boolean else DIRECT[name]
    return c.elementwise(eqn, terms, lambda *values: c.op(op_type, *values))


def compare(c: Lowering, eqn: Any, *terms: Term) -> Term:
    """eq, lt, le, gt, ge; booleans count as 0 and 1."""
    op_type = COMPARISONS[eqn.primitive.name]
    as_int = np.dtype(terms[0].dtype).name in ("bool", "uint8", "int8", "int16", "uint16") and op_type != "Equal"

    def write(*values: ir.Value) -> ir.Value:
        both = [c.w.cast(value, "int32") for value in values] if as_int else values
        found: ir.Value = c.op(op_type, *both)
        return found

    return c.elementwise(eqn, terms, write)


def unequal(c: Lowering, eqn: Any, *terms: Term) -> Term:
    """Ne."""
    return c.elementwise(eqn, terms, lambda *values: c.op("Not", c.op("Equal", *values)))


def logical(c: Lowering, eqn: Any, *terms: Term) -> Term:
    """And, or, xor, of booleans or bits."""
    boolean, bits = LOGICAL[eqn.primitive.name]
    op_type = boolean if np.dtype(terms[0].dtype) == np.bool_ else bits
    return c.elementwise(eqn, terms, lambda *values: c.op(op_type, *values))


def negation(c: Lowering, eqn: Any, x: Term) -> Term:
    """Not, of booleans or bits."""
    op_type = "Not" if np.dtype(x.dtype) == np.bool_ else "BitwiseNot"
    return c.elementwise(eqn, [x], lambda value: c.op(op_type, value))


def remainder(c: Lowering, eqn: Any, *terms: Term) -> Term:
    """Rem takes the sign of the dividend, as fmod does."""
    return c.elementwise(eqn, terms, lambda *values: c.op("Mod", *values, fmod=1))


def square(c: Lowering, eqn: Any, x: Term) -> Term:
    """The square."""
    return c.elementwise(eqn, [x], lambda value: c.op("Mul", value, value))


def rsqrt(c: Lowering, eqn: Any, x: Term) -> Term:
    """The reciprocal of the root."""
    return c.elementwise(eqn, [x], lambda value: c.op("Reciprocal", c.op("Sqrt", value)))


def cbrt(c: Lowering, eqn: Any, x: Term) -> Term:
    """sign(x) |x|^(1/3)."""
    third = c.number(1 / 3, x.dtype)
    return c.elementwise(
        eqn, [x], lambda value: c.op("Mul", c.op("Sign", value), c.op("Pow", c.op("Abs", value), third))
    )


def exp2(c: Lowering, eqn: Any, x: Term) -> Term:
    """2 ** x."""
    return c.elementwise(eqn, [x], lambda value: c.op("Pow", c.number(2, x.dtype), value))


def integer_pow(c: Lowering, eqn: Any, x: Term) -> Term:
    """A power by a number, small ones by multiplication as XLA does it."""
    exponent = int(eqn.params["y"])
    if exponent == 0:  # of what is not finite too
        return constant(np.ones((1,) * len(x.shape), x.dtype), tuple(eqn.outvars[0].aval.shape))

    def write(value: ir.Value) -> ir.Value:
        power = value
        for _ in range(abs(exponent) - 1) if abs(exponent) <= 4 else ():
            power = c.op("Mul", power, value)
        if abs(exponent) > 4:
            power = c.op("Pow", value, c.number(abs(exponent), x.dtype))
        return c.op("Reciprocal", power) if exponent < 0 else power

    return c.elementwise(eqn, [x], write)


def erfc(c: Lowering, eqn: Any, x: Term) -> Term:
    """1 - erf(x)."""
    return c.elementwise(eqn, [x], lambda value: c.op("Sub", c.number(1, x.dtype), c.op("Erf", value)))


def log1p(c: Lowering, eqn: Any, x: Term) -> Term:
    """log(1 + x) without losing small x: the rounding of u = 1 + x is divided out again (Kahan)."""

    def write(value: ir.Value) -> ir.Value:
        one = c.number(1, x.dtype)
        u = c.op("Add", value, one)
        ratio = c.op("Div", value, c.op("Sub", u, one))
        exact = c.op("Or", c.op("Equal", u, one), c.op("Equal", u, c.number(np.inf, x.dtype)))
        return c.op("Where", exact, value, c.op("Mul", c.op("Log", u), ratio))  # type: ignore[no-any-return]

    return c.elementwise(eqn, [x], write)


def expm1(c: Lowering, eqn: Any, x: Term) -> Term:
    """exp(x) - 1 without losing small x: tanh(x/2) * (exp(x) + 1), which is the same; -1 and inf at the ends."""

    def write(value: ir.Value) -> ir.Value:
        one, half = c.number(1, x.dtype), c.number(0.5, x.dtype)
        u = c.op("Exp", value)
        small = c.op("Mul", c.op("Tanh", c.op("Mul", value, half)), c.op("Add", u, one))
        near = c.op("Less", c.op("Abs", value), one)
        return c.op("Where", near, small, c.op("Sub", u, one))  # type: ignore[no-any-return]

    return c.elementwise(eqn, [x], write)


def rounded(c: Lowering, eqn: Any, x: Term) -> Term:
    """Halves to even, as ONNX's Round has it, or away from zero."""
    if str(eqn.params["rounding_method"].name) == "TO_NEAREST_EVEN":
        return c.elementwise(eqn, [x], lambda value: c.op("Round", value))

    def away(value: ir.Value) -> ir.Value:
        size = c.op("Abs", value)
        whole = c.op("Floor", size)
        more = c.op("GreaterOrEqual", c.op("Sub", size, whole), c.number(0.5, x.dtype))
        grown = c.op("Where", more, c.op("Add", whole, c.number(1, x.dtype)), whole)
        return c.op("Mul", c.op("Sign", value), grown)  # type: ignore[no-any-return]

    return c.elementwise(eqn, [x], away)


def is_finite(c: Lowering, eqn: Any, x: Term) -> Term:
    """Only a finite x has x - x = 0."""
    return c.elementwise(eqn, [x], lambda value: c.op("Equal", c.op("Sub", value, value), c.number(0, x.dtype)))


def select(c: Lowering, eqn: Any, which: Term, *cases: Term) -> Term:
    """select_n: of two cases by a boolean, of several by their number."""
    boolean = np.dtype(which.dtype) == np.bool_

    def write(index: ir.Value, *values: ir.Value) -> ir.Value:
        if boolean or len(values) == 2:
            test = index if boolean else c.w.cast(index, "bool")
            return where(c, test, values[1], values[0], cases[0].dtype)
        result = values[-1]
        for at in range(len(values) - 2, -1, -1):
            test = c.op("LessOrEqual", index, c.number(at, which.dtype))
            result = where(c, test, values[at], result, cases[0].dtype)
        return result

    return c.elementwise(eqn, [which, *cases], write) if len(cases) > 1 else cases[0]


def where(c: Lowering, test: ir.Value, yes: ir.Value, no: ir.Value, dtype: Any) -> ir.Value:
    """Of two values by a boolean, booleans too, for which Where has no kernel."""
    if np.dtype(dtype) != np.bool_:
        return c.op("Where", test, yes, no)  # type: ignore[no-any-return]
    return c.op("Or", c.op("And", test, yes), c.op("And", c.op("Not", test), no))  # type: ignore[no-any-return]


def clamp(c: Lowering, eqn: Any, low: Term, x: Term, high: Term) -> Term:
    """min(max(x, low), high)."""
    return c.elementwise(eqn, [low, x, high], lambda a, value, b: c.op("Min", c.op("Max", value, a), b))


def convert(c: Lowering, eqn: Any, x: Term) -> Term:
    """convert_element_type."""
    wanted, own = np.dtype(eqn.params["new_dtype"]), np.dtype(x.dtype)
    if own == wanted:
        return x
    write = _saturated if own.kind == "f" and wanted.kind in "iu" else _cast
    return c.elementwise(eqn, [x], lambda value: write(c, value, wanted))


def _cast(c: Lowering, value: ir.Value, wanted: np.dtype[Any]) -> ir.Value:
    return c.op("Cast", value, to=_onnx_type(c, wanted))  # type: ignore[no-any-return]


def _saturated(c: Lowering, value: ir.Value, wanted: np.dtype[Any]) -> ir.Value:
    """Floats as integers: XLA takes the nearest integer that there is, and 0 for NaN; a Cast of them is undefined."""
    limits = np.iinfo(wanted)
    wide = np.dtype(np.float32 if limits.bits < 32 else np.float64)  # which has the limits of up to 32 bits exactly
    value = c.w.cast(value, wide.name)
    low, high = (c.number(limit, wide) for limit in (limits.min, limits.max))
    near = c.op("Min", c.op("Max", value, low), high)
    number = c.op("Where", c.op("IsNaN", value), c.number(0, wide), near)
    return _cast(c, number, wanted)


def _onnx_type(c: Lowering, dtype: np.dtype[Any]) -> int:
    value = c.number(0, dtype)
    if value.dtype is None:
        raise Unsupported("a dtype that ONNX does not have", where=c.path, got=dtype)
    return int(value.dtype)


def atan2(c: Lowering, eqn: Any, y: Term, x: Term) -> Term:
    """The angle of (x, y): atan(y / x), half a turn further where x < 0; zeros have a side, as their signs say."""

    def negative(value: ir.Value) -> ir.Value:
        zero = c.number(0, x.dtype)
        side = c.op("Where", c.op("Equal", value, zero), c.op("Reciprocal", value), value)
        return c.op("Less", side, zero)  # type: ignore[no-any-return]

    def write(up: ir.Value, along: ir.Value) -> ir.Value:
        half = c.op("Where", negative(up), c.number(-np.pi, x.dtype), c.number(np.pi, x.dtype))
        alike = c.op("Equal", c.op("Abs", up), c.op("Abs", along))  # 0 / 0 and inf / inf too, which are NaN
        signs = c.op("Mul", c.op("Sign", up), c.op("Sign", along))
        angle = c.op("Atan", c.op("Where", alike, signs, c.op("Div", up, along)))
        return c.op("Where", negative(along), c.op("Add", angle, half), angle)  # type: ignore[no-any-return]

    return c.elementwise(eqn, [y, x], write)


def shift(c: Lowering, eqn: Any, x: Term, by: Term) -> Term:
    """Shifts of signed integers by a number: times a power of two, or the floor of a division by it."""
    alike = by.is_constant and by.array.size and by.array.min() == by.array.max()
    if not alike or np.dtype(x.dtype).kind != "i":
        raise Unsupported("a shift by a computed number of bits", where=c.path, got=eqn.primitive.name)
    bits, width = int(np.asarray(by.array).flat[0]), np.iinfo(x.dtype).bits
    bits = bits if 0 <= bits < width else width  # JAX reads the number without its sign
    if eqn.primitive.name == "shift_left":
        factor = c.known(np.asarray(0 if bits == width else 1 << bits, np.int64).astype(x.dtype))  # the top bit wraps
        return c.elementwise(eqn, [x], lambda value: c.op("Mul", value, factor))
    if bits >= width - 1:
        sign, zero = c.number(-1, x.dtype), c.number(0, x.dtype)
        return c.elementwise(eqn, [x], lambda value: c.op("Where", c.op("Less", value, zero), sign, zero))
    factor = c.number(1 << bits, x.dtype)
    return c.elementwise(eqn, [x], lambda value: c.op("Div", c.op("Sub", value, c.op("Mod", value, factor)), factor))


def same(c: Lowering, eqn: Any, x: Term) -> Term:
    """What changes nothing in inference: stop_gradient, copies, names, barriers of one operand."""
    del c, eqn
    return x


def same_all(c: Lowering, eqn: Any, *terms: Term) -> Sequence[Term]:
    """The same for several."""
    del c, eqn
    return terms


RULES: Final[Mapping[str, Callable[..., Any]]] = MappingProxyType(
    {**dict.fromkeys(DIRECT, direct), **dict.fromkeys(COMPARISONS, compare), "ne": unequal,
     **dict.fromkeys(LOGICAL, logical), "not": negation, "rem": remainder, "square": square, "rsqrt": rsqrt,
     "cbrt": cbrt, "exp2": exp2, "integer_pow": integer_pow, "erfc": erfc, "log1p": log1p, "expm1": expm1,
     "round": rounded, "atan2": atan2,
     "shift_left": shift, "shift_right_arithmetic": shift,
     "is_finite": is_finite, "select_n": select, "clamp": clamp, "convert_element_type": convert,
     **dict.fromkeys(("copy", "copy_p", "stop_gradient", "name", "sharding_constraint", "mesh_cast", "reshard"), same),
     "optimization_barrier": same_all}
)  # fmt: skip
