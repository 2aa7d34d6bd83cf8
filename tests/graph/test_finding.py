from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from bridge.cell import Cell
from bridge.errors import BadInput, BridgeError, Unsupported
from bridge.graph import Writer, find_cells, fold, parse, recurrent_nodes, to_proto
from bridge.graph.recurrent import CELL
from tests.cells import random_cell
from tests.graph.models import cell_model

EVERYTHING = [
    ("LSTM", {"direction": "bidirectional", "peepholes": True, "input_forget": True, "clip": 0.7, "initial_h": 1,
              "initial_c": 1, "activations": ("HardSigmoid", "Elu", "Softsign") * 2,
              "activation_alpha": (0.3, 0.9, 0.2, 0.8), "activation_beta": (0.4, 0.6)}),
    ("GRU", {"direction": "reverse", "linear_before_reset": True, "initial_h": 4}),
    ("GRU", {"bias": False}),
    ("RNN", {"activations": ("Affine",), "activation_alpha": (0.5,), "activation_beta": (0.1,)}),
]  # fmt: skip


@pytest.mark.parametrize(("op", "attributes"), EVERYTHING, ids=lambda value: value if isinstance(value, str) else "")
@pytest.mark.parametrize("form", ["fused", "scan"])
def test_what_is_written_is_found_again(form, op, attributes, rng):
    cell = random_cell(op, 3, 5, rng, **attributes)
    model = parse(to_proto(cell_model(cell, form=form, lengths=True, name="encoder.rnn.l0")))
    assert find_cells(model) == {"encoder.rnn.l0": cell}


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_every_dtype_is_found_again(dtype, rng):
    cell = random_cell("GRU", 3, 5, rng, dtype=dtype, direction="bidirectional")
    assert find_cells(parse(to_proto(cell_model(cell)))) == {"rnn": cell}


