"""Graphs that would exhaust memory, never end or cannot be: refused before the harm is done."""

from __future__ import annotations

import tracemalloc

import numpy as np
import onnx
import pytest
from onnx import helper

from bridge.errors import BadInput, BridgeError
from bridge.ops.backend_numpy import NumpyBackend
from bridge.ops.program import Program
from tests.ops.test_program import model

F32, I64 = np.float32, np.int64
HUGE = np.array([2**20, 2**20], I64)

MEMORY = 2**24
"""Bytes: what a refusal may need; each of these graphs asks for 2**40 elements or so."""


def number(value: object) -> np.ndarray:
    return np.array(value, I64)


@pytest.mark.parametrize(
    ("op", "inputs", "attributes", "opset"),
    [
        ("ConstantOfShape", {"input": HUGE}, {}, 20),
        ("ConstantOfShape", {"input": number([-1])}, {}, 20),
        ("Expand", {"x": np.ones((1, 1), F32), "shape": HUGE}, {}, 20),
        ("Tile", {"x": np.ones((1, 1), F32), "repeats": HUGE}, {}, 20),
        ("Range", {"start": number(0), "limit": number(2**40), "delta": number(1)}, {}, 20),
        ("Pad", {"x": np.ones((1, 1), F32), "pads": number([0, 0, 2**20, 2**20])}, {}, 20),
        ("OneHot", {"x": np.ones((1,), I64), "depth": number(2**40), "values": np.ones(2, F32)}, {}, 20),
        ("Resize", {"x": np.ones((1, 1), F32), "roi": np.ones(0, F32), "scales": np.full(2, 2**20, F32)}, {}, 20),
        ("DFT", {"x": np.ones((1, 4, 1), F32), "length": number(2**40)}, {}, 20),
        ("HannWindow", {"size": number(2**40)}, {}, 20),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_absurd_size_is_refused_without_allocating_it(op, inputs, attributes, opset) -> None:
    node = helper.make_node(op, list(inputs), ["y"], name="hostile", **attributes)
    feeds = {name: array for name, array in inputs.items() if name == "x"}
    constants = {name: array for name, array in inputs.items() if name != "x"}
    infos = [("x", helper.np_dtype_to_tensor_dtype(array.dtype), array.shape) for array in feeds.values()]
    program = Program(model([node], infos, [("y", 1)], constants, opset), NumpyBackend())
    tracemalloc.start()
    try:
        with pytest.raises(BadInput, match=f"{op} node 'hostile'[\\s\\S]*absurd size"):
            program(feeds)
        assert tracemalloc.get_traced_memory()[1] < MEMORY
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("mode", ["reflect", "edge", "wrap"])
def test_an_axis_without_elements_has_nothing_to_repeat(mode: str) -> None:
    node = helper.make_node("Pad", ["x", "pads"], ["y"], mode=mode)
    program = Program(model([node], [("x", 1, [0])], [("y", 1)], {"pads": number([1, 0])}, 19), NumpyBackend())
    with pytest.raises(BadInput, match="nothing to repeat"):
        program({"x": np.ones(0, F32)})


def test_a_cycle_is_refused() -> None:
    nodes = [helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Neg", ["a"], ["b"])]
    with pytest.raises(BadInput, match="cycle"):
        Program(model(nodes, [("x", 1, [2])], [("a", 1)]), NumpyBackend())


def test_branches_nested_too_deep_are_refused() -> None:
    source = model([], [("p", 9, []), ("x", 1, [2])], [("y", 1)])
    graph = source.graph
    for _ in range(1000):  # filled from the outside inwards: protobuf copies no message this deep
        node = graph.node.add(op_type="If", input=["p"], output=["y"])
        leaf, attribute = node.attribute.add(), node.attribute.add()
        for branch, name in ((leaf, "else_branch"), (attribute, "then_branch")):
            branch.name, branch.type = name, onnx.AttributeProto.GRAPH
            branch.g.output.add(name="y")
        leaf.g.node.add(op_type="Neg", input=["x"], output=["y"])
        graph = attribute.g
    graph.node.add(op_type="Neg", input=["x"], output=["y"])
    with pytest.raises(BadInput, match="nested too deeply"):
        Program(source, NumpyBackend())


@pytest.mark.parametrize(
    ("nodes", "text"),
    [
        ([helper.make_node("Neg", ["nowhere"], ["y"])], "defined nowhere"),
        ([helper.make_node("Neg", ["x"], ["y"]), helper.make_node("Abs", ["x"], ["y"])], "of one name"),
        ([helper.make_node("Concat", ["x", "x"], ["y"], name="join")], "Concat node 'join': required attributes"),
    ],
)
def test_an_invalid_graph_is_refused(nodes, text) -> None:
    with pytest.raises(BadInput, match=text):
        Program(model(nodes, [("x", 1, [2])], [("y", 1)]), NumpyBackend())


def test_functions_that_double_forty_times_are_refused() -> None:
    imports = [helper.make_opsetid("", 20), helper.make_opsetid("own", 1)]
    functions = [helper.make_function("own", "f0", ["a"], ["b"], [helper.make_node("Neg", ["a"], ["b"])], imports)]
    for at in range(40):
        calls = [helper.make_node(f"f{at}", ["a"], ["t"], domain="own"),
                 helper.make_node(f"f{at}", ["t"], ["b"], domain="own")]  # fmt: skip
        functions.append(helper.make_function("own", f"f{at + 1}", ["a"], ["b"], calls, imports))
    source: onnx.ModelProto = model([helper.make_node("f40", ["x"], ["y"], domain="own")], [("x", 1, [2])], [("y", 1)])
    source.functions.extend(functions)
    source.opset_import.append(helper.make_opsetid("own", 1))
    with pytest.raises(BadInput, match="too many nodes"):
        Program(source, NumpyBackend())


@pytest.mark.parametrize(
    ("op", "attributes", "said"),
    [
        ("LSTM", {"direction": "sideways"}, "unknown direction"),
        ("GRU", {"activations": ["Swish", "Tanh"]}, "no activation 'Swish'"),
        ("RNN", {"activations": ["Tanh", "Relu"]}, None),
        ("LSTM", {"clip": -1.0}, "clip is a finite number above 0"),
        ("RNN", {"clip": -1.0}, None),
        ("GRU", {"layout": 3}, "unknown layout"),
    ],
)
def test_attributes_of_a_recurrent_node_are_judged_before_it_runs(op, attributes, said) -> None:
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[op]
    node = helper.make_node(op, ["x", "W", "R"], ["y"], name="layer", hidden_size=2, **attributes)
    infos = [("x", F32, [3, 1, 2]), ("W", F32, [1, gates * 2, 2]), ("R", F32, [1, gates * 2, 2])]
    infos = [(name, helper.np_dtype_to_tensor_dtype(np.dtype(kind)), shape) for name, kind, shape in infos]
    proto = model([node], infos, [("y", 1)], {}, 14)
    if said is None:  # onnxruntime takes a negative clip of an RNN for none, and the first of two names
        feeds = {name: np.full(shape, 0.5, F32) for name, _, shape in infos}
        y = Program(proto, NumpyBackend())(feeds)["y"]
        assert y[0, 0, 0] == pytest.approx(np.tanh(0.5), rel=1e-6)
    else:
        with pytest.raises(BridgeError, match=f"(?s){op} node 'layer'.*{said}"):
            Program(proto, NumpyBackend())
