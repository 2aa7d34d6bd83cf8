"""Proof: run both sides and the float64 referee on the same inputs, and say by numbers whether they agree."""

from bridge.verify.inspection import Inspection, inspect
from bridge.verify.report import OutputRow, PairRow, Report
from bridge.verify.verification import verify

__all__ = ["Inspection", "OutputRow", "PairRow", "Report", "inspect", "verify"]
