"""Rows for the modules of the matrix, and the figures that tests/conftest.py prints at the end of the run."""

from __future__ import annotations

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
