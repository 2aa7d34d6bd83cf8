"""Rows for the modules of the matrix, and the figures at the end of the run."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest

from tests.conformance.rows import broken_rows, rows


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`row`: the whole matrix of the module's FRAMEWORK; `broken_row`: its square rows."""
    for name in {"row", "broken_row"} & set(metafunc.fixturenames):
        module = metafunc.module
        chosen = rows(module.FRAMEWORK) if name == "row" else broken_rows(module.FRAMEWORK)
        metafunc.parametrize(name, [pytest.param(row, id=str(row)) for row in chosen])


@pytest.fixture
def executor(request: pytest.FixtureRequest) -> Any:
    """The executor of the row's layout; a layout without one is an error here, never a hole."""
    given = request.node.callspec.params
    row = given["row"] if "row" in given else given["broken_row"]
    return request.module.EXECUTORS[row.layout]


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Any:
    """`measured(value)` keeps an error (float) or a count of noticed breaks (int) for the summary."""

    def keep(value: float) -> None:
        request.node.user_properties.append((f"conformance {request.module.FRAMEWORK}", value))

    return keep


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Count of cases and worst error against the referee, per framework."""
    errors, noticed = defaultdict(list), defaultdict(int)
    for report in terminalreporter.stats.get("passed", []):
        for name, value in report.user_properties if report.when == "call" else []:
            if name.startswith("conformance "):
                framework = name.split()[1]
                if isinstance(value, int):
                    noticed[framework] += value
                else:
                    errors[framework].append((value, report.nodeid))
    if errors:
        terminalreporter.section("conformance against onnxruntime")
    for framework, found in sorted(errors.items()):
        worst, case = max(found)
        terminalreporter.write_line(
            f"{framework}: {len(found)} cases, worst error {worst:.2g} ({case.rpartition('[')[0].rpartition('::')[2]}"
            f" {case.partition('[')[2]}; {noticed[framework]} broken layouts noticed"
        )
