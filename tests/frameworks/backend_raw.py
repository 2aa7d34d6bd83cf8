"""ONNX's own node cases of LSTM, GRU and RNN as they are, every weight a graph input, through an import."""

from __future__ import annotations

import warnings
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.errors import BridgeError
from bridge.ops.program import evaluate
from tests.ops.backend_cases import Case, carried
from tests.tolerances import assert_within_referee_bound

if TYPE_CHECKING:
    from collections.abc import Callable

CASES = 18
"""Six of each operator with onnx 1.23.2."""


def recurrent_cases() -> list[Case]:
    """The cases of one LSTM, GRU or RNN node."""
    with warnings.catch_warnings():  # onnx computes the expected values of other cases with overflow
        warnings.simplefilter("ignore")
        return [case for case in carried() if case.model.graph.node[0].op_type in ("LSTM", "GRU", "RNN")]


def assert_every_case_is_right(run: Callable[[Case], Any]) -> None:
    """`run` takes a case and returns its output, or a tuple of several."""
    found, texts = counts(run)
    assert not texts, "\n".join(texts)
    assert found == {"right": CASES, "refused": 0, "wrong": 0}


def counts(run: Callable[[Case], Any]) -> tuple[dict[str, int], list[str]]:
    """How many cases `run` gets right, refuses and gets wrong, and what is not right."""
    found, texts = Counter(right=0, refused=0, wrong=0), []
    for case in recurrent_cases():
        try:
            result = run(case)
        except BridgeError as error:
            found["refused"] += 1
            texts.append(f"{case.name}: {error}")
            continue
        values = result if isinstance(result, tuple) else (result,)
        referee = evaluate(case.model, case.feeds)
        try:
            for value, (name, expected) in zip(values, case.expected.items(), strict=True):
                assert_within_referee_bound(np.asarray(value), expected, referee[name])
            found["right"] += 1
        except (AssertionError, ValueError) as error:
            found["wrong"] += 1
            texts.append(f"{case.name}: {error}")
    return dict(found), texts
