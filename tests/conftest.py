"""The figures of the conformance matrix at the end of a run.

They stand here because the controller of pytest-xdist reads no conftest.py deeper down.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Count of cases and worst error against the referee, per framework."""
    errors: dict[str, list[tuple[float, str]]] = defaultdict(list)
    noticed: dict[str, int] = defaultdict(int)
    for report in terminalreporter.stats.get("passed", []):
        for name, value in report.user_properties if report.when == "call" else []:
            if name.startswith("conformance "):
                framework = name.split()[1]
                if isinstance(value, int):
                    noticed[framework] += value
                else:
                    errors[framework].append((value, report.nodeid.partition("[")[2][:-1]))
    if errors:
        terminalreporter.section("conformance against onnxruntime")
    for framework, found in sorted(errors.items()):
        worst, case = max(found)
        broken = f", {noticed[framework]} broken layouts noticed" if noticed[framework] else ""
        terminalreporter.write_line(f"{framework}: {len(found)} cases, worst error {worst:.2g} at {case}{broken}")
