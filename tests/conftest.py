"""What holds for the whole suite: reproducible property tests, and the conformance figures at the end of a run.

The figures stand here because the controller of pytest-xdist reads no conftest.py deeper down.
"""

from __future__ import annotations

import os
from collections import defaultdict
from typing import Any

from hypothesis import settings

# The same examples on every machine, loaded or idle: a red suite is a defect and never luck. To search further:
# HYPOTHESIS_PROFILE=default scripts/test.
settings.register_profile("suite", deadline=None, derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "suite"))


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
