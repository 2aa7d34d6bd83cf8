"""Gradients of imported nnx and linen layers against torch's autograd: weights, biases, input and initial states.

Where each gate's gradient lies in the flax parameters is written down here by hand, apart from the layouts.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import bridge
from tests.tolerances import assert_within_referee_bound

jax = pytest.importorskip("jax", reason="needs the extra flax")
torch = pytest.importorskip("torch", reason="needs the extra torch")

INPUTS, HIDDEN, LAYERS, TIME, BATCH = 3, 5, 2, 6, 3
GATES = {"LSTM": "ifgo", "GRU": "rzn", "RNN": "x"}
LENGTHS = np.array([4, 6, 1], np.int32)

FRAMEWORK = "gradients"

Gradients = dict[str, np.ndarray]


def torch_gradients(module: Any, arrays: Gradients, ragged: bool) -> Gradients:
    """Gradients of the loss in the module's own dtype, by parameter name and by input name."""
    dtype = next(module.parameters()).dtype
    module.zero_grad()
    feeds = {name: torch.tensor(value, dtype=dtype, requires_grad=True) for name, value in arrays.items()}
    x, *states = feeds.values()
    if ragged:
        x = torch.nn.utils.rnn.pack_padded_sequence(x, torch.tensor(LENGTHS), enforce_sorted=False)
    output, final = module(x, tuple(states) if len(states) == 2 else states[0])
    if ragged:
        output, _ = torch.nn.utils.rnn.pad_packed_sequence(output, total_length=TIME)
    outputs = (output, *final) if len(states) == 2 else (output, final)
    pairs = zip(outputs, weights(outputs), strict=True)
    sum((value * torch.tensor(weight, dtype=dtype)).sum() for value, weight in pairs).backward()
    return {name: value.grad.numpy() for name, value in {**dict(module.named_parameters()), **feeds}.items()}


def weights(outputs: Any) -> list[np.ndarray]:
    """Fixed random weights of a scalar loss over every output."""
    rng = np.random.default_rng(11)
    return [rng.uniform(-1, 1, tuple(value.shape)).astype(np.float32) for value in outputs]


def inputs(kind: str) -> Gradients:
    rng = np.random.default_rng(5)
    state = (2 * LAYERS, BATCH, HIDDEN)
    arrays = {"input": rng.standard_normal((TIME, BATCH, INPUTS)), "initial_h": rng.uniform(-0.8, 0.8, state)}
    arrays |= {"initial_c": rng.uniform(-0.8, 0.8, state)} if kind == "LSTM" else {}
    return {name: value.astype(np.float32) for name, value in arrays.items()}


