"""The tests of the matrix.

A test module names FRAMEWORK and EXECUTORS and imports these; conftest.py gives the rows.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from bridge import reference
from bridge.layout import fit, read_params
from tests.conformance import breakage
from tests.conformance.native import Result, States
from tests.single_node import node_model, run_node
from tests.tolerances import assert_within_referee_bound

if TYPE_CHECKING:
    from bridge.cell import Cell
    from tests.conformance.native import Executor
    from tests.conformance.rows import Row

BREAKS = {"gate order": breakage.gate_order, "transposition": breakage.transposition, "bias rule": breakage.bias_rule}


def test_the_framework_computes_what_onnxruntime_computes_from_the_parameters_read(row, executor, measured):
    params = row.params()
    native = execute(executor, row, params, row.options)
    measured(compare(native, read_params(row.layout, params, **row.options), row))


def test_the_framework_computes_what_onnxruntime_computes_after_writing(row, executor, measured):
    cell = with_both_biases(read_params(row.layout, row.params(), **row.options), row)
    asked = dict.fromkeys(row.usually_absent - row.absent, True)
    fitted = fit(row.layout, cell, **asked)
    options = {name: value for name, value in fitted.options.items() if row.record.options[name].kind != "presence"}
    measured(compare(execute(executor, row, fitted.params, options), cell, row))


@pytest.mark.parametrize("kind", BREAKS)
def test_a_broken_layout_is_noticed(broken_row, executor, kind, measured):
    row = broken_row
    params = row.params()
    native = execute(executor, row, params, row.options)
    cases = list(BREAKS[kind](row, params))
    for name, wrong in cases:
        with pytest.raises(AssertionError, match="exceeds"):
            pytest.fail(
                f"not noticed: {name}, error {compare(native, read_params(row.layout, wrong, **row.options), row)}"
            )
    measured(len(cases))


def execute(executor: Executor, row: Row, params: dict[str, np.ndarray], options: dict[str, Any]) -> Result:
    x, h, c = row.inputs_and_states()
    return executor(params, x, States(h, c if row.record.op == "LSTM" else None), options)


def compare(native: Result, cell: Cell, row: Row) -> float:
    """The worst error of the native outputs against the referee, each within the bound that onnxruntime earns."""
    x, h, c = row.inputs_and_states()
    states = {"initial_h": h[None], **({"initial_c": c[None]} if cell.op == "LSTM" else {})}
    expected = onnxruntime_outputs(cell, x, states)
    referee = reference.evaluate(cell, x, **states)
    worst = 0.0
    for name, actual, wanted, exact in zip(("Y", "Y_h", "Y_c"), native, expected, referee, strict=True):
        if (actual is None) != (exact is None):
            raise AssertionError(f"{name} is there on one side only")
        if actual is not None:
            error = assert_within_referee_bound(actual, np.squeeze(wanted, -3), np.squeeze(exact, -3))
            worst = max(worst, error)
    return worst


def onnxruntime_outputs(cell: Cell, x: np.ndarray, states: dict[str, np.ndarray]) -> tuple[np.ndarray | None, ...]:
    """(Y, Y_h, Y_c) of one node made here from the cell's arrays and attributes."""
    arrays = {name: getattr(cell, name) for name in ("W", "R", "B", "P")}
    inputs = {"X": x, **{name: np.array(value) for name, value in arrays.items() if value is not None}, **states}
    attributes: dict[str, object] = {
        "direction": cell.direction,
        "activations": list(cell.activations),
        "activation_alpha": cell.activation_alpha,
        "activation_beta": cell.activation_beta,
        "clip": cell.clip,
        "input_forget": int(cell.input_forget) or None,
        "linear_before_reset": int(cell.linear_before_reset) or None,
    }
    outputs = run_node(node_model(cell.op, inputs, attributes), inputs)
    return outputs["Y"], outputs["Y_h"], outputs.get("Y_c")


def with_both_biases(cell: Cell, row: Row) -> Cell:
    """The same layer with part of each input bias moved to the recurrent one, wherever only their sum counts."""
    if cell.B is None:
        return cell
    gates, hidden = len(cell.gates), cell.hidden_size
    moved = np.tile(row.rng().uniform(-0.3, 0.3, hidden), gates).reshape(1, gates, hidden).astype(np.float32)
    fixed = {constant.gate for constant in row.variant.constants if constant.saturates}
    fixed |= {"h"} if cell.linear_before_reset else set()
    moved[:, [cell.gates.index(gate) for gate in fixed]] = 0
    moved = moved.reshape(1, gates * hidden)
    return replace(cell, B=np.concatenate([cell.Wb - moved, cell.Rb + moved], axis=1))
