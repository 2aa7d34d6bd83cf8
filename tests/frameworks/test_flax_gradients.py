"""Gradients of imported Flax layers: weights, biases and initial states against torch, and finite differences."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from bridge import reference
from bridge.cell import Cell
from bridge.frameworks import flax_nnx
from bridge.layout import write_params
from tests.cells import random_cell, random_input
from tests.frameworks.test_flax_import import one_node
from tests.tolerances import assert_within_referee_bound

TORCH = {"LSTM": torch.nn.LSTM, "GRU": torch.nn.GRU, "RNN": torch.nn.RNN}
TIME, BATCH = 5, 3


def torch_gradients(
    cell: Cell, x: np.ndarray, h: np.ndarray, c: np.ndarray | None, dtype: Any
) -> dict[str, np.ndarray]:
    """Of sum(Y ** 2) + sum(Y_h ** 3), by torch's own parameter names, and of x and the initial states."""
    layer = TORCH[cell.op](cell.input_size, cell.hidden_size).to(dtype)
    with torch.no_grad():
        for name, value in write_params(f"torch.{cell.op}", cell).items():
            getattr(layer, f"{name}_l0").copy_(torch.tensor(value))
    values = {name: torch.tensor(value, dtype=dtype, requires_grad=True)
              for name, value in (("x", x), ("initial_h", h), ("initial_c", c)) if value is not None}  # fmt: skip
    states = (values["initial_h"], values["initial_c"]) if cell.op == "LSTM" else values["initial_h"]
    y, final = layer(values["x"], states)
    ((y**2).sum() + ((final[0] if cell.op == "LSTM" else final) ** 3).sum()).backward()
    own = {name.removesuffix("_l0"): parameter.grad for name, parameter in layer.named_parameters()}
    return {name: grad.numpy() for name, grad in (own | {name: v.grad for name, v in values.items()}).items()}


def in_flax_names(layout: str, cell: Cell, grads: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """torch's gradients as the layout stores them. A gate's biases have one gradient, whichever of them is stored."""
    from bridge.layout import read_params

    own = {name: value for name, value in grads.items() if name.startswith(("weight", "bias"))}
    read = read_params(f"torch.{cell.op}", own)
    bias_of_x = np.concatenate([read.Wb, np.zeros_like(read.Rb)], axis=1)
    bias_of_h = np.concatenate([np.zeros_like(read.Wb), read.Rb], axis=1)
    if cell.op == "LSTM":  # dense_h holds the bias
        return write_params(layout, replace(read, B=bias_of_h))
    if cell.op == "RNN":
        return write_params(layout, replace(read, B=bias_of_x))
    return write_params(layout, read)


@pytest.mark.parametrize("op", TORCH)
def test_nnx_gradients_agree_with_torch(op: str) -> None:
    rng = np.random.default_rng(11)
    cell = random_cell(op, 3, 4, rng, linear_before_reset=True) if op == "GRU" else random_cell(op, 3, 4, rng)
    x = random_input(cell, rng, time=TIME, batch=BATCH)
    h, c = (rng.uniform(-0.9, 0.9, (1, BATCH, 4)).astype(np.float32) for _ in range(2))
    net = flax_nnx.import_model(one_node(cell, states=True), None)
    states = {"initial_h": h, "initial_c": c} if op == "LSTM" else {"initial_h": h}

    def loss(net: Any, x: Any, states: Any) -> Any:
        Y, Y_h, *_ = net(x=x, **states)
        return (Y**2).sum() + (Y_h**3).sum()

    of_net, of_x, of_states = nnx.grad(loss, argnums=(0, 1, 2))(net, jnp.asarray(x), jax.tree.map(jnp.asarray, states))
    single, double = (
        torch_gradients(cell, x, h, c if op == "LSTM" else None, t) for t in (torch.float32, torch.float64)
    )
    layout = {"LSTM": "flax.nnx.OptimizedLSTMCell", "GRU": "bridge.GRUCell", "RNN": "flax.nnx.SimpleCell"}[op]
    wanted, referee = (in_flax_names(layout, cell, grads) for grads in (single, double))
    actual = {".".join(map(str, path[2:])): leaf[...] for path, leaf in nnx.to_flat_state(of_net)}
    assert actual.keys() == wanted.keys()
    for name, grad in actual.items():
        assert_within_referee_bound(grad, wanted[name], referee[name])
    for name, grad in {"x": of_x, **of_states}.items():
        assert_within_referee_bound(grad, single[name], double[name])


LENGTHS = np.array([5, 2, 0], np.int32)
HARD: dict[str, dict[str, Any]] = {
    "LSTM": {"kind": "LSTM", "peepholes": True, "direction": "bidirectional", "input_forget": True},
    "GRU reset before": {"kind": "GRU", "direction": "reverse"},
    "RNN": {"kind": "RNN", "activations": ("ScaledTanh",), "activation_alpha": (0.7,), "activation_beta": (1.2,)},
}


@pytest.mark.parametrize("fields", HARD.values(), ids=HARD)
def test_gradients_through_ragged_lengths_are_those_of_finite_differences(fields: dict[str, Any]) -> None:
    rng, step = np.random.default_rng(12), 1e-6
    cell = random_cell(inputs=3, hidden=2, rng=rng, dtype="float64", initial_h=1, **fields)
    x = random_input(cell, rng, time=TIME, batch=BATCH)
    with jax.enable_x64(True):
        net = flax_nnx.import_model(one_node(cell, lengths=True), None)
        grad = jax.grad(lambda x: (net(x, LENGTHS)[0] ** 2).sum())(jnp.asarray(x))

    def value(x: np.ndarray) -> float:
        return float((reference.evaluate(cell, x, lengths=LENGTHS)[0] ** 2).sum())

    for at in [(0, 0, 0), (1, 1, 2), (4, 0, 1), (3, 1, 0), (0, 2, 0)]:
        shift = np.zeros_like(x)
        shift[at] = step
        difference = (value(x + shift) - value(x - shift)) / (2 * step)
        assert grad[at] == pytest.approx(difference, abs=1e-8)
