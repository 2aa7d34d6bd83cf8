"""ONNX into flax.nnx and flax.linen: native cells in native names, jit, grad, vmap, split, and the way back."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from bridge.cell import Cell
from bridge.errors import BadInput, Unsupported, UsageError
from bridge.frameworks import flax_linen, flax_nnx
from bridge.frameworks.door import ExportOptions
from bridge.frameworks.flax_import import Tree, clean_path
from bridge.graph import Writer
from tests.cells import random_cell
from tests.frameworks.flax_cases import assert_agree, called, feeds_of, random_linen, random_nnx

DOORS = {"nnx": flax_nnx, "linen": flax_linen}


def one_node(cell: Cell, *, lengths: bool = False, states: bool = False, name: str = "rnn", form: str = "fused") -> Any:
    """One cell as a graph in ONNX's own axes: x[, lengths][, h0][, c0] -> Y, Y_h[, Y_c]."""
    w = Writer(dtype=cell.dtype.name)
    dtype, directions, hidden = cell.dtype.name, cell.num_directions, cell.hidden_size
    x = w.input("x", dtype, ["time", "batch", cell.input_size])
    given: dict[str, Any] = {"lengths": w.input("lengths", "int32", ["batch"])} if lengths else {}
    if states:
        names = ("initial_h", "initial_c") if cell.op == "LSTM" else ("initial_h",)
        given |= {each: w.input(each, dtype, [directions, "batch", hidden]) for each in names}
    for label, value in zip(("Y", "Y_h", "Y_c"), w.recurrent(cell, x, name=name, form=form, **given), strict=True):
        if value is not None:
            w.output(value, label)
    return w.model()


CELLS = {
    "LSTM": ({"kind": "LSTM"}, "OptimizedLSTMCell", "OptimizedLSTMCell"),
    "GRU without a recurrent bias": ({"kind": "GRU", "bias": False, "linear_before_reset": True}, "GRUCell", "GRUCell"),
    "GRU": ({"kind": "GRU", "linear_before_reset": True}, "bridge", "GRUCell"),
    "GRU reset before": ({"kind": "GRU"}, "bridge", "bridge"),
    "RNN": ({"kind": "RNN"}, "SimpleCell", "SimpleCell"),
    "RNN of relu": ({"kind": "RNN", "activations": ("Relu",)}, "SimpleCell", "SimpleCell"),
    "peepholes and states": ({"kind": "LSTM", "peepholes": True, "initial_h": 1, "initial_c": 1}, "bridge", "bridge"),
    "coupled, clipped, reverse": (
        {"kind": "LSTM", "input_forget": True, "clip": 0.6, "direction": "reverse"}, "bridge", "bridge"),
    "activations per gate": (
        {"kind": "LSTM", "activations": ("HardSigmoid", "Elu", "Softsign"), "activation_alpha": (0.25, 0.9),
         "activation_beta": (0.4,)}, "bridge", "bridge"),
    "bidirectional": ({"kind": "LSTM", "direction": "bidirectional"}, "OptimizedLSTMCell", "OptimizedLSTMCell"),
    "bidirectional, one side native": (
        {"kind": "RNN", "direction": "bidirectional", "activations": ("Tanh", "ScaledTanh"),
         "activation_alpha": (0.8,), "activation_beta": (1.1,)}, "SimpleCell", "SimpleCell"),
}  # fmt: skip


@pytest.mark.parametrize("api", DOORS)
@pytest.mark.parametrize("inputs", [{}, {"lengths": True, "states": True}], ids=str)
@pytest.mark.parametrize("row", CELLS.values(), ids=CELLS)
def test_imported_node_computes_what_onnxruntime_computes(row: Any, inputs: dict[str, bool], api: str) -> None:
    fields, *expected = row
    cell = random_cell(inputs=3, hidden=4, rng=np.random.default_rng(3), **fields)
    model = one_node(cell, **inputs)
    net = DOORS[api].import_model(model, None)
    feeds = feeds_of(model)
    assert_agree(model, called(net, feeds), feeds)
    held = cell_of(net, "cell" if cell.num_directions == 1 else "forward_cell")
    wanted = expected[list(DOORS).index(api)]
    assert type(held).__name__ == wanted or (wanted == "bridge" and "bridge" in type(held).__module__)


