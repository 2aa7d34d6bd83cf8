"""Haiku's own cores with given parameters. Source: dm-haiku 0.0.17, haiku/_src/recurrent.py."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from tests.conformance.native import Options, Params, Result, States, reject, zeros_or

SCOPES = {"LSTM": "lstm", "GRU": "gru", "VanillaRNN": "vanilla_rnn"}
OPTIONS = {"LSTM": (), "GRU": (), "VanillaRNN": ("double_bias",)}


def layer(kind: str, params: Params, x: np.ndarray, states: States, options: Options) -> Result:
    """hk.dynamic_unroll of the core under hk.transform, the parameters injected."""
    import haiku as hk
    import jax

    reject(options, OPTIONS[kind])
    arguments = dict(options)
    if kind == "VanillaRNN":
        arguments.setdefault("double_bias", "linear_1.b" in params)
    tree = _tree(SCOPES[kind], params)
    widest = next(value for name, value in params.items() if name.endswith("b")).shape[-1]
    hidden = widest // {"LSTM": 4, "GRU": 3, "VanillaRNN": 1}[kind]
    h, c = (zeros_or(state, x.shape[1], hidden) for state in states)

    def forward(sequence: np.ndarray) -> Any:
        core = getattr(hk, kind)(hidden, **arguments)
        return hk.dynamic_unroll(core, sequence, hk.LSTMState(hidden=h, cell=c) if kind == "LSTM" else h)

    transformed = hk.without_apply_rng(hk.transform(forward))
    _check(transformed.init(jax.random.PRNGKey(0), x), tree)
    output, final = transformed.apply(tree, x)
    final_h, final_c = (final.hidden, final.cell) if kind == "LSTM" else (final, None)
    return Result(np.asarray(output), np.asarray(final_h), None if final_c is None else np.asarray(final_c))


def _tree(scope: str, params: Params) -> dict[str, dict[str, np.ndarray]]:
    tree: dict[str, dict[str, np.ndarray]] = {}
    for name, value in params.items():
        *modules, leaf = name.split(".")
        tree.setdefault("/".join([scope, *modules]), {})[leaf] = value
    return tree


def _check(own: Any, given: Any) -> None:
    shapes = [
        {module: {name: value.shape for name, value in leaves.items()} for module, leaves in tree.items()}
        for tree in (own, given)
    ]
    if shapes[0] != shapes[1]:
        raise KeyError(f"haiku has {shapes[0]}, given {shapes[1]}")


EXECUTORS = {f"haiku.{kind}": partial(layer, kind) for kind in SCOPES}
