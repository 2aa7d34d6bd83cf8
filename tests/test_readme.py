"""What the README says is what happens."""

from __future__ import annotations

import doctest
import os
import re
import subprocess
import sys
from pathlib import Path

import bridge

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"


def test_the_example_prints_what_it_shows() -> None:
    result = doctest.testfile(str(README), module_relative=False, optionflags=doctest.ELLIPSIS)
    assert result.attempted >= 6
    assert result.failed == 0


def test_the_support_tables_are_current() -> None:
    """Asked of the layouts and read off real exports again, so a table cannot promise what the code refuses."""
    environment = {**os.environ, "KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run([sys.executable, ROOT / "scripts" / "support-table", "--check"], capture_output=True,
                          text=True, env=environment, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


def test_every_row_of_a_table_has_its_columns() -> None:
    for table in re.findall(r"<!-- \w+ table -->\n(.*?)\n<!-- end", README.read_text(), re.DOTALL):
        head, *rows = table.splitlines()
        assert len(rows) > 10
        assert {row.count("|") for row in rows} == {head.count("|")}


def test_every_public_name_is_mentioned() -> None:
    text = README.read_text()
    functions = {name for name in bridge.__all__ if name[0].islower()}
    assert {name for name in functions if name not in text} == set()