def cell_of(net: Any, name: str) -> Any:
    if isinstance(net, tuple):
        module, variables = net
        return getattr(module.bind(variables).rnn, name)
    return getattr(net.rnn, name)


@pytest.mark.parametrize("kind", [nnx.LSTMCell, nnx.OptimizedLSTMCell, nnx.GRUCell, nnx.SimpleCell])
@pytest.mark.parametrize("lengths", [False, True])
def test_nnx_to_onnx_to_nnx_gives_the_same_bits(kind: Any, lengths: bool) -> None:
    source = random_nnx(nnx.RNN(kind(3, 4, rngs=nnx.Rngs(0))))
    model = flax_nnx.export(source, ExportOptions(lengths=lengths))
    net = flax_nnx.import_model(model, None)
    assert type(net.rnn.cell) is kind
    before, after = (dict(nnx.to_flat_state(nnx.state(cell, nnx.Param))) for cell in (source.cell, net.rnn.cell))
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[path][...], after[path][...]) for path in before)
    assert len(nnx.to_flat_state(nnx.state(net, nnx.Param))) == len(before)  # nodes with the same weights share a cell
    feeds = feeds_of(model)
    assert_agree(model, called(net, feeds), feeds)


@pytest.mark.parametrize(
    "make", [nn.LSTMCell, nn.OptimizedLSTMCell, nn.GRUCell, nn.MGUCell, lambda n: nn.MGUCell(n, reset_gate=False),
             nn.SimpleCell, lambda n: nn.ConvLSTMCell(n, (3, 2)), lambda n: nn.ConvLSTMCell(n, (2, 3), use_bias=False)],
    ids=["LSTM", "OptimizedLSTM", "GRU", "MGU", "MGU without reset", "Simple", "ConvLSTM", "ConvLSTM without bias"],
)  # fmt: skip
@pytest.mark.parametrize("options", [{}, {"lengths": True, "states": "inputs"}], ids=str)
def test_linen_to_onnx_to_linen_gives_the_same_bits(make: Any, options: dict[str, Any]) -> None:
    cell = make(4)
    shape = (2, 5, 4, 3, 3) if isinstance(cell, nn.ConvLSTMCell) else (2, 5, 3)
    module, variables = random_linen(nn.RNN(cell, reverse=True), *shape)
    model = flax_linen.export((module, variables), ExportOptions(**options))
    net, imported = flax_linen.import_model(model, None)
    held = net.bind(imported).rnn.cell
    assert type(held) is type(cell)
    before, after = variables["params"]["cell"], imported["params"]["rnn"]["cell"]
    assert jax.tree.structure(before) == jax.tree.structure(after)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, before, after)))
    feeds = feeds_of(model)
    assert_agree(model, called((net, imported), feeds), feeds)


@pytest.mark.parametrize(
    "lie",
    ["{", "[]", '{"layer": 1}', '{"layer": "flax.linen.ConvLSTMCell", "options": {}, "weights": {"a": "b"}}',
     '{"layer": "flax.linen.ConvLSTMCell", "options": {}, "weights": {}}'],
    ids=str,
)  # fmt: skip
def test_metadata_that_do_not_fit_are_bad_input(lie: str) -> None:
    pair = random_linen(nn.RNN(nn.ConvLSTMCell(4, (3, 2))), 2, 5, 4, 3, 3)
    model = flax_linen.export(pair, ExportOptions())
    next(node for node in model.graph if node.op_type == "Scan").metadata_props["bridge.layer"] = lie
    with pytest.raises(BadInput, match=r"bridge\.layer"):
        flax_linen.import_model(model, None)


