"""Export a case once and judge it at other sizes: torch in float64 is the referee, torch in float32 sets the bound."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from torch import nn
from torch.utils import _pytree as pytree

import bridge
from bridge.errors import BridgeError
from tests.tolerances import assert_within_referee_bound
from tests.whole_models.torch_cases import EXAMPLE, OTHERS, Case


@dataclass(frozen=True)
class Verdict:
    """What became of one case."""

    case: str
    outcome: str
    """right, refused, failed (no model, or none that runs) or wrong."""
    fused: int = 0
    scans: int = 0
    nodes: int = 0
    detail: str = ""


def built(case: Case) -> nn.Module:
    """The model in inference mode, every parameter and statistic random."""
    torch.manual_seed(1)
    module = case.build().eval()
    for value in module.buffers():
        if value.is_floating_point():
            torch.nn.init.uniform_(value, 0.5, 1.5)
    return module


def export(case: Case, module: nn.Module) -> Any:
    example = case.inputs(*EXAMPLE, np.random.default_rng(0))
    return bridge.to_onnx(module, example=example, **dict(case.options))


def judge(case: Case, module: nn.Module, model: Any) -> Verdict:
    """Run `model` at four sizes that the export has not seen."""
    counts = count(model)
    try:
        session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 (whatever onnxruntime says is the verdict)
        return Verdict(case.name, "failed", *counts, str(error)[:200])
    exact = copy.deepcopy(module).double()
    for at, (batch, time) in enumerate(OTHERS):
        arrays = case.inputs(batch, time, np.random.default_rng(at + 1))
        try:
            feeds = dict(zip((entry.name for entry in session.get_inputs()), arrays, strict=True))
            actual = session.run(None, feeds)
        except Exception as error:  # noqa: BLE001
            return Verdict(case.name, "failed", *counts, f"at {(batch, time)}: {str(error)[:200]}")
        expected, referee = outputs(module, arrays), outputs(exact, arrays, exact=True)
        try:
            for got, want, truth in zip(actual, expected, referee, strict=True):
                if want.dtype.kind != "f":
                    np.testing.assert_array_equal(got, want)
                else:
                    assert_within_referee_bound(got, want, truth)
        except (AssertionError, ValueError) as error:
            return Verdict(case.name, "wrong", *counts, f"at {(batch, time)}: {str(error)[:200]}")
    return Verdict(case.name, "right", *counts)


def outputs(module: nn.Module, arrays: Any, *, exact: bool = False) -> list[np.ndarray]:
    """The flat outputs of torch itself."""
    tensors = [torch.from_numpy(array) for array in arrays]
    tensors = [value.double() if exact and value.is_floating_point() else value for value in tensors]
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64 if exact else default)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = module(*tensors)
    finally:
        torch.set_default_dtype(default)
    return [value.numpy() for value in pytree.tree_leaves(result)]


def count(model: Any) -> tuple[int, int, int]:
    """Fused nodes, Scans, and all nodes, those of subgraphs too."""
    found: list[str] = []

    def walk(graph: Any) -> None:
        for node in graph.node:
            found.append(node.op_type)
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    walk(attribute.g)

    walk(model.graph)
    return sum(op in ("LSTM", "GRU", "RNN") for op in found), found.count("Scan"), len(found)


def run(case: Case) -> Verdict:
    """Build, export, judge."""
    module = built(case)
    try:
        model = export(case, module)
    except BridgeError as error:
        return Verdict(case.name, "refused", detail=str(error))
    return judge(case, module, model)
