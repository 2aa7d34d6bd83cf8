"""Run a whole Flax model's own forward pass on arrays named as its export names them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Final

import jax.numpy as jnp
import numpy as np

from bridge.errors import BadInput
from bridge.frameworks.flax_whole.models import Model
from bridge.frameworks.flax_whole.signature import named_leaves

STATES: Final = ("initial_h", "initial_c")


def run_whole(model: Model, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The model's own outputs by name; inputs by the names of the arguments of `__call__`.

    States such as `encoder.initial_h` are given to that layer, as the graph does.

    Raises:
        BadInput: names that are neither arguments nor states of a layer.
    """
    values = {name: jnp.asarray(value) for name, value in feeds.items()}
    states: dict[str, dict[str, Any]] = {}
    for name in [name for name in values if name.rpartition(".")[2] in STATES]:
        path, _, state = name.rpartition(".")
        states.setdefault(path, {})[state] = values.pop(name)
    signature = inspect.signature(model.signature)
    try:
        signature.bind(**values)
    except TypeError as error:
        raise BadInput(f"__call__ does not take these inputs: {error}", where=model.where, got=", ".join(feeds),
                       expected=str(signature)) from None  # fmt: skip
    finals: dict[str, Any] = {}
    result = model.run(list(model.parameters), values, states, finals)
    return {name: np.asarray(value) for name, value in (named_leaves(result) | finals).items()}
