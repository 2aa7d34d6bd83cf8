"""An imported model whose batch lies on several devices is the model on one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def found() -> dict[str, dict[str, float]]:
    command = [sys.executable, "-m", "tests.frameworks.sharded_run"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("way", ["placed", "explicit", "shard_map", "shard_map, unchecked"])
def test_a_batch_on_two_devices_is_the_batch_on_one(op: str, way: str, found: dict[str, dict[str, float]]) -> None:
    assert found[op][f"{way}, devices"] == 2
    assert found[op][way] <= 80 * 2.3e-16  # float64: gradients are sums of T * N = 80 terms in another order
