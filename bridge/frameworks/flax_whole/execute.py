"""Run a whole Flax model's own forward pass on arrays named as its export names them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from bridge.errors import BadInput
from bridge.frameworks.flax_whole.models import Model
from bridge.frameworks.flax_whole.signature import named_leaves


def run_whole(model: Model, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The model's own outputs by name; inputs by the names of the arguments of `__call__`.

    Raises:
        BadInput: names that are no arguments.
    """
    values = {name: jnp.asarray(value) for name, value in feeds.items()}
    signature = inspect.signature(model.signature)
    try:
        signature.bind(**values)
    except TypeError as error:
        raise BadInput(f"__call__ does not take these inputs: {error}", where=model.where, got=", ".join(feeds),
                       expected=str(signature)) from None  # fmt: skip
    result, _ = model.call(list(model.parameters), (), values, False)
    return {name: np.asarray(value) for name, value in named_leaves(result).items()}
