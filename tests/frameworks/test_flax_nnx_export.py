"""flax.nnx layers to ONNX: every option against flax itself and onnxruntime, and what is refused."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
import onnx
import pytest
from flax import nnx

from bridge.cell import Cell
from bridge.errors import BadInput, NotRepresentable, Unsupported, UsageError
from bridge.frameworks import flax_nnx
from bridge.frameworks.door import ExportOptions
from bridge.frameworks.flax_nnx_cells import GRUCell, LSTMCell, RNNCell
from bridge.graph import find_cells, to_proto
from tests.frameworks.flax_cases import assert_agree, feeds_of, random_nnx

NATIVE = {"LSTMCell": nnx.LSTMCell, "OptimizedLSTMCell": nnx.OptimizedLSTMCell, "GRUCell": nnx.GRUCell,
          "SimpleCell": nnx.SimpleCell}  # fmt: skip
OPTIONS = {
    "plain": {},
    "states": {"states": "inputs"},
    "lengths": {"lengths": True},
    "lengths and states": {"lengths": True, "states": "inputs"},
    "scan": {"form": "scan", "lengths": True},
}
ORDERS = {
    "forward": {},
    "reverse": {"reverse": True},
    "reverse in order": {"reverse": True, "keep_order": True, "time_major": True},
}


def name_of(value: object) -> str:
    """The name of a function, without the address that differs from one process to the next."""
    while isinstance(value, functools.partial):
        value = value.func
    return value if isinstance(value, str) else str(getattr(value, "__name__", type(value).__name__))


def cell(kind: str, inputs: int = 3, hidden: int = 4, **options: Any) -> Any:
    return NATIVE[kind](inputs, hidden, rngs=nnx.Rngs(0), **options)


def check(module: Any, **options: Any) -> onnx.ModelProto:
    """Export, check strictly, and compare flax's own forward pass with onnxruntime. The proto."""
    model = flax_nnx.export(random_nnx(module), ExportOptions(**options))
    proto = to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    feeds = feeds_of(model)
    assert_agree(model, flax_nnx.execute(module, feeds), feeds)
    return proto


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize("kind", ["OptimizedLSTMCell", "GRUCell"])
def test_rnn_computes_what_flax_computes(kind: str, order: dict[str, Any], options: dict[str, Any]) -> None:
    check(nnx.RNN(cell(kind), **order), **options)


@pytest.mark.parametrize("kind", ["LSTMCell", "SimpleCell"])
def test_the_other_cells_compute_what_flax_computes(kind: str) -> None:
    check(nnx.RNN(cell(kind), reverse=True), lengths=True, states="inputs")


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("kind", ["LSTMCell", "GRUCell"])
def test_bidirectional_computes_what_flax_computes(kind: str, options: dict[str, Any]) -> None:
    check(nnx.Bidirectional(nnx.RNN(cell(kind)), nnx.RNN(cell(kind))), **options)


def test_directions_that_agree_are_one_node_and_others_two() -> None:
    same = nnx.Bidirectional(nnx.RNN(cell("GRUCell")), nnx.RNN(cell("GRUCell")), time_major=True)
    apart = nnx.Bidirectional(nnx.RNN(cell("GRUCell")), nnx.RNN(cell("LSTMCell", hidden=5)))
    assert [node.op_type for node in check(same).graph.node].count("GRU") == 1
    check(apart, states="inputs", lengths=True)
    proto = check(apart)
    assert {node.op_type for node in proto.graph.node} & {"GRU", "LSTM"} == {"GRU", "LSTM"}
    assert set(flax_nnx.cells(apart)) == set(find_cells_of(proto)) == {"rnn.forward_rnn", "rnn.backward_rnn"}


def find_cells_of(proto: onnx.ModelProto) -> dict[str, Cell]:
    from bridge.graph import as_model

    return find_cells(as_model(proto))


@pytest.mark.parametrize("options", [{}, {"lengths": True, "states": "inputs"}], ids=["plain", "all inputs"])
def test_a_sequential_computes_what_flax_computes(options: dict[str, Any]) -> None:
    stack = nnx.Sequential(
        nnx.RNN(cell("GRUCell")),
        nnx.Bidirectional(nnx.RNN(cell("LSTMCell", 4, 2)), nnx.RNN(cell("LSTMCell", 4, 2))),
        nnx.RNN(cell("SimpleCell", 4, 3), return_carry=True),
    )
    proto = check(stack, **options)
    assert "layers.2.h_n" in [value.name for value in proto.graph.output]
    if not options:
        assert list(find_cells_of(proto)) == list(flax_nnx.cells(stack)) == ["layers.0", "layers.1", "layers.2"]
        final = stack(feeds_of(flax_nnx.export(stack, ExportOptions()))["input"])[1]
        assert np.array_equal(
            final, flax_nnx.execute(stack, feeds_of(flax_nnx.export(stack, ExportOptions())))["output"]
        )


