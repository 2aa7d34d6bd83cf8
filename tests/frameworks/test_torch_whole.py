"""Whole torch models to ONNX: right at sizes the export has not seen, one error where not, the module untouched."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import nn

import bridge
from bridge.errors import BadInput, BridgeError, Unsupported, UsageError
from tests.models import model_file
from tests.tolerances import assert_within_referee_bound
from tests.whole_models.real_torch import Legere, Resemblyzer, Silero
from tests.whole_models.torch_cases import EXAMPLE, HIDDEN, INPUTS, Case, Shared, Tagger, Zeros, all_cases
from tests.whole_models.torch_runs import built, export, judge, outputs

CASES = {case.name: case for case in all_cases()}
CHOSEN = (
    "LSTM x2 bidirectional, all", "RNN relu x1, last", "states given, LSTM x2", "unbatched LSTM",
    "packed GRU bidirectional x2, total_length", "packed, arithmetic on the data", "packed, the longest length used",
    "Conv2d, BatchNorm, pooling, GRU", "proj_size", "LSTMCell once, given state", "torch.cond",
    "two cells in a loop over the steps", "a reversed loop, outputs in its order", "loops both ways under a head",
)  # fmt: skip
"""One of each kind; scripts/whole-models runs them all."""


@cache
def exported(name: str) -> tuple[Case, nn.Module, Any]:
    """A case with its model, exported once."""
    module = built(CASES[name])
    return CASES[name], module, export(CASES[name], module)


@pytest.mark.parametrize("name", CHOSEN)
def test_a_model_is_right_at_sizes_the_export_has_not_seen(name: str) -> None:
    case, module, model = exported(name)
    verdict = judge(case, module, model)
    assert (verdict.outcome, verdict.detail) == ("right", "")
    assert (verdict.fused, verdict.scans) == (case.fused, case.scans)


def test_the_names_of_the_cases_are_unique() -> None:
    assert len(CASES) == len(all_cases())


def test_a_wrong_weight_is_noticed() -> None:
    case = CASES["LSTM x1, all"]
    module = built(case)
    model = export(case, module)
    with torch.no_grad():
        module.rnn.bias_hh_l0[3] += 0.01
    assert judge(case, module, model).outcome == "wrong"


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleDict({"rnn": nn.LSTM(INPUTS, HIDDEN, 2, batch_first=True, bidirectional=True)})
        self.decoder = nn.GRUCell(2 * HIDDEN, HIDDEN)
        self.head = nn.Linear(HIDDEN, 2)

    def forward(self, frames):
        y, _ = self.encoder["rnn"](frames)
        return self.head(self.decoder(y[:, -1]))


def frames(batch: int = 2, time: int = 5, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((batch, time, INPUTS)).astype(np.float32)


@pytest.fixture(scope="module")
def nested() -> tuple[nn.Module, onnx.ModelProto]:
    torch.manual_seed(0)
    module = Nested().eval()
    return module, bridge.to_onnx(module, example=(frames(),))


def test_nodes_are_named_by_module_path_and_found_as_the_module_names_them(nested: Any) -> None:
    module, model = nested
    names = [node.name for node in model.graph.node if node.op_type in ("LSTM", "GRU")]
    assert names == ["encoder.rnn.l0", "encoder.rnn.l1", "decoder"]
    assert any(node.name.startswith("head.") for node in model.graph.node)
    found, own = bridge.cells(model), bridge.cells(module)
    assert list(found) == list(own) == names
    assert all(found[name] == own[name] for name in names)


def test_metadata_says_where_the_model_comes_from_and_nothing_of_this_machine(nested: Any) -> None:
    _, model = nested
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert metadata["bridge.source"] == "torch.nn.Module"
    assert metadata["bridge.source_version"] == torch.__version__
    assert json.loads(metadata["bridge.modules"]) == {"encoder.rnn": "torch.nn.LSTM", "decoder": "torch.nn.GRUCell"}
    assert str(Path(__file__).parent).encode() not in model.SerializeToString()


def test_the_interface_is_that_of_forward(nested: Any) -> None:
    _, model = nested
    (entry,), (result,) = model.graph.input, model.graph.output
    assert entry.name == "frames"
    assert [dim.dim_param or dim.dim_value for dim in entry.type.tensor_type.shape.dim] == ["batch", "time", INPUTS]
    assert result.name == "output"
    assert model.ir_version <= 10


@pytest.mark.parametrize("opset", [17, 22])
def test_every_opset_is_written(opset: int) -> None:
    case = (
        CASES["LSTM x2 bidirectional, named"]
        if "LSTM x2 bidirectional, named" in CASES
        else CASES["GRU x2 bidirectional, named"]
    )
    module = built(case)
    model = bridge.to_onnx(module, example=case.inputs(*EXAMPLE, np.random.default_rng(0)), opset=opset)
    assert [entry.version for entry in model.opset_import if entry.domain == ""] == [opset]
    assert judge(case, module, model).outcome == "right"


def test_the_sort_of_a_packed_batch_leaves_nothing_behind() -> None:
    left = {node.op_type for node in exported("packed GRU bidirectional x2, total_length")[2].graph.node}
    assert left.isdisjoint({"TopK", "Gather", "GatherND", "ScatterElements"})


def test_the_sort_stays_where_the_model_reads_packed_data() -> None:
    assert "TopK" in {node.op_type for node in exported("packed, arithmetic on the data")[2].graph.node}


def test_a_loop_backwards_is_a_reverse_node() -> None:
    model = exported("a reversed loop, outputs in its order")[2]
    (node,) = (node for node in model.graph.node if node.op_type == "LSTM")
    assert [entry.s for entry in node.attribute if entry.name == "direction"] == [b"reverse"]


def test_a_layer_of_a_loop_keeps_its_name() -> None:
    back = bridge.to_torch(exported("loops both ways under a head")[2])
    assert type(back.head) is nn.Linear


def test_zero_states_leave_nothing_behind() -> None:
    module = Zeros(nn.LSTM(INPUTS, HIDDEN, 2, batch_first=True)).eval()
    model = bridge.to_onnx(module, example=(frames(),))
    left = {node.op_type for node in model.graph.node}
    assert left <= {"LSTM", "Transpose", "Squeeze"}
    assert all(not any(node.input[5:]) for node in model.graph.node if node.op_type == "LSTM")


def test_a_shared_layer_is_two_nodes_over_the_same_weights() -> None:
    model = bridge.to_onnx(Shared().eval(), example=(frames(),))
    first, second = (node for node in model.graph.node if node.op_type == "LSTM")
    assert first.input[1:4] == second.input[1:4]
    assert list(bridge.cells(model)) == ["rnn.l0"]


def test_states_as_inputs_run_step_by_step_as_the_whole() -> None:
    torch.manual_seed(0)
    module = Tagger(nn.LSTM(INPUTS, HIDDEN, batch_first=True), "named").eval()
    sequential = nn.Sequential(module.rnn)
    model = bridge.to_onnx(sequential, example=(frames(),), states="inputs")
    assert [entry.name for entry in model.graph.input] == ["input", "0.initial_h", "0.initial_c"]
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_outputs()]
    assert names[-2:] == ["0.h_n", "0.c_n"]
    x = frames(3, 6)
    state = {"0.initial_h": np.zeros((1, 3, HIDDEN), np.float32), "0.initial_c": np.zeros((1, 3, HIDDEN), np.float32)}
    pieces = []
    for at in range(x.shape[1]):
        result = dict(zip(names, session.run(None, {"input": x[:, at : at + 1], **state}), strict=True))
        pieces.append(result[names[0]])
        state = {"0.initial_h": result["0.h_n"], "0.initial_c": result["0.c_n"]}
    expected, referee = outputs(sequential, (x,)), outputs(copy.deepcopy(sequential).double(), (x,), exact=True)
    assert_within_referee_bound(np.concatenate(pieces, 1), expected[0], referee[0])
    assert_within_referee_bound(state["0.initial_c"], expected[2], referee[2])


class Translator(nn.Module):
    """A decoder that starts from the encoder's state and attends to nothing else."""

    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.encoder, self.decoder = kind(INPUTS, HIDDEN, batch_first=True), kind(INPUTS, HIDDEN, batch_first=True)
        self.head = nn.Linear(HIDDEN, 2)

    def forward(self, source, target):
        y, _ = self.decoder(target, self.encoder(source)[1])
        return self.head(y)


