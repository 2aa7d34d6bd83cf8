from __future__ import annotations

from dataclasses import replace

import pytest

from bridge.errors import Mismatch
from bridge.verification.report import OutputRow, PairRow, Report

ROW = OutputRow(side="flax", output="y", shape=(2,), absolute=1e-7, relative=1e-7, against_onnxruntime=0.0, bound=1e-6,
                growth=(), passed=True)  # fmt: skip
JUDGE = replace(ROW, side="onnxruntime")


def report(*rows: OutputRow, passed: bool = True, conclusive: bool = True) -> Report:
    judged = [replace(JUDGE, output=row.output) for row in rows]
    pair = PairRow(batch=1, time=2, lengths=None, states=False, conclusive=conclusive, rows=(*judged, *rows))
    return Report(a="a", b="b", passed=passed, pairs=(pair,), providers={}, notes=(), versions={})


def test_an_exact_integer_output_has_a_bound_of_zero_and_passes() -> None:
    exact = replace(ROW, absolute=0.0, bound=0.0)
    assert report(exact).summary().startswith("agrees")
    assert exact.share == 0.0


def test_the_summary_names_the_worst_row_by_its_share_of_the_bound() -> None:
    near = replace(ROW, output="z", absolute=9e-7)
    assert "flax z" in report(ROW, near).summary()


def test_a_failed_row_is_worse_than_any_that_passed() -> None:
    failed = replace(ROW, output="mask", absolute=1.0, bound=0.0, passed=False)
    wrong = report(ROW, failed, passed=False)
    assert wrong.summary().startswith("DISAGREES: worst flax mask")
    with pytest.raises(Mismatch, match="mask"):
        wrong.raise_for_mismatch()


def test_an_infinite_error_is_a_word_in_json() -> None:
    document = report(replace(ROW, absolute=float("inf"), passed=False), passed=False).to_dict()
    assert document["pairs"][0]["rows"][1]["absolute"] == "inf"


def test_the_text_marks_inconclusive_pairs() -> None:
    assert "inconclusive" in str(report(ROW, conclusive=False, passed=False)).splitlines()[-3]
