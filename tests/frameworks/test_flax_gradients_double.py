"""Gradients of imported models in float64 against finite differences: If, Scan, lengths, every option of a node."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest
from flax import linen as nn
from flax import nnx
from onnx import TensorProto, helper, numpy_helper

import bridge
from bridge import reference
from bridge.cell import Cell
from tests.cells import random_cell, random_input
from tests.frameworks.finite_differences import worst_error
from tests.ops.recurrent_grid import COMMON, OWN, make_case

X = (4, 3, 2)


@pytest.fixture(autouse=True)
def _double() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def weighted(outputs: Any) -> Any:
    """One number of every element of every output, none with the same weight."""
    values = outputs if isinstance(outputs, tuple) else (outputs,)
    return sum(
        (jnp.sin(jnp.arange(value.size) + at).reshape(value.shape) * value).sum() for at, value in enumerate(values)
    )


def assert_gradients(net: Any, feeds: dict[str, np.ndarray], record: Any) -> set[str]:
    """Of every Param and every float input of an nnx module; the names of the Params."""
    graph, params, rest = nnx.split(net, nnx.Param, ...)
    floats = {name: jnp.asarray(value) for name, value in feeds.items() if value.dtype.kind == "f"}
    others = {name: jnp.asarray(value) for name, value in feeds.items() if value.dtype.kind != "f"}

    def loss(at: Any, others: Any = others) -> Any:
        return weighted(nnx.merge(graph, at[0], rest)(**at[1], **others))

    error = worst_error(loss, (params, floats))
    record("gradient error over its bound", error)
    assert error <= 1.0
    return {".".join(map(str, path)) for path, _ in nnx.to_flat_state(params)}


PLAIN = {name: values[0] for name, values in COMMON.items()} | {
    "dtype": "float64", "opset": 14, "B": "initialiser", "parameters": "no activations"}  # fmt: skip
RAGGED = {"lengths": "with 0", "lengths are": "input"}
SMOOTH = {"f first": "HardSigmoid", "g first": "ScaledTanh", "h first": "Softsign",
          "f second": "Softplus", "g second": "Elu", "h second": "Affine", "parameters": "all given"}  # fmt: skip
NODES: dict[str, tuple[str, dict[str, Any]]] = {
    "LSTM, ragged lengths, both directions": ("LSTM", {**RAGGED, "direction": "bidirectional"}),
    "LSTM, layout 1, states fed": ("LSTM", {"layout": 1, "initial_h": "input", "initial_c": "input", **RAGGED}),
    "LSTM, peepholes, reverse": ("LSTM", {"P": "initialiser", "direction": "reverse", **RAGGED}),
    "LSTM, coupled gates, peepholes fed": ("LSTM", {"P": "input", "input_forget": 1}),
    "LSTM, clip": ("LSTM", {"clip": 0.3, **RAGGED}),
    "LSTM, activations per direction": ("LSTM", {**SMOOTH, "direction": "bidirectional", **RAGGED}),
    "LSTM, constant states": ("LSTM", {"initial_h": "initialiser", "initial_c": "initialiser"}),
    "LSTM, weights fed": ("LSTM", {"W": "input", "R": "input", "B": "input"}),
    "GRU, ragged lengths, both directions": ("GRU", {**RAGGED, "direction": "bidirectional"}),
    "GRU, reset after the product, layout 1": ("GRU", {"linear_before_reset": 1, "layout": 1, **RAGGED}),
    "GRU, clip, activations per direction": (
        "GRU", {**SMOOTH, "clip": 0.3, "direction": "bidirectional", "linear_before_reset": 1}),
    "GRU, constant state": ("GRU", {"initial_h": "initialiser", **RAGGED}),
    "RNN, ragged lengths, layout 1": ("RNN", {**RAGGED, "layout": 1, "direction": "bidirectional"}),
    "RNN, clip, activations per direction": ("RNN", {**SMOOTH, "clip": 0.3, "direction": "bidirectional"}),
    "RNN, constant state": ("RNN", {"initial_h": "initialiser", "direction": "reverse", **RAGGED}),
}  # fmt: skip


@pytest.mark.parametrize("name", NODES)
def test_gradients_of_a_node_are_those_of_finite_differences(name: str, record_property: Any) -> None:
    op, row = NODES[name]
    row = {**PLAIN, **{each: values[0] for each, values in OWN[op].items()}, **row}
    case = make_case(op, row, np.random.default_rng(3))
    net = bridge.to_flax(case.model())
    params = assert_gradients(net, case.feeds(), record_property)
    assert sum("initial" in each for each in params) == sum(each.startswith("initial") for each in case.constants)
    referee = case.referee()
    with jax.disable_jit():
        result = net(**case.feeds())
    for output, value in zip(net.output_names, result, strict=True):
        np.testing.assert_allclose(value, referee[output], rtol=0, atol=1e-13)


def _inputs(rng: np.random.Generator, prefix: str, cell: Cell) -> tuple[list[Any], list[str]]:
    names = {f"{prefix}.{each}": getattr(cell, each) for each in ("W", "R", "B")}
    return [numpy_helper.from_array(value, name) for name, value in names.items()], list(names)


def if_model(rng: np.random.Generator) -> onnx.ModelProto:
    """y = LSTM(x) of one branch or GRU(x) of the other, one initialiser of both branches, two of the outer graph."""
    cells = {
        "then": random_cell("LSTM", 2, 3, rng, dtype="float64"),
        "else": random_cell("GRU", 2, 3, rng, dtype="float64"),
    }
    branches, stored = {}, []
    for branch, cell in cells.items():
        tensors, names = _inputs(rng, branch, cell)
        nodes = [helper.make_node(cell.op, ["x", *names], ["", f"{branch}_h"], name=f"{branch}_rnn", hidden_size=3),
                 helper.make_node("Mul", [f"{branch}_h", "scale"], [f"{branch}_y"])]  # fmt: skip
        value = helper.make_tensor_value_info(f"{branch}_y", TensorProto.DOUBLE, [1, None, 3])
        branches[f"{branch}_branch"] = helper.make_graph(nodes, branch, [], [value], tensors[:1])
        stored += tensors[1:]
    stored.append(numpy_helper.from_array(rng.uniform(0.5, 1.5, 3), "scale"))
    node = helper.make_node("If", ["flag"], ["y"], name="choice", **branches)
    inputs = [helper.make_tensor_value_info("x", TensorProto.DOUBLE, [None, None, 2]),
              helper.make_tensor_value_info("flag", TensorProto.BOOL, [])]  # fmt: skip
    output = helper.make_tensor_value_info("y", TensorProto.DOUBLE, [1, None, 3])
    graph = helper.make_graph([node], "chosen", inputs, [output], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize("flag", [True, False])
def test_gradients_through_if_reach_the_branch_that_is_taken(flag: bool, record_property: Any) -> None:
    rng = np.random.default_rng(4)
    net, x = bridge.to_flax(if_model(rng)), jnp.asarray(rng.uniform(-1, 1, X))
    graph, params, rest = nnx.split(net, nnx.Param, ...)
    flat = {".".join(map(str, path)): leaf[...] for path, leaf in nnx.to_flat_state(params)}
    taken = {name for name in flat if not name.startswith("else" if flag else "then")}
    assert 0 < len(taken) < len(flat)

    def whole(values: dict[str, Any], flag: Any) -> Any:
        paths = {".".join(map(str, path)): path for path, _ in nnx.to_flat_state(params)}
        state = nnx.from_flat_state({paths[name]: nnx.Param(value) for name, value in values.items()})
        return weighted(nnx.merge(graph, state, rest)(x=x, flag=flag))

    gradient = jax.jit(jax.grad(whole))(flat, jnp.asarray(flag))
    assert all(not np.any(gradient[name]) for name in set(flat) - taken)
    error = worst_error(lambda part: whole({**flat, **part}, jnp.asarray(flag) & (x[0, 0, 0] < 9)),
                        {name: flat[name] for name in taken})  # fmt: skip
    record_property("gradient error over its bound", error)
    assert error <= 1.0


def scan_model(rng: np.random.Generator, reverse: bool) -> onnx.ModelProto:
    """An Elman network as a Scan: its weights are the outer graph's, its state starts at an initialiser."""
    value = lambda name, *shape: helper.make_tensor_value_info(name, TensorProto.DOUBLE, list(shape))  # noqa: E731
    nodes = [helper.make_node("MatMul", ["x_t", "W"], ["a"]), helper.make_node("MatMul", ["h", "R"], ["b"]),
             helper.make_node("Add", ["a", "b"], ["c"]), helper.make_node("Tanh", ["c"], ["h_new"]),
             helper.make_node("Mul", ["h_new", "h"], ["y_t"])]  # fmt: skip
    body = helper.make_graph(nodes, "body", [value("h", 3, 4), value("x_t", 3, 2)],
                             [value("h_new", 3, 4), value("y_t", 3, 4)])  # fmt: skip
    scan = helper.make_node("Scan", ["h0", "x"], ["h_n", "y"], name="loop", body=body, num_scan_inputs=1,
                            scan_input_directions=[int(reverse)], scan_output_directions=[int(reverse)])  # fmt: skip
    stored = [numpy_helper.from_array(rng.uniform(-0.6, 0.6, shape), name)
              for name, shape in {"W": (2, 4), "R": (4, 4), "h0": (3, 4)}.items()]  # fmt: skip
    graph = helper.make_graph(
        [scan], "scan", [value("x", None, 3, 2)], [value("h_n", 3, 4), value("y", None, 3, 4)], stored
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize("reverse", [False, True])
def test_gradients_through_scan(reverse: bool, record_property: Any) -> None:
    rng = np.random.default_rng(5)
    net = bridge.to_flax(scan_model(rng, reverse))
    assert assert_gradients(net, {"x": rng.uniform(-1, 1, X)}, record_property) == {"a.kernel", "b.kernel", "h0"}


HARD: dict[str, dict[str, Any]] = {
    "LSTM": {"kind": "LSTM", "peepholes": True, "initial_h": 1, "initial_c": 1},
    "LSTM of a batch's own states": {"kind": "LSTM", "clip": 0.4, "initial_h": 3, "initial_c": 3, "input_forget": True},
    "GRU": {"kind": "GRU", "initial_h": 1},
    "RNN": {"kind": "RNN", "initial_h": 1, "activations": ("ScaledTanh",), "activation_alpha": (0.7,),
            "activation_beta": (1.2,)},
}  # fmt: skip


@pytest.mark.parametrize("name", HARD)
def test_gradients_of_a_cell_with_constant_states_reach_its_carry(name: str, record_property: Any) -> None:
    rng = np.random.default_rng(6)
    cell = random_cell(inputs=2, hidden=3, rng=rng, dtype="float64", **HARD[name])
    net = bridge.to_flax(cell)
    x = random_input(cell, rng, time=4, batch=3)
    params = assert_gradients(net, {net.input_names[0]: x}, record_property)
    assert sum("initial" in each for each in params) == (2 if cell.op == "LSTM" else 1)


@pytest.mark.parametrize("name", HARD)
def test_gradients_of_own_cells_in_nnx_rnn(name: str, record_property: Any) -> None:
    rng = np.random.default_rng(7)
    cell = random_cell(inputs=2, hidden=3, rng=rng, dtype="float64", **HARD[name])
    layer, x = bridge.build(cell, "flax.nnx", own_cells=True), random_input(cell, rng, time=4, batch=3)
    graph, params, rest = nnx.split(layer, nnx.Param, ...)
    assert isinstance(layer, nnx.RNN)

    def outputs(params: Any, x: Any) -> Any:
        return nnx.merge(graph, params, rest)(x, seq_lengths=jnp.array([4, 2, 3]))

    x = jnp.asarray(x.swapaxes(0, 1))
    _compare(cell, jax.jit(outputs)(params, x), x)
    error = worst_error(lambda at: weighted(outputs(*at)), (params, x))
    record_property("gradient error over its bound", error)
    assert error <= 1.0


@pytest.mark.parametrize("name", HARD)
def test_gradients_of_own_cells_in_linen_rnn(name: str, record_property: Any) -> None:
    rng = np.random.default_rng(8)
    cell = random_cell(inputs=2, hidden=3, rng=rng, dtype="float64", **HARD[name])
    layer, variables = bridge.build(cell, "flax.linen", own_cells=True)
    x = jnp.asarray(random_input(cell, rng, time=4, batch=3).swapaxes(0, 1))
    assert isinstance(layer, nn.RNN)

    def outputs(variables: Any, x: Any) -> Any:
        return layer.apply(variables, x, seq_lengths=jnp.array([4, 2, 3]))

    _compare(cell, jax.jit(outputs)(variables, x), x)
    error = worst_error(lambda at: weighted(outputs(*at)), (variables, x))
    record_property("gradient error over its bound", error)
    assert error <= 1.0


def _compare(cell: Cell, actual: Any, x: Any) -> None:
    """Flax keeps computing on the padding, so every step is that of the full length."""
    expected = reference.evaluate(cell, np.asarray(x).swapaxes(0, 1))[0][:, 0]
    np.testing.assert_allclose(np.asarray(actual).swapaxes(0, 1), expected, rtol=0, atol=1e-13)


def test_a_wrong_gradient_and_none_are_noticed() -> None:
    square = jax.custom_vjp(lambda x: (x**2).sum())
    square.defvjp(lambda x: ((x**2).sum(), x), lambda x, g: (2.00001 * x * g,))
    assert worst_error(square, jnp.arange(1.0, 4.0)) > 10.0
    with pytest.raises(AssertionError, match="no gradient"):
        worst_error(lambda x: jax.lax.stop_gradient(x).sum(), jnp.arange(1.0, 4.0))