class DecoderStep(nn.Module):
    """The same decoder for any number of steps, its state in and out."""

    def __init__(self, whole: Translator) -> None:
        super().__init__()
        self.decoder, self.head = whole.decoder, whole.head

    def forward(self, target, *state):
        y, state = self.decoder(target, state if len(state) > 1 else state[0])
        return self.head(y), state


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU], ids=["LSTM", "GRU"])
def test_a_decoder_step_by_step_is_the_whole_run(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    module = Translator(kind).eval()
    source, target = frames(3, 7, 1), frames(3, 6, 2)
    whole = bridge.to_onnx(module, example=(frames(), frames(2, 8)))
    encoder = bridge.to_onnx(module.encoder)
    zeros = np.zeros((1, 2, HIDDEN), np.float32)
    states = (zeros, zeros) if kind is nn.LSTM else (zeros,)
    step = bridge.to_onnx(DecoderStep(module).eval(), example=(frames(2, 1), *states))
    once = bridge.run(whole, {"source": source, "target": target})["output"]
    encoded = bridge.run(encoder, {"input": source})
    state = [encoded[name] for name in ("h_n", "c_n") if name in encoded]
    session = ort.InferenceSession(step.SerializeToString(), providers=["CPUExecutionProvider"])
    names, pieces = [entry.name for entry in session.get_inputs()], []
    for at in range(target.shape[1]):
        feeds = dict(zip(names, (target[:, at : at + 1], *state), strict=True))
        piece, *state = session.run(None, feeds)
        pieces.append(piece)
    exact = outputs(copy.deepcopy(module).double(), (source, target), exact=True)[0]
    assert_within_referee_bound(np.concatenate(pieces, 1), once, exact)
    assert_within_referee_bound(once, outputs(module, (source, target))[0], exact)


def test_a_live_model_runs_as_its_file_does(nested: Any) -> None:
    module, model = nested
    x = frames(3, 8)
    np.testing.assert_array_equal(
        bridge.run(module, {"frames": x})["output"], bridge.run(model, {"frames": x})["output"]
    )


def test_a_live_model_runs_from_states_that_are_given_by_path() -> None:
    torch.manual_seed(0)
    module = Tagger(nn.GRU(INPUTS, HIDDEN, batch_first=True), "last").eval()
    x, h = frames(2, 6), np.random.default_rng(1).uniform(-1, 1, (1, 2, HIDDEN)).astype(np.float32)
    results = bridge.run(module, {"x": x, "rnn.initial_h": h})
    with torch.no_grad():
        y, final = module.rnn(torch.tensor(x), torch.tensor(h))
        expected = module.head(y[:, -1])
    np.testing.assert_allclose(results["output"], expected.numpy(), atol=1e-6)  # float32, values below 1
    np.testing.assert_allclose(results["rnn.h_n"], final.numpy(), atol=1e-6)


def test_a_live_model_says_what_its_forward_takes() -> None:
    module = Tagger(nn.GRU(INPUTS, HIDDEN, batch_first=True), "last").eval()
    with pytest.raises(UsageError, match="forward does not take"):
        bridge.run(module, {"input": frames()})


class PackedFinal(nn.Module):
    """A packed layer; `read` says whether the packed data themselves are an output."""

    def __init__(self, read: bool) -> None:
        super().__init__()
        self.rnn, self.read = nn.LSTM(INPUTS, HIDDEN, 2, batch_first=True), read

    def forward(self, x, lengths):
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        y, (h, _) = self.rnn(packed)
        padded, _ = nn.utils.rnn.pad_packed_sequence(y, batch_first=True)
        return (padded, h, y.data) if self.read else (padded, h)


@pytest.mark.parametrize("read", [False, True], ids=["sort removed", "sort kept"])
def test_exposed_states_of_a_packed_layer_are_in_the_order_of_the_batch(read: bool) -> None:
    torch.manual_seed(0)
    module = PackedFinal(read).eval()
    x, lengths = frames(3, 6), np.array([2, 6, 4])
    rng = np.random.default_rng(1)
    h, c = (rng.uniform(-1, 1, (2, 3, HIDDEN)).astype(np.float32) for _ in "hc")
    model = bridge.to_onnx(module, example=(x, lengths), states="inputs")
    assert ("TopK" in {node.op_type for node in model.graph.node}) == read
    mine = bridge.run(model, {"x": x, "lengths": lengths, "rnn.initial_h": h, "rnn.initial_c": c})
    exact = copy.deepcopy(module).double()
    results = []
    for own, dtype in ((module, torch.float32), (exact, torch.float64)):
        packed = nn.utils.rnn.pack_padded_sequence(
            torch.tensor(x, dtype=dtype), torch.tensor(lengths), batch_first=True, enforce_sorted=False
        )
        with torch.no_grad():
            y, finals = own.rnn(packed, tuple(torch.tensor(value, dtype=dtype) for value in (h, c)))
        results.append([nn.utils.rnn.pad_packed_sequence(y, batch_first=True)[0], *finals])
    for name, expected, referee in zip(("output_0", "rnn.h_n", "rnn.c_n"), *results, strict=True):
        assert_within_referee_bound(mine[name], expected.numpy(), referee.numpy())


def test_dynamic_names_the_axes_and_fixes_the_others() -> None:
    module = nn.Sequential(nn.GRU(INPUTS, HIDDEN, batch_first=True)).eval()
    model = bridge.to_onnx(module, example=(frames(),), dynamic={"input": {1: "frames"}})
    dims = model.graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in dims] == [2, "frames", INPUTS]