@pytest.mark.parametrize("lie", ["no.such", "flax.nnx.LSTMCell", "flax.nnx.SimpleCell"])
def test_a_layout_that_does_not_fit_is_only_a_hint(lie: str) -> None:
    model = one_node(random_cell("GRU", 3, 4, np.random.default_rng(0)))
    next(node for node in model.graph if node.op_type == "GRU").metadata_props["bridge.layout"] = lie
    feeds = feeds_of(model)
    assert_agree(model, called(flax_nnx.import_model(model, None), feeds), feeds)


def test_a_conv_lstm_runs_in_nnx_too() -> None:
    pair = random_linen(nn.RNN(nn.ConvLSTMCell(4, (3, 2))), 2, 5, 4, 3, 3)
    model = flax_linen.export(pair, ExportOptions(lengths=True))
    feeds = feeds_of(model)
    assert_agree(model, called(flax_nnx.import_model(model, None), feeds), feeds)


def test_a_folded_residual_comes_back_as_a_plain_cell() -> None:
    pair = random_linen(nn.RNN(nn.SimpleCell(4, residual=True)), 2, 5, 3)
    model = flax_linen.export(pair, ExportOptions())
    feeds = feeds_of(model)
    assert_agree(model, called(flax_linen.import_model(model, None), feeds), feeds)


@pytest.fixture
def stack() -> Any:
    rng = np.random.default_rng(4)
    cells = [random_cell("LSTM", 3, 4, rng, direction="bidirectional", initial_h=1), random_cell("GRU", 8, 2, rng)]
    return flax_nnx.export(flax_nnx.build(cells, own_cells=True), ExportOptions(lengths=True))


def test_the_tree_mirrors_the_names_of_the_graph(stack: Any) -> None:
    net = flax_nnx.import_model(stack, None)
    paths = {path[:2] for path, _ in nnx.to_flat_state(nnx.state(net, nnx.Param))}
    assert {path[0] for path in paths} == {"layers_0", "layers_1"}
    _, variables = flax_linen.import_model(stack, None)
    assert set(variables["params"]) == {"layers_0", "layers_1"}


def test_jit_vmap_split_and_merge(stack: Any) -> None:
    net = flax_nnx.import_model(stack, None)
    feeds = feeds_of(stack)
    expected = net(**feeds)
    compiled = nnx.jit(lambda m, x, n: m(x, n))
    np.testing.assert_allclose(compiled(net, feeds["input"], feeds["lengths"]), expected, rtol=0, atol=1e-6)
    graphdef, state = nnx.split(net)
    pure = jax.jit(lambda s, x, n: nnx.merge(graphdef, s)(x, n))
    np.testing.assert_allclose(pure(state, feeds["input"], feeds["lengths"]), expected, rtol=0, atol=1e-6)
    many = jax.vmap(lambda x, n: net(x, n))(np.stack([feeds["input"]] * 2), np.stack([feeds["lengths"]] * 2))
    np.testing.assert_allclose(many[1], expected, rtol=0, atol=1e-6)
    other = nnx.clone(net)
    np.testing.assert_array_equal(other(**feeds), expected)


def test_another_batch_and_time_need_no_new_import(stack: Any) -> None:
    net = flax_nnx.import_model(stack, None)
    x = np.random.default_rng(0).standard_normal((2, 9, 3)).astype(np.float32)
    feeds = {"input": x, "lengths": np.array([9, 4], np.int32)}
    assert_agree(stack, called(net, feeds), feeds)


