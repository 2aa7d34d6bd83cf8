"""The referee against the ONNX text: its backend cases, layout 1, and laws that hold for any weights."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
from onnx import helper
from onnx.backend.test.case.node import _NodeTestCases

from bridge import reference
from bridge.cell import ACTIVATIONS, Activation, Cell
from bridge.errors import BadInput, UsageError

from .cells import random_cell, random_input
from .single_node import INPUTS

RUN = {"LSTM": reference.lstm, "GRU": reference.gru, "RNN": reference.rnn}
TEXT_PRECISION = 2 * 2.0**-23
"""The expected outputs of the backend cases are float32 numpy: two units; worst seen 7.3e-8 (onnx 1.23.2)."""


def backend_cases():
    for module in ("lstm", "gru", "rnn"):
        importlib.import_module(f"onnx.backend.test.case.node.{module}")
    return [case for case in _NodeTestCases if case.model.graph.node[0].op_type in RUN]


def test_there_are_eighteen_backend_cases():
    assert len(backend_cases()) == 18


@pytest.mark.parametrize("case", backend_cases(), ids=lambda case: case.name)
def test_backend_case(case):
    node = case.model.graph.node[0]
    attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    attributes = {name: value.decode() if isinstance(value, bytes) else value for name, value in attributes.items()}
    for given, expected in case.data_sets:
        arrays = iter(given)
        inputs = {name: next(arrays) for name, used in zip(INPUTS[node.op_type], node.input, strict=False) if used}
        outputs = RUN[node.op_type](**inputs, **attributes, spec="text")
        compared = [output for output, used in zip(outputs, node.output, strict=False) if used]
        assert len(compared) == len(expected)
        for actual, wanted in zip(compared, expected, strict=True):
            assert actual.shape == wanted.shape
            np.testing.assert_allclose(actual, wanted, rtol=0, atol=TEXT_PRECISION)


@pytest.mark.parametrize("op", list(RUN))
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_layout_1_is_the_same_with_batch_first(op, direction):
    rng = np.random.default_rng(0)
    cell = random_cell(op, 3, 5, rng, direction=direction, initial_h=4, initial_c=4 if op == "LSTM" else 0)
    x, lens = random_input(cell, rng, time=6, batch=4), np.array([6, 3, 0, 1])
    weights = {"W": cell.W, "R": cell.R, "B": cell.B, "sequence_lens": lens, "direction": direction}
    states = {"initial_h": cell.initial_h} | ({"initial_c": cell.initial_c} if op == "LSTM" else {})
    first = RUN[op](x, **weights, **states)
    turned = {name: state.transpose(1, 0, 2) for name, state in states.items()}
    second = RUN[op](x.transpose(1, 0, 2), **weights, **turned, layout=1)
    np.testing.assert_array_equal(second[0].transpose(1, 2, 0, 3), first[0])
    for state, other in zip(first[1:], second[1:], strict=True):
        np.testing.assert_array_equal(other.transpose(1, 0, 2), state)


@pytest.mark.parametrize("op", list(RUN))
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_lengths_mean_each_sequence_alone(op, direction):
    rng = np.random.default_rng(1)
    cell = random_cell(op, 3, 5, rng, direction=direction, initial_h=1, initial_c=1 if op == "LSTM" else 0)
    x, lens = random_input(cell, rng, time=6, batch=4), (6, 1, 4, 3)
    together = reference.evaluate(cell, x, lengths=lens)
    for at, length in enumerate(lens):
        Y, *states = reference.evaluate(cell, x[:length, at : at + 1])
        np.testing.assert_allclose(together[0][:length, :, at : at + 1], Y, rtol=0, atol=1e-15)
        assert not together[0][length:, :, at].any()
        for whole, alone in zip(together[1:], states, strict=True):
            if alone is not None:
                np.testing.assert_allclose(whole[:, at : at + 1], alone, rtol=0, atol=1e-15)


@pytest.mark.parametrize("op", list(RUN))
def test_bidirectional_is_both_directions_side_by_side(op):
    rng = np.random.default_rng(2)
    cell = random_cell(op, 3, 5, rng, direction="bidirectional", initial_h=2)
    x = random_input(cell, rng, batch=2)
    both, halves = reference.evaluate(cell, x), [reference.evaluate(half, x) for half in cell.split()]
    np.testing.assert_array_equal(both[0], np.concatenate([half[0] for half in halves], axis=1))
    np.testing.assert_array_equal(both[1], np.concatenate([half[1] for half in halves]))


@pytest.mark.parametrize("op", list(RUN))
def test_reverse_is_forward_on_reversed_time(op):
    rng = np.random.default_rng(3)
    cell = random_cell(op, 3, 5, rng)
    x = random_input(cell, rng)
    back = Cell(op, W=cell.W, R=cell.R, B=cell.B, direction="reverse")
    Y, Y_h, _ = reference.evaluate(cell, x[::-1])
    other, other_h, _ = reference.evaluate(back, x)
    np.testing.assert_array_equal(other, Y[::-1])
    np.testing.assert_array_equal(other_h, Y_h)


@pytest.mark.parametrize("op", list(RUN))
def test_state_carries_a_cut_sequence(op):
    rng = np.random.default_rng(4)
    cell = random_cell(op, 3, 5, rng)
    x = random_input(cell, rng, time=7)
    Y, *_ = reference.evaluate(cell, x)
    first, h, c = reference.evaluate(cell, x[:4])
    second, *_ = reference.evaluate(cell, x[4:], initial_h=h, initial_c=c)
    np.testing.assert_allclose(np.concatenate([first, second]), Y, rtol=0, atol=1e-15)


def test_given_states_go_before_the_cells_own_and_one_serves_the_batch():
    rng = np.random.default_rng(5)
    cell = random_cell("LSTM", 3, 5, rng, initial_h=1, initial_c=1)
    x = random_input(cell, rng)
    zeros = np.zeros((1, 3, 5))
    own, *_ = reference.evaluate(cell, x)
    repeated, *_ = reference.evaluate(cell, x, initial_h=np.repeat(cell.initial_h, 3, axis=1), initial_c=cell.initial_c)
    np.testing.assert_array_equal(own, repeated)
    without, *_ = reference.evaluate(cell, x, initial_h=zeros, initial_c=zeros)
    assert np.abs(without - own).max() > 1e-3


def test_padding_is_never_read():
    rng = np.random.default_rng(6)
    cell = random_cell("GRU", 3, 5, rng, direction="bidirectional")
    x = random_input(cell, rng, time=5, batch=2)
    dirty = x.copy()
    dirty[2:, 1] = np.nan
    clean, soiled = (reference.evaluate(cell, data, lengths=[5, 2]) for data in (x, dirty))
    np.testing.assert_array_equal(clean[0], soiled[0])
    np.testing.assert_array_equal(clean[1], soiled[1])


@pytest.mark.parametrize("name", list(ACTIVATIONS))
def test_activations_are_finite_and_warn_of_nothing_for_any_input(name):
    x = np.array([-1e6, -1000.0, -1.0, 0.0, 1.0, 1000.0, 1e6])
    assert np.isfinite(reference.activate(Activation(name, 0.5, 0.25), x)).all()


def test_activations_by_their_formulas():
    x = np.linspace(-3, 3, 25)
    formulas = {
        Activation("Sigmoid"): 1 / (1 + np.exp(-x)),
        Activation("Softplus"): np.log(1 + np.exp(x)),
        Activation("Softsign"): x / (1 + np.abs(x)),
        Activation("Relu"): np.where(x > 0, x, 0),
        Activation("Tanh"): (np.exp(x) - np.exp(-x)) / (np.exp(x) + np.exp(-x)),
        Activation("LeakyRelu", 0.3): np.where(x > 0, x, 0.3 * x),
        Activation("ThresholdedRelu", 0.7): np.where(x > 0.7, x, 0),
        Activation("Elu", 0.3): np.where(x > 0, x, 0.3 * (np.exp(x) - 1)),
        Activation("Affine", 0.3, -0.2): 0.3 * x - 0.2,
        Activation("ScaledTanh", 0.3, -0.2): 0.3 * np.tanh(-0.2 * x),
        Activation("HardSigmoid", 0.3, 0.2): np.maximum(0, np.minimum(1, 0.3 * x + 0.2)),
    }
    assert {activation.name for activation in formulas} == set(ACTIVATIONS)
    for activation, expected in formulas.items():
        np.testing.assert_allclose(
            reference.activate(activation, x), expected, rtol=0, atol=1e-15, err_msg=activation.name
        )


BAD = {
    "no time axis": ({"x": np.zeros((2, 3))}, "X has the wrong shape"),
    "other features": ({"x": np.zeros((2, 1, 4))}, "X has the wrong shape"),
    "no step": ({"x": np.zeros((0, 1, 3))}, "X has the wrong shape"),
    "no sequence": ({"x": np.zeros((2, 0, 3))}, "X has the wrong shape"),
    "a length past the end": ({"lengths": [3]}, "sequence_lens out of range"),
    "a negative length": ({"lengths": [-1]}, "sequence_lens out of range"),
    "two lengths for one sequence": ({"lengths": [1, 1]}, "sequence_lens has the wrong"),
    "lengths in float": ({"lengths": [1.0]}, "sequence_lens has the wrong"),
    "another batch of states": ({"initial_h": np.zeros((1, 2, 5))}, "initial_h has the wrong shape"),
    "initial_c of a GRU": ({"initial_c": np.zeros((1, 1, 5))}, "initial_c belongs to LSTM"),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_input_is_refused(bad):
    given, text = BAD[bad]
    cell = random_cell("GRU", 3, 5, np.random.default_rng(0))
    with pytest.raises(BadInput, match=text):
        reference.evaluate(cell, **{"x": np.zeros((2, 1, 3)), **given})


def test_options_that_do_not_exist_are_refused():
    cell = random_cell("GRU", 3, 5, np.random.default_rng(0))
    x = np.zeros((2, 1, 3))
    with pytest.raises(UsageError, match="unknown spec"):
        reference.evaluate(cell, x, spec="onnx")
    with pytest.raises(BadInput, match="unknown layout"):
        reference.gru(x, cell.W, cell.R, layout=2)
    with pytest.raises(BadInput, match="hidden_size disagrees"):
        reference.gru(x, cell.W, cell.R, hidden_size=4)
