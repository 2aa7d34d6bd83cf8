"""ONNX's 18 recurrent node cases, weights as graph inputs, imported into torch."""

from __future__ import annotations

from typing import Any

import torch

import bridge
from tests.frameworks.backend_raw import Case, assert_every_case_is_right


def test_every_recurrent_case_is_right_in_torch() -> None:
    def run(case: Case) -> Any:
        with torch.no_grad():
            return bridge.to_torch(case.model)(**{name: torch.tensor(value) for name, value in case.feeds.items()})

    assert_every_case_is_right(run)
