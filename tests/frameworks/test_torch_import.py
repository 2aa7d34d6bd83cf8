"""ONNX into torch: native layers, bridge's own where torch has no place, gradients, and the way back."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import nn

from bridge import reference
from bridge.cell import Cell
from bridge.errors import BadInput, UsageError
from bridge.frameworks import torch as door
from bridge.frameworks.door import ExportOptions
from bridge.graph import Writer, as_model, to_proto
from tests.cells import random_cell
from tests.tolerances import assert_within_referee_bound

TIME, LENGTHS = 6, np.array([6, 0, 3, 4], np.int32)
BATCH = len(LENGTHS)
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")

KINDS: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    "LSTM": (nn.LSTM, {}),
    "GRU": (nn.GRU, {}),
    "RNN": (nn.RNN, {"nonlinearity": "relu"}),
    "GRU without bias": (nn.GRU, {"bias": False}),
    "LSTM projected": (nn.LSTM, {"proj_size": 2}),
    "LSTM projected without bias": (nn.LSTM, {"proj_size": 2, "bias": False}),
}

OWN: dict[str, dict[str, Any]] = {
    "peepholes": {"kind": "LSTM", "peepholes": True},
    "coupled gates": {"kind": "LSTM", "input_forget": True},
    "clip": {"kind": "LSTM", "clip": 0.4},
    "reset before": {"kind": "GRU", "linear_before_reset": False},
    "other activations": {"kind": "LSTM", "activations": ("HardSigmoid", "Softsign", "Elu"),
                          "activation_alpha": (0.3, 0.7), "activation_beta": (0.4,)},
    "RNN of sigmoids": {"kind": "RNN", "activations": ("Sigmoid",)},
}  # fmt: skip
NATIVE: dict[str, dict[str, Any]] = {
    "LSTM": {"kind": "LSTM"},
    "GRU": {"kind": "GRU", "linear_before_reset": True},
    "RNN": {"kind": "RNN"},
    "no bias": {"kind": "LSTM", "bias": False},
}


def make(kind: str, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    module, own = KINDS[kind]
    return module(3, 5, **own, **options)


def one_node(cell: Cell, *, lengths: bool = False, states: bool = False) -> Any:
    w = Writer(dtype=cell.dtype.name)
    x = w.input("X", cell.dtype.name, ("time", "batch", cell.input_size))
    inputs: dict[str, Any] = {}
    if lengths:
        inputs["lengths"] = w.input("sequence_lens", "int32", ("batch",))
    shape = (cell.num_directions, "batch", cell.hidden_size)
    for name in ("initial_h", "initial_c")[: 2 if cell.op == "LSTM" else 1] if states else ():
        inputs[name] = w.input(name, cell.dtype.name, shape)
    for value, name in zip(w.recurrent(cell, x, name="encoder.rnn.l0", **inputs), ("Y", "Y_h", "Y_c"), strict=True):
        if value is not None:
            w.output(value, name)
    return w.model()


def feeds_of(cell: Cell, rng: np.random.Generator, *, lengths: bool, states: bool) -> dict[str, np.ndarray]:
    feeds = {"X": rng.standard_normal((TIME, BATCH, cell.input_size)).astype(cell.dtype)}
    if lengths:
        feeds["sequence_lens"] = LENGTHS
    for name in ("initial_h", "initial_c")[: 2 if cell.op == "LSTM" else 1] if states else ():
        feeds[name] = rng.uniform(-1, 1, (cell.num_directions, BATCH, cell.hidden_size)).astype(cell.dtype)
    return feeds


def onnxruntime_outputs(model: Any, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    session = ort.InferenceSession(to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds))


@pytest.mark.parametrize("states", [False, True], ids=["zero", "states"])
@pytest.mark.parametrize("lengths", [False, True], ids=["full", "lengths"])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("name", [*NATIVE, *OWN])
def test_every_node_agrees_with_onnxruntime(name: str, direction: str, lengths: bool, states: bool) -> None:
    rng = np.random.default_rng(0)
    options = (NATIVE | OWN)[name]
    repeats = {key: value * 2 for key, value in options.items() if direction == "bidirectional" and key[:4] == "acti"}
    cell = random_cell(inputs=3, hidden=5, rng=rng, direction=direction, **(options | repeats))
    model, feeds = one_node(cell, lengths=lengths, states=states), feeds_of(cell, rng, lengths=lengths, states=states)
    module = door.import_model(model, None)
    referee = reference.evaluate(cell, feeds["X"], lengths=feeds.get("sequence_lens"),
                                 initial_h=feeds.get("initial_h"), initial_c=feeds.get("initial_c"))  # fmt: skip
    actual = module(*feeds.values())
    assert [type(layer).__name__ for layer in module.encoder.rnn.children()] == ["OwnLayer" if name in OWN else cell.op]
    assert module.input_names == tuple(feeds)
    for mine, theirs, exact in zip(actual, onnxruntime_outputs(model, feeds), referee, strict=False):
        assert_within_referee_bound(mine.detach().numpy(), theirs, exact)


@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_way_back_keeps_every_bit(kind: str, bidirectional: bool) -> None:
    module = make(kind, num_layers=2, bidirectional=bidirectional, batch_first=True)
    back = door.import_model(door.export(module, ExportOptions()), None)
    returned = dict(back.named_parameters())
    assert len(returned) == len(list(module.parameters()))
    for name, original in module.named_parameters():
        layer, side = int(name.split("_l")[1][0]), name.endswith("_reverse")
        own = name.replace(f"_l{layer}", "_l0")
        if "projected" in kind and bidirectional:
            path = f"l{layer}.{'reverse' if side else 'forward_1'}.{own.removesuffix('_reverse')}"
        else:
            path = f"l{layer}.{own}"
        assert torch.equal(returned[path], original), (name, list(returned))


@pytest.mark.parametrize("lengths", [False, True], ids=["full", "lengths"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_original(kind: str, lengths: bool) -> None:
    module = make(kind, num_layers=2, bidirectional=True)
    back = door.import_model(door.export(module, ExportOptions(lengths=lengths, states="inputs")), None)
    rng = np.random.default_rng(1)
    size = getattr(module, "proj_size", 0) or 5
    arrays = [rng.standard_normal((TIME, BATCH, 3)), rng.uniform(-1, 1, (4, BATCH, size))]
    arrays += [rng.uniform(-1, 1, (4, BATCH, 5))] if isinstance(module, nn.LSTM) else []
    native, imported = ([torch.tensor(a, dtype=torch.float32, requires_grad=True) for a in arrays] for _ in "12")
    steps = torch.tensor([6, 1, 3, 4], dtype=torch.int32)
    _backward(_run_native(module, native, steps if lengths else None))
    x, *states = imported
    _backward(back(x, *([steps] if lengths else []), *states))
    for mine, theirs in zip(imported, native, strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-5, atol=1e-6)  # float32 sums in another order
    total = sum(float(p.grad.abs().sum()) for p in back.parameters())
    assert total == pytest.approx(sum(float(p.grad.abs().sum()) for p in module.parameters()), rel=1e-5)


def _run_native(module: Any, values: list[torch.Tensor], steps: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
    x, *states = values
    hx = tuple(states) if len(states) == 2 else states[0]
    if steps is None:
        y, final = module(x, hx)
    else:
        packed = nn.utils.rnn.pack_padded_sequence(x, steps.long(), enforce_sorted=False)
        y, final = module(packed, hx)
        y, _ = nn.utils.rnn.pad_packed_sequence(y, total_length=TIME)
    return (y, *(final if isinstance(final, tuple) else (final,)))


def _backward(values: tuple[torch.Tensor, ...]) -> None:
    sum((at + 1) * (value * value).sum() for at, value in enumerate(values)).backward()


@pytest.mark.parametrize("name", OWN)
def test_own_layers_train(name: str) -> None:
    rng = np.random.default_rng(2)
    cell = random_cell(inputs=3, hidden=4, rng=rng, dtype="float64", **OWN[name])
    fused = one_node(Cell(**_fields(cell, np.float32)), lengths=True)
    module = door.import_model(fused, None).double()
    x = torch.tensor(rng.standard_normal((4, 2, 3)))
    layer = module.encoder.rnn.l0
    parameters = list(layer.parameters())

    def run(*values: torch.Tensor) -> torch.Tensor:
        state = dict(zip((name for name, _ in layer.named_parameters()), values, strict=True))
        y, *_ = torch.func.functional_call(layer, state, (x, torch.tensor([4, 2], dtype=torch.int32)))
        return y

    assert torch.autograd.gradcheck(run, parameters)


def _fields(cell: Cell, dtype: Any) -> dict[str, Any]:
    names = ("op", "direction", "activations", "activation_alpha", "activation_beta", "clip", "input_forget",
             "linear_before_reset")  # fmt: skip
    arrays = {name: array.astype(dtype) for name in "WRBP" if (array := getattr(cell, name)) is not None}
    return arrays | {name: getattr(cell, name) for name in names}


def test_a_constant_initial_state_is_a_trainable_parameter() -> None:
    rng = np.random.default_rng(3)
    cell = random_cell("LSTM", 3, 5, rng, initial_h=1, initial_c=1)
    model, feeds = one_node(cell), feeds_of(cell, rng, lengths=False, states=False)
    module = door.import_model(model, None)
    y, *_ = module(feeds["X"])
    y.square().sum().backward()
    states = {name: value for name, value in module.named_parameters() if "initial" in name}
    assert {tuple(value.shape) for value in states.values()} == {(1, 1, 5)}
    assert len(states) == 2
    assert all(value.grad.abs().sum() > 0 for value in states.values())
    for mine, theirs, exact in zip(module(feeds["X"]), onnxruntime_outputs(model, feeds),
                                   reference.evaluate(cell, feeds["X"]), strict=True):  # fmt: skip
        assert_within_referee_bound(mine.detach().numpy(), theirs, exact)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_float64_runs_and_trains(kind: str) -> None:
    module = make(kind, num_layers=2, bidirectional=True).double()
    back = door.import_model(door.export(module, ExportOptions(lengths=True)), None)
    x = np.random.default_rng(4).standard_normal((TIME, BATCH, 3))
    native = door.execute(module, {"input": x, "lengths": np.array([6, 1, 3, 4], np.int32)})
    actual = back(x, np.array([6, 1, 3, 4], np.int32))
    for mine, theirs in zip(actual, native.values(), strict=True):
        assert np.abs(mine.detach().numpy() - theirs).max() < 64 * np.finfo(np.float64).eps
    actual[0].sum().backward()
    assert all(value.grad is not None for value in back.parameters())


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN", "LSTM projected"])
def test_float16_rounds_once(kind: str) -> None:
    module = make(kind, bidirectional=True).half()
    back = door.import_model(door.export(module, ExportOptions()), None)
    x = np.random.default_rng(5).standard_normal((TIME, BATCH, 3)).astype(np.float16)
    wide = door.execute(copy.deepcopy(module).double(), {"input": x.astype(np.float64)})
    for mine, exact in zip(back(x), wide.values(), strict=True):
        assert mine.dtype == torch.float16
        assert np.abs(mine.detach().numpy() - exact).max() <= 2 * np.finfo(np.float16).eps * max(1, np.abs(exact).max())


def test_inputs_by_position_by_name_as_arrays_or_tensors() -> None:
    module = make("LSTM")
    back = door.import_model(door.export(module, ExportOptions(states="inputs")), None)
    x, h, c = torch.randn(4, 2, 3), torch.randn(1, 2, 5), torch.randn(1, 2, 5)
    expected = back(x, h, c)
    assert back.output_names == ("output", "h_n", "c_n")
    for values in (back(initial_c=c, input=x, initial_h=h), back(x.numpy(), h, initial_c=c.numpy())):
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(values, expected, strict=True))
    assert {name: value.shape for name, value in door.execute(back, {"input": x.numpy(), "initial_h": h.numpy(),
            "initial_c": c.numpy()}).items()} == {"output": (4, 2, 5), "h_n": (1, 2, 5), "c_n": (1, 2, 5)}  # fmt: skip


@pytest.mark.parametrize(
    ("args", "kwargs", "error"),
    [
        ((), {}, UsageError),
        ((np.zeros((2, 1, 3), np.float32),) * 2, {}, UsageError),
        ((np.zeros((2, 1, 3), np.float32),), {"input": np.zeros((2, 1, 3), np.float32)}, UsageError),
        ((), {"x": np.zeros((2, 1, 3), np.float32)}, UsageError),
        (("hello",), {}, BadInput),
        ((np.zeros((2, 1, 4), np.float32),), {}, BadInput),
        ((np.zeros((2, 1, 3), np.float64),), {}, BadInput),
    ],
)
def test_wrong_calls_are_refused(args: Any, kwargs: Any, error: type[Exception]) -> None:
    back = door.import_model(door.export(make("GRU"), ExportOptions()), None)
    with pytest.raises(error):
        back(*args, **kwargs)


@pytest.mark.parametrize("lengths", [[7, 1, 1, 1], [-1, 1, 1, 1], [1, 1, 1]])
def test_lengths_outside_the_sequence_are_refused(lengths: list[int]) -> None:
    back = door.import_model(door.export(make("LSTM"), ExportOptions(lengths=True)), None)
    with pytest.raises(BadInput):
        back(np.zeros((TIME, BATCH, 3), np.float32), np.array(lengths, np.int32))


def test_a_changed_scan_is_not_taken_for_the_projection_it_was() -> None:
    model = door.export(make("LSTM projected"), ExportOptions())
    (scan,) = (node for node in model.graph if node.op_type == "Scan")
    body = scan.attributes["body"].value
    tanh = next(node for node in body if node.op_type == "Tanh")
    tanh.op_type = "Softsign"
    proto = to_proto(model)
    x = np.random.default_rng(6).standard_normal((TIME, BATCH, 3)).astype(np.float32)
    back = door.import_model(as_model(proto), None)
    for mine, theirs in zip(back(x), onnxruntime_outputs(as_model(proto), {"input": x}), strict=True):
        assert np.abs(mine.detach().numpy() - theirs).max() < 1e-6  # float32, values below 1


OURS = '{"layer": "torch.LSTM", "options": {"hidden_size": 5, "proj_size": 2, "direction": "forward"},'


@pytest.mark.parametrize(
    "metadata",
    ["", "[]", "{}", '{"layer": "torch.LSTM"}', '{"layer": "torch.LSTM", "options": [], "weights": []}',
     '{"layer": "torch.LSTM", "options": {"hidden_size": 5, "proj_size": "2", "direction": "forward"}, "weights": {}}',
     OURS + ' "weights": {"W": "nothing", "R": "l0.R", "weight_hr": "l0.weight_hr"}}',
     OURS + ' "weights": {"W": "l0.R", "R": "l0.W", "weight_hr": "l0.weight_hr", "Wb": "l0.Wb", "Rb": "l0.Rb"}}'],
)  # fmt: skip
def test_metadata_that_is_made_up_changes_nothing(metadata: str) -> None:
    model = door.export(make("LSTM projected"), ExportOptions())
    x = np.random.default_rng(6).standard_normal((TIME, BATCH, 3)).astype(np.float32)
    expected = door.import_model(model, None)
    assert isinstance(expected.l0, nn.LSTM)
    (scan,) = (node for node in model.graph if node.op_type == "Scan")
    scan.metadata_props["bridge.layer"] = metadata
    back = door.import_model(model, None)
    assert not isinstance(back.l0, nn.LSTM)
    for mine, theirs in zip(back(x), expected(x), strict=True):
        assert (mine - theirs).abs().max() < 1e-6  # float32, values below 1


def test_names_that_python_or_torch_could_not_hold_are_cleaned() -> None:
    rng = np.random.default_rng(7)
    cell = random_cell("GRU", 3, 5, rng, linear_before_reset=True)
    w = Writer()
    x = w.input("X", "float32", ("time", "batch", 3))
    bias = w.constant(rng.standard_normal((1, 1, 1, 5)).astype(np.float32), "/head/bias:0")
    y, _, _ = w.recurrent(cell, x, name="/train/GRU")
    second, _, _ = w.recurrent(random_cell("GRU", 3, 5, rng, linear_before_reset=True), x, name="forward")
    w.output(w.op("Add", w.op("Add", y, bias), second), "out")
    back = door.import_model(w.model(), None)
    names = {name.split(".")[0] for name, _ in back.named_parameters()}
    assert names == {"train_1", "forward_1", "head"}
    assert back(np.zeros((2, 1, 3), np.float32)).shape == (2, 1, 1, 5)


def test_an_imported_model_can_be_copied_saved_and_moved() -> None:
    back = door.import_model(door.export(make("LSTM", num_layers=2), ExportOptions()), None)
    back.l0.bias_hh_l0.requires_grad_(False)
    twin, pickled = copy.deepcopy(back), pickle.loads(pickle.dumps(back))
    x = torch.randn(3, 2, 3)
    with torch.no_grad():
        for parameter in back.parameters():
            parameter.zero_()
    assert twin(x)[0].abs().sum() > 0
    assert back(x)[0].abs().sum() == 0
    back.load_state_dict(twin.state_dict())
    assert torch.equal(back(x)[0], twin(x)[0])
    assert torch.equal(back(x)[0], pickled(x)[0])
    assert [name for name, value in twin.named_parameters() if not value.requires_grad] == ["l0.bias_hh_l0"]


def test_static_inputs_leave_the_signature() -> None:
    proto = to_proto(door.export(make("GRU"), ExportOptions(states="inputs")))
    back = door.import_model(as_model(proto), {"initial_h": np.zeros((1, 2, 5), np.float32)})
    assert back.input_names == ("input",)
    assert back(np.zeros((3, 2, 3), np.float32))[0].shape == (3, 2, 5)


@pytest.mark.parametrize("name", [*NATIVE, *OWN])
@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_cells_of_an_imported_model_are_those_of_its_graph(name: str, direction: str) -> None:
    cell = random_cell(inputs=3, hidden=5, rng=np.random.default_rng(0), direction=direction, initial_h=1,
                       **(NATIVE | OWN)[name])  # fmt: skip
    module = door.import_model(one_node(cell), None)
    assert door.cells(module) == {"encoder.rnn.l0": cell}
    assert door.cells(nn.ModuleDict({"a": module})) == {"a.encoder.rnn.l0": cell}


@pytest.mark.parametrize("kind", KINDS)
def test_an_imported_and_trained_model_is_exported_again(kind: str) -> None:
    module = make(kind, num_layers=2, bidirectional=True)
    back = door.import_model(door.export(module, ExportOptions(lengths=True)), None)
    with torch.no_grad():
        for parameter in back.parameters():
            parameter.mul_(0.5)
    x, lengths = np.random.default_rng(8).standard_normal((TIME, BATCH, 3)).astype(np.float32), LENGTHS
    outputs = onnxruntime_outputs(door.export(back, ExportOptions()), {"input": x, "lengths": lengths})
    for mine, theirs in zip(back(x, lengths), outputs, strict=True):
        assert np.abs(mine.detach().numpy() - theirs).max() < 1e-6  # float32, values below 1
    with pytest.raises(UsageError, match="without options"):
        door.export(back, ExportOptions(opset=18))


def test_exporting_again_separates_weights_that_two_nodes_shared() -> None:
    rng = np.random.default_rng(9)
    cell = random_cell("GRU", 3, 3, rng, linear_before_reset=True)
    model = door.export(door.build([cell, cell], own_cells=False), ExportOptions())
    first, second = (node for node in model.graph if node.op_type == "GRU")
    for at in (1, 2, 3):
        second.replace_input_with(at, first.inputs[at])
    back = door.import_model(model, None)
    with torch.no_grad():
        back.l1.weight_hh_l0.mul_(0.5)
    again = door.cells(back)
    assert again["l0"] == cell
    assert np.array_equal(again["l1"].R, cell.R / 2)
