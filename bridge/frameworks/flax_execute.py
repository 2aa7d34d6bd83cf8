"""Run Flax layers natively: the module's own forward pass, named as the exported graph names its ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from bridge.errors import BadInput
from bridge.frameworks.flax_layers import Direction, Layer

Forward = Callable[..., Any]
"""forward(layer, x, **options of the native call) -> what the native module returns."""


def run_graph(
    names: Sequence[str], model: Callable[..., Any], feeds: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Outputs of an imported model by name."""
    result = model(**feeds)
    values = result if isinstance(result, tuple) else (result,)
    return {name: np.asarray(value) for name, value in zip(names, values, strict=True)}


def run_layers(layers: Sequence[Layer], feeds: Mapping[str, np.ndarray], forward: Forward) -> dict[str, np.ndarray]:
    """Outputs by name. Which of lengths and initial states are there is read off `feeds`.

    Raises:
        BadInput: missing or unexpected inputs.
    """
    import jax.numpy as jnp

    values = {name: jnp.asarray(value) for name, value in feeds.items()}
    if "input" not in values:
        raise BadInput("missing inputs", where="execute", got=", ".join(feeds), expected="input")
    x, lengths = values.pop("input"), values.pop("lengths", None)
    streaming = any("initial_" in name for name in values)
    outputs: dict[str, Any] = {}
    for layer in layers:
        prefix = "" if len(layers) == 1 else f"{layer.path}."
        carry = _carry(layer, values, prefix)
        final, x = _run(layer, x, carry, lengths, forward)
        if len(layers) == 1 or streaming or layer.return_carry:
            outputs |= _states(layer, final, prefix)
    if values:
        raise BadInput("unexpected inputs", where="execute", got=", ".join(values))
    if not layers[-1].is_step:
        outputs = {"output": x, **outputs}
    return {name: np.asarray(value) for name, value in outputs.items()}


def _run(layer: Layer, x: Any, carry: Any, lengths: Any, forward: Forward) -> tuple[Any, Any]:
    if layer.is_step:
        return forward(layer, x, carry=carry)  # type: ignore[no-any-return]
    options = {"initial_carry": carry, "seq_lengths": lengths}
    given = {name: value for name, value in options.items() if value is not None}
    final, y = forward(layer, x, return_carry=True, **given)
    return final, y


def _suffixes(layer: Layer) -> Sequence[str]:
    return ("_forward", "_backward") if layer.is_bidirectional else ("",)


def _carry(layer: Layer, values: dict[str, Any], prefix: str) -> Any:
    """The initial carry in Flax's order (c, h), taken out of `values`; None where none is given."""
    carries = []
    for each, suffix in zip(layer.directions, _suffixes(layer), strict=True):
        names = [f"{prefix}initial_{state}{suffix}" for state in each.states]
        given = [values.pop(name) for name in names if name in values]
        if given and len(given) < len(names):
            raise BadInput("missing inputs", where="execute", expected=", ".join(names))
        carries.append(_to_carry(given))
    if len(carries) == 1:
        return carries[0]
    if any(carry is None for carry in carries):
        if not all(carry is None for carry in carries):
            raise BadInput("initial states of one direction only", where="execute")
        return None
    return tuple(carries)


def _to_carry(states: Sequence[Any]) -> Any:
    if not states:
        return None
    return states[0] if len(states) == 1 else (states[1], states[0])


def _from_carry(direction: Direction, carry: Any) -> Sequence[Any]:
    return (carry[1], carry[0]) if len(direction.states) == 2 else (carry,)


def _states(layer: Layer, final: Any, prefix: str) -> dict[str, Any]:
    carries = final if layer.is_bidirectional else (final,)
    return {
        f"{prefix}{state}_n{suffix}": value
        for each, suffix, carry in zip(layer.directions, _suffixes(layer), carries, strict=True)
        for state, value in zip(each.states, _from_carry(each, carry), strict=True)
    }
