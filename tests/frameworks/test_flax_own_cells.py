"""Bridge's own Flax cells where users put cells: RNN, scan, grad, jit, split and merge, against the referee."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from bridge import reference
from bridge.cell import Activation, Cell
from bridge.errors import BridgeError, NotRepresentable, UsageError
from bridge.frameworks import flax_linen, flax_nnx
from bridge.frameworks.flax_linen_cells import LSTMCell as LinenLSTM
from bridge.frameworks.flax_nnx_cells import LSTMCell as NnxLSTM
from tests.cells import random_cell, random_input
from tests.frameworks.flax_cases import TIME

CELLS = {
    "LSTM": {"kind": "LSTM", "peepholes": True, "clip": 0.7, "initial_h": 1, "initial_c": 1},
    "LSTM coupled": {"kind": "LSTM", "input_forget": True, "bias": False,
                     "activations": ("HardSigmoid", "ScaledTanh", "Elu"),
                     "activation_alpha": (0.3, 0.8, 0.5), "activation_beta": (0.45, 1.1)},
    "GRU reset before": {"kind": "GRU", "clip": 0.8, "initial_h": 1},
    "GRU reset after": {"kind": "GRU", "linear_before_reset": True},
    "RNN": {"kind": "RNN", "activations": ("ScaledTanh",), "activation_alpha": (0.7,), "activation_beta": (1.2,)},
}  # fmt: skip
ROUNDING = 5e-6
"""float32 sums of eight terms, five steps, values below 2: worst seen 4e-7; a wrong gate differs by more than 1e-2."""


@pytest.fixture(params=CELLS.values(), ids=CELLS)
def cell(request: Any) -> Cell:
    return random_cell(inputs=3, hidden=4, rng=np.random.default_rng(5), **request.param)


def referee(cell: Cell, x: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """Y [T, N, H] and the final states, h first."""
    Y, *finals = (value for value in reference.evaluate(cell, x) if value is not None)
    return Y[:, 0], [final[0] for final in finals]


def states_of(carry: Any) -> list[Any]:
    return [carry[1], carry[0]] if isinstance(carry, tuple) else [carry]


def assert_close(actual: tuple[Any, Any], expected: tuple[np.ndarray, list[np.ndarray]]) -> None:
    carry, y = actual
    np.testing.assert_allclose(y, expected[0], rtol=0, atol=ROUNDING)
    for state, final in zip(states_of(carry), expected[1], strict=True):
        np.testing.assert_allclose(state, final, rtol=0, atol=ROUNDING)


def test_nnx_rnn(cell: Cell) -> None:
    x = random_input(cell, np.random.default_rng(6), time=TIME)
    layer = flax_nnx.build([cell], own_cells=True)
    assert_close(layer(x, time_major=True, return_carry=True), referee(cell, x))


def test_nnx_scan(cell: Cell) -> None:
    x = random_input(cell, np.random.default_rng(6), time=TIME)
    own = flax_nnx.build([cell], own_cells=True).cell

    @nnx.scan(in_axes=(None, nnx.Carry, 0), out_axes=(nnx.Carry, 0))
    def run(module: Any, carry: Any, step: Any) -> Any:
        return module(carry, step)

    assert_close(run(own, own.initialize_carry(x.shape[1:]), jnp.asarray(x)), referee(cell, x))


def test_linen_rnn(cell: Cell) -> None:
    x = random_input(cell, np.random.default_rng(6), time=TIME)
    module, variables = flax_linen.build([cell], own_cells=True)
    apply = jax.jit(lambda v, x: module.apply(v, x, time_major=True, return_carry=True))
    assert_close(apply(variables, x), referee(cell, x))


def test_linen_scan(cell: Cell) -> None:
    x = random_input(cell, np.random.default_rng(6), time=TIME)
    module, variables = flax_linen.build([cell], own_cells=True)

    class Scanned(nn.Module):
        cell: Any

        def __call__(self, x: Any) -> Any:
            scan = nn.scan(lambda own, carry, step: own(carry, step), variable_broadcast="params",
                           split_rngs={"params": False})  # fmt: skip
            return scan(self.cell, self.cell.initialize_carry(jax.random.key(0), x.shape[1:]), x)

    assert_close(Scanned(module.cell.clone(parent=None)).apply(variables, x), referee(cell, x))


def test_gradients_reach_every_parameter(cell: Cell) -> None:
    x = jnp.asarray(random_input(cell, np.random.default_rng(6), time=TIME))
    layer = flax_nnx.build([cell], own_cells=True)
    grads = nnx.jit(nnx.grad(lambda m: (m(x, time_major=True) ** 2).sum()))(layer)
    by_nnx = {path: np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(grads)}
    assert by_nnx
    assert all(np.abs(value).max() > 1e-3 for value in by_nnx.values())
    module, variables = flax_linen.build([cell], own_cells=True)
    by_linen = jax.jit(jax.grad(lambda v: (module.apply(v, x, time_major=True) ** 2).sum()))(variables)
    flat = {path[-1]: np.asarray(value) for path, value in by_nnx.items()}
    for name, value in by_linen["params"]["cell"].items():
        if name in flat:  # linen has a native place for the GRU that resets after the product, under other names
            np.testing.assert_allclose(value, flat[name], rtol=0, atol=1e-5)


def test_split_and_merge_keep_the_module(cell: Cell) -> None:
    x = random_input(cell, np.random.default_rng(6), time=TIME)
    graphdef, state = nnx.split(flax_nnx.build([cell], own_cells=True))
    again = nnx.merge(graphdef, jax.tree.map(lambda leaf: leaf, state))
    assert_close(again(x, time_major=True, return_carry=True), referee(cell, x))


def test_several_batch_axes_and_the_protocol() -> None:
    own = NnxLSTM(3, 4, rngs=nnx.Rngs(0))
    carry = own.initialize_carry((2, 5, 3))
    (c, h), y = own(carry, jnp.ones((2, 5, 3)))
    assert c.shape == h.shape == y.shape == (2, 5, 4)
    assert own.num_feature_axes == LinenLSTM(4).num_feature_axes == 1
    ones = own.initialize_carry((2, 3), nnx.Rngs(0), nnx.initializers.ones_init())
    assert all((state == 1).all() for state in ones)


def test_a_learned_carry_needs_its_variables() -> None:
    with pytest.raises(UsageError, match="not bound to any"):
        LinenLSTM(4, learned_carry=True).initialize_carry(jax.random.key(0), (2, 3))


def test_an_attribute_of_another_operator_is_refused() -> None:
    own = NnxLSTM(3, 4, linear_before_reset=True, rngs=nnx.Rngs(0))
    with pytest.raises(BridgeError, match="linear_before_reset"):
        own(own.initialize_carry((1, 3)), jnp.ones((1, 3)))


def test_activations_by_name_and_by_value_are_the_same() -> None:
    first = NnxLSTM(3, 4, activations=("HardSigmoid", "Tanh", "Tanh"), rngs=nnx.Rngs(0))
    second = NnxLSTM(3, 4, activations=(Activation("HardSigmoid", 0.2, 0.5), "Tanh", "Tanh"), rngs=nnx.Rngs(0))
    carry, x = first.initialize_carry((1, 3)), jnp.ones((1, 3))
    np.testing.assert_array_equal(first(carry, x)[1], second(carry, x)[1])


@pytest.mark.parametrize("api", ["nnx", "linen"])
def test_native_layers_refuse_what_own_cells_hold(api: str) -> None:
    door = flax_nnx if api == "nnx" else flax_linen
    peepholes = random_cell("LSTM", 3, 4, np.random.default_rng(0), peepholes=True)
    with pytest.raises(NotRepresentable, match="own_cells=True"):
        door.build([peepholes], own_cells=False)
    learned = random_cell("LSTM", 3, 4, np.random.default_rng(0), initial_h=1)
    with pytest.raises(NotRepresentable, match="constant initial_h"):
        door.build([learned], own_cells=False)


def test_a_gru_with_a_recurrent_candidate_bias_is_refused_by_name_and_size() -> None:
    cell = random_cell("GRU", 3, 4, np.random.default_rng(0), linear_before_reset=True)
    with pytest.raises(NotRepresentable) as caught:
        flax_nnx.build([cell], own_cells=False)
    text = str(caught.value)
    assert "flax.nnx.GRUCell: gate 'h' has a non-zero Rb (max |Rb| = " in text
    assert "flax.linen.GRUCell" in text
    assert "own_cells=True" in text


@pytest.mark.parametrize("api", ["nnx", "linen"])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_build_and_cells_are_inverse(api: str, direction: str) -> None:
    door = flax_nnx if api == "nnx" else flax_linen
    rng = np.random.default_rng(0)
    cell = random_cell("LSTM", 3, 4, rng, direction=direction, clip=0.5, initial_h=2, initial_c=2)
    assert door.cells(door.build([cell], own_cells=True)) == {"rnn": cell}
    stack = door.build([cell, random_cell("GRU", 4 * cell.num_directions, 2, rng)], own_cells=True)
    name = "layers.0" if api == "nnx" else "layers_0"
    assert door.cells(stack)[name] == cell


@pytest.mark.parametrize("api", ["nnx", "linen"])
def test_assign_puts_cells_into_place_or_changes_nothing(api: str) -> None:
    door, rng = (flax_nnx if api == "nnx" else flax_linen), np.random.default_rng(0)
    first, second = (random_cell("GRU", 3, 4, rng, direction="bidirectional") for _ in range(2))
    layer = door.build([first], own_cells=True)
    assert door.cells(door.assign(layer, {"": second})) == {"rnn": second}
    assert door.cells(door.assign(layer, {"rnn": second.split()})) == {"rnn": second}
    with pytest.raises(UsageError, match="no recurrent module at 'encoder'"):
        door.assign(_stack(door, rng), {"encoder": first})
    with pytest.raises(UsageError, match="wrong number of cells"):
        door.assign(layer, {"": first.split()[0]})
    layer = door.build([first], own_cells=True)
    wide = random_cell("GRU", 5, 4, rng, direction="bidirectional")
    with pytest.raises(NotRepresentable, match="kernel has another shape"):
        door.assign(layer, {"": wide})
    assert door.cells(layer) == {"rnn": first}


def _stack(door: Any, rng: np.random.Generator) -> Any:
    return door.build([random_cell("RNN", 3, 4, rng), random_cell("RNN", 4, 2, rng)], own_cells=True)


@pytest.mark.parametrize("api", ["nnx", "linen"])
def test_assign_to_a_stack_and_to_the_wrong_direction(api: str) -> None:
    door, rng = (flax_nnx if api == "nnx" else flax_linen), np.random.default_rng(0)
    other = [random_cell("GRU", 3, 4, rng), random_cell("GRU", 4, 2, rng)]
    layers = door.build([random_cell("GRU", 3, 4, rng), random_cell("GRU", 4, 2, rng)], own_cells=True)
    assert list(door.cells(door.assign(layers, {"": other})).values()) == other
    backwards = random_cell("GRU", 3, 4, rng, direction="reverse")
    with pytest.raises(NotRepresentable, match="runs reverse and this layer the other way"):
        door.assign(layers, {next(iter(door.cells(layers))): backwards})
