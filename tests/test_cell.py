from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.cell import ACTIVATIONS, DEFAULT_ACTIVATIONS, GATES, Cell
from bridge.errors import BadInput, NotRepresentable, Unsupported, UsageError


def arrays(op: str, inputs: int = 3, hidden: int = 2, directions: int = 1, seed: int = 0) -> dict[str, np.ndarray]:
    rng, n = np.random.default_rng(seed), len(GATES[op])
    shapes = {"W": (directions, n * hidden, inputs), "R": (directions, n * hidden, hidden),
              "B": (directions, 2 * n * hidden)}  # fmt: skip
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize("op", GATES)
def test_sizes_and_biases_are_read_off_the_arrays(op: str) -> None:
    given_arrays = arrays(op)
    cell = Cell(op, **given_arrays)
    assert (cell.num_directions, cell.input_size, cell.hidden_size) == (1, 3, 2)
    assert np.array_equal(np.concatenate([cell.Wb, cell.Rb], axis=1), given_arrays["B"])
    assert cell.has_default_activations


@pytest.mark.parametrize("op", GATES)
def test_an_absent_bias_reads_as_zeros_and_stays_absent(op: str) -> None:
    cell = Cell(op, **{**arrays(op), "B": None})
    assert cell.B is None
    assert not cell.Wb.any()
    assert cell.Wb.shape == cell.Rb.shape == (1, len(GATES[op]) * 2)


def test_a_cell_cannot_be_changed() -> None:
    cell = Cell("LSTM", **arrays("LSTM"))
    with pytest.raises(AttributeError):
        cell.clip = 1.0  # type: ignore[misc]
    with pytest.raises(ValueError, match="read-only"):
        cell.W[0, 0, 0] = 1.0


def test_the_callers_array_stays_writable() -> None:
    given_arrays = arrays("LSTM")
    Cell("LSTM", **given_arrays)
    given_arrays["W"][0, 0, 0] = 7.0


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"op": "CRU"}, UsageError, "unknown operator"),
    ({"direction": "FORWARD"}, UsageError, "unknown direction"),
    ({"direction": "bidirectional"}, BadInput, "wrong shape"),
    ({"W": np.zeros((1, 8, 0), np.float32)}, BadInput, "dimension of 0"),
    ({"W": np.zeros((8, 3), np.float32)}, BadInput, "three axes"),
    ({"R": np.zeros((1, 8, 3), np.float32)}, BadInput, "wrong shape"),
    ({"B": np.zeros((1, 8), np.float32)}, BadInput, "wrong shape"),
    ({"P": np.zeros((1, 8), np.float32)}, BadInput, "wrong shape"),
    ({"B": np.zeros((1, 16))}, BadInput, "is float64 and W is float32"),
    ({"B": np.full((1, 16), np.nan, np.float32)}, BadInput, "NaN or inf"),
    ({"W": np.zeros((1, 8, 3), np.complex64)}, Unsupported, "complex64"),
    ({"W": np.zeros((1, 8, 3), np.int64)}, Unsupported, "int64"),
    ({"activations": ("Gelu", "Tanh", "Tanh")}, NotRepresentable, "'Gelu'"),
    ({"activations": ("Tanh", "Tanh")}, BadInput, "number of activations"),
    ({"clip": 0.0}, BadInput, "above 0"),
    ({"clip": float("nan")}, BadInput, "above 0"),
    ({"activation_alpha": (float("inf"),)}, BadInput, "activation_alpha"),
    ({"linear_before_reset": True}, BadInput, "belongs to GRU"),
    ({"initial_h": np.zeros((2, 1, 2), np.float32)}, BadInput, "wrong shape"),
]


