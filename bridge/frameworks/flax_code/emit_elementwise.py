"""Elementwise operators as Python expressions."""

# ruff: noqa: A002  (an emitter's signature is the ONNX schema)
from __future__ import annotations

import re
from collections.abc import Callable
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from bridge.frameworks.flax_code.code import jax_name, literal
from bridge.frameworks.flax_code.operands import Operand, Sizes, Tensor
from bridge.frameworks.flax_code.registry import emits
from bridge.frameworks.flax_code.site import Site, as_sizes
from bridge.ops.dtypes import numpy_dtype

UNARY: Final = MappingProxyType(
    {"Abs": "jnp.abs({})", "Acos": "jnp.arccos({})", "Acosh": "jnp.arccosh({})", "Asin": "jnp.arcsin({})",
     "Asinh": "jnp.arcsinh({})", "Atan": "jnp.arctan({})", "Atanh": "jnp.arctanh({})", "BitwiseNot": "~{}",
     "Ceil": "jnp.ceil({})", "Cos": "jnp.cos({})", "Cosh": "jnp.cosh({})", "Erf": "jax.scipy.special.erf({})",
     "Exp": "jnp.exp({})", "Floor": "jnp.floor({})", "HardSwish": "jax.nn.hard_silu({})", "IsNaN": "jnp.isnan({})",
     "Log": "jnp.log({})", "Mish": "jax.nn.mish({})", "Neg": "-{}", "Not": "~{}", "Reciprocal": "1.0 / {}",
     "Relu": "jax.nn.relu({})", "Round": "jnp.round({})", "Sigmoid": "jax.nn.sigmoid({})", "Sign": "jnp.sign({})",
     "Sin": "jnp.sin({})", "Sinh": "jnp.sinh({})", "Softplus": "jax.nn.softplus({})",
     "Softsign": "jax.nn.soft_sign({})", "Sqrt": "jnp.sqrt({})", "Tan": "jnp.tan({})", "Tanh": "jnp.tanh({})"}
)  # fmt: skip
"""Operators of one input and no attributes."""

BINARY: Final = MappingProxyType(
    {"Add": "{} + {}", "And": "{} & {}", "BitwiseAnd": "{} & {}", "BitwiseOr": "{} | {}", "BitwiseXor": "{} ^ {}",
     "Equal": "{} == {}", "Greater": "{} > {}", "GreaterOrEqual": "{} >= {}",
     "Less": "{} < {}", "LessOrEqual": "{} <= {}", "Mul": "{} * {}", "Or": "{} | {}",
     "Sub": "{} - {}", "Xor": "{} ^ {}"}
)  # fmt: skip
"""Operators of two inputs that broadcast."""

WITH_ALPHA: Final = MappingProxyType(
    {"Celu": ("jax.nn.celu", 1.0), "Elu": ("jax.nn.elu", 1.0), "LeakyRelu": ("jax.nn.leaky_relu", 0.01)}
)
"""Operators of one input and a number alpha: the function that takes both, and what alpha is where none is given."""

SELU: Final = (1.6732631921768188, 1.0507010221481323)
"""Alpha and gamma of Selu where none are given: in float32 those of jax.nn.selu."""