@pytest.mark.parametrize("api", DOORS)
def test_training_reduces_a_loss_and_moves_every_parameter(stack: Any, api: str) -> None:
    feeds = feeds_of(stack)
    target = np.full_like(np.asarray(called(flax_nnx.import_model(stack, None), feeds)["output"]), 0.3)
    if api == "nnx":
        net = flax_nnx.import_model(stack, None)
        graphdef, params, rest = nnx.split(net, nnx.Param, ...)
        forward = lambda p: nnx.merge(graphdef, p, rest)(**feeds)  # noqa: E731
    else:
        module, params = flax_linen.import_model(stack, None)
        forward = lambda p: module.apply(p, **feeds)  # noqa: E731
    loss = jax.jit(jax.value_and_grad(lambda p: jnp.mean((forward(p) - target) ** 2)))
    first, start = loss(params)[0], params
    for _ in range(20):
        _, grads = loss(params)
        params = jax.tree.map(lambda p, g: p - 0.3 * g, params, grads)
    assert loss(params)[0] < 0.5 * first
    moved = jax.tree.leaves(jax.tree.map(lambda a, b: bool(jnp.any(a != b)), params, start))
    assert all(moved)


def test_a_constant_state_trains_and_zeros_do_not() -> None:
    rng = np.random.default_rng(0)
    learned = flax_nnx.import_model(one_node(random_cell("LSTM", 3, 4, rng, initial_h=1)), None)
    paths = [path for path, _ in nnx.to_flat_state(nnx.state(learned, nnx.Param))]
    assert ("rnn", "initial_h") in paths
    cell = random_cell("LSTM", 3, 4, rng, initial_h=1)
    zeros = Cell("LSTM", cell.W, cell.R, cell.B, initial_h=np.zeros_like(cell.initial_h))
    plain = flax_nnx.import_model(one_node(zeros), None)
    assert {path[1] for path, _ in nnx.to_flat_state(nnx.state(plain, nnx.Param))} == {"cell"}


def test_linen_init_draws_parameters_of_the_same_shapes(stack: Any) -> None:
    module, variables = flax_linen.import_model(stack, None)
    fresh = module.init(jax.random.key(1), **feeds_of(stack))
    assert jax.tree.map(np.shape, fresh) == jax.tree.map(np.shape, variables)


@pytest.mark.parametrize("api", DOORS)
def test_inputs_by_position_by_name_and_wrong_ones(stack: Any, api: str) -> None:
    net = DOORS[api].import_model(stack, None)
    module, variables = net if isinstance(net, tuple) else (net, None)
    call = module if variables is None else lambda *args, **named: module.apply(variables, *args, **named)
    feeds = feeds_of(stack)
    assert module.input_names == ("input", "lengths")
    assert module.output_names == ("output",)
    np.testing.assert_array_equal(call(*feeds.values()), call(**feeds))
    for args, named in [((), {}), ((feeds["input"],), {}), (tuple(feeds.values()), {"lengths": feeds["lengths"]}),
                        ((feeds["input"],), {"length": feeds["lengths"]})]:  # fmt: skip
        with pytest.raises(UsageError, match="wrong inputs"):
            call(*args, **named)
    with pytest.raises(BadInput, match="wrong shape"):
        call(feeds["input"][..., :2], feeds["lengths"])
    with pytest.raises(BadInput, match="wrong dtype"):
        call(feeds["input"].astype(np.float64), feeds["lengths"])
    for none in (None, "input"):
        with pytest.raises(BadInput, match="input 'input': no array"):
            call(none, feeds["lengths"])


def test_an_array_of_another_framework_is_refused(stack: Any) -> None:
    class Tensor:
        """As torch's, whose dtype is none of numpy's."""

        shape, dtype = (4, 2, 3), object()

    net = flax_nnx.import_model(stack, None)
    with pytest.raises(BadInput, match="another framework"):
        net(Tensor(), feeds_of(stack)["lengths"])


