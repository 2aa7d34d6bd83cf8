"""The referee against onnxruntime, on a grid in which every pair of attribute values of each operator occurs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from bridge import reference
from bridge.cell import ACTIVATIONS, DEFAULT_ACTIVATIONS, GATES

from .pairs import all_pairs, pairs_of
from .single_node import OUTPUTS, WEIGHTS, node_model, run_node

if TYPE_CHECKING:
    from collections.abc import Callable

EPS = float(np.finfo(np.float32).eps)
FLOOR = 4.0
"""Units of eps * max(1, max|referee|): the rational tanh and sigmoid of onnxruntime err by a few units themselves."""
CONDITION = 8.0
"""Times the change that one unit of rounding in every operand makes: sums of up to 17 terms, worst seen 4 (1.31.1)."""
CONCLUSIVE = 1e-3
"""Of the largest value: a wider bound (activations without an upper limit, grown over time) would prove nothing."""
SEEDS = range(8)

FACTORS: dict[str, tuple[Any, ...]] = {
    "direction": ("forward", "reverse", "bidirectional"),
    "bias": (True, False),
    "lengths": (None, "ragged", "with zero"),
    "initial": ("none", "h", "all"),
    "clip": (None, 0.25),
    "parameters": ("default", "explicit", "short"),
    "constants": (WEIGHTS, ()),
    "sizes": ((3, 5), (5, 3), (1, 1), (7, 9)),
    "batch": (1, 4),
    "time": (1, 7),
    "opset": (14, 20, 22),
}
OWN_FACTORS: dict[str, dict[str, tuple[Any, ...]]] = {
    "LSTM": {"peepholes": (False, True), "input_forget": (0, 1), "outputs": (("Y", "Y_h", "Y_c"), ("Y_c",), ("Y",))},
    "GRU": {"linear_before_reset": (0, 1), "outputs": (("Y", "Y_h"), ("Y",), ("Y_h",))},
    "RNN": {"outputs": (("Y", "Y_h"), ("Y",), ("Y_h",))},
}


def factors(op: str) -> dict[str, tuple[Any, ...]]:
    positions = {f"activation {at}": tuple(ACTIVATIONS) for at in range(len(DEFAULT_ACTIVATIONS[op]))}
    return {**FACTORS, **OWN_FACTORS[op], **positions}


@dataclass(frozen=True)
class Case:
    op: str
    inputs: dict[str, np.ndarray]
    attributes: dict[str, Any]
    actual: dict[str, np.ndarray]
    expected: dict[str, np.ndarray]
    bound: dict[str, float]
    text: str

    def errors(self, other: dict[str, np.ndarray]) -> dict[str, float]:
        return {name: float(np.max(np.abs(value - other[name]))) for name, value in self.actual.items()}

    @property
    def overflows(self) -> bool:
        """onnxruntime's Softplus is log(1 + exp(x)), inf above 88: a deviation of its own, never excused elsewhere."""
        large = any(np.abs(value).max() > 40.0 for value in self.expected.values())
        return large and "Softplus" in self.attributes["activations"]

    def conclusive(self) -> list[str]:
        """The outputs whose bound is narrow enough to prove something."""
        return [
            name
            for name in self.actual
            if self.bound[name] < CONCLUSIVE * max(1.0, np.abs(self.expected[name]).max()) and not self.overflows
        ]


@lru_cache
def grid(op: str) -> list[Case]:
    cases = []
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        for row in all_pairs(factors(op), rng):
            inputs, attributes = make_case(op, row, rng)
            model = node_model(
                op, inputs, attributes, outputs=row["outputs"], constants=row["constants"], opset=row["opset"]
            )
            expected = referee(op, inputs, attributes)
            bound = derived_bound(op, inputs, attributes, expected, rng)
            cases.append(Case(op, inputs, attributes, run_node(model, inputs), expected, bound, f"seed {seed}, {row}"))
    return cases


