"""ONNX's 18 recurrent node cases, weights as graph inputs, imported into nnx and linen."""

from __future__ import annotations

from functools import cache
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

import bridge
from tests.frameworks.backend_raw import Case, assert_every_case_is_right, recurrent_cases


@cache
def in_nnx() -> dict[str, Any]:
    """The outputs of every case, under jit."""
    run = nnx.jit(lambda net, feeds: net(**feeds))
    return {case.name: run(bridge.to_flax(case.model), case.feeds) for case in recurrent_cases()}


def test_every_recurrent_case_is_right_in_nnx() -> None:
    assert_every_case_is_right(lambda case: in_nnx()[case.name])


def test_every_recurrent_case_is_right_in_linen() -> None:
    def run(case: Case) -> Any:
        net, variables = bridge.to_flax(case.model, api="linen")
        with jax.disable_jit():  # nothing is compiled: the equations alone
            return net.apply(variables, **case.feeds)

    assert_every_case_is_right(run)


def test_a_reversed_output_is_noticed() -> None:
    def wrong(case: Case) -> Any:
        result = in_nnx()[case.name]
        values = result if isinstance(result, tuple) else (result,)
        return tuple(np.asarray(value)[..., ::-1] for value in values)

    with pytest.raises(AssertionError, match="exceeds"):
        assert_every_case_is_right(wrong)
