"""Layers that start from given states and hand out their final ones, for a native run with states as inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from flax import linen as nn
from flax import nnx

from bridge.errors import BadInput
from bridge.frameworks.flax_whole.stubs_nnx import PATH

States = Mapping[str, Mapping[str, Any]]
"""initial_h[, initial_c] by path of the layer."""


@contextmanager
def given_nnx(states: States, finals: dict[str, Any]) -> Iterator[None]:
    """nnx.RNNs of a copy whose modules know their paths start from `states`; final states go to `finals`."""
    original = nnx.RNN.__call__

    def call(self: Any, inputs: Any, **options: Any) -> Any:
        path = getattr(self, PATH, "") or "rnn"
        wanted = options.get("return_carry")
        wanted = self.return_carry if wanted is None else wanted
        if path not in states or options.get("initial_carry") is not None:
            return original(self, inputs, **options)
        options = {**options, "initial_carry": _carry(states[path]), "return_carry": True}
        carry, y = original(self, inputs, **options)
        finals.update(_named(path, carry))
        return (carry, y) if wanted else y

    nnx.RNN.__call__ = call
    try:
        yield
    finally:
        nnx.RNN.__call__ = original
    _check_used(states, finals)


@contextmanager
def given_linen(states: States, finals: dict[str, Any]) -> Iterator[None]:
    """The same for linen: an nn.Bidirectional hands its states to its two layers."""

    def intercept(original: Any, args: tuple[Any, ...], options: dict[str, Any], context: Any) -> Any:
        module = context.module
        kind = type(module)
        if context.method_name != "__call__" or kind not in (nn.RNN, nn.Bidirectional):
            return original(*args, **options)
        path = ".".join(module.path) or "rnn"
        paths = [path] if kind is nn.RNN else [f"{path}.forward_rnn", f"{path}.backward_rnn"]
        if not all(each in states for each in paths) or options.get("initial_carry") is not None:
            return original(*args, **options)
        carries = tuple(_carry(states[each]) for each in paths)
        wanted = options.get("return_carry")
        wanted = module.return_carry if wanted is None else wanted
        options = {**options, "initial_carry": carries if len(paths) == 2 else carries[0], "return_carry": True}
        carry, y = original(*args, **options)
        for each, own in zip(paths, carry if len(paths) == 2 else (carry,), strict=True):
            finals.update(_named(each, own))
        return (carry, y) if wanted else y

    with nn.intercept_methods(intercept):
        yield
    _check_used(states, finals)


def _carry(states: Mapping[str, Any]) -> Any:
    return (states["initial_c"], states["initial_h"]) if "initial_c" in states else states["initial_h"]


def _named(path: str, carry: Any) -> dict[str, Any]:
    if isinstance(carry, tuple):
        return {f"{path}.h_n": carry[1], f"{path}.c_n": carry[0]}
    return {f"{path}.h_n": carry}


def _check_used(states: States, finals: Mapping[str, Any]) -> None:
    if unused := [path for path in states if f"{path}.h_n" not in finals]:
        raise BadInput("states of no layer that is called without a carry", where="execute", got=", ".join(unused))