@pytest.mark.parametrize("states", ["zero", "inputs"])
@pytest.mark.parametrize("kind", NATIVE)
def test_a_bare_cell_is_one_step(kind: str, states: str) -> None:
    proto = check(cell(kind), states=states)
    assert [value.name for value in proto.graph.output][:1] == ["h_n"]


@pytest.mark.parametrize(
    ("function", "activation"),
    [
        (jax.nn.relu, "Relu"),
        (jax.nn.soft_sign, "Softsign"),
        (jax.nn.softplus, "Softplus"),
        (jax.nn.elu, "Elu(1)"),
        (jax.nn.leaky_relu, "LeakyRelu(0.01)"),
        (functools.partial(jax.nn.leaky_relu, negative_slope=0.3), "LeakyRelu(0.3)"),
        (functools.partial(jax.nn.elu, alpha=0.5), "Elu(0.5)"),
        (jax.nn.hard_sigmoid, "HardSigmoid(0.166667, 0.5)"),
        (jax.nn.identity, "Affine(1, 0)"),
        (jax.lax.tanh, "Tanh"),
    ],
    ids=name_of,
)
def test_activations_are_known_by_identity(function: Any, activation: str) -> None:
    module = nnx.RNN(cell("LSTMCell", gate_fn=jax.lax.logistic, activation_fn=function))
    check(module)
    (found,) = flax_nnx.cells(module).values()
    assert [str(one) for one in found.activation_table()[0]] == ["Sigmoid", activation, activation]


@pytest.mark.parametrize(
    "function",
    [
        jax.nn.gelu,
        functools.partial(jax.nn.gelu, approximate=False),
        jax.nn.silu,
        jax.nn.relu6,
        jax.nn.selu,
        jax.nn.celu,
        jax.nn.mish,
        jax.nn.hard_tanh,
        jax.nn.hard_silu,
        jax.nn.log_sigmoid,
    ],
    ids=name_of,
)
def test_activations_that_the_operator_lacks_are_an_exact_scan(function: Any) -> None:
    module = nnx.RNN(cell("LSTMCell", activation_fn=function), reverse=True)
    proto = check(module, lengths=True, states="inputs")
    assert "LSTM" not in [node.op_type for node in proto.graph.node]
    with pytest.raises(NotRepresentable, match="it has no Cell"):
        flax_nnx.cells(module)


@pytest.mark.parametrize("kind", ["GRUCell", "SimpleCell"])
def test_a_scan_beside_a_fused_direction(kind: str) -> None:
    other = cell(kind, activation_fn=jax.nn.silu)
    check(nnx.Bidirectional(nnx.RNN(other), nnx.RNN(cell("GRUCell"))), lengths=True)
    check(nnx.Sequential(nnx.RNN(other), nnx.RNN(cell("GRUCell", 4, 2))))
    check(other)


def test_a_residual_simple_cell_is_folded() -> None:
    check(nnx.RNN(cell("SimpleCell", residual=True)), lengths=True)


OWN = {
    "LSTM": lambda: LSTMCell(3, 4, use_peepholes=True, clip=0.5, learned_carry=True, rngs=nnx.Rngs(0)),
    "LSTM coupled": lambda: LSTMCell(3, 4, input_forget=True, activations=("HardSigmoid", "Elu", "Softsign"),
                                     rngs=nnx.Rngs(0)),
    "GRU reset before": lambda: GRUCell(3, 4, learned_carry=True, rngs=nnx.Rngs(0)),
    "GRU reset after": lambda: GRUCell(3, 4, linear_before_reset=True, rngs=nnx.Rngs(0)),
    "RNN": lambda: RNNCell(3, 4, activations=("Relu",), use_bias=False, rngs=nnx.Rngs(0)),
}  # fmt: skip


@pytest.mark.parametrize("make", OWN.values(), ids=OWN)
def test_own_cells_export(make: Any) -> None:
    check(nnx.RNN(make(), reverse=True, keep_order=True), lengths=True)
    check(nnx.Bidirectional(nnx.RNN(make()), nnx.RNN(make())))
    check(make())


def test_a_constant_carry_init_is_a_constant_state() -> None:
    with pytest.warns(UserWarning, match="carry_init is provided"):
        module = nnx.RNN(cell("GRUCell", carry_init=nnx.initializers.constant(0.3)))
    check(module)
    (found,) = flax_nnx.cells(module).values()
    assert found.initial_h is not None
    assert (found.initial_h == np.float32(0.3)).all()


def test_a_random_carry_is_refused() -> None:
    with pytest.warns(UserWarning, match="carry_init is provided"):
        module = nnx.RNN(cell("GRUCell", carry_init=nnx.initializers.normal()))
    with pytest.raises(Unsupported, match="initial carry is random"):
        flax_nnx.export(module, ExportOptions())


