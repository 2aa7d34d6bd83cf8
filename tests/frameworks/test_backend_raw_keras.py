"""ONNX's 18 recurrent node cases, weights as graph inputs, imported into Keras."""

from __future__ import annotations

import bridge
from tests.frameworks.backend_raw import assert_every_case_is_right


def test_every_recurrent_case_is_right_in_keras() -> None:
    assert_every_case_is_right(lambda case: bridge.to_keras(case.model)(*case.feeds.values()))