def test_64_bits_without_x64_are_refused() -> None:
    cell = random_cell("GRU", 3, 4, np.random.default_rng(0), dtype="float64")
    model = one_node(cell)
    with pytest.raises(Unsupported, match="x64"):
        flax_nnx.import_model(model, None)
    with pytest.raises(Unsupported, match="x64"):
        flax_linen.import_model(model, None)
    w = Writer()
    w.output(w.op("Add", w.input("n", "int64", [2]), w.constant([1])), "m")
    net = flax_nnx.import_model(w.model(), None)
    np.testing.assert_array_equal(net(np.array([1, 2])), [2, 3])
    with pytest.raises(Unsupported, match="32 bits"):
        net(np.array([1, 2**40]))


def test_static_inputs_leave_the_signature() -> None:
    w = Writer()
    x, n = w.input("x", "float32", ["batch", 3]), w.input("n", "int64", [1])
    w.output(w.op("Slice", x, w.constant([0]), n, w.constant([1])), "y")
    net = flax_nnx.import_model(w.model(), {"n": np.array([2])})
    assert net.input_names == ("x",)
    np.testing.assert_array_equal(nnx.jit(lambda m, x: m(x))(net, np.ones((4, 3), np.float32)), np.ones((4, 2)))


@pytest.mark.parametrize(
    ("name", "path"),
    [("rnn", ("rnn",)), ("/encoder/rnn.l0", ("encoder", "rnn", "l0")), ("layers.0", ("layers_0",)),
     ("a b-c", ("a_b_c",)), ("0", ("n0",)), ("", ("unnamed",)), ("x::y", ("x", "y"))],
    ids=str)  # fmt: skip
def test_names_become_attributes(name: str, path: tuple[str, ...]) -> None:
    assert clean_path(name) == path


def test_names_that_are_taken_get_a_number() -> None:
    tree = Tree(["train"])
    assert tree.insert(("a", "b"), 1) == ("a", "b")
    assert tree.insert(("a", "b"), 2) == ("a", "b_1")
    assert tree.insert(("a", "b", "c"), 3) == ("a", "b_2", "c")
    assert tree.insert(("train",), 4) == ("train_1",)


@pytest.mark.parametrize("api", DOORS)
@pytest.mark.parametrize("name", ["self", "name", "parent", "params", "scope", "variables", "graph", "rngs"])
def test_any_name_may_be_that_of_an_input_and_of_a_layer(name: str, api: str) -> None:
    w = Writer()
    kernel = np.random.default_rng(0).uniform(-1, 1, (3, 2)).astype(np.float32)
    w.output(w.op("MatMul", w.input(name, "float32", ["batch", 3]), w.constant(kernel, f"{name}.kernel")), "y")
    model, x = w.model(), np.ones((4, 3), np.float32)
    for node in model.graph:
        node.name = name
    module = DOORS[api].import_model(model, None)
    if api == "nnx":
        by_name, by_place = module(**{name: x}), module(x)
    else:
        module, variables = module
        by_place = module.apply(variables, x)
        own = ("self", "scope", "variables", "rngs")  # names of the arguments of linen's `apply` and of what it wraps
        by_name = by_place if name in own else module.apply(variables, **{name: x})
    for y in (by_name, by_place):  # float32: sums of three products below 1
        np.testing.assert_allclose(y, x @ kernel, rtol=0, atol=6 * np.finfo(np.float32).eps)


def test_a_fixed_state_of_one_sequence_is_for_all() -> None:
    cell = random_cell("GRU", 3, 4, np.random.default_rng(0))
    model, state = one_node(cell, states=True), np.ones((1, 1, 4), np.float32)
    fixed, open_ = flax_nnx.import_model(model, {"initial_h": state}), flax_nnx.import_model(model, None)
    x = np.random.default_rng(1).standard_normal((5, 3, 3)).astype(np.float32)
    np.testing.assert_array_equal(fixed(x)[0], open_(x, np.tile(state, (1, 3, 1)))[0])
    two = flax_nnx.import_model(model, {"initial_h": np.ones((1, 2, 4), np.float32)})
    with pytest.raises(BadInput, match=r"\[time,2,3\]"):
        two(x)