def node_model(op="GRU", *, opset=14, inputs=(), attributes=None, initializers=None, name="cell", extra=()):
    """One node made with onnx.helper alone: W and R of ones unless given, hidden 2, input 3."""
    n = {"LSTM": 4, "GRU": 3, "RNN": 1}[op]
    arrays = {"W": np.ones((1, 2 * n, 3), "f"), "R": np.ones((1, 2 * n, 2), "f")} | (initializers or {})
    node = helper.make_node(op, ["X", "W", "R", *inputs], ["Y"], name=name, **({"hidden_size": 2} | (attributes or {})))
    stored = [numpy_helper.from_array(value, key) for key, value in arrays.items() if value is not None]
    x, y = (helper.make_tensor_value_info(key, 1, [None] * rank) for key, rank in (("X", 3), ("Y", 4)))
    graph = helper.make_graph([*extra, node], "g", [x], [y], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


@pytest.mark.parametrize("opset", [7, 8, 13, 14, 21, 22, 26])
def test_every_readable_opset_is_read(opset):
    assert find_cells(parse(node_model(opset=opset)))["cell"].op == "GRU"


@pytest.mark.parametrize("opset", [1, 3, 6])
def test_older_operators_are_refused(opset):
    with pytest.raises(Unsupported, match="opset 7 or newer"):
        find_cells(parse(node_model(opset=opset)))


def test_batch_first_states_are_turned():
    state = np.arange(1, 9, dtype="f").reshape(4, 1, 2)  # [N, D, H]
    model = node_model(inputs=("", "", "h"), initializers={"h": state}, attributes={"layout": 1})
    np.testing.assert_array_equal(find_cells(parse(model))["cell"].initial_h, state.transpose(1, 0, 2))


def test_layout_before_opset_14_is_no_attribute():
    with pytest.raises(BadInput, match="no attribute 'layout'"):
        find_cells(parse(node_model(opset=13, attributes={"layout": 1})))


def test_a_state_of_zeros_is_no_state():
    model = node_model(inputs=("", "", "h"), initializers={"h": np.zeros((1, 4, 2), "f")})
    assert find_cells(parse(model))["cell"].initial_h is None


def test_onnxruntime_s_readings_of_rnn_are_followed():
    cell = find_cells(parse(node_model("RNN", attributes={"activations": ["Relu", "Tanh"], "clip": -1.0})))["cell"]
    assert (cell.activations, cell.clip) == (("Relu",), None)


REFUSED = {
    "unknown attribute": (BadInput, {"attributes": {"output_sequence": 1}}),
    "another operator's attribute": (BadInput, {"attributes": {"input_forget": 1}}),
    "attribute of another type": (BadInput, {"attributes": {"direction": 1}}),
    "hidden_size disagrees": (BadInput, {"attributes": {"hidden_size": 3}}),
    "shapes disagree": (BadInput, {"initializers": {"W": np.ones((1, 7, 3), "f")}}),
    "ranks disagree": (BadInput, {"initializers": {"R": np.ones((6, 2), "f")}}),
    "NaN": (BadInput, {"initializers": {"W": np.full((1, 6, 3), np.nan, "f")}}),
    "empty": (BadInput, {"initializers": {"W": np.ones((1, 6, 0), "f")}}),
    "integers": (Unsupported, {"initializers": {"W": np.ones((1, 6, 3), "i")}}),
    "direction": (BridgeError, {"attributes": {"direction": "FORWARD"}}),
    "activation": (BridgeError, {"attributes": {"activations": ["Gelu", "Tanh"]}}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_node_that_is_no_cell_is_refused(name):
    kind, options = REFUSED[name]
    with pytest.raises(kind, match="'cell'"):
        find_cells(parse(node_model(**options)))


def test_bfloat16_is_refused_with_the_reason():
    proto = node_model(opset=22)
    for tensor in proto.graph.initializer:
        tensor.data_type = onnx.TensorProto.BFLOAT16
        tensor.raw_data = tensor.raw_data[: len(tensor.raw_data) // 2]
    with pytest.raises(Unsupported, match="bfloat16: no kernel of onnxruntime"):
        find_cells(parse(proto))


def test_weights_that_are_inputs_are_reported_and_not_skipped():
    proto = node_model(initializers={"W": None})
    proto.graph.input.append(helper.make_tensor_value_info("W", 1, [1, 6, 3]))
    (found,) = recurrent_nodes(parse(proto))
    assert found.cell is None
    assert "W is a graph input" in str(found.problem)
    with pytest.raises(Unsupported, match="W is a graph input"):
        find_cells(parse(proto))


def test_every_unreadable_node_is_named(rng):
    w = Writer()
    x = w.input("x", "float32", ["time", "batch", 3])
    weights = w.input("weights", "float32", [1, 6, 3])
    recurrence = w.constant(np.ones((1, 6, 2), np.float32))
    for name in ("first", "second"):
        w.output(w.op("GRU", x, weights, recurrence, name=name, hidden_size=2, outputs=2)[0], f"{name}_y")
    with pytest.raises(Unsupported, match=r"(?s)2 recurrent nodes.*'first'.*'second'"):
        find_cells(w.model())


def test_names_are_unique_and_in_graph_order(rng):
    cells = [random_cell("GRU", 3, 5, rng) for _ in range(3)]
    w = Writer()
    x = w.input("x", "float32", ["time", "batch", 3])
    for cell in cells:
        w.recurrent(cell, x, name="same", metadata={"bridge.path": "same"})
    assert list(find_cells(w.model()).items()) == list(zip(["same", "same_1", "same_2"], cells, strict=True))


def test_scans_of_several_cells_keep_them_apart(rng):
    cells = [random_cell("GRU", 3, 5, rng, direction="bidirectional") for _ in range(2)]
    w = Writer()
    x = w.input("x", "float32", ["time", "batch", 3])
    for cell in cells:
        w.recurrent(cell, x, name="same", form="scan")
    assert list(find_cells(w.model()).items()) == list(zip(["same", "same_1"], cells, strict=True))


def test_a_layer_written_as_node_and_as_scan_is_one_cell(rng):
    cell = random_cell("GRU", 3, 5, rng, direction="bidirectional")
    w = Writer()
    x = w.input("x", "float32", ["time", "batch", 3])
    w.choose(w.input("right", "bool", []), lambda b: b.recurrent(cell, x, name="rnn")[:1],
             lambda b: b.recurrent(cell, x, name="rnn", form="scan")[:1], name="mask")  # fmt: skip
    assert find_cells(w.model()) == {"rnn": cell}


def test_a_node_without_a_name_gets_one():
    assert list(find_cells(parse(node_model(name="")))) == ["GRU_0"]


def test_nodes_in_every_kind_of_body_are_found(rng):
    cells = {name: random_cell("GRU", 3, 3, rng) for name in ("then", "else", "step")}
    w = Writer()
    x = w.input("x", "float32", ["time", "batch", 3])
    flag = w.input("flag", "bool", [])
    w.choose(flag, lambda b: b.recurrent(cells["then"], x, name="then")[:1],
             lambda b: b.recurrent(cells["else"], x, name="else")[:1], name="branch")  # fmt: skip

    def body(b, states, steps):
        y, last, _ = b.recurrent(cells["step"], b.unsqueeze(steps[0], 0), initial_h=states[0], name="step")
        return [last], [b.squeeze(y, 0, 1)]

    start = w.input("start", "float32", [1, "batch", 3])
    w.scan(body, [start], [x], name="scan")
    assert find_cells(w.model()) == cells


def function_model(opset=14, doublings=0):
    """A GRU in a function; `doublings` functions around it that each call the one before twice."""
    inner = helper.make_node("GRU", ["x", "w", "r"], ["y"], name="inner", hidden_size=2)
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("own", 1)]
    functions = [helper.make_function("own", "f0", ["x", "w", "r"], ["y"], [inner], imports)]
    for at in range(doublings):
        calls = [helper.make_node(f"f{at}", ["x", "w", "r"], [name], domain="own") for name in ("y", "z")]
        functions.append(helper.make_function("own", f"f{at + 1}", ["x", "w", "r"], ["y"], calls, imports))
    proto = node_model()
    call = helper.make_node(f"f{doublings}", ["X", "W", "R"], ["Y"], domain="own", name="call")
    proto.graph.node[0].CopyFrom(call)
    proto.functions.extend(functions)
    proto.opset_import.append(helper.make_opsetid("own", 1))
    return parse(proto)


def test_nodes_in_functions_are_found_by_inlining():
    (cell,) = find_cells(function_model()).values()
    assert (cell.op, cell.hidden_size) == ("GRU", 2)
    assert len(find_cells(function_model(doublings=3))) == 8


def test_functions_that_cannot_be_inlined_are_refused():
    with pytest.raises(BadInput, match="cannot be inlined"):
        find_cells(function_model(opset=11))
    with pytest.raises(BadInput, match="too many nodes"):
        find_cells(function_model(doublings=40))


# ---------------------------------------------------------------------- weights behind constant expressions


def expression_model(rng):
    """W = Concat(Transpose(a), b) unsqueezed, R cast from float64, B from a Constant node; returns the cell too."""
    cell = random_cell("GRU", 3, 2, rng)
    a, b = cell.W[0][:4].T.copy(), cell.W[0][4:]
    extra = [
        helper.make_node("Transpose", ["a"], ["at"], perm=[1, 0]),
        helper.make_node("Concat", ["at", "b"], ["w2"], axis=0),
        helper.make_node("Unsqueeze", ["w2", "zero"], ["W"]),
        helper.make_node("Cast", ["r64"], ["R"], to=1),
        helper.make_node("Constant", [], ["B"], value=numpy_helper.from_array(cell.B)),
    ]
    initializers = {"W": None, "R": None, "a": a, "b": b, "zero": np.asarray([0]), "r64": cell.R.astype("d")}
    return parse(node_model(inputs=("B",), extra=extra, initializers=initializers)), cell


def test_weights_behind_expressions_are_found(rng):
    model, cell = expression_model(rng)
    before = to_proto(model)
    assert find_cells(model) == {"cell": cell}
    assert to_proto(model) == before


def test_an_expression_is_evaluated_in_the_opset_of_its_model(rng):
    cell = random_cell("GRU", 3, 2, rng)
    scale, bytes_ = np.float32(0.5), rng.integers(-3, 4, cell.R.shape, np.int8)
    initializers = {"W": None, "R": None, "w2": cell.W[0], "bytes": bytes_, "scale": scale}
    unsqueeze = helper.make_node("Unsqueeze", ["w2"], ["W"], axes=[0])
    dequantize = helper.make_node("DequantizeLinear", ["bytes", "scale"], ["R"])
    found = find_cells(parse(node_model(extra=[unsqueeze, dequantize], initializers=initializers, opset=11)))["cell"]
    np.testing.assert_array_equal(found.W, cell.W)
    np.testing.assert_array_equal(found.R, bytes_ * scale)

    softmax = helper.make_node("Softmax", ["w3"], ["W"])
    old = parse(node_model(extra=[softmax], initializers={"W": None, "w3": cell.W}, opset=12))
    with pytest.raises(Unsupported, match=r"Softmax .*not carried before opset 13"):
        find_cells(old)


def test_folding_leaves_initialisers_and_no_dead_nodes(rng):
    model, cell = expression_model(rng)
    folded = fold(model)
    assert [node.op_type for node in folded.graph] == ["Constant", "GRU"]
    onnx.checker.check_model(to_proto(folded))
    assert find_cells(folded) == {"cell": cell}
    assert fold(folded) is folded


def test_folding_needs_onnxscript_only_for_static(rng):
    import subprocess
    import sys

    model, _ = expression_model(rng)
    code = ("import sys; from bridge.graph import find_cells, parse; find_cells(parse(sys.stdin.buffer.read()));"
            "print('onnxscript' in sys.modules)")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], input=to_proto(model).SerializeToString(), capture_output=True,
                          check=True)  # fmt: skip
    assert done.stdout.strip() == b"False"


def test_an_expression_that_grows_without_bound_is_refused():
    extra = [helper.make_node("ConstantOfShape", ["size"], ["W"])]
    for size in ([2**20, 2**20], [2**62, 2**62, 4], [-1]):
        model = parse(node_model(extra=extra, initializers={"W": None, "size": np.asarray(size)}))
        with pytest.raises(BadInput, match="constant expression"):
            find_cells(model)


def test_a_weight_that_hangs_on_an_input_is_reported():
    extra = [helper.make_node("Neg", ["X"], ["W"])]
    with pytest.raises(Unsupported, match="computed from the model's inputs"):
        find_cells(parse(node_model(extra=extra, initializers={"W": None})))


def test_a_shared_expression_stays_for_its_other_reader(rng):
    model, cell = expression_model(rng)
    proto = to_proto(model)
    proto.graph.output.append(helper.make_tensor_value_info("W", 1, [1, 6, 3]))
    folded = fold(parse(proto))
    assert "Unsqueeze" in [node.op_type for node in folded.graph]
    assert find_cells(folded) == {"cell": cell}


# ---------------------------------------------------------------------- metadata of a Scan

METADATA = ["", "no json", "[]", "{}", "[" * 10**5, json.dumps({"arrays": {"W": "nowhere"}})]


@pytest.mark.parametrize("text", METADATA)
def test_metadata_that_does_not_fit_is_refused(text, rng):
    model = cell_model(random_cell("GRU", 3, 5, rng), form="scan")
    for node in model.graph:
        if CELL in node.metadata_props:
            node.metadata_props[CELL] = text
    with pytest.raises(BadInput, match="metadata"):
        find_cells(model)


CHANGES = [("op", "SLSTM"), ("op", 3), ("op", []), ("direction", None), ("clip", "far"), ("activations", ["Gelu", 3]),
           ("activations", 3), ("activation_alpha", "x"), ("arrays", []), ("arrays", {"W": 3})]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), CHANGES, ids=str)
def test_metadata_with_wrong_values_is_refused(key, value, rng):
    model = cell_model(random_cell("GRU", 3, 5, rng), form="scan")
    for node in model.graph:
        if CELL in node.metadata_props:
            node.metadata_props[CELL] = json.dumps(json.loads(node.metadata_props[CELL]) | {key: value})
    with pytest.raises(BridgeError):
        find_cells(model)


def test_a_cell_is_a_cell():
    assert isinstance(find_cells(parse(node_model()))["cell"], Cell)