def expected_tree(kind: str, api: str, gradients: Gradients) -> dict[str, np.ndarray]:
    """torch's gradients under the names that the imported module has."""
    tree = {}
    for layer in range(LAYERS):
        for direction, suffix in (("forward", ""), ("backward", "_reverse")):
            own = {
                name: gradients[f"{name}_l{layer}{suffix}"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            }
            leaves = PLACES[kind, api](own)
            tree |= {f"l{layer}.{direction}_cell.{name}": value for name, value in leaves.items()}
    return tree


def by_gate(kind: str, own: Gradients) -> dict[str, dict[str, np.ndarray]]:
    """{"weight_ih": {gate: [I, H]}, ..., "bias_hh": {gate: [H]}}"""
    return {
        name: {gate: part.T for gate, part in zip(GATES[kind], np.split(value, len(GATES[kind])), strict=True)}
        for name, value in own.items()
    }


def _linen_lstm(own: Gradients) -> Gradients:
    gates = by_gate("LSTM", own)
    return {
        **{f"i{gate}.kernel": value for gate, value in gates["weight_ih"].items()},
        **{f"h{gate}.kernel": value for gate, value in gates["weight_hh"].items()},
        **{f"h{gate}.bias": value for gate, value in gates["bias_hh"].items()},
    }


def _linen_gru(own: Gradients) -> Gradients:
    gates = by_gate("GRU", own)
    return {
        **{f"i{gate}.kernel": value for gate, value in gates["weight_ih"].items()},
        **{f"h{gate}.kernel": value for gate, value in gates["weight_hh"].items()},
        **{f"i{gate}.bias": value for gate, value in gates["bias_ih"].items()},
        "hn.bias": gates["bias_hh"]["n"],
    }


def _own_gru(own: Gradients) -> Gradients:
    names = {
        "weight_ih": "kernel",
        "weight_hh": "recurrent_kernel",
        "bias_ih": "input_bias",
        "bias_hh": "recurrent_bias",
    }
    gates = by_gate("GRU", own)
    return {new: np.concatenate([gates[old][gate] for gate in "zrn"], axis=-1) for old, new in names.items()}


def _dense(bias: str) -> Any:
    def place(own: Gradients) -> Gradients:
        source = {"dense_i": "bias_ih", "dense_h": "bias_hh"}[bias]
        return {"dense_i.kernel": own["weight_ih"].T, "dense_h.kernel": own["weight_hh"].T, f"{bias}.bias": own[source]}

    return place


PLACES = {
    ("LSTM", "nnx"): _dense("dense_h"),
    ("GRU", "nnx"): _own_gru,
    ("RNN", "nnx"): _dense("dense_i"),
    ("LSTM", "linen"): _linen_lstm,
    ("GRU", "linen"): _linen_gru,
    ("RNN", "linen"): lambda own: {
        "i.kernel": own["weight_ih"].T,
        "h.kernel": own["weight_hh"].T,
        "i.bias": own["bias_ih"],
    },
}


def flax_gradients(api: str, model: Any, feeds: Gradients, ragged: bool) -> tuple[Gradients, Gradients]:
    """The gradients of the same loss: by dotted parameter name, and by input name."""
    imported = bridge.to_flax(model, api=api)
    if api == "linen":
        module, variables = imported
        params, apply = variables["params"], lambda p, *args: module.apply({"params": p}, *args)
    else:
        from flax import nnx

        graph, params, rest = nnx.split(imported, nnx.Param, ...)
        apply = lambda p, *args: nnx.merge(graph, p, rest)(*args)  # noqa: E731

    lengths = {"lengths": LENGTHS} if ragged else {}
    names = list((imported[0] if api == "linen" else imported).input_names)

    def loss(p: Any, arrays: Gradients) -> Any:
        outputs = apply(p, *[{**arrays, **lengths}[name] for name in names])
        return sum((value * weight).sum() for value, weight in zip(outputs, weights(outputs), strict=True))

    of_params, of_inputs = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, feeds)
    return flat(of_params), {name: np.asarray(value) for name, value in of_inputs.items()}


def flat(tree: Any) -> Gradients:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {
        ".".join(str(getattr(key, "key", key)) for key in path if getattr(key, "name", "") != "value"): np.asarray(
            value
        )
        for path, value in leaves
    }


@pytest.mark.parametrize("ragged", [False, True], ids=["full", "ragged"])
@pytest.mark.parametrize("api", ["nnx", "linen"])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_gradients_of_an_imported_layer_are_those_of_torch(kind, api, ragged, measured):
    arrays = inputs(kind)
    torch.manual_seed(7)
    module = getattr(torch.nn, kind)(INPUTS, HIDDEN, num_layers=LAYERS, bidirectional=True)
    model = bridge.to_onnx(module, states="inputs", lengths=ragged)
    single = torch_gradients(module, arrays, ragged)
    wide = torch_gradients(module.double(), arrays, ragged)
    of_params, of_inputs = flax_gradients(api, model, arrays, ragged)

    expected, referee = (expected_tree(kind, api, gradients) for gradients in (single, wide))
    assert sorted(of_params) == sorted(expected)
    errors = [assert_within_referee_bound(value, expected[name], referee[name]) for name, value in of_params.items()]
    errors += [assert_within_referee_bound(value, single[name], wide[name]) for name, value in of_inputs.items()]
    measured(max(errors))
