"""The verdict on one exported model, the same for every framework and every exporter.

A framework's `<framework>_runs.py` makes the runs: inputs at sizes that the export has not seen, the outputs of the
framework's own forward pass in float32, which earn the bound, and those of a float64 referee.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import onnxruntime as ort

from tests.tolerances import assert_within_referee_bound

FUSED: Final = ("LSTM", "GRU", "RNN")


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


class Run(NamedTuple):
    """One run of a model: what goes in, and what has to come out in graph order."""

    label: str
    feeds: Sequence[np.ndarray]
    """In the order of the graph's inputs."""
    expected: Sequence[np.ndarray]
    """The framework's own outputs."""
    referee: Sequence[np.ndarray]
    """The same in float64."""


def judge(case: str, model: Any, runs: Iterable[Run]) -> Verdict:
    """Run `model` (a ModelProto) in onnxruntime and compare every output of every run."""
    counts = count(model)
    try:
        session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 (whatever onnxruntime says is the verdict)
        return Verdict(case, "failed", *counts, str(error)[:200])
    for run in runs:
        try:
            feeds = dict(zip((entry.name for entry in session.get_inputs()), run.feeds, strict=True))
            actual = session.run(None, feeds)
        except Exception as error:  # noqa: BLE001
            return Verdict(case, "failed", *counts, f"at {run.label}: {str(error)[:200]}")
        try:
            for got, want, truth in zip(actual, run.expected, run.referee, strict=True):
                if want.dtype.kind != "f":
                    np.testing.assert_array_equal(got, want)
                else:
                    assert_within_referee_bound(got, want, truth)
        except (AssertionError, ValueError) as error:
            return Verdict(case, "wrong", *counts, f"at {run.label}: {str(error)[:200]}")
    return Verdict(case, "right", *counts)


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
    return sum(op in FUSED for op in found), found.count("Scan"), len(found)
