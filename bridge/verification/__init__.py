"""Proof: run both sides and the float64 referee on the same inputs, and say by numbers whether they agree."""

from bridge.verification.inspection import Inspection, inspect
from bridge.verification.report import OutputRow, PairRow, Report
from bridge.verification.verifier import verify

__all__ = ["Inspection", "OutputRow", "PairRow", "Report", "inspect", "verify"]
