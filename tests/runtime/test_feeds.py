"""Inputs that a model does not declare end in BadInput that names them."""

from __future__ import annotations

import numpy as np
import pytest

from bridge.errors import BadInput, UsageError
from bridge.runtime import Session
from tests.cells import random_cell
from tests.single_node import node_model

LENGTHS = np.array([4, 2], np.int32)


@pytest.fixture(scope="module")
def lstm():
    cell = random_cell("LSTM", 3, 5, np.random.default_rng(0))
    inputs = {"X": np.zeros((4, 2, 3), np.float32), "W": cell.W, "R": cell.R, "B": cell.B, "sequence_lens": LENGTHS}
    return Session(node_model("LSTM", inputs, {}), device="cpu")


@pytest.fixture
def feeds():
    x = np.random.default_rng(1).standard_normal((4, 2, 3)).astype(np.float32)
    return {"X": x, "sequence_lens": LENGTHS}


def test_session_runs_what_it_should(lstm, feeds):
    assert set(lstm.run(feeds).outputs) == {"Y", "Y_h", "Y_c"}
    assert lstm.input_names == ("X", "sequence_lens")


def test_wanted_outputs_only(lstm, feeds):
    full = lstm.run(feeds).outputs
    some = lstm.run(feeds, outputs=["Y_c", "Y_h"]).outputs
    assert list(some) == ["Y_c", "Y_h"]
    np.testing.assert_array_equal(some["Y_c"], full["Y_c"])
    np.testing.assert_array_equal(some["Y_h"], full["Y_h"])


def test_lists_and_other_memory_orders_are_taken(lstm, feeds):
    other = {"X": np.asfortranarray(feeds["X"]), "sequence_lens": feeds["sequence_lens"]}
    np.testing.assert_array_equal(lstm.run(other).outputs["Y"], lstm.run(feeds).outputs["Y"])


WRONG = {
    "a missing input": (lambda feeds: {"X": feeds["X"]}, r"missing \['sequence_lens'\]"),
    "an unexpected input": (lambda feeds: {**feeds, "x": feeds["X"]}, r"unexpected \['x'\]"),
    "another dtype": (lambda feeds: {**feeds, "X": feeds["X"].astype(np.float64)}, "input 'X': another dtype"),
    "int64 lengths": (lambda feeds: {**feeds, "sequence_lens": LENGTHS.astype(np.int64)}, "input 'sequence_lens'"),
    "bytes in the other order": (lambda feeds: {**feeds, "X": feeds["X"].astype(">f4")}, "input 'X': another dtype"),
    "a rank too few": (lambda feeds: {**feeds, "X": feeds["X"][0]}, "input 'X': another shape"),
    "no step": (lambda feeds: {**feeds, "X": feeds["X"][:0]}, "input 'X': a dimension of 0"),
    "no sequence": (
        lambda feeds: {"X": feeds["X"][:, :0], "sequence_lens": LENGTHS[:0]},
        "a dimension of 0 reaches a recurrent node",
    ),
    "no feature": (lambda feeds: {**feeds, "X": feeds["X"][:, :, :0]}, "input 'X'"),
    "NaN": (lambda feeds: {**feeds, "X": feeds["X"] * np.float32("nan")}, "input 'X': NaN or inf"),
    "inf": (lambda feeds: {**feeds, "X": feeds["X"] + np.float32("inf")}, "input 'X': NaN or inf"),
    "a negative length": (lambda feeds: {**feeds, "sequence_lens": LENGTHS - 3}, "'sequence_lens': a length is out"),
    "a length past the end": (lambda feeds: {**feeds, "sequence_lens": LENGTHS + 1}, "sequence_lens"),
    "too few lengths": (lambda feeds: {**feeds, "sequence_lens": LENGTHS[:1]}, "sequence_lens"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_bad_input_names_the_input(wrong, lstm, feeds):
    change, text = WRONG[wrong]
    with pytest.raises(BadInput, match=text):
        lstm.run(change(feeds))


@pytest.mark.parametrize("wrong", ["no step", "no sequence", "NaN", "a negative length"])
def test_guard_stands_before_onnxruntime(wrong, lstm, feeds, monkeypatch):
    """onnxruntime would abort the process, or hide it: it must never be reached."""
    monkeypatch.setattr(lstm, "_session", Unreachable(lstm._session))
    with pytest.raises(BadInput):
        lstm.run(WRONG[wrong][0](feeds))


def test_unknown_output_is_a_usage_error(lstm, feeds):
    with pytest.raises(UsageError, match="no such output"):
        lstm.run(feeds, outputs=["Z"])


class Unreachable:
    def __init__(self, session):
        self.get_inputs = session.get_inputs

    def run(self, names, feeds):
        pytest.fail("onnxruntime was reached")
