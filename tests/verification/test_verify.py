"""verify on live models: it passes what is right, fails what is wrong, and says when nothing was proven."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from jsonschema import Draft202012Validator

import bridge
from bridge.errors import Mismatch, UsageError
from tests.cells import random_cell

SCHEMA = json.loads((Path(__file__).parents[2] / "schemas" / "report.schema.json").read_text())


@pytest.fixture(scope="module")
def lstm() -> torch.nn.LSTM:
    torch.manual_seed(3)
    return torch.nn.LSTM(5, 4, num_layers=2, bidirectional=True, batch_first=True)


@pytest.mark.parametrize("target", ["torch", "flax", "flax.linen"])
def test_a_live_model_and_its_import_both_pass(lstm: torch.nn.LSTM, target: str) -> None:
    report = bridge.verify(lstm, target)
    assert report.passed, str(report)
    assert {row.side for pair in report.pairs for row in pair.rows} == {"onnxruntime", "torch LSTM", target}
    assert {row.output for pair in report.pairs for row in pair.rows} == {"output", "h_n", "c_n"}
    assert all(pair.states for pair in report.pairs)
    assert any(len(set(pair.lengths or ())) > 1 for pair in report.pairs)
    Draft202012Validator(SCHEMA).validate(json.loads(json.dumps(report.to_dict())))


IMPORTS = {"torch": bridge.to_torch, "keras": bridge.to_keras, "flax": bridge.to_flax}


@pytest.mark.parametrize("framework", IMPORTS)
def test_an_import_whose_graph_has_lengths_and_states_is_compared_with_all_of_them(framework: str) -> None:
    """Its graph is exported as it is: it already is what is asked of the other side."""
    torch.manual_seed(4)
    gru = torch.nn.GRU(4, 3)
    model = bridge.to_onnx(gru, lengths=True, states="inputs")
    net = IMPORTS[framework](model)
    for first, second in ((model, net), (gru, net), (net, gru)):
        report = bridge.verify(first, second)
        assert report.passed, str(report)
        assert all(pair.states and pair.lengths for pair in report.pairs)


@pytest.mark.parametrize("framework", IMPORTS)
def test_an_import_whose_graph_lacks_lengths_and_states_does_not_take_the_options(framework: str) -> None:
    net = IMPORTS[framework](torch.nn.GRU(4, 3))
    assert bridge.verify(net, "torch").passed
    for option in ({"lengths": True}, {"states": "inputs"}, {"example": np.zeros((2, 3, 4), np.float32)}):
        with pytest.raises(UsageError, match=f"without options\n  got: {next(iter(option))}"):
            bridge.to_onnx(net, **option)


def test_two_frameworks_are_compared_in_one_arrangement(lstm: torch.nn.LSTM) -> None:
    """torch batch-first and stacked states against nnx with one state for each direction."""
    single = torch.nn.LSTM(5, 4, bidirectional=True)
    native = bridge.build(bridge.cells(single)["l0"], "flax.nnx")
    report = bridge.verify(single, native)
    assert report.passed, str(report)
    assert any("not compared" in note for note in report.notes)  # Flax keeps computing on the padding


@pytest.mark.parametrize(("first", "second"), [("i", "f"), ("o", "c"), ("i", "o")])
def test_swapped_gates_are_found_out(first: str, second: str) -> None:
    cell = random_cell("LSTM", 3, 4, np.random.default_rng(0))
    rows = {gate: slice(at * 4, at * 4 + 4) for at, gate in enumerate(cell.gates)}
    swapped = np.array(cell.R)
    swapped[:, rows[first]], swapped[:, rows[second]] = cell.R[:, rows[second]], cell.R[:, rows[first]]
    wrong = bridge.to_onnx(replace(cell, R=swapped), states="inputs", lengths=True)
    report = bridge.verify(cell, wrong)
    assert not report.passed
    with pytest.raises(Mismatch, match="DISAGREES"):
        report.raise_for_mismatch()


def test_a_merged_reset_bias_is_found_out() -> None:
    cell = random_cell("GRU", 3, 4, np.random.default_rng(0), linear_before_reset=True)
    assert cell.B is not None
    merged = np.array(cell.B)
    merged[:, 8:12] += merged[:, 20:24]
    merged[:, 20:24] = 0
    wrong = bridge.to_onnx(replace(cell, B=merged), states="inputs", lengths=True)
    assert not bridge.verify(cell, wrong).passed


def chaotic_cell() -> bridge.Cell:
    """Large recurrent weights: float32 rounding grows until onnxruntime itself is wrong by more than 1e-3."""
    rng = np.random.default_rng(0)
    return bridge.Cell("RNN", W=rng.standard_normal((1, 64, 3)).astype(np.float32),
                       R=(4 * rng.standard_normal((1, 64, 64))).astype(np.float32))  # fmt: skip


def test_a_chaotic_pair_is_inconclusive_and_its_time_is_shortened() -> None:
    report = bridge.verify(chaotic_cell(), "torch")
    inconclusive = [pair for pair in report.pairs if not pair.conclusive]
    assert inconclusive
    times = [pair.time for pair in report.pairs if pair.batch == inconclusive[0].batch]
    assert times == sorted(times, reverse=True)
    assert len(times) > 1
    assert report.passed, str(report)


def test_nothing_conclusive_is_no_pass() -> None:
    long = {"input": np.random.default_rng(1).standard_normal((200, 2, 3)).astype(np.float32)}
    proto = bridge.to_onnx(chaotic_cell())
    report = bridge.verify(proto, "torch", inputs=long)
    assert not report.passed
    assert "inconclusive" in report.summary()


def test_the_callers_inputs_are_used_as_they_are(lstm: torch.nn.LSTM) -> None:
    proto = bridge.to_onnx(lstm)
    x = np.random.default_rng(0).standard_normal((3, 11, 5)).astype(np.float32)
    report = bridge.verify(proto, "torch", inputs=[{"input": x}, {"input": x[:1, :2]}])
    assert [pair.rows[0].shape[:2] for pair in report.pairs] == [(3, 11), (1, 2)]
    assert report.passed


def test_the_report_names_the_provider_of_each_node(lstm: torch.nn.LSTM) -> None:
    report = bridge.verify(lstm, "torch")
    assert {name: report.providers[name] for name in ("l0", "l1")} == dict.fromkeys(
        ("l0", "l1"), "CPUExecutionProvider"
    )


def test_an_unknown_target_names_the_known_ones(lstm: torch.nn.LSTM) -> None:
    with pytest.raises(UsageError, match=r"flax\.linen"):
        bridge.verify(lstm, "caffe")


def test_models_without_a_common_signature_are_refused(lstm: torch.nn.LSTM) -> None:
    other = bridge.to_onnx(torch.nn.LSTM(6, 4))
    with pytest.raises(bridge.BridgeError):
        bridge.verify(lstm, other)


@pytest.mark.parametrize(
    ("other", "got"),
    [(torch.nn.LSTM(4, 6), r"initial_h: float32 \[batch, 6\]"), (torch.nn.LSTM(3, 5), r"input: float32 .*, 3\]"),
     (torch.nn.LSTM(4, 5, num_layers=2), "initial_h: 2"), (torch.nn.LSTM(4, 5).double(), "input: float64")],
    ids=["hidden", "inputs", "layers", "dtype"],
)  # fmt: skip
def test_models_of_other_sizes_are_refused_before_they_run(other: torch.nn.LSTM, got: str) -> None:
    with pytest.raises(UsageError, match=f"take different inputs\n.*{got}"):
        bridge.verify(torch.nn.LSTM(4, 5), other)


@pytest.mark.parametrize("count", ["directions", None])
def test_a_number_of_states_that_one_side_leaves_open_is_no_conflict(count: str | None) -> None:
    cell = random_cell("LSTM", 3, 4, np.random.default_rng(0), direction="bidirectional")
    model = bridge.to_onnx(cell, states="inputs")
    other = onnx.ModelProto.FromString(model.SerializeToString())
    for value in other.graph.input[1:]:
        value.type.tensor_type.shape.dim[0].Clear()
        value.type.tensor_type.shape.dim[0].dim_param = count or ""
    rng = np.random.default_rng(1)
    inputs = {"input": rng.standard_normal((5, 2, 3)).astype(np.float32),
              **{name: rng.standard_normal((2, 2, 4)).astype(np.float32)
                 for name in ("initial_h", "initial_c")}}  # fmt: skip
    assert bridge.verify(model, other, inputs=inputs).passed
    assert bridge.verify(other, model, inputs=inputs).passed