ON_SIZES: Final[MappingProxyType[str, Callable[[Any, Any], Any]]] = MappingProxyType(
    {"Add": lambda a, b: a + b, "Sub": lambda a, b: a - b, "Mul": lambda a, b: a * b, "Div": lambda a, b: a // b}
)
"""Arithmetic of sizes: non-negative, where Python's // is ONNX's division."""

SYMBOLS: Final = MappingProxyType({"Add": "+", "Sub": "-", "Mul": "*", "Div": "//"})


def unary(op: str, template: str) -> Callable[..., Operand]:
    """The emitter of an operator in UNARY."""

    @emits(op)
    def emit(site: Site, X: Operand) -> Operand:
        made = site.through(X, template.format)
        if op == "Sigmoid" and isinstance(made, Tensor) and isinstance(X, Tensor):
            made.sigmoid_of = X
        return made

    return emit


def binary(op: str, template: str) -> Callable[..., Operand]:
    """The emitter of an operator in BINARY; Add becomes the bias of a linear layer before it."""

    @emits(op)
    def emit(site: Site, A: Operand, B: Operand) -> Operand:
        absorbed = _bias(site, A, B, 0) or _bias(site, B, A, 1) if op == "Add" else None
        if absorbed is not None:
            return absorbed
        if (sizes := _on_sizes(op, A, B)) is not None:
            return sizes
        for x, gate in ((A, B), (B, A)):
            if op == "Mul" and isinstance(gate, Tensor) and isinstance(x, Tensor) and gate.sigmoid_of is x:
                return site.through(x, "jax.nn.silu({})".format)
        return combine(site, A, B, template)

    return emit


def with_alpha(op: str, function: str, default: float) -> Callable[..., Operand]:
    """The emitter of an operator in WITH_ALPHA."""

    @emits(op)
    def emit(site: Site, X: Operand, *, alpha: float = default) -> Operand:
        return site.through(X, lambda text: f"{function}({text}, {literal(np.float32(alpha))})")

    return emit


EMITTERS: Final = (
    *(unary(*row) for row in UNARY.items()),
    *(binary(*row) for row in BINARY.items()),
    *(with_alpha(op, *row) for op, row in WITH_ALPHA.items()),
)


def combine(site: Site, A: Operand, B: Operand, template: str) -> Operand:
    """Two operands that broadcast; views of the same axes are combined before the view."""
    views = [operand.view for operand in (A, B) if isinstance(operand, Tensor)]
    if None not in views and len({view[1] for view in views if view}) == 1:
        scalars = [isinstance(operand, Tensor) or (isinstance(operand, np.ndarray) and operand.size == 1)
                   for operand in (A, B)]  # fmt: skip
        bases = [operand.view[0] if isinstance(operand, Tensor) and operand.view else operand for operand in (A, B)]
        if all(scalars) and len({base.rank for base in bases if isinstance(base, Tensor)}) == 1:
            dims = _joined(*(base.dims for base in bases if isinstance(base, Tensor)))
            flat = [base.reshape(()) if isinstance(base, np.ndarray) else base for base in bases]
            made = site.code.assign(template.format(*map(site.ref, flat)), dims, site.dtype())
            axes = next(view[1] for view in views if view)
            return site.code.view(made, axes)
    return site.emit(template.format(*(site.ref(_scalar(operand, other)) for operand, other in ((A, B), (B, A)))))


def _joined(*shapes: Any) -> Any:
    """The common shape of operands of one rank, None where it is not certain."""
    if any(shape is None for shape in shapes):
        return None
    return tuple(next((d for d in dims if d != 1), 1) for dims in zip(*shapes, strict=True))


def _scalar(operand: Operand, other: Operand) -> Operand:
    """A constant of one element without axes, where the other operand brings as many."""
    if isinstance(operand, Sizes) and len(operand.items) == 1 and isinstance(other, Tensor) and other.rank:
        return Sizes(operand.items, is_scalar=True)
    if not (isinstance(operand, np.ndarray) and operand.size == 1 and isinstance(other, Tensor)):
        return operand
    return operand if other.rank is None or operand.ndim > other.rank else operand.reshape(())


def _on_sizes(op: str, A: Operand, B: Operand) -> Operand | None:
    if op not in ON_SIZES or not (isinstance(A, Sizes) or isinstance(B, Sizes)):
        return None
    first, second = as_sizes(A), as_sizes(B)
    if first is None or second is None or len(first.items) != len(second.items):
        return None
    items = [
        ON_SIZES[op](a, b) if isinstance(a, int) and isinstance(b, int) else f"({a} {SYMBOLS[op]} {b})"
        for a, b in zip(first.items, second.items, strict=True)
    ]
    return Sizes(tuple(items), first.is_scalar and second.is_scalar)


def _bias(site: Site, x: Operand, bias: Operand, at: int) -> Operand | None:
    """`x` with `bias` put into the linear layer that made it, where nobody else reads its output."""
    base = x.view[0] if isinstance(x, Tensor) and x.view is not None else x
    if not isinstance(base, Tensor) or base.linear is None or not isinstance(bias, np.ndarray):
        return None
    layer, wide = base.linear, base.linear.weights["kernel"].shape[1]
    if bias.dtype.kind != "f" or bias.shape[-1:] != (wide,) or bias.size != wide or not site.read_once(at):
        return None
    if isinstance(x, Tensor) and x.view is not None and x.view[1][-1] != (base.rank or 0) - 1:
        return None
    layer.weights["bias"] = bias.reshape(-1)
    layer.arguments.remove("use_bias=False")
    site.code.rename(layer, site.layer_name("linear", 1 - at))
    base.linear = None
    return x


@emits("Identity")
@emits("Dropout")
def same(site: Site, input: Operand, *_: Operand, **__: object) -> Operand:
    """The input: dropout does nothing in inference."""
    if site.op_type == "Dropout" and site.used(1):
        site.refuse("the mask of a Dropout is read")
    return input


@emits("Pow")
def power(site: Site, X: Operand, Y: Operand) -> Operand:
    """X to the power of Y."""
    if isinstance(Y, np.ndarray) and Y.size == 1 and float(Y.reshape(())) == 2.0 and Y.ndim <= 1:
        return site.through(X, "jnp.square({})".format)
    return combine(site, X, Y, "jnp.power({}, {})")


@emits("Div")
def div(site: Site, A: Operand, B: Operand) -> Operand:
    """A quotient; of integers it is truncated."""
    if (sizes := _on_sizes("Div", A, B)) is not None:
        return sizes
    return combine(site, A, B, "{} / {}" if site.dtype().kind == "f" else "jax.lax.div({}, {})")


@emits("Mod")
def mod(site: Site, A: Operand, B: Operand, *, fmod: int = 0) -> Operand:
    """The remainder: with the sign of the divisor, with fmod of the dividend."""
    return combine(site, A, B, "jnp.fmod({}, {})" if fmod else "jnp.mod({}, {})")


@emits("Max")
@emits("Min")
def extreme(site: Site, *data: Operand) -> Operand:
    """The larger or smaller element of each."""
    name = {"Max": "jnp.maximum", "Min": "jnp.minimum"}[site.op_type]
    text = site.ref(data[0])
    for other in data[1:]:
        text = f"{name}({text}, {site.ref(other)})"
    return site.emit(text)


@emits("Where")
def where(site: Site, condition: Operand, X: Operand, Y: Operand) -> Operand:
    """One of two, by the condition."""
    return site.emit(f"jnp.where({site.ref(condition)}, {site.ref(X)}, {site.ref(Y)})")


@emits("Clip")
def clip(site: Site, input: Operand, low: Operand = None, high: Operand = None, *, min: Any = None,
         max: Any = None) -> Operand:  # fmt: skip
    """Bounds below and above, as inputs or as attributes."""
    bounds = [low if min is None else np.asarray(min, np.float32), high if max is None else np.asarray(max, np.float32)]
    texts = ["None" if bound is None else site.ref(bound) for bound in bounds]
    named = f"jnp.clip({{}}, {', '.join(texts)})" if texts[1] != "None" else f"jnp.maximum({{}}, {texts[0]})"
    return input if texts == ["None", "None"] else site.through(input, named.format)


@emits("Cast")
def cast(site: Site, input: Operand, *, to: int, saturate: int = 1) -> Operand:
    """Another dtype; 64 bits become the 32 of JAX."""
    return _as_dtype(site, input, numpy_dtype(to, site.where), saturate)


def _as_dtype(site: Site, input: Operand, wanted: np.dtype[Any], saturate: int) -> Operand:
    if not saturate:
        site.refuse("Cast without saturation")
    if isinstance(input, Sizes) and wanted.kind == "i":
        return input
    if isinstance(input, Tensor) and input.dtype == wanted:
        return input
    if wanted == np.float64:
        site.refuse("float64 needs x64, and generated code is float32")
    name = jax_name(wanted)
    if isinstance(input, Sizes) and wanted == np.bool_ and all(map(_is_size, input.items)):
        return np.ones(() if input.is_scalar else len(input.items), np.bool_)
    if isinstance(input, Sizes):
        return site.emit(f"jnp.asarray({site.ref(input)}, jnp.{name})")
    return site.through(input, lambda text: f"{text}.astype(jnp.{name})")


def _is_size(item: int | str) -> bool:
    """Whether this is the size of an axis itself: at least 1, for nothing that has a 0 among its sizes is run."""
    return (isinstance(item, int) and item > 0) or re.fullmatch(r"§\d+§\.shape\[\d+\]", str(item)) is not None


@emits("HardSigmoid")
def hard_sigmoid(site: Site, X: Operand, *, alpha: float = 0.2, beta: float = 0.5) -> Operand:
    """clip(alpha x + beta, 0, 1)."""
    slope, offset = literal(np.float32(alpha)), literal(np.float32(beta))
    return site.through(X, lambda text: f"jnp.clip({slope} * {text} + {offset}, 0.0, 1.0)")


@emits("Gelu", domain="")
def gelu(site: Site, X: Operand, *, approximate: Any = "none") -> Operand:
    """The Gaussian error linear unit."""
    name = approximate.decode() if isinstance(approximate, bytes) else approximate
    return site.through(X, lambda text: f"jax.nn.gelu({text}, approximate={name == 'tanh'})")


@emits("Selu")
def selu(site: Site, X: Operand, *, alpha: float = SELU[0], gamma: float = SELU[1]) -> Operand:
    """Gamma times elu; jax.nn.selu has the default numbers."""
    if np.allclose((alpha, gamma), SELU, rtol=np.finfo(np.float32).eps, atol=0):
        return site.through(X, "jax.nn.selu({})".format)
    scale, inner = literal(np.float32(gamma)), literal(np.float32(alpha))
    return site.through(X, lambda text: f"{scale} * jax.nn.elu({text}, {inner})")


@emits("Swish")
def swish(site: Site, X: Operand, *, alpha: float = 1.0) -> Operand:
    """X sigmoid(alpha x)."""
    if alpha == 1.0:
        return site.through(X, "jax.nn.silu({})".format)
    return site.through(X, lambda text: f"{text} * jax.nn.sigmoid({literal(np.float32(alpha))} * {text})")


@emits("ThresholdedRelu")
def thresholded_relu(site: Site, X: Operand, *, alpha: float = 1.0) -> Operand:
    """X above alpha, 0 elsewhere."""
    return site.through(X, lambda text: f"jnp.where({text} > {literal(np.float32(alpha))}, {text}, 0.0)")


@emits("Shrink")
def shrink(site: Site, input: Operand, *, bias: float = 0.0, lambd: float = 0.5) -> Operand:
    """The input moved by a bias towards 0 beyond +-lambd, 0 between."""
    edge, by = literal(np.float32(lambd)), literal(np.float32(bias))
    return site.through(input, lambda text: f"jnp.where({text} > {edge}, {text} - {by}, "
                                            f"jnp.where({text} < -({edge}), {text} + {by}, 0.0))")  # fmt: skip


@emits("PRelu")
def p_relu(site: Site, X: Operand, slope: Operand) -> Operand:
    """X, or slope times x below 0."""
    x = site.ref(X)
    return site.emit(f"jnp.where({x} >= 0, {x}, {site.ref(slope)} * {x})", X.dims if isinstance(X, Tensor) else None)


@emits("IsInf")
def is_inf(site: Site, X: Operand, *, detect_negative: int = 1, detect_positive: int = 1) -> Operand:
    """Whether each is infinite, of the signs that are asked for."""
    if not detect_negative and not detect_positive:
        site.refuse("IsInf that looks for neither sign")
    name = "isinf" if detect_negative and detect_positive else "isneginf" if detect_negative else "isposinf"
    return site.through(X, f"jnp.{name}({{}})".format)


@emits("Sum")
@emits("Mean")
def total(site: Site, *data_0: Operand) -> Operand:
    """All inputs added; their mean."""
    text = " + ".join(map(site.ref, data_0))
    return site.emit(text if site.op_type == "Sum" else f"({text}) / {len(data_0)}")


@emits("CastLike")
def cast_like(site: Site, input: Operand, target_type: Operand, *, saturate: int = 1) -> Operand:
    """The dtype of another value."""
    if not isinstance(target_type, Tensor | np.ndarray):
        site.refuse("CastLike of something that is no array")
    return _as_dtype(site, input, target_type.dtype, saturate)
