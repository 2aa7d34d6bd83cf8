"""torch modules to ONNX: every option of the three modules against onnxruntime, judged by torch in float64."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import nn

import bridge
from bridge.errors import BadInput, NotRepresentable, Unsupported, UsageError
from bridge.frameworks import torch as door
from bridge.frameworks.door import ExportOptions
from bridge.graph import find_cells, to_proto
from tests.tolerances import assert_within_referee_bound

INPUTS, HIDDEN, PROJECTED, TIME = 3, 5, 2, 6
LENGTHS = np.array([6, 1, 3, 4], np.int32)
BATCH = len(LENGTHS)
NO_ONEDNN = "ignore:LSTM with projections is not supported with oneDNN:UserWarning"
pytestmark = pytest.mark.filterwarnings(NO_ONEDNN)

MODULES: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    "LSTM": (nn.LSTM, {}),
    "GRU": (nn.GRU, {}),
    "RNN": (nn.RNN, {}),
    "RNN relu": (nn.RNN, {"nonlinearity": "relu"}),
    "LSTM without bias": (nn.LSTM, {"bias": False}),
    "GRU without bias": (nn.GRU, {"bias": False}),
    "LSTM projected": (nn.LSTM, {"proj_size": PROJECTED}),
    "LSTM projected without bias": (nn.LSTM, {"proj_size": PROJECTED, "bias": False}),
}


def make(kind: str, seed: int = 0, **options: Any) -> nn.Module:
    torch.manual_seed(seed)
    module, own = MODULES[kind]
    return module(INPUTS, HIDDEN, **own, **options)


def feeds_for(module: Any, rng: np.random.Generator, *, lengths: bool, states: bool, dtype: str = "float32"
              ) -> dict[str, np.ndarray]:  # fmt: skip
    shape = (BATCH, TIME, INPUTS) if module.batch_first else (TIME, BATCH, INPUTS)
    feeds = {"input": rng.standard_normal(shape).astype(dtype)}
    rows = module.num_layers * (2 if module.bidirectional else 1)
    if lengths:
        feeds["lengths"] = LENGTHS
    if states:
        feeds["initial_h"] = rng.uniform(-1, 1, (rows, BATCH, module.proj_size or HIDDEN)).astype(dtype)
        if isinstance(module, nn.LSTM):
            feeds["initial_c"] = rng.uniform(-1, 1, (rows, BATCH, HIDDEN)).astype(dtype)
    return feeds


def onnxruntime_outputs(model: Any, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    proto = to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    assert [entry.name for entry in session.get_inputs()] == list(feeds)
    return dict(zip(names, session.run(names, feeds), strict=True))


def in_double(module: nn.Module, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    wide = {name: value if value.dtype == np.int32 else value.astype(np.float64) for name, value in feeds.items()}
    return door.execute(copy.deepcopy(module).double(), wide)


@pytest.mark.parametrize("states", [False, True], ids=["zero", "states"])
@pytest.mark.parametrize("lengths", [False, True], ids=["full", "lengths"])
@pytest.mark.parametrize("batch_first", [False, True], ids=["time-major", "batch-major"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("kind", MODULES)
def test_export_computes_what_torch_computes(
    kind: str, layers: int, bidirectional: bool, batch_first: bool, lengths: bool, states: bool
) -> None:
    module = make(kind, num_layers=layers, bidirectional=bidirectional, batch_first=batch_first)
    model = door.export(module, ExportOptions(lengths=lengths, states="inputs" if states else "zero"))
    feeds = feeds_for(module, np.random.default_rng(1), lengths=lengths, states=states)
    actual, native, referee = onnxruntime_outputs(model, feeds), door.execute(module, feeds), in_double(module, feeds)
    assert list(actual) == ["output", "h_n", *(["c_n"] if isinstance(module, nn.LSTM) else [])] == list(native)
    for name in actual:
        assert_within_referee_bound(native[name], actual[name], referee[name])
        assert_within_referee_bound(actual[name], native[name], referee[name])


@pytest.mark.parametrize("form", ["fused", "scan"])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_one_fused_node_a_layer_named_by_its_path(kind: str, form: Any) -> None:
    module = make(kind, num_layers=3, bidirectional=True, batch_first=True)
    model = door.export(module, ExportOptions(form=form, lengths=True))
    fused = [node for node in model.graph if node.op_type == kind]
    assert [node.name for node in fused] == (["l0", "l1", "l2"] if form == "fused" else [])
    assert list(find_cells(model)) == ["l0", "l1", "l2"] == list(door.cells(module))
    assert find_cells(model) == door.cells(module)


def test_a_batch_first_layer_costs_two_transposes_and_a_squeeze() -> None:
    model = door.export(make("GRU", batch_first=True), ExportOptions())
    assert sorted(node.op_type for node in model.graph) == ["GRU", "Squeeze", "Transpose", "Transpose"]


def test_batch_and_time_are_symbolic_and_the_rest_is_not() -> None:
    model = door.export(
        make("LSTM", bidirectional=True, batch_first=True), ExportOptions(states="inputs", lengths=True)
    )
    ends = {value.name: [str(size) for size in value.shape] for value in (*model.graph.inputs, *model.graph.outputs)}
    assert ends["input"] == ["batch", "time", "3"]
    assert ends["lengths"] == ["batch"]
    assert ends["output"] == ["batch", "time", "10"]
    assert ends["initial_h"] == ends["initial_c"] == ends["h_n"] == ends["c_n"] == ["2", "batch", "5"]


@pytest.mark.parametrize("opset", [17, 20, 22])
@pytest.mark.parametrize("kind", ["LSTM", "LSTM projected"])
def test_every_opset_runs(kind: str, opset: int) -> None:
    module = make(kind, num_layers=2)
    model = door.export(module, ExportOptions(opset=opset, states="inputs", lengths=True))
    assert model.opset_imports[""] == opset
    feeds = feeds_for(module, np.random.default_rng(2), lengths=True, states=True)
    actual, referee = onnxruntime_outputs(model, feeds), in_double(module, feeds)
    for name, value in door.execute(module, feeds).items():
        assert_within_referee_bound(value, actual[name], referee[name])


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN", "LSTM projected"])
def test_float64_is_exact_to_its_last_digits(kind: str) -> None:
    module = make(kind, num_layers=2, bidirectional=True).double()
    feeds = feeds_for(module, np.random.default_rng(3), lengths=True, states=True, dtype="float64")
    actual = onnxruntime_outputs(door.export(module, ExportOptions(states="inputs", lengths=True)), feeds)
    for name, value in door.execute(module, feeds).items():
        assert actual[name].dtype == np.float64
        assert_within_referee_bound(value, actual[name], value)
        assert np.abs(actual[name] - value).max() < 64 * np.finfo(np.float64).eps  # values below 1, sums of 10 terms


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN", "LSTM projected"])
def test_float16_rounds_once(kind: str) -> None:
    module = make(kind, bidirectional=True).half()
    feeds = feeds_for(module, np.random.default_rng(4), lengths=False, states=True, dtype="float16")
    actual = onnxruntime_outputs(door.export(module, ExportOptions(states="inputs")), feeds)
    for name, value in in_double(module, feeds).items():
        assert actual[name].dtype == np.float16
        assert np.abs(actual[name] - value).max() <= 2 * np.finfo(np.float16).eps * max(1, np.abs(value).max())


@pytest.mark.parametrize(("kind", "options"), [(nn.LSTMCell, {}), (nn.GRUCell, {"bias": False}), (nn.RNNCell, {}),
                                               (nn.RNNCell, {"nonlinearity": "relu"})], ids=str)  # fmt: skip
@pytest.mark.parametrize("states", [False, True], ids=["zero", "states"])
def test_a_cell_module_is_one_step(kind: Any, options: dict[str, Any], states: bool) -> None:
    torch.manual_seed(5)
    module, rng = kind(INPUTS, HIDDEN, **options), np.random.default_rng(5)
    feeds = {"input": rng.standard_normal((BATCH, INPUTS)).astype(np.float32)}
    for name in ("initial_h", "initial_c")[: 2 if kind is nn.LSTMCell else 1] if states else ():
        feeds[name] = rng.uniform(-1, 1, (BATCH, HIDDEN)).astype(np.float32)
    actual = onnxruntime_outputs(door.export(module, ExportOptions(states="inputs" if states else "zero")), feeds)
    native, referee = door.execute(module, feeds), in_double(module, feeds)
    assert list(actual) == list(native) == ["h_n", *(["c_n"] if kind is nn.LSTMCell else [])]
    for name in native:
        assert native[name].shape == (BATCH, HIDDEN)
        assert_within_referee_bound(native[name], actual[name], referee[name])
    assert list(door.cells(module)) == ["cell"]


def test_length_zero_ends_in_zeros_as_in_onnxruntimes_own_operator() -> None:
    feeds = feeds_for(make("LSTM"), np.random.default_rng(6), lengths=True, states=True)
    for kind, size in (("LSTM", HIDDEN), ("LSTM projected", PROJECTED)):
        model = door.export(make(kind), ExportOptions(states="inputs", lengths=True))
        given = feeds | {"lengths": np.array([0, 6, 0, 2], np.int32), "initial_h": feeds["initial_h"][..., :size]}
        for name, value in onnxruntime_outputs(model, given).items():
            axis = 0 if name == "output" else 1
            assert not np.take(value, [0, 2], axis=1).any(), (kind, name, axis)
            assert value.any()


@pytest.mark.parametrize("norm", ["parametrised", "in a hook"])
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
def test_normalised_weights_are_read_as_the_forward_pass_computes_them(norm: str) -> None:
    module = make("GRU")
    wrap = torch.nn.utils.parametrizations.weight_norm if norm == "parametrised" else torch.nn.utils.weight_norm
    wrap(module, "weight_hh_l0")
    with torch.no_grad():  # a hook's tensor is stale until the next forward
        next(value for name, value in module.named_parameters() if name.endswith(("_g", "original0"))).mul_(1.5)
    feeds = feeds_for(module, np.random.default_rng(7), lengths=False, states=False)
    model = door.export(module, ExportOptions())
    native = door.execute(module, feeds)
    for name, value in onnxruntime_outputs(model, feeds).items():
        assert np.abs(value - native[name]).max() < 1e-6  # float32, values below 1


def test_tied_layers_share_their_weights() -> None:
    module = nn.LSTM(HIDDEN, HIDDEN, num_layers=2)
    module.weight_hh_l1 = module.weight_hh_l0
    assert np.array_equal(door.cells(module)["l0"].R, door.cells(module)["l1"].R)


def test_exporting_leaves_the_module_and_its_random_state_alone() -> None:
    module = make("LSTM", num_layers=2, dropout=0.5).train()
    before, state = copy.deepcopy(module.state_dict()), torch.get_rng_state()
    model = door.export(module, ExportOptions())
    door.execute(module, feeds_for(module, np.random.default_rng(8), lengths=False, states=False))
    assert module.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    (note,) = json.loads(model.metadata_props["bridge.notes"])
    assert "dropout=0.5" in note
    assert "training mode" in note
    assert bridge.inspect(module).notes == (note,)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_cells_do_not_share_memory_with_the_module(kind: str) -> None:
    module = make(kind)
    cell = door.cells(module)["l0"]
    before = [array.copy() for array in (cell.W, cell.R, cell.B)]
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(3)
    assert all(np.array_equal(now, then) for now, then in zip((cell.W, cell.R, cell.B), before, strict=True))


def test_nested_modules_are_found_by_path_once() -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(3, 4, num_layers=2)
            self.step = nn.GRUCell(4, 4)
            self.again = self.step
            self.head = nn.Linear(4, 2)

    assert list(door.cells(nn.ModuleDict({"encoder": Encoder()}))) == [
        "encoder.rnn.l0",
        "encoder.rnn.l1",
        "encoder.step",
    ]


class Doubled(nn.LSTM):
    def forward(self, *args: Any) -> Any:
        y, states = super().forward(*args)
        return 2 * y, states


def _hooked() -> nn.Module:
    module = make("GRU")
    module.register_forward_hook(lambda *_: None)
    return module


@pytest.mark.parametrize(
    ("module", "error", "text"),
    [
        (lambda: nn.Linear(3, 4), UsageError, "needs an example"),
        (lambda: nn.Sequential(nn.LSTM(3, 4), nn.ReLU()), UsageError, "needs an example"),
        (lambda: Doubled(3, 4), Unsupported, "forward of its own"),
        (_hooked, Unsupported, "forward hooks"),
        (lambda: nn.LSTM(3, 4, dtype=torch.bfloat16), Unsupported, "bfloat16"),
        (lambda: nn.LSTM(3, 4, device="meta"), BadInput, "meta"),
        (lambda: _filled(make("LSTM"), float("nan")), BadInput, "NaN or inf"),
        (lambda: _filled(make("LSTM projected"), float("inf")), BadInput, "NaN or inf"),
    ],
)
def test_what_cannot_be_exact_is_refused(module: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        door.export(module(), ExportOptions())


def _filled(module: nn.Module, value: float) -> nn.Module:
    with torch.no_grad():
        list(module.parameters())[-1].flatten()[0] = value
    return module


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"dynamic": {"input": {0: "batch"}}}, Unsupported),
        ({"custom_objects": {"X": object}}, UsageError),
        ({"example": np.zeros((2, 3, 4), np.float32)}, BadInput),
        ({"example": (np.zeros((3, 3), np.float32),)}, BadInput),
    ],
)
def test_options_that_do_not_apply_are_refused(options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        door.export(make("LSTM"), ExportOptions(**options))
    door.export(make("LSTM"), ExportOptions(example=np.zeros((2, 3, INPUTS), np.float32)))


def test_a_step_has_no_lengths() -> None:
    with pytest.raises(UsageError, match="no lengths"):
        door.export(nn.GRUCell(3, 4), ExportOptions(lengths=True))


def test_a_projected_lstm_has_no_cell() -> None:
    with pytest.raises(NotRepresentable, match="proj_size"):
        door.cells(make("LSTM projected"))


@pytest.mark.parametrize(
    ("feeds", "text"),
    [
        ({}, "missing"),
        ({"input": np.zeros((2, 1, 3), np.float32), "initial_c": np.zeros((1, 1, 5), np.float32)}, "both states"),
        ({"input": np.zeros((2, 1, 3), np.float32), "lengths": np.array([0], np.int32)}, "length 0"),
        ({"input": np.zeros((2, 1, 3), np.float32), "mask": np.ones((2, 1))}, "unknown"),
    ],
)
def test_running_torch_by_name_checks_the_names(feeds: dict[str, np.ndarray], text: str) -> None:
    with pytest.raises(BadInput, match=text):
        door.execute(make("LSTM"), feeds)


def in_a_fresh_process(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_asking_the_door_for_a_source_does_not_import_torch() -> None:
    code = "import sys; from bridge.frameworks import torch as door; print(door.owns(3), 'torch' in sys.modules)"
    assert in_a_fresh_process(code).split() == ["False", "False"]
    assert in_a_fresh_process(code.replace("import sys;", "import sys, torch;")).split() == ["False", "True"]
    assert door.owns(make("LSTM"))


def test_without_torch_the_error_says_how_to_install_it() -> None:
    code = """
import sys
sys.modules["torch"] = None  # what import finds where a library is not installed
from bridge.errors import MissingExtra
from bridge.frameworks import torch as door
from bridge.frameworks.checkpoints import save_params
for call in (lambda: door.build([], False), lambda: door.import_model(None, None), lambda: save_params("a.pt", {})):
    try:
        call()
    except MissingExtra as error:
        print(error.do)
"""
    assert in_a_fresh_process(code).splitlines() == ["pip install 'rnn-bridge[torch]'"] * 3
