"""The Keras door on the jax and torch backends, which a process chooses once: one script, run once for each."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CHECKS = ("check_exports", "check_imports", "check_own_cell", "check_training", "check_float64", "check_whole",
          "check_nested")  # fmt: skip


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_the_door_works_on_this_backend(backend: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.frameworks.keras_backend_script"],
        cwd=ROOT,
        env={**os.environ, "KERAS_BACKEND": backend, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.split() == [word for check in CHECKS for word in (backend, check)]
