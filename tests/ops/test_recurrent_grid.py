"""A part of the grid of recurrent nodes in Flax: every pair of values of the structure. All: scripts/operator-grid."""

from __future__ import annotations

from functools import cache
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from bridge.cell import ACTIVATIONS, GATES
from tests.ops.covering import choices, cover, held
from tests.ops.recurrent_grid import Case, activations, make_case, needs, rows, structure
from tests.ops.recurrent_verdict import compared, figures, judged

if TYPE_CHECKING:
    from collections.abc import Callable

SHARED = 12
"""Every so many rows one is compiled by nnx and one by linen; the others run operation by operation."""


@cache
def cases(op: str) -> list[Case]:
    rng = np.random.default_rng(7)
    table = structure(op)
    found = []
    for at, row in enumerate(cover(table, needs(op), 2, rng)):
        run = {0: "nnx jit", 1: "linen jit"}.get(at % SHARED, "nnx eager")
        names = {name: str(rng.choice(list(ACTIVATIONS))) for name in activations(op) if name != "list"}
        found.append(make_case(op, {**names, **row, "run": run}, rng))
    return found


@pytest.mark.parametrize("op", list(GATES))
def test_every_pair_of_attributes_is_right_in_flax(op: str, capsys: Any) -> None:
    verdicts = [judged(case) for case in cases(op)]
    found = figures(verdicts)
    with capsys.disabled():
        print(f"\n{op}: {len(verdicts)} cases, {found}")
    assert not [f"{each.word}: {each.text} {each.case.row}" for each in verdicts if each.word != "right"]
    assert found["by onnxruntime"] > len(verdicts) / 2
    assert found["inconclusive"] <= len(verdicts) / 50


CHANGES: dict[str, Callable[[Case], dict[str, Any]]] = {
    "no lengths": lambda case: {"sequence_lens": None},
    "no bias": lambda case: {"B": None},
    "no initial_h": lambda case: {"initial_h": None},
    "no initial_c": lambda case: {"initial_c": None},
    "no peepholes": lambda case: {"P": None},
    "no clip": lambda case: {"clip": None},
    "no alpha": lambda case: {"activation_alpha": None},
    "no beta": lambda case: {"activation_beta": None},
    "default activations": lambda case: {"activations": None},
    "coupled gates": lambda case: {"input_forget": 1 - case.attributes.get("input_forget", 0)},
    "reset": lambda case: {"linear_before_reset": int(not case.attributes.get("linear_before_reset", 0))},
    "direction": lambda case: {"direction": {"forward": "reverse", "reverse": "forward"}[case.attributes["direction"]]},
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_verdict_notices(change: str) -> None:
    applicable = caught = 0
    for case in [case for op in GATES for case in cases(op)]:
        given = {**case.inputs, **case.attributes}
        ((name, value),) = CHANGES[change](case).items() if not _lacks(change, case) else ((None, None),)
        if name is None or (value is None and name not in given):
            continue
        applicable += 1
        wrong = {output: array.astype(case.dtype) for output, array in case.referee(**{name: value}).items()}
        caught += compared(case, wrong).word == "wrong"
    assert applicable >= 10
    assert caught >= 0.4 * applicable, f"{caught} of {applicable}"  # zero states, full lengths, constant activations


def _lacks(change: str, case: Case) -> bool:
    """Whether the change means nothing to the case's operator or direction."""
    owner = {"coupled gates": "LSTM", "reset": "GRU"}.get(change, case.op)
    return owner != case.op or (change == "direction" and case.attributes["direction"] == "bidirectional")


@pytest.mark.parametrize("op", ["GRU", "RNN"])
def test_the_grid_holds_every_pair_that_can_occur(op: str) -> None:
    factors = structure(op) | activations(op)
    seen = {choice for row in rows(op, 2, np.random.default_rng(0)) for choice in held(row, 2)}
    assert seen == set(choices(factors, needs(op), 2))


def test_choices_that_no_node_can_hold_are_left_out() -> None:
    possible = set(choices(structure("RNN") | activations("RNN"), needs("RNN"), 2))
    assert (("layout", 1), ("opset", 7)) not in possible
    assert (("layout", 1), ("opset", 14)) in possible
    assert (("direction", "forward"), ("f second", "Relu")) not in possible
    assert (("direction", "bidirectional"), ("f second", "Relu")) in possible


def test_three_values_of_the_structure_occur_together() -> None:
    factors = {"a": (1, 2, 3), "b": (1, 2), "c": (1, 2, 3), "d": (1, 2)}
    found = cover(factors, {}, 3, np.random.default_rng(0))
    assert {choice for row in found for choice in held(row, 3)} == set(choices(factors, {}, 3))
    assert len(found) < 36
    assert list(islice(found[0], 2)) == ["a", "b"]