def test_verify_runs_the_model_itself_and_its_import() -> None:
    torch.manual_seed(0)
    module = Tagger(nn.GRU(INPUTS, HIDDEN, batch_first=True), "last").eval()
    report = bridge.verify(module, "torch", inputs=[{"x": frames()}, {"x": frames(1, 9)}])
    assert report.passed
    assert {row.side for pair in report.pairs for row in pair.rows} == {"onnxruntime", report.a, "torch"}


# ---------------------------------------------------------------------- refusals


class Branching(nn.Module):
    def forward(self, x):
        return x * 2 if x.sum() > 0 else x


class Unwritable(nn.Module):
    def forward(self, x):
        return torch.linalg.svd(x).S


class Stepping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.RNNCell(INPUTS, HIDDEN)

    def forward(self, x):
        h, most = None, 0
        for step in x.unbind(1):
            h = self.cell(step, h)
            most = most + h
        return most


class While(Stepping):
    def forward(self, x):
        h, at = None, 0
        while at < x.size(1):
            h = self.cell(x[:, at], h)
            at += 1
        return h


class Late(nn.Module):
    """Something else at late steps of a reversed loop, later than any run would show."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.RNNCell(INPUTS, HIDDEN)

    def forward(self, x):
        h = None
        for at, step in enumerate(reversed(x.unbind(1))):
            h = self.cell(step, h)
            if at > 100:
                h = h * 0.5
        return h


class Hidden(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = [nn.GRU(INPUTS, HIDDEN, batch_first=True)]

    def forward(self, x):
        return self.layers[0](x)[0]


class Dropping(nn.Module):
    """Functional dropout, which does not know of eval()."""

    def forward(self, x):
        return nn.functional.dropout(x, 0.5)


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(INPUTS, HIDDEN, batch_first=True)

    def forward(self, x):
        return self.rnn(x + torch.rand_like(x))[0]


class Autocast(nn.Module):
    """Runs `inner` in bfloat16 and gives float32."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.inner(x)[0].float()


