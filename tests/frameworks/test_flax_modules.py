"""Layers that own weights become native Flax modules: exactly the operator, in native names, and back to ONNX."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import bridge
from bridge import graph
from bridge.errors import BadInput
from bridge.graph import Writer
from bridge.ops.native import NativeModule, layer_paths
from tests.frameworks.flax_cases import assert_agree, called, feeds_of

RNG = np.random.default_rng(11)


def draw(*shape: int) -> np.ndarray:
    return RNG.uniform(-0.7, 0.7, shape).astype(np.float32)


@dataclass(frozen=True)
class Row:
    """One node (and the Add behind it): x and constants in the order of the operator's inputs."""

    op: str
    x: tuple[Any, ...]
    constants: tuple[np.ndarray | None, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    native: str | None = None
    params: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    dtype: str = "float32"
    added: np.ndarray | None = None
    at: int = 0
    """Which input of the node x is."""
    opset: int = 20

    def model(self) -> Any:
        w = Writer(opset=self.opset)
        x = w.input("x", self.dtype, self.x)
        inputs = [None if array is None else w.constant(array, f"w{n}") for n, array in enumerate(self.constants)]
        inputs.insert(self.at, x)
        y = w.op(self.op, *inputs, name="/block.0/" + self.op, **self.attributes)
        if self.added is not None:
            y = w.op("Add", w.constant(self.added, "added"), y, name="/block.0/Add")
        w.output(y, "y")
        return w.model()


STATISTICS = (draw(3) + 1, draw(3), draw(3), np.abs(draw(3)) + np.float32(0.2))

NATIVE = {
    "MatMul": Row("MatMul", ("batch", "time", 3), (draw(3, 4),), native="Linear", params={"kernel": (3, 4)}),
    "MatMul and Add": Row("MatMul", ("batch", "time", 3), (draw(3, 4),), native="Linear", added=draw(4),
                          params={"kernel": (3, 4), "bias": (4,)}),
    "MatMul of one row": Row("MatMul", (3,), (draw(3, 4),), native="Linear", params={"kernel": (3, 4)}),
    "Gemm": Row("Gemm", ("batch", 3), (draw(3, 4), draw(4)), native="Linear", params={"kernel": (3, 4), "bias": (4,)}),
    "Gemm of torch": Row("Gemm", ("batch", 3), (draw(4, 3), draw(4)), {"transB": 1, "alpha": 1.0, "beta": 1.0},
                         native="Linear", params={"kernel": (3, 4), "bias": (4,)}),
    "Gemm, bias of two axes": Row("Gemm", ("batch", 3), (draw(3, 4), draw(1, 4)), native="Linear",
                                  params={"kernel": (3, 4), "bias": (4,)}),
    "Gemm without bias": Row("Gemm", ("batch", 3), (draw(3, 4),), native="Linear", params={"kernel": (3, 4)}),
    "Conv of one axis": Row("Conv", ("batch", 3, 9), (draw(4, 3, 2), draw(4)), {"pads": [2, 1], "strides": [2]},
                            native="Conv", params={"kernel": (2, 3, 4), "bias": (4,)}),
    "Conv of two axes": Row("Conv", ("batch", 3, 8, 7), (draw(4, 3, 3, 2),),
                            {"dilations": [2, 1], "pads": [0, 1, 3, 0]}, native="Conv",
                            params={"kernel": (3, 2, 3, 4)}),
    "Conv of three axes": Row("Conv", (2, 2, 4, 5, 3), (draw(3, 2, 2, 3, 2), draw(3)), native="Conv",
                              params={"kernel": (2, 3, 2, 2, 3), "bias": (3,)}),
    "Conv in groups": Row("Conv", ("batch", 4, 9), (draw(6, 2, 3), draw(6)), {"group": 2}, native="Conv",
                          params={"kernel": (3, 2, 6), "bias": (6,)}),
    "Conv per channel": Row("Conv", ("batch", 3, 9), (draw(6, 1, 3), draw(6)), {"group": 3}, native="Conv",
                            params={"kernel": (3, 1, 6), "bias": (6,)}),
    **{f"Conv {auto}": Row("Conv", ("batch", 3, 8, 7), (draw(4, 3, 3, 2), draw(4)),
                           {"auto_pad": auto, "strides": [2, 3]}, native="Conv",
                           params={"kernel": (3, 2, 3, 4), "bias": (4,)})
       for auto in ("SAME_UPPER", "SAME_LOWER", "VALID")},
    "BatchNormalization": Row("BatchNormalization", ("batch", 3, 5), STATISTICS, {"epsilon": 0.01}, native="BatchNorm",
                              params={"scale": (3,), "bias": (3,), "mean": (3,), "var": (3,)}),
    "BatchNormalization of rows": Row("BatchNormalization", ("batch", 3), STATISTICS, native="BatchNorm",
                                      params={"scale": (3,), "bias": (3,), "mean": (3,), "var": (3,)}),
    "LayerNormalization": Row("LayerNormalization", ("batch", "time", 5), (draw(5) + 1, draw(5)), {"epsilon": 0.01},
                              native="LayerNorm", params={"scale": (5,), "bias": (5,)}),
    "LayerNormalization, last axis by number": Row("LayerNormalization", ("batch", "time", 5), (draw(5) + 1,),
                                                   {"axis": 2}, native="LayerNorm", params={"scale": (5,)}),
    "Gather": Row("Gather", ("batch", "time"), (draw(4, 3),), native="Embed", params={"embedding": (4, 3)},
                  dtype="int64", at=1),
}  # fmt: skip

GENERIC = {
    "a product from the left": Row("MatMul", (3, 5), (draw(4, 3),), at=1),
    "a product by a stack of matrices": Row("MatMul", (2, 5, 3), (draw(2, 3, 4),)),
    "a product by a vector": Row("MatMul", ("batch", 3), (draw(3),)),
    "a scaled Gemm": Row("Gemm", ("batch", 3), (draw(3, 4), draw(4)), {"alpha": 0.5}),
    "a scaled bias": Row("Gemm", ("batch", 3), (draw(3, 4), draw(4)), {"beta": 0.5}),
    "a Gemm of a transposed input": Row("Gemm", (3, "batch"), (draw(3, 4), draw(4)), {"transA": 1}),
    "a Gemm with one number for all": Row("Gemm", ("batch", 3), (draw(3, 4), draw(1))),
    "a Gemm with a matrix for all": Row("Gemm", (5, 3), (draw(3, 4), draw(5, 4))),
    "a normalisation of two axes": Row("LayerNormalization", ("batch", 4, 3), (draw(4, 3) + 1, draw(4, 3)),
                                       {"axis": 1}),
    "columns of a table": Row("Gather", ("batch",), (draw(4, 3),), {"axis": 1}, dtype="int64", at=1),
    "numbers of a list": Row("Gather", ("batch", "time"), (draw(4),), dtype="int64", at=1),
}  # fmt: skip


def feeds_for(row: Row, model: Any) -> dict[str, np.ndarray]:
    feeds = feeds_of(model)
    if row.dtype == "int64":
        feeds["x"] = np.random.default_rng(5).integers(-3, 3, feeds["x"].shape)
    return feeds


def modules(net: Any) -> dict[str, NativeModule]:
    """The native modules of an imported model by dotted path."""
    held = net[0].graph if isinstance(net, tuple) else net.graph

    def walk(tree: Mapping[str, Any], path: tuple[str, ...]) -> Any:
        for name, value in tree.items():
            yield from walk(value, (*path, name)) if isinstance(value, dict) else [((*path, name), value)]

    return {".".join(path): leaf for path, leaf in walk(held.tree, ()) if isinstance(leaf, NativeModule)}


CLASSES = {
    "nnx": {"Linear": nnx.Linear, "Conv": nnx.Conv, "BatchNorm": nnx.BatchNorm, "LayerNorm": nnx.LayerNorm,
            "Embed": nnx.Embed},
    "linen": {"Linear": nn.Dense, "Conv": nn.Conv, "BatchNorm": nn.BatchNorm, "LayerNorm": nn.LayerNorm,
              "Embed": nn.Embed},
}  # fmt: skip


@pytest.mark.parametrize("api", CLASSES)
@pytest.mark.parametrize("row", NATIVE.values(), ids=NATIVE)
def test_a_layer_becomes_the_native_module_that_computes_it(row: Row, api: str) -> None:
    model = row.model()
    net = bridge.to_flax(model, api=api)
    feeds = feeds_for(row, model)
    assert_agree(model, called(net, feeds), feeds)
    module, shapes = held(net, "block_0")
    assert type(module) is CLASSES[api][row.native]
    assert shapes == dict(row.params)


def held(net: Any, name: str) -> tuple[Any, dict[str, tuple[int, ...]]]:
    """The native module and the shapes of all that it holds, by native name."""
    if isinstance(net, tuple):
        module, variables = net
        assert set(variables) <= {"params", "batch_stats"}
        collections = [variables[collection].get(name, {}) for collection in variables]
        return getattr(module.bind(variables), name), {k: v.shape for each in collections for k, v in each.items()}
    state = nnx.to_flat_state(nnx.state(net))
    return getattr(net, name), {path[-1]: leaf.shape for path, leaf in state if path[0] == name}


@pytest.mark.parametrize("row", GENERIC.values(), ids=GENERIC)
def test_what_the_native_module_does_not_compute_stays_the_operator(row: Row) -> None:
    model = row.model()
    net = bridge.to_flax(model)
    assert not modules(net)
    assert {path[-1] for path, _ in nnx.to_flat_state(nnx.state(net, nnx.Param))} == {
        f"w{n}" for n, _ in enumerate(row.constants)}  # fmt: skip
    feeds = feeds_for(row, model)
    assert_agree(model, called(net, feeds), feeds)


@pytest.mark.parametrize("api", CLASSES)
@pytest.mark.parametrize("row", NATIVE.values(), ids=NATIVE)
def test_trained_weights_go_back_into_the_graph(row: Row, api: str) -> None:
    model = row.model()
    net = bridge.to_flax(model, api=api)
    assert arrays(bridge.to_onnx(net)) == arrays(graph.to_proto(model))
    net = changed(net)
    again = graph.as_model(bridge.to_onnx(net))
    assert {v.name: tuple(v.shape) for v in again.graph.initializers.values()} == {
        v.name: tuple(v.shape) for v in model.graph.initializers.values()}  # fmt: skip
    feeds = feeds_for(row, model)
    assert_agree(again, called(net, feeds), feeds)


def arrays(proto: Any) -> dict[str, bytes]:
    return {each.name: each.raw_data for each in proto.graph.initializer}


def changed(net: Any) -> Any:
    """The same model with every parameter and statistic moved, each its own way."""
    rng = np.random.default_rng(3)

    def move(leaf: Any) -> Any:
        return jax.numpy.asarray(leaf * rng.uniform(0.5, 1.5, leaf.shape).astype(leaf.dtype))

    if isinstance(net, tuple):
        return net[0], jax.tree.map(move, net[1])
    nnx.update(net, jax.tree.map(move, nnx.state(net)))
    return net


def write(build: Callable[[Writer, Any], None], *shape: int | str, dtype: str = "float32") -> Any:
    w = Writer()
    build(w, w.input("x", dtype, shape))
    return w.model()


def two_products(w: Writer, x: Any) -> None:
    kernel, bias = w.constant(draw(3, 3), "kernel"), w.constant(draw(3), "bias")
    y = w.op("Gemm", x, kernel, bias, name="/first/Gemm")
    w.output(w.op("Gemm", w.op("Tanh", y), kernel, bias, name="/second/Gemm"), "y")


def tied(w: Writer, x: Any) -> None:
    table = w.constant(draw(5, 3), "table")
    y = w.op("Tanh", w.op("Gather", table, x, name="/embed/Gather"))
    w.output(w.op("MatMul", y, w.op("Transpose", table, perm=[1, 0]), name="/head/MatMul"), "y")


def one_kernel_two_biases(w: Writer, x: Any) -> None:
    kernel = w.constant(draw(3, 3), "kernel")
    y = w.op("Add", w.op("MatMul", x, kernel, name="/a/MatMul"), w.constant(draw(3), "b1"), name="/a/Add")
    w.output(w.op("Add", w.op("MatMul", y, kernel, name="/b/MatMul"), w.constant(draw(3), "b2"), name="/b/Add"), "y")


SHARED = {
    "two nodes": (two_products, (4, 3), "float32", {"first": "Linear"}, {("first", "kernel"), ("first", "bias")}),
    "an embedding and the head": (tied, (2, 4), "int64", {"embed": "Embed"}, {("embed", "embedding")}),
    "a kernel": (one_kernel_two_biases, (4, 3), "float32", {"a": "Linear"},
                 {("a", "kernel"), ("a", "bias"), ("b2",)}),
}  # fmt: skip


@pytest.mark.parametrize("api", CLASSES)
@pytest.mark.parametrize("row", SHARED.values(), ids=SHARED)
def test_shared_initialisers_stay_shared(row: Any, api: str) -> None:
    build, shape, dtype, expected, paths = row
    model = write(build, *shape, dtype=dtype)
    net = bridge.to_flax(model, api=api)
    assert {path: leaf.kind for path, leaf in modules(net).items()} == expected
    tree = net[1]["params"] if api == "linen" else nnx.to_pure_dict(nnx.state(net, nnx.Param))
    assert {tuple(key.key for key in path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)} == paths
    feeds = feeds_of(model)
    if dtype == "int64":
        feeds = {"x": np.random.default_rng(0).integers(0, 5, shape)}
    assert_agree(model, called(net, feeds), feeds)
    net = changed(net)
    again = graph.as_model(bridge.to_onnx(net))
    assert len(again.graph.initializers) == len(model.graph.initializers)
    assert_agree(again, called(net, feeds), feeds)


def test_a_transposed_kernel_is_native_and_goes_back_to_its_initialiser() -> None:
    def build(w: Writer, x: Any) -> None:
        w.output(w.op("MatMul", x, w.op("Transpose", w.constant(draw(4, 3), "w")), name="/fc/MatMul"), "y")

    model = write(build, "batch", 3)
    net = changed(bridge.to_flax(model))
    assert net.fc.kernel.shape == (3, 4)
    again = graph.as_model(bridge.to_onnx(net))
    assert tuple(again.graph.initializers["w"].shape) == (4, 3)
    feeds = feeds_of(model)
    assert_agree(again, called(net, feeds), feeds)


def test_a_statistic_that_is_a_parameter_too_stays_apart_from_it() -> None:
    def build(w: Writer, x: Any) -> None:
        zeros = w.constant(draw(3), "zeros")
        scale, var = w.constant(draw(3) + 1, "scale"), w.constant(np.abs(draw(3)) + 1, "var")
        w.output(w.op("BatchNormalization", x, scale, zeros, zeros, var, name="/bn/BatchNormalization"), "y")

    model = write(build, "batch", 3)
    net = bridge.to_flax(model)
    assert not modules(net)
    feeds = feeds_of(model)
    assert_agree(model, called(net, feeds), feeds)


def test_running_statistics_are_no_parameters() -> None:
    model = NATIVE["BatchNormalization"].model()
    net = bridge.to_flax(model)
    of = {
        kind: {path[-1] for path, _ in nnx.to_flat_state(nnx.state(net, kind))} for kind in (nnx.Param, nnx.BatchStat)
    }
    assert of == {nnx.Param: {"scale", "bias"}, nnx.BatchStat: {"mean", "var"}}
    _, variables = bridge.to_flax(model, api="linen")
    assert {name: set(variables[name]["block_0"]) for name in variables} == {
        "params": {"scale", "bias"}, "batch_stats": {"mean", "var"}}  # fmt: skip


def test_batch_statistics_train_where_the_user_says_so_and_go_back() -> None:
    model = NATIVE["BatchNormalization"].model()
    net, feeds = bridge.to_flax(model), feeds_of(model)
    net.train()
    before = np.asarray(net.block_0.mean[...])
    nnx.jit(lambda m, x: m(x))(net, feeds["x"])
    assert not np.array_equal(net.block_0.mean[...], before)
    net.eval()
    assert_agree(graph.as_model(bridge.to_onnx(net)), called(net, feeds), feeds)


@pytest.mark.parametrize("shape", [(2, 3, 4, 9), (2, 5, 9), (2, 3)], ids=str)
def test_an_input_that_the_operator_refuses_is_refused(shape: tuple[int, ...]) -> None:
    row = NATIVE["Conv of one axis"]
    w = Writer()
    x = w.input("x", "float32", [None] * len(shape))
    x.shape = None
    w.graph.append(graph_node(row, w, x))
    w.graph.outputs.append(next(iter(w.graph)).outputs[0])
    net = bridge.to_flax(w.model())
    with pytest.raises(BadInput, match="wrong shape"):
        net(np.zeros(shape, np.float32))


def graph_node(row: Row, w: Writer, x: Any) -> Any:
    import onnx_ir as ir

    inputs = [x, *(w.constant(array, f"w{n}") for n, array in enumerate(row.constants))]
    output = ir.Value(name="y", type=ir.TensorType(ir.DataType.FLOAT))
    attributes = [ir.AttrInt64s(name, list(value)) for name, value in row.attributes.items()]
    return ir.Node("", row.op, inputs, attributes, outputs=[output], name="conv")


@pytest.mark.parametrize(
    ("paths", "expected"),
    [([("fc", "MatMul")], [("fc",)]), ([("MatMul_0",)], [("MatMul_0",)]),
     ([("a", "MatMul"), ("a", "MatMul_1")], [("a", "MatMul"), ("a", "MatMul_1")]),
     ([("a", "MatMul"), ("a", "b", "MatMul")], [("a", "MatMul"), ("a", "b")]),
     ([("a", "MatMul"), ("a",)], [("a", "MatMul"), ("a",)])],
    ids=str)  # fmt: skip
def test_a_layer_that_is_alone_takes_the_name_of_its_module(paths: Any, expected: Any) -> None:
    import onnx_ir as ir

    nodes = [ir.Node("", "MatMul", []) for _ in paths]
    assert list(layer_paths(dict(zip(nodes, paths, strict=True))).values()) == expected


@pytest.mark.parametrize("api", ["nnx", "linen"])
def test_rows_of_an_embedding_are_counted_from_the_end_once(api: str) -> None:
    w = Writer()
    w.output(w.op("Gather", w.constant(draw(9, 3), "table"), w.input("at", "int64", ["batch", "time"])), "y")
    net, at = bridge.to_flax(graph.to_proto(w.model()), api=api), np.array([[0, -9, 8, -1, 9, -10, 100, -100]])
    y = np.asarray(net[0].apply(net[1], at) if api == "linen" else net(at))[0]
    np.testing.assert_array_equal(y[[0, 2]], y[[1, 3]])
    assert np.isfinite(y[:4]).all()
    assert np.isnan(y[4:]).all()  # onnxruntime refuses them, which traced code cannot


def recurrent_graph() -> Any:
    w = Writer()
    table, kernel, R = draw(9, 3), draw(1, 8, 3), draw(1, 8, 2)
    x = w.op("Gather", w.constant(table, "table"), w.input("at", "int64", ["time", "batch"]))
    y = w.op("LSTM", x, w.constant(kernel, "W"), w.constant(R, "R"), hidden_size=2, name="rnn")
    w.output(w.op("Mul", y, w.constant(draw(2), "scale")), "y")
    return graph.to_proto(w.model())


def test_a_copy_of_an_nnx_module_has_weights_of_its_own() -> None:
    net, at = bridge.to_flax(recurrent_graph()), np.array([[0, 3], [8, 1]])
    before, other = np.asarray(net(at)), copy.deepcopy(net)
    other.scale[...] = 2 * other.scale[...]
    np.testing.assert_array_equal(other(at), 2 * before)
    np.testing.assert_array_equal(net(at), before)


def test_a_linen_pair_is_copied_and_pickled() -> None:
    proto, at = recurrent_graph(), np.array([[0, 3], [8, 1]])
    net = bridge.to_flax(proto, api="linen", remat=1)
    expected = np.asarray(net[0].apply(net[1], at))
    for module, variables in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        np.testing.assert_array_equal(module.apply(variables, at), expected)
        again = bridge.run(bridge.to_onnx((module, variables)), {"at": at})
        np.testing.assert_array_equal(again["y"], bridge.run(proto, {"at": at})["y"])