def test_outputs_beyond_a_length_share_their_weights_with_the_final_states() -> None:
    proto = check(nnx.RNN(cell("LSTMCell")), lengths=True)
    first, second = (node for node in proto.graph.node if node.op_type == "LSTM")
    assert list(first.input[1:4]) == list(second.input[1:4])
    assert not first.input[4:5] or not first.input[4]
    assert "computed on the padding" in {entry.key: entry.value for entry in proto.metadata_props}["bridge.notes"]


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_other_dtypes(dtype: str) -> None:
    with jax.enable_x64(dtype == "float64"):
        module = nnx.RNN(cell("GRUCell", param_dtype=dtype, recurrent_kernel_init=nnx.initializers.lecun_normal()))
        check(module, lengths=True)


class MyCell(nnx.GRUCell):
    pass


def my_gate(x: Any) -> Any:
    return x


REFUSED = {
    "subclass of a cell": (lambda: nnx.RNN(MyCell(3, 4, rngs=nnx.Rngs(0))), "this cell may compute anything"),
    "merge_fn": (
        lambda: nnx.Bidirectional(nnx.RNN(cell("GRUCell")), nnx.RNN(cell("GRUCell")), merge_fn=my_gate),
        "merge_fn is a function of the caller's own",
    ),
    "gate_fn": (lambda: nnx.RNN(cell("GRUCell", gate_fn=my_gate)), "none of the ONNX recurrent operators'"),
    "state_axes": (
        lambda: nnx.RNN(cell("GRUCell"), state_axes=nnx.StateAxes({nnx.Param: 0, ...: nnx.Carry})),
        "state_axes are of the caller's own",
    ),
    "bfloat16": (
        lambda: nnx.RNN(
            cell("GRUCell", param_dtype=jax.numpy.bfloat16, recurrent_kernel_init=nnx.initializers.lecun_normal())
        ),
        "bfloat16",
    ),
    "narrower dtype": (lambda: nnx.RNN(cell("GRUCell", dtype=jax.numpy.float16)), "which rounds it"),
    "promote_dtype": (lambda: nnx.RNN(cell("GRUCell", promote_dtype=my_gate)), "promote_dtype"),
    "carry inside": (
        lambda: nnx.Sequential(nnx.RNN(cell("GRUCell"), return_carry=True), nnx.RNN(cell("GRUCell", 4, 4))),
        "hands a tuple to the next layer",
    ),
    "time axes": (
        lambda: nnx.Sequential(nnx.RNN(cell("GRUCell"), time_major=True), nnx.RNN(cell("GRUCell", 4, 4))),
        "disagree about time_major",
    ),
}


@pytest.mark.parametrize(("make", "text"), REFUSED.values(), ids=REFUSED)
def test_refused(make: Any, text: str) -> None:
    with pytest.raises(Unsupported, match=text):
        flax_nnx.export(make(), ExportOptions())


def test_a_bare_cell_takes_no_lengths() -> None:
    with pytest.raises(Unsupported, match="takes no lengths"):
        flax_nnx.export(cell("GRUCell"), ExportOptions(lengths=True))


def test_options_of_other_sources_are_refused() -> None:
    module, x = nnx.RNN(cell("GRUCell")), np.zeros((2, 5, 3), np.float32)
    flax_nnx.export(module, ExportOptions(example=x))
    flax_nnx.export(module, ExportOptions(example=(x,)))
    with pytest.raises(BadInput, match="the example does not fit"):
        flax_nnx.export(module, ExportOptions(example={"input": x[0]}))
    with pytest.raises(Unsupported, match="always symbolic"):
        flax_nnx.export(module, ExportOptions(dynamic={"input": {0: "n"}}))
    with pytest.raises(UsageError, match="custom_objects"):
        flax_nnx.export(module, ExportOptions(custom_objects={"a": MyCell}))


def test_execute_names_what_it_does_not_know() -> None:
    x = np.zeros((1, 2, 3), np.float32)
    with pytest.raises(BadInput, match="unexpected inputs"):
        flax_nnx.execute(nnx.RNN(cell("GRUCell")), {"input": x, "mask": x})


def test_a_module_is_owned_and_others_are_not() -> None:
    assert flax_nnx.owns(nnx.RNN(cell("GRUCell")))
    assert not flax_nnx.owns(np.zeros(3))


def test_nested_modules_have_their_paths() -> None:
    class Model(nnx.Module):
        def __init__(self) -> None:
            self.encoder = nnx.Sequential(nnx.RNN(cell("GRUCell")), nnx.Linear(4, 3, rngs=nnx.Rngs(0)))
            self.step = cell("LSTMCell")

    found = flax_nnx.cells(Model())
    assert {name: one.op for name, one in found.items()} == {"encoder.layers.0": "GRU", "step": "LSTM"}
    with pytest.raises(Unsupported, match="has no __call__"):
        flax_nnx.export(Model(), ExportOptions())