class Summing(nn.Module):
    """A loop that a nested module must not have: under `tail`, it gets the layer's outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.RNNCell(HIDDEN, HIDDEN)

    def forward(self, x):
        h = x[:, 0]
        for at in range(1, x.size(1)):
            h = self.cell(x[:, at], h)
        return h


def after(tail: nn.Module) -> nn.Module:
    """A layer, then `tail` under the path `tail`."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.tail = nn.LSTM(INPUTS, HIDDEN, batch_first=True), tail

        def forward(self, x):
            return self.tail(self.rnn(x)[0])

    return Model()


REFUSED: dict[str, tuple[Any, type[BridgeError], tuple[str, ...]]] = {
    "a loop in a nested module": (lambda: after(Summing()), Unsupported, ("tail, ", "for at in range(1, x.size(1)):")),
    "dropout in training": (lambda: after(nn.Dropout(0.5)), Unsupported, ("tail (Dropout)", "training", ".eval()")),
    "batch norm in training": (lambda: after(nn.BatchNorm1d(5)), Unsupported, ("tail (BatchNorm1d)", ".eval()")),
    "dropout between layers": (lambda: nn.Sequential(nn.LSTM(INPUTS, HIDDEN, 2, dropout=0.1)), Unsupported,
                               ("0 (LSTM)", "training")),
    "two devices": (lambda: after(nn.Linear(5, 5, device="meta")).eval(), Unsupported,
                    ("several devices", "rnn.weight_ih_l0 on cpu", "tail.weight on meta")),
    "control flow on data": (lambda: after(Branching()).eval(), Unsupported,
                             ("tail (Branching)", "test_torch_whole.py", "if x.sum() > 0", "torch.cond")),
    "an operator ONNX lacks": (lambda: after(Unwritable()).eval(), Unsupported,
                               ("tail (Unwritable)", "svd", "test_torch_whole.py")),
    "a layer of torch's own that ONNX lacks": (lambda: after(nn.AdaptiveMaxPool1d(2)).eval(), Unsupported,
                                               ("tail (AdaptiveMaxPool1d)", "do: change " + __file__)),
    "a loop over time": (lambda: Stepping().eval(), Unsupported,
                         ("loop over time", "for step in x.unbind(1):", "nn.LSTM for nn.LSTMCell")),
    "a late step of a reversed loop": (lambda: Late().eval(), Unsupported, ("if at > 100:",)),
    "a while over time": (lambda: While().eval(), Unsupported, ("stepped over axis 1 of x", "at 5", "dynamic=")),
    "a layer that is no submodule": (lambda: Hidden().eval(), Unsupported,
                                     ("no submodule", "nn.ModuleList", "self.layers[0](x)[0]")),
    "random numbers": (lambda: Noisy().eval(), Unsupported, ("random numbers", "RandomUniform")),
    "functional dropout": (lambda: after(Dropping()).eval(), Unsupported,
                           ("random numbers", "tail.", "nn.functional.dropout(x, 0.5)")),
    "a layer under autocast": (lambda: Autocast(nn.GRU(INPUTS, HIDDEN, batch_first=True)).eval(), Unsupported,
                               ("inner (GRU)", "autocast", "bfloat16", "enabled=False")),
    "other operators under autocast": (lambda: Autocast(nn.Linear(INPUTS, HIDDEN)).eval(), Unsupported,
                                       ("MatMul of bfloat16 (", "torch.autocast")),
    "weights that are NaN": (lambda: nan(after(nn.Tanh())).eval(), BadInput, ("NaN",)),
}  # fmt: skip


