"""Which activation a Flax cell's `gate_fn` or `activation_fn` is: functions are known by identity, never by name."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import MappingProxyType
from typing import Any, Final

from bridge.cell import Activation
from bridge.errors import NotRepresentable, Unsupported

ALIASES: Final = MappingProxyType({"sigmoid": "logistic", "tanh": "tanh"})
"""Names in jax.lax of functions that jax.nn has too, as other objects."""

KEYWORDS: Final = MappingProxyType({"leaky_relu": "negative_slope", "elu": "alpha"})
"""The one keyword that a functools.partial of a function may set: ONNX's alpha."""


def activation_of(function: Callable[..., Any], where: str) -> Activation:
    """What `function` computes, as an activation of the ONNX operators.

    Raises:
        Unsupported: a function that they do not have, or one that bridge does not know.
    """
    from bridge.layout import activation

    base: object = function
    keywords: dict[str, Any] = {}
    if isinstance(function, functools.partial) and not function.args:
        base, keywords = function.func, dict(function.keywords)
    name = function_name(base)
    meaning = None if name is None else activation("flax", name)
    if keywords and isinstance(meaning, Activation) and set(keywords) == {KEYWORDS.get(str(name))}:
        meaning = meaning._replace(alpha=float(next(iter(keywords.values()))))
    elif keywords:
        meaning = None
    if not isinstance(meaning, Activation):
        raise Unsupported("this activation is none of the ONNX recurrent operators'", where=where,
                          got=name or getattr(function, "__name__", repr(function)),
                          do="use a function of jax.nn that ONNX has: sigmoid, tanh, relu, soft_sign, softplus, elu, "
                             "leaky_relu, hard_sigmoid, identity")  # fmt: skip
    return meaning


def function_of(meaning: Activation | str, where: str) -> Callable[..., Any]:
    """The jax.nn function of that name, or that computes `meaning`; the inverse of `activation_of`.

    Raises:
        NotRepresentable: jax.nn has no such function.
    """
    import jax

    name, keywords = spelled(meaning, where)
    function: Callable[..., Any] = getattr(jax.nn, name)
    return functools.partial(function, **keywords) if keywords else function


def spelled(meaning: Activation | str, where: str) -> tuple[str, dict[str, float]]:
    """The name in jax.nn of what computes `meaning`, and the keyword that it takes where it is not its default.

    Raises:
        NotRepresentable: jax.nn has no such function.
    """
    from bridge.layout import activation

    name = activation("flax", meaning) if isinstance(meaning, Activation) else meaning
    if isinstance(name, str):
        return name, {}
    for name, keyword in KEYWORDS.items():
        base = activation("flax", name)
        if isinstance(meaning, Activation) and isinstance(base, Activation) and meaning.alpha is not None \
                and base.name == meaning.name:  # fmt: skip
            return name, {keyword: meaning.alpha}
    raise NotRepresentable(f"jax.nn has no function that computes {meaning}", where=where)


def function_name(function: object) -> str | None:
    """The name in jax.nn of the function that `function` is, None where it is none of them."""
    import jax

    for name in dir(jax.nn):
        if getattr(jax.nn, name) is function:
            return name
    for name, alias in ALIASES.items():
        if getattr(jax.lax, alias) is function:
            return name
    return None