@pytest.mark.parametrize(("change", "error", "text"), BAD, ids=[text for _, _, text in BAD])
def test_a_malformed_cell_is_refused_at_construction(change: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        Cell(**{"op": "LSTM", **arrays("LSTM"), **change})


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_bad_element_anywhere_is_found(dtype: type, value: float) -> None:
    weights = {name: array.astype(dtype) for name, array in arrays("LSTM").items()}
    weights["R"][0, 5, 1] = value
    with pytest.raises(BadInput, match="NaN or inf"):
        Cell("LSTM", **weights)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_largest_finite_values_are_accepted(dtype: type) -> None:
    """Their squares overflow, and they are finite all the same."""
    weights = {name: array.astype(dtype) for name, array in arrays("LSTM").items()}
    weights["W"][:] = np.finfo(dtype).max
    assert Cell("LSTM", **weights).W.max() == np.finfo(dtype).max


@pytest.mark.parametrize("name", ["P", "initial_c"])
def test_what_belongs_to_the_lstm_is_refused_elsewhere(name: str) -> None:
    with pytest.raises(BadInput, match="belongs to LSTM"):
        Cell("GRU", **arrays("GRU"), **{name: np.zeros((1, 1, 2), np.float32)})


def test_bfloat16_is_refused_with_the_reason() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="bfloat16 arrays exist only where ml_dtypes is installed")
    with pytest.raises(Unsupported, match="no kernel of onnxruntime"):
        Cell("RNN", W=np.zeros((1, 2, 3), ml_dtypes.bfloat16), R=np.zeros((1, 2, 2), ml_dtypes.bfloat16))


def test_alpha_and_beta_go_in_order_to_the_activations_that_have_them() -> None:
    cell = Cell("LSTM", **arrays("LSTM"), activations=("HardSigmoid", "tanh", "affine"),
                activation_alpha=(0.25, 2.0), activation_beta=(0.5,))  # fmt: skip
    ((f, g, h),) = cell.activation_table()
    assert (f.name, f.alpha, f.beta) == ("HardSigmoid", 0.25, 0.5)
    assert (g.name, g.alpha, g.beta) == ("Tanh", None, None)
    assert (h.name, h.alpha, h.beta) == ("Affine", 2.0, 0.0)


def test_a_missing_alpha_is_onnxruntimes_default_unless_the_text_is_asked_for() -> None:
    cell = Cell("RNN", **arrays("RNN"), activations=("ThresholdedRelu",))
    assert cell.activation_table()[0][0].alpha == 0.0
    assert cell.activation_table("text")[0][0].alpha == 1.0


def some_cell(op: str, seed: int, activation: str, values: tuple[float, float]) -> Cell:
    names = (activation, *DEFAULT_ACTIVATIONS[op][1:])
    return Cell(op, **arrays(op, seed=seed), activations=names,
                activation_alpha=values[:1], activation_beta=values[1:])  # fmt: skip


@given(op=st.sampled_from(sorted(GATES)), names=st.tuples(*[st.sampled_from(sorted(ACTIVATIONS))] * 2),
       values=st.tuples(*[st.floats(-2, 2, width=32)] * 4))  # fmt: skip
def test_splitting_a_joined_cell_gives_both_directions_back(
    op: str, names: tuple[str, str], values: tuple[float, float, float, float]
) -> None:
    forward, backward = some_cell(op, 1, names[0], values[:2]), some_cell(op, 2, names[1], values[2:])
    first, second = Cell.join(forward, backward).split()
    for whole, half in ((forward, first), (backward, second)):
        assert all(np.array_equal(getattr(whole, block), getattr(half, block)) for block in "WRB")
        assert whole.activation_table() == half.activation_table()
    assert (first.direction, second.direction) == ("forward", "reverse")


def test_joining_fills_what_one_direction_lacks_with_zeros() -> None:
    joined = Cell.join(Cell("GRU", **arrays("GRU")), Cell("GRU", **{**arrays("GRU", seed=1), "B": None}))
    assert joined.B is not None
    assert joined.B[0].any()
    assert not joined.B[1].any()


@pytest.mark.parametrize("change", [{"op": "RNN"}, {"hidden": 4}, {"inputs": 4}], ids=str)
def test_directions_that_differ_are_not_joined(change: dict[str, Any]) -> None:
    forward = Cell("LSTM", **arrays("LSTM"))
    other = Cell(change.get("op", "LSTM"), **arrays(**{"op": "LSTM", **change}))
    with pytest.raises(NotRepresentable, match="differ in"):
        Cell.join(forward, other)


def test_equality_is_of_bits() -> None:
    plus, minus = ({**arrays("RNN"), "B": np.full((1, 4), zero, np.float32)} for zero in (0.0, -0.0))
    assert Cell("RNN", **plus) == Cell("RNN", **plus)
    assert Cell("RNN", **plus) != Cell("RNN", **minus)


def test_default_parameters_are_those_that_a_file_can_hold() -> None:
    cell = Cell("RNN", **arrays("RNN"), activations=("LeakyRelu",))
    ((activation,),) = cell.activation_table()
    assert activation.alpha == float(np.float32(0.01))
    assert replace(cell, activation_alpha=(activation.alpha,)).activation_table() == cell.activation_table()
