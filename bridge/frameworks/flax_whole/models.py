"""A whole model of either API as one function of its parameters and its arguments, which leaves the model alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from flax import linen as nn
from flax import nnx
from flax.core import meta

from bridge.errors import Unsupported
from bridge.frameworks.flax_linen_read import bind
from bridge.frameworks.flax_linen_read import source_name as linen_name
from bridge.frameworks.flax_nnx_read import source_name as nnx_name
from bridge.frameworks.flax_whole import stubs_linen, stubs_nnx
from bridge.frameworks.flax_whole.given import given_linen, given_nnx
from bridge.frameworks.flax_whole.stubs import symbolic_pads


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model."""

    where: str
    """Its class."""
    source: str
    """What the metadata call it."""
    signature: Callable[..., Any]
    """What takes the arguments."""
    parameters: Sequence[Any]
    names: Sequence[str]
    """Dotted path of each parameter."""
    random: Sequence[bool]
    """Which of them are the state of random streams."""
    call: Callable[..., tuple[Any, Mapping[str, Any]]]
    """call(parameters, args, kwargs) -> what the model returns with the primitive in the place of its layers, and its
    state afterwards by path."""
    run: Callable[..., Any]
    """run(parameters, kwargs, states, finals) -> what the model itself returns; layers named in `states` start from
    them, and their final states go to `finals`."""


def _dotted(path: Any) -> str:
    parts = [str(getattr(part, "key", getattr(part, "idx", ""))) for part in path]
    return ".".join(part for part in parts if part)


def _check_callable(module: Any) -> None:
    if not callable(module):
        raise Unsupported("the module has no __call__ to trace", where=type(module).__name__,
                          do="export a module whose __call__ is the model")  # fmt: skip


def of_nnx(module: nnx.Module) -> Model:
    """An nnx module; every call runs on a copy of it."""
    _check_callable(module)
    definition, state = nnx.split(module)
    leaves, tree = jax.tree_util.tree_flatten_with_path(state)
    streams = {".".join(map(str, path)) for path, variable in nnx.to_flat_state(state)
               if isinstance(variable, nnx.RngState)}  # fmt: skip
    names = [_dotted(path) for path, _ in leaves]

    def copied(parameters: Sequence[Any]) -> Any:
        copy = nnx.merge(definition, jax.tree_util.tree_unflatten(tree, parameters))
        stubs_nnx.name_modules(copy)
        return copy

    def run(parameters: Sequence[Any], kwargs: Any, states: Any, finals: Any) -> Any:
        with given_nnx(states, finals):
            return copied(parameters)(**kwargs)

    def call(parameters: Sequence[Any], args: Any, kwargs: Any) -> tuple[Any, Mapping[str, Any]]:
        copy = copied(parameters)
        with stubs_nnx.stubbed(copy), symbolic_pads():
            result = copy(*args, **kwargs)
        kept = nnx.state(copy, nnx.Not(nnx.Any(nnx.RngState, nnx.Intermediate)))
        after = jax.tree_util.tree_flatten_with_path(kept)[0]
        return result, {_dotted(path): value for path, value in after}

    return Model(where=type(module).__name__, source=nnx_name(module), signature=module.__call__,
                 parameters=[leaf for _, leaf in leaves], names=names, random=[name in streams for name in names],
                 call=call, run=run)  # fmt: skip


def of_linen(source: tuple[nn.Module, Mapping[str, Any]]) -> Model:
    """A linen module and its variables."""
    module, variables = source
    _check_callable(module)
    bind(source)
    leaves, tree = jax.tree_util.tree_flatten_with_path(meta.unbox(dict(variables)))

    def run(parameters: Sequence[Any], kwargs: Any, states: Any, finals: Any) -> Any:
        with given_linen(states, finals):
            return module.apply(jax.tree_util.tree_unflatten(tree, parameters), **kwargs)

    def call(parameters: Sequence[Any], args: Any, kwargs: Any) -> tuple[Any, Mapping[str, Any]]:
        own = jax.tree_util.tree_unflatten(tree, parameters)
        with stubs_linen.stubbed(), symbolic_pads():
            return module.apply(own, *args, **kwargs), {}

    names = [_dotted(path[1:]) for path, _ in leaves]
    return Model(where=type(module).__name__, source=linen_name(module), signature=module.__call__,
                 parameters=[leaf for _, leaf in leaves], names=names, random=[False] * len(names),
                 call=call, run=run)  # fmt: skip