@pytest.mark.parametrize("op", list(GATES))
def test_referee_agrees_with_onnxruntime_on_every_pair_of_attributes(op, capsys):
    worst, ratio, count, inconclusive, bad = 0.0, 0.0, 0, 0, []
    for case in grid(op):
        conclusive = case.conclusive()
        for name, error in case.errors(case.expected).items():
            if not error <= case.bound[name] and not case.overflows:
                bad.append(f"{name}: error {error:.3g}, bound {case.bound[name]:.3g}, {case.text}")
            if name in conclusive:
                relative = error / max(1.0, np.abs(case.expected[name]).max())
                worst, ratio, count = max(worst, relative), max(ratio, error / case.bound[name]), count + 1
            else:
                inconclusive += 1
    with capsys.disabled():
        print(f"\n{op}: {len(grid(op))} models, {count} outputs agree ({inconclusive} inconclusive), worst error "
              f"{worst:.2g} of the largest value, {ratio:.2f} of its bound")  # fmt: skip
    assert not bad, "\n".join(bad[:5])
    assert inconclusive < 0.02 * count


Operands = tuple[dict[str, np.ndarray], dict[str, Any]]


def without(name: str) -> Callable[[Case], Operands]:
    def drop(case: Case) -> Operands:
        return tuple({key: value for key, value in given.items() if key != name}
                     for given in (case.inputs, case.attributes))  # fmt: skip

    return drop


def changed(name: str, change: Callable[[Any], Any]) -> Callable[[Case], Operands]:
    def replace(case: Case) -> Operands:
        return tuple({key: change(value) if (key, value is None) == (name, False) else value
                      for key, value in given.items()} for given in (case.inputs, case.attributes))  # fmt: skip

    return replace


def swapped_gates(case: Case) -> Operands:
    hidden = case.inputs["R"].shape[2]
    order = np.r_[hidden : 2 * hidden, :hidden, 2 * hidden : case.inputs["W"].shape[1]]
    return {**case.inputs, "W": case.inputs["W"][:, order], "R": case.inputs["R"][:, order]}, case.attributes


