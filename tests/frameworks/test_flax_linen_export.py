"""flax.linen layers to ONNX: every option against flax itself and onnxruntime, and what is refused."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import onnx
import pytest
from flax import linen as nn
from flax.core import freeze

from bridge.errors import BadInput, Unsupported
from bridge.frameworks import flax_linen
from bridge.frameworks.door import ExportOptions
from bridge.frameworks.flax_linen_cells import GRUCell, LSTMCell, RNNCell
from bridge.graph import find_cells, to_proto
from tests.frameworks.flax_cases import assert_agree, feeds_of, random_linen

CELLS = {
    "LSTMCell": lambda: nn.LSTMCell(4),
    "OptimizedLSTMCell": lambda: nn.OptimizedLSTMCell(4),
    "GRUCell": lambda: nn.GRUCell(4),
    "MGUCell": lambda: nn.MGUCell(4),
    "MGUCell without reset gate": lambda: nn.MGUCell(4, reset_gate=False),
    "SimpleCell": lambda: nn.SimpleCell(4, activation_fn=jax.nn.relu),
    "SimpleCell residual": lambda: nn.SimpleCell(4, residual=True),
    "own LSTM": lambda: LSTMCell(4, use_peepholes=True, clip=0.6, learned_carry=True),
    "own GRU": lambda: GRUCell(4, learned_carry=True),
    "own RNN": lambda: RNNCell(4, activations=("Softplus",), use_bias=False),
}
SEQUENCE, STEP = (2, 5, 3), (2, 3)


def check(pair: Any, **options: Any) -> onnx.ModelProto:
    """Export, check strictly, and compare flax's own forward pass with onnxruntime. The proto."""
    model = flax_linen.export(pair, ExportOptions(**options))
    proto = to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    feeds = feeds_of(model)
    assert_agree(model, flax_linen.execute(pair, feeds), feeds)
    return proto


@pytest.mark.parametrize("make", CELLS.values(), ids=CELLS)
def test_rnn_computes_what_flax_computes(make: Any) -> None:
    check(random_linen(nn.RNN(make()), *SEQUENCE))
    check(random_linen(nn.RNN(make(), reverse=True, keep_order=True), *SEQUENCE), lengths=True, states="inputs")


@pytest.mark.parametrize("make", CELLS.values(), ids=CELLS)
def test_a_bare_cell_is_one_step(make: Any) -> None:
    pair = random_linen(make(), *STEP)
    check(pair, states="inputs")
    assert list(flax_linen.cells(pair)) == ["cell"]


@pytest.mark.parametrize("order", [{}, {"reverse": True}, {"reverse": True, "keep_order": True}], ids=str)
@pytest.mark.parametrize("options", [{}, {"lengths": True}, {"form": "scan"}], ids=str)
def test_orders_of_time(order: dict[str, Any], options: dict[str, Any]) -> None:
    check(random_linen(nn.RNN(nn.LSTMCell(4), time_major=True, **order), *SEQUENCE), **options)


@pytest.mark.parametrize("options", [{}, {"lengths": True, "states": "inputs"}], ids=str)
def test_bidirectional_computes_what_flax_computes(options: dict[str, Any]) -> None:
    check(random_linen(nn.Bidirectional(nn.RNN(nn.GRUCell(4)), nn.RNN(nn.GRUCell(4))), *SEQUENCE), **options)
    check(random_linen(nn.Bidirectional(nn.RNN(nn.MGUCell(4)), nn.RNN(nn.SimpleCell(2))), *SEQUENCE), **options)


def test_a_sequential_computes_what_flax_computes() -> None:
    pair = random_linen(nn.Sequential([nn.RNN(nn.GRUCell(4)), nn.RNN(nn.LSTMCell(2), reverse=True)]), *SEQUENCE)
    proto = check(pair)
    check(pair, lengths=True, states="inputs")
    from bridge.graph import as_model

    assert list(find_cells(as_model(proto))) == list(flax_linen.cells(pair)) == ["layers_0", "layers_1"]


@pytest.mark.parametrize("order", [{}, {"reverse": True}, {"reverse": True, "keep_order": True, "time_major": True}],
                         ids=str)  # fmt: skip