def nan(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        module.rnn.weight_ih_l0[0, 0] = float("nan")
    return module


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_carried_is_one_error_and_leaves_nothing(name: str, tmp_path: Path) -> None:
    make, kind, texts = REFUSED[name]
    module = make()
    before = snapshot(module)
    with pytest.raises(kind) as caught:
        bridge.to_onnx(module, tmp_path / "model.onnx", example=(torch.from_numpy(frames()),))
    for text in texts:
        assert text in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    assert snapshot(module) == before


def quietly(make: Any) -> nn.Module:
    """What `make` makes with torch.jit, which warns of itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make()


def gru() -> nn.Module:
    return nn.Sequential(nn.GRU(INPUTS, HIDDEN, batch_first=True)).eval()


class Deciding(nn.Module):
    """Hangs on its input by way of `how`."""

    def __init__(self, how: Any) -> None:
        super().__init__()
        self.rnn, self.how = nn.GRU(INPUTS, HIDDEN, batch_first=True), how

    def forward(self, x):
        y, _ = self.rnn(x)
        return self.how(y)


def looping(y: torch.Tensor) -> torch.Tensor:
    while y.sum() < 10:
        y = y + 1
    return y


HANGING = {
    "a branch": lambda y: y * 2 if y.sum() > 0 else y,
    "a loop": looping,
    "a number": lambda y: y * 2 if int(y.sum()) == 3 else y,
    "a size": lambda y: y * 2 if len(y[0, :, 0].nonzero()) > 2 else y,
}


@pytest.mark.parametrize("how", HANGING)
def test_control_flow_on_data_is_refused_in_a_few_words_and_prints_nothing(how: str, capfd: Any) -> None:
    with pytest.raises(Unsupported, match="the value of a tensor") as caught:
        bridge.to_onnx(Deciding(HANGING[how]).eval(), example=(frames(),))
    assert str(caught.value).startswith("Deciding: ")
    assert caught.value.got.endswith("return self.how(y)")
    assert len(str(caught.value).splitlines()) == 3
    assert capfd.readouterr() == ("", "")


JIT: dict[str, tuple[Any, str]] = {
    "traced": (lambda: torch.jit.trace(gru(), torch.from_numpy(frames())), "Sequential: "),
    "scripted": (lambda: torch.jit.script(nn.GRU(INPUTS, HIDDEN).eval()), "GRU: "),
    "a traced layer": (lambda: after(torch.jit.trace(gru(), torch.zeros(2, 5, INPUTS))), "tail.0 (GRU): "),
    "a scripted part": (lambda: after(torch.jit.script(nn.Linear(HIDDEN, 2))), "tail (Linear): "),
}


@pytest.mark.parametrize("name", JIT)
def test_what_torch_jit_made_is_refused(name: str) -> None:
    make, where = JIT[name]
    module = quietly(make).eval()
    with pytest.raises(Unsupported) as caught:
        bridge.to_onnx(module, example=(frames(),))
    assert str(caught.value).startswith(where)
    assert "the nn.Module that it was made from" in caught.value.do
    if name == "a scripted part":
        assert list(bridge.cells(module)) == ["rnn.l0"]
    else:
        with pytest.raises(Unsupported, match="traced or scripted"):
            bridge.cells(module)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "needs an example"),
        ({"example": (1, 2, 3)}, "forward does not take the example"),
        ({"example": (frames(),), "lengths": True}, "pack_padded_sequence"),
        ({"example": (frames(),), "dynamic": {"y": {0: "batch"}}}, "no array among the inputs"),
        ({"example": (frames(),), "dynamic": {"frames": {7: "batch"}}}, "no such axis"),
    ],
)
def test_a_wrong_call_says_what_is_wrong(options: Any, text: str, nested: Any) -> None:
    with pytest.raises(UsageError, match=text):
        bridge.to_onnx(nested[0], **options)


@pytest.mark.parametrize(
    ("example", "text"),
    [
        (torch.zeros(2, 5, INPUTS).double(), "this one is float64 [2, 5, 3]"),
        ((torch.zeros(2, 5, INPUTS + 1),), "this one is float32 [2, 5, 4]"),
        ("s", "this one is 's'"),
        (([[0.0]],), "this one is [[0.0]]"),
        ({"x": None}, "this one is x=None"),
    ],
    ids=["dtype", "features", "text", "lists", "None"],
)
def test_an_example_on_which_forward_fails_is_to_be_changed_and_not_torch(example: Any, text: str) -> None:
    with pytest.raises(UsageError, match="forward fails on the example") as caught:
        bridge.to_onnx(after(nn.Tanh()).eval(), example=example)
    assert str(caught.value).startswith("rnn (LSTM): ")
    assert "test_torch_whole.py" in caught.value.got
    assert "return self.tail(self.rnn(x)[0])" in caught.value.got
    assert text in caught.value.do
    for library in (bridge, torch):
        assert str(Path(library.__file__).parent) not in str(caught.value)


class Counted(Branching):
    """Counts its calls and the numbers it saw in place, as no export may."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        x.mul_(2)
        return super().forward(x + torch.rand_like(x))


def test_the_run_that_tells_a_wrong_example_leaves_module_example_and_random_numbers_alone() -> None:
    module, x = Counted().eval(), torch.ones(2, 5, INPUTS)
    before = torch.random.get_rng_state()
    with pytest.raises(Unsupported):
        bridge.to_onnx(module, example=(x,))
    assert module.calls == 0
    assert torch.equal(x, torch.ones(2, 5, INPUTS))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_an_axis_that_the_model_fixes_is_noted() -> None:
    case = CASES["states given, LSTM x2"]
    model = export(case, built(case))
    notes = json.loads({entry.key: entry.value for entry in model.metadata_props}["bridge.notes"])
    assert model.graph.input[1].type.tensor_type.shape.dim[0].dim_value == 2
    assert notes == ["h: axis 0 is fixed at 2 by the model", "c: axis 0 is fixed at 2 by the model"]


class Echo(nn.Module):
    def forward(self, output):
        return output, output * 2, output


def test_outputs_that_are_inputs_or_one_another_keep_their_names() -> None:
    model = bridge.to_onnx(nn.Sequential(Echo()), example=(frames(),))
    assert [entry.name for entry in model.graph.output] == ["output_0", "output_1", "output_2"]
    assert [entry.name for entry in bridge.to_onnx(Named(), example=(frames(),)).graph.input] == ["output"]


class Named(nn.Module):
    def forward(self, output):
        return output + 1


def test_an_empty_example_is_refused(nested: Any) -> None:
    with pytest.raises(BadInput, match="empty"):
        bridge.to_onnx(nested[0], example=(frames(2, 0),))


class Remembering(nn.Module):
    """Keeps what it saw in an attribute and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(INPUTS, HIDDEN, batch_first=True)
        self.register_buffer("count", torch.zeros(()))
        self.last = None

    def forward(self, x):
        self.last = x.shape
        return self.rnn(x)[0] + self.count


def snapshot(module: nn.Module) -> Any:
    """Everything an export might touch."""
    states = [(name, id(value), value._version) for name, value in module.named_parameters()]
    children = [
        (path, child.training, sorted((key, id(value)) for key, value in vars(child).items()),
         len(child._forward_hooks), len(child._forward_pre_hooks), id(type(child).forward))
        for path, child in module.named_modules()
    ]  # fmt: skip
    return states, children, id(torch.nn.utils.rnn._VF), id(torch.SymInt.__index__)


def test_the_module_is_as_it_was() -> None:
    module = Remembering().eval()
    module.rnn.register_forward_hook(lambda *_: None)
    before = snapshot(module)
    bridge.to_onnx(module, example=(frames(),))
    assert snapshot(module) == before
    assert module.last is None


def test_a_bare_layer_is_written_without_torch_s_exporter() -> None:
    code = (
        "import sys, torch, bridge; bridge.to_onnx(torch.nn.LSTM(3, 4)); "
        "print(any(name.startswith(('torch.onnx._internal', 'onnxscript')) for name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# ---------------------------------------------------------------------- real models


def at_sizes(module: nn.Module, model: onnx.ModelProto, make: Any, sizes: Any) -> None:
    """Judge a real model at several sizes within the bound."""
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    exact = copy.deepcopy(module).double()
    names = [entry.name for entry in session.get_inputs()]
    for size in sizes:
        arrays = make(*size)
        actual = session.run(None, dict(zip(names, arrays, strict=True)))
        expected, referee = outputs(module, arrays), outputs(exact, arrays, exact=True)
        for got, want, truth in zip(actual, expected, referee, strict=True):
            assert_within_referee_bound(got, want, truth)


@pytest.mark.models
def test_resemblyzer_with_its_head() -> None:
    module = Resemblyzer().eval()
    state = torch.load(model_file("resemblyzer"), weights_only=True, map_location="cpu")["model_state"]
    module.load_state_dict({name: value for name, value in state.items() if not name.startswith("similarity")})

    def make(batch: int, time: int) -> Any:
        return (np.random.default_rng(batch).random((batch, time, 40), np.float32),)

    model = bridge.to_onnx(module, example=make(2, 9))
    assert [node.op_type for node in model.graph.node].count("LSTM") == 3
    at_sizes(module, model, make, [(1, 20), (3, 7)])


@pytest.mark.models
def test_legere_with_its_convolutions() -> None:
    module = Legere().eval()
    module.load_state_dict(torch.load(model_file("legere"), weights_only=True, map_location="cpu")["model"])

    def make(batch: int, width: int) -> Any:
        return (np.random.default_rng(width).random((batch, 1, 32, width), np.float32),)

    model = bridge.to_onnx(module, example=make(2, 64), dynamic={"images": {0: "batch", 3: "width"}})
    assert [node.op_type for node in model.graph.node].count("GRU") == 1
    at_sizes(module, model, make, [(1, 40), (3, 100)])


@pytest.mark.models
def test_silero_with_its_cell() -> None:
    from safetensors.torch import load_file

    module = Silero().eval()
    module.load_state_dict(load_file(model_file("silero-vad", "silero_vad_16k.safetensors")))

    def make(batch: int) -> Any:
        rng = np.random.default_rng(batch)
        states = rng.uniform(-0.5, 0.5, (2, batch, 128)).astype(np.float32)
        return (0.1 * rng.standard_normal((batch, 576)).astype(np.float32), *states)

    model = bridge.to_onnx(module, example=make(2), dynamic={name: {0: "batch"} for name in ("window", "h", "c")})
    assert [node.op_type for node in model.graph.node].count("LSTM") == 1
    at_sizes(module, model, make, [(1,), (4,)])
