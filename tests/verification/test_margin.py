"""Integer outputs: equal wherever rounding does not decide them, and free where it does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from jsonschema import Draft202012Validator
from onnx import TensorProto as T
from onnx import helper, numpy_helper

import bridge
from bridge.graph import as_model
from bridge.ops.program import evaluate
from bridge.verification.margin import Margin

EPS = float(np.finfo(np.float32).eps)
SCHEMA = json.loads((Path(__file__).parents[2] / "schemas" / "report.schema.json").read_text())


def graph(nodes: list[onnx.NodeProto], inputs: str, outputs: dict[str, int], **constants: object) -> onnx.ModelProto:
    infos = [helper.make_tensor_value_info(name, T.FLOAT, ["n"]) for name in inputs]
    results = [helper.make_tensor_value_info(name, dtype, None) for name, dtype in outputs.items()]
    held = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    made = helper.make_graph(nodes, "g", infos, results, held)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def comparison(first: str, second: str, *, scale: float = 1.0) -> onnx.ModelProto:
    """y = first + second + the third of a, b and c, times `scale`, above d; and the same in another order of sums."""
    (third,) = set("abc") - {first, second}
    n = helper.make_node
    return graph([n("Add", [first, second], ["s"]), n("Add", ["s", third], ["t"]), n("Mul", ["t", "k"], ["u"]),
                  n("Greater", ["u", "d"], ["y"])], "abcd", {"y": T.BOOL}, k=np.float32(scale))  # fmt: skip


@pytest.fixture(scope="module")
def feeds() -> dict[str, np.ndarray]:
    """Numbers of which three sum to the fourth, rounded; and 50 whose sum is a little off."""
    found = {name: np.random.default_rng(at).standard_normal(400).astype(np.float32) for at, name in enumerate("abc")}
    found["d"] = sum(np.float64(found[name]) for name in "abc").astype(np.float32)
    found["d"][:50] *= np.float32(1.0005)
    return found


def test_what_rounding_decides_is_no_error(feeds: dict[str, np.ndarray]) -> None:
    report = bridge.verify(comparison("a", "b"), comparison("b", "c"), inputs=feeds)
    assert report.passed, str(report)
    judge, candidate = report.pairs[0].rows
    assert 0 < candidate.undecided <= 350
    assert candidate.undecided != judge.undecided  # another order of sums, other roundings
    assert "undecided" in str(report)
    Draft202012Validator(SCHEMA).validate(json.loads(json.dumps(report.to_dict())))


def test_what_no_rounding_explains_is_an_error(feeds: dict[str, np.ndarray]) -> None:
    report = bridge.verify(comparison("a", "b"), comparison("b", "c", scale=1.001), inputs=feeds)
    assert not report.passed
    assert report.pairs[0].rows[1].undecided < 350  # of the ties some are decided otherwise, and all 50 are wrong


def test_outputs_without_any_margin_prove_nothing(feeds: dict[str, np.ndarray]) -> None:
    ties = {name: array[50:] for name, array in feeds.items()}
    wrong = evaluate(as_model(comparison("a", "b")), ties)["y"] != evaluate(as_model(comparison("b", "c")), ties)["y"]
    assert not wrong.any()  # the referee itself does not round
    one = bridge.runtime.Session(comparison("a", "b")).run(ties).outputs["y"]
    other = bridge.runtime.Session(comparison("b", "c")).run(ties).outputs["y"]
    at = np.flatnonzero(one != other)[:1]
    report = bridge.verify(comparison("a", "b"), comparison("b", "c"), inputs={k: v[at] for k, v in ties.items()})
    assert not report.pairs[0].conclusive
    assert not report.passed


def test_sizes_and_constants_do_not_move() -> None:
    n = helper.make_node
    model = as_model(graph(
        [n("Shape", ["a"], ["shape"]), n("Cast", ["shape"], ["size"], to=T.FLOAT), n("Mul", ["size", "k"], ["half"]),
         n("Floor", ["half"], ["whole"]), n("Cast", ["whole"], ["count"], to=T.INT64),
         n("Expand", ["one", "count"], ["y"]), n("ArgMax", ["held"], ["z"], axis=0, keepdims=0)],
        "a", {"y": T.INT64, "z": T.INT64}, k=np.float32(0.5), one=np.array([1]), held=np.ones(5, np.float32),
    ))  # fmt: skip
    given = {"a": np.ones(8, np.float32)}
    truth = evaluate(model, given)
    margin = Margin(model, given, truth, 8 * EPS)
    assert truth["y"].shape == (4,)
    for name in truth:
        assert not margin.undecided(name, np.ones(truth[name].shape, bool)).any()


def test_a_tie_of_sums_is_found_and_a_lead_is_not() -> None:
    n = helper.make_node
    model = as_model(graph([n("Mul", ["a", "k"], ["s"]), n("ArgMax", ["s"], ["z"], axis=0, keepdims=0),
                            n("TopK", ["s", "three"], ["", "best"])],
                           "a", {"z": T.INT64, "best": T.INT64}, k=np.float32(3), three=np.array([3])))  # fmt: skip
    given = {"a": np.array([1, 1 + EPS, 0.5, 0.25], np.float32)}
    truth = evaluate(model, given)
    margin = Margin(model, given, truth, 8 * EPS)
    assert margin.undecided("z", np.array(True))
    assert margin.undecided("best", np.ones(3, bool)).tolist() == [True, True, False]