@pytest.mark.parametrize("options", [{}, {"lengths": True, "states": "inputs"}], ids=str)
def test_conv_lstm_is_an_exact_scan(order: dict[str, Any], options: dict[str, Any]) -> None:
    proto = check(random_linen(nn.RNN(nn.ConvLSTMCell(4, (3, 2)), **order), 2, 5, 4, 3, 3), **options)
    assert [node.op_type for node in proto.graph.node].count("Scan") == 1


@pytest.mark.parametrize("padding", [[(0, 2)], [(2, 0)], [1]], ids=str)
def test_conv_lstm_with_its_own_padding(padding: Any) -> None:
    cell = nn.ConvLSTMCell(2, (3,), padding=padding, use_bias=False)
    check(random_linen(nn.Bidirectional(nn.RNN(cell), nn.RNN(nn.ConvLSTMCell(3, (2,)))), 2, 5, 4, 3))


def test_frozen_and_boxed_variables() -> None:
    cell = nn.GRUCell(4, kernel_init=nn.with_partitioning(nn.initializers.lecun_normal(), ("a", "b")))
    module, variables = nn.RNN(cell), None
    variables = module.init(jax.random.key(0), np.zeros(SEQUENCE, np.float32))
    check((module, freeze(variables)))


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_other_dtypes(dtype: str) -> None:
    with jax.enable_x64(dtype == "float64"):
        init = nn.initializers.lecun_normal()
        check(
            random_linen(nn.RNN(nn.LSTMCell(4, param_dtype=dtype, recurrent_kernel_init=init)), *SEQUENCE, dtype=dtype)
        )


class MyCell(nn.GRUCell):
    pass


class Compact(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        return nn.RNN(nn.GRUCell(4))(x)


class Nested(nn.Module):
    def setup(self) -> None:
        self.encoder = [nn.RNN(nn.GRUCell(4)), nn.Dense(3)]
        self.head = nn.Bidirectional(nn.RNN(nn.LSTMCell(2)), nn.RNN(nn.LSTMCell(2)))

    def __call__(self, x: Any) -> Any:
        return self.head(self.encoder[1](self.encoder[0](x)))


REFUSED = {
    "subclass of a cell": (lambda: nn.RNN(MyCell(4)), "this cell may compute anything"),
    "merge_fn": (
        lambda: nn.Bidirectional(nn.RNN(nn.GRUCell(4)), nn.RNN(nn.GRUCell(4)), merge_fn=lambda a, b: a + b),
        "merge_fn is a function of the caller's own",
    ),
    "lifting": (lambda: nn.RNN(nn.GRUCell(4), variable_axes={"cache": 0}), "variable_axes is of the caller's own"),
    "random carry": (lambda: nn.RNN(nn.GRUCell(4, carry_init=nn.initializers.normal())), "initial carry is random"),
}


@pytest.mark.parametrize(("make", "text"), REFUSED.values(), ids=REFUSED)
def test_refused(make: Any, text: str) -> None:
    with pytest.raises(Unsupported, match=text):
        flax_linen.export(random_linen(make(), *SEQUENCE), ExportOptions())


def test_variables_that_do_not_fit() -> None:
    module, variables = random_linen(nn.RNN(nn.GRUCell(4)), *SEQUENCE)
    with pytest.raises(BadInput, match='no "params"'):
        flax_linen.export((module, {}), ExportOptions())
    inner = {name: dict(value) for name, value in variables["params"]["cell"].items()}
    del inner["hn"]["bias"]
    with pytest.raises(BadInput, match=r"missing parameters: hn\.bias"):
        flax_linen.export((module, {"params": {"cell": inner}}), ExportOptions())


def test_nested_modules_have_their_paths() -> None:
    found = flax_linen.cells(random_linen(Nested(), *SEQUENCE))
    assert {name: one.num_directions for name, one in found.items()} == {"encoder_0": 1, "head": 2}
    with pytest.raises(Unsupported, match="a cell that a compact method makes"):
        flax_linen.cells(random_linen(Compact(), *SEQUENCE))


def test_a_pair_is_owned_and_others_are_not() -> None:
    assert flax_linen.owns((nn.Dense(3), {"params": {}}))
    assert not flax_linen.owns(nn.Dense(3))
    assert not flax_linen.owns((1, 2))
