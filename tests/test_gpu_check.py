"""scripts/gpu-check: its report without a GPU, its rows tried on the CPU, and all of it where there is a GPU."""

from __future__ import annotations

import json
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from bridge.runtime import RunResult, why_no_cuda
from bridge.schema_files import schema_files

SCRIPT = Path(__file__).parents[1] / "scripts" / "gpu-check"
ABSENT = why_no_cuda()


@pytest.fixture(scope="module")
def gpu_check():
    loader = SourceFileLoader("gpu_check", str(SCRIPT))
    module = module_from_spec(spec_from_loader(loader.name, loader))
    sys.modules[loader.name] = module  # dataclasses look their module up
    loader.exec_module(module)
    yield module
    del sys.modules[loader.name]


@pytest.fixture
def run(gpu_check, monkeypatch, tmp_path):
    """Run the script; its exit code and the report, held to the schema."""
    schema = json.loads((schema_files() / "gpu-report.schema.json").read_text(encoding="utf-8"))

    def run(*arguments: str):
        out = tmp_path / "report.json"
        monkeypatch.setattr(sys, "argv", ["gpu-check", "--out", str(out), *arguments])
        code = gpu_check.main()
        document = json.loads(out.read_text(encoding="utf-8"))
        jsonschema.validate(document, schema)
        return code, document

    return run


@pytest.mark.skipif(ABSENT is None, reason="a GPU is present")
def test_without_a_gpu_the_report_says_that_nothing_was_run(run, capsys):
    code, document = run()
    assert code == 3
    assert (document["ran"], document["rows"], document["reason"]) == (False, [], ABSENT)
    assert "nothing was run on a GPU" in capsys.readouterr().err


def test_rows_agree_on_the_cpu(run):
    code, document = run("--device", "cpu", "--layout", "torch.GRU", "--layout", "flax.linen.MGUCell")
    assert code == 0
    assert document["counts"] == {"agrees": 24, "differs": 0, "refused": 0}
    assert {row["direction"] for row in document["rows"]} == {"forward", "reverse", "bidirectional"}
    assert 0 < document["worst_error"] < 1e-6


def test_a_wrong_device_is_noticed(gpu_check, run, monkeypatch):
    honest, devices = gpu_check.run_model, iter(["right", "wrong"] * 100)

    def every_second_run_is_wrong(model, feeds, *, device):
        outputs = honest(model, feeds, device=device).outputs
        if next(devices) == "wrong":
            outputs = {name: array + np.float32(1e-4) for name, array in outputs.items()}
        return RunResult(outputs, {})

    monkeypatch.setattr(gpu_check, "run_model", every_second_run_is_wrong)
    code, document = run("--device", "cpu", "--layout", "torch.RNN")
    assert code == 1
    assert document["counts"] == {"agrees": 0, "differs": 12, "refused": 0}
    assert "exceeds" in document["rows"][0]["reason"]


def test_a_refusal_is_a_row_with_its_reason(gpu_check, run, monkeypatch):
    """haiku's GRU has its reset gate before the product, which cuDNN has not."""
    monkeypatch.setattr("bridge.runtime.session.why_no_cuda", lambda: None)
    row = gpu_check.run_row("haiku.GRU", "forward", 3, 5, False, "cuda")
    assert row.status == "refused"
    assert "linear_before_reset is 0" in row.reason


def test_nodes_on_both_sides_of_the_placement_rules_are_tried(gpu_check):
    forecasts = {}
    for name, (op, attributes) in gpu_check.PLACEMENT.items():
        model = gpu_check.model_of(gpu_check.random_cell(op, 3, 5, np.random.default_rng(0), **attributes))
        (node,) = (node for node in model.graph if node.op_type == op)
        forecasts[name] = not gpu_check.cuda_obstacles(node)
    taken = {name for name, forecast in forecasts.items() if forecast}
    assert taken == {"LSTM", "GRU, reset after the product", "RNN"}


@pytest.mark.gpu
@pytest.mark.skipif(ABSENT is not None, reason=f"no GPU: {ABSENT}")
def test_every_layout_agrees_on_the_gpu(run):
    code, document = run()
    assert code == 0, json.dumps([row for row in document["rows"] if row["status"] == "differs"][:3])
    assert document["counts"]["agrees"] > 0
    assert all(placement["agrees"] for placement in document["placements"])
