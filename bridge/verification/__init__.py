"""Proof: run both sides and the float64 referee on the same inputs, and say by numbers whether they agree.

verifier.verify, report.Report, inspection.inspect and explanation.explain are its doors. Nothing is imported here:
`inspect` on a file must not pay for what `verify` needs.
"""
