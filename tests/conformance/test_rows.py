"""The matrix has no hole: every layout has an executor, and every executor a layout."""

from __future__ import annotations

import importlib
from pathlib import Path

from bridge.layout import layouts
from tests.conformance.rows import SIZES, rows


def executors() -> dict[str, list[str]]:
    """Layout names by test module, from the test modules themselves."""
    modules = {}
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        module = importlib.import_module(f"tests.conformance.{path.stem}")
        if hasattr(module, "EXECUTORS"):
            modules[module.FRAMEWORK] = list(module.EXECUTORS)
    return modules


def test_every_layout_has_an_executor_and_every_executor_a_layout():
    named = [name for names in executors().values() for name in names]
    assert sorted(named) == sorted(layouts())


def test_every_layout_is_in_the_matrix_of_its_framework_at_every_size():
    for framework, names in executors().items():
        found = {(row.layout, (row.inputs, row.hidden)) for row in rows(framework)}
        assert {(name, size) for name in names for size in SIZES} <= found


def test_every_option_of_a_layout_departs_from_its_default_in_some_row():
    for framework in executors():
        found = rows(framework)
        for name in {row.layout for row in found}:
            chosen = [row for row in found if row.layout == name]
            for option, declared in chosen[0].record.options.items():
                moved = any(option in row.options or option in row.absent for row in chosen)
                assert moved or declared.kind == "fixed", f"{name} {option}"