WRONG = {
    "gates swapped": (swapped_gates, ("LSTM", "GRU")),
    "no bias": (without("B"), tuple(GATES)),
    "no lengths": (without("sequence_lens"), tuple(GATES)),
    "no initial_h": (without("initial_h"), tuple(GATES)),
    "no initial_c": (without("initial_c"), ("LSTM",)),
    "no peepholes": (without("P"), ("LSTM",)),
    "peepholes in another order": (changed("P", lambda P: np.roll(P, P.shape[1] // 3, axis=1)), ("LSTM",)),
    "no clip": (without("clip"), tuple(GATES)),
    "gates not coupled, or coupled": (changed("input_forget", lambda value: 1 - value), ("LSTM",)),
    "the other place of the reset gate": (changed("linear_before_reset", lambda value: 1 - value), ("GRU",)),
    "alpha not given": (without("activation_alpha"), tuple(GATES)),
    "alphas in another order": (changed("activation_alpha", lambda values: values[1:] + values[:1]), ("LSTM", "GRU")),
    "beta not given": (without("activation_beta"), tuple(GATES)),
    "default activations": (without("activations"), tuple(GATES)),
    "activations in another order": (changed("activations", lambda names: names[1:] + names[:1]), ("LSTM", "GRU")),
    "the other direction": (
        changed("direction", {"forward": "reverse", "reverse": "forward", "bidirectional": "bidirectional"}.get),
        tuple(GATES),
    ),
}


@pytest.mark.parametrize(("wrong", "op"), [(name, op) for name, (_, ops) in WRONG.items() for op in ops])
def test_grid_notices(wrong, op):
    applicable = caught = 0
    for case in grid(op)[:120]:
        inputs, attributes = WRONG[wrong][0](case)
        if repr((inputs, attributes)) == repr((case.inputs, case.attributes)):
            continue
        errors = case.errors(referee(op, inputs, attributes))
        applicable += 1
        caught += any(errors[name] > case.bound[name] for name in case.conclusive())
    assert applicable >= 10
    # One step hides a direction, a constant activation hides everything before it.
    assert caught >= applicable / 5, f"{caught} of {applicable}"


@pytest.mark.parametrize("op", list(GATES))
def test_grid_holds_every_pair(op):
    seen, table = set(), factors(op)
    for case in all_pairs(table, np.random.default_rng(0)):
        at = {name: table[name].index(value) for name, value in case.items()}
        seen |= {(a, at[a], b, at[b]) for a in at for b in at if a < b}
    assert seen == pairs_of(table)


def make_case(
    op: str, case: dict[str, Any], rng: np.random.Generator
) -> tuple[dict[str, np.ndarray], dict[str, object]]:
    directions, batch, time = (2 if case["direction"] == "bidirectional" else 1), case["batch"], case["time"]
    inputs, hidden = case["sizes"]
    rows, bound = len(GATES[op]) * hidden, 1 / np.sqrt(hidden)

    def weight(*shape: int) -> np.ndarray:
        return rng.uniform(-bound, bound, shape).astype(np.float32)

    arrays = {
        "X": rng.standard_normal((time, batch, inputs)).astype(np.float32),
        "W": weight(directions, rows, inputs),
        "R": weight(directions, rows, hidden),
    }
    if case["bias"]:
        arrays["B"] = weight(directions, 2 * rows)
    if case["lengths"]:
        low = 0 if case["lengths"] == "with zero" else 1
        arrays["sequence_lens"] = rng.integers(low, time + 1, batch).astype(np.int32)
        arrays["sequence_lens"][0] = low
    if case["initial"] != "none":
        arrays["initial_h"] = weight(directions, batch, hidden)
    if case["initial"] == "all" and op == "LSTM":
        arrays["initial_c"] = weight(directions, batch, hidden)
    if case.get("peepholes"):
        arrays["P"] = weight(directions, 3 * hidden)
    attributes = make_attributes(op, case, directions, rng)
    return arrays, {name: value for name, value in attributes.items() if value is not None}


def make_attributes(op: str, case: dict[str, Any], directions: int, rng: np.random.Generator) -> dict[str, object]:
    names = [case[f"activation {at}"] for at in range(len(DEFAULT_ACTIVATIONS[op]))]
    if directions == 2:  # the reverse direction has others: the next ones of the list
        table = list(ACTIVATIONS)
        names += [table[(table.index(name) + 3) % len(table)] for name in names]
    users = [len(ACTIVATIONS[name].runtime) for name in names]
    alpha = rng.uniform(0.1, 0.9, sum(count >= 1 for count in users)).astype(np.float32).tolist()
    beta = rng.uniform(-0.5, 0.9, sum(count == 2 for count in users)).astype(np.float32).tolist()
    kept = {"default": 0, "explicit": None, "short": 1}[case["parameters"]]
    return {
        "direction": case["direction"],
        "activations": names,
        "activation_alpha": alpha[:kept] or None,
        "activation_beta": beta[:kept] or None,
        "clip": case["clip"],
        **{name: case[name] for name in ("input_forget", "linear_before_reset") if name in case},
    }


def referee(op: str, inputs: dict[str, np.ndarray], attributes: dict[str, object]) -> dict[str, np.ndarray]:
    run = {"LSTM": reference.lstm, "GRU": reference.gru, "RNN": reference.rnn}[op]
    return dict(zip(OUTPUTS[op], run(**inputs, **attributes), strict=True))


def derived_bound(
    op: str,
    inputs: dict[str, np.ndarray],
    attributes: dict[str, object],
    expected: dict[str, np.ndarray],
    rng: np.random.Generator,
) -> dict[str, float]:
    """What float32 rounding may do: the referee's own change when every operand moves by one unit, times CONDITION."""
    moved = dict.fromkeys(expected, 0.0)
    for _ in range(2):
        nudged = {
            name: value if value.dtype == np.int32 else value * (1.0 + EPS * rng.choice([-1.0, 1.0], value.shape))
            for name, value in inputs.items()
        }
        for name, value in referee(op, nudged, attributes).items():
            moved[name] = max(moved[name], float(np.max(np.abs(value - expected[name]))))
    floor = {name: FLOOR * EPS * max(1.0, float(np.max(np.abs(value)))) for name, value in expected.items()}
    return {name: max(floor[name], CONDITION * moved[name]) for name in expected}
