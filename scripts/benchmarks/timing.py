"""Warm medians, side by side."""

from __future__ import annotations

import contextlib
import io
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venv" / "bin" / "python"
SETTLE = 0.03
"""Seconds before each block: onnxruntime's and torch's threads spin on after a run, on the next one's core."""
BLOCK = 0.03
"""Seconds of calls that one figure averages, and of calls before it that count for nothing: after a pause the first
call takes twice its time, and the three after it up to a tenth more, until both cores are awake and share it."""


def median(function: Callable[[], object], repeats: int = 7, budget: float = 3.0) -> float:
    """Median seconds of a warm call; fewer repeats where one takes long, at least three."""
    function()
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < 3 or (len(times) < repeats and time.perf_counter() - began < budget):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def interleaved(functions: dict[str, Callable[[], object]], rounds: int = 15, budget: float = 6.0) -> dict[str, float]:
    """Median seconds of each, measured in rotating turns so that a noisy moment meets all of them."""
    for function in functions.values():
        function()
    inner = {name: max(1, int(BLOCK / max(median(function, 3, 0.5), 1e-6))) for name, function in functions.items()}
    times: dict[str, list[float]] = {name: [] for name in functions}
    began = time.perf_counter()
    while len(next(iter(times.values()))) < 5 or (
        len(next(iter(times.values()))) < rounds and time.perf_counter() - began < budget
    ):
        order = list(functions.items())
        turn = len(times[order[0][0]]) % len(order)
        for name, function in order[turn:] + order[:turn]:
            time.sleep(SETTLE)
            _seconds_of(function, inner[name])
            times[name].append(_seconds_of(function, inner[name]))
    return {name: statistics.median(values) for name, values in times.items()}


def _seconds_of(function: Callable[[], object], calls: int) -> float:
    """Mean seconds of one of so many calls in a row."""
    started = time.perf_counter()
    for _ in range(calls):
        function()
    return (time.perf_counter() - started) / calls


def over(times: dict[str, float], base: str) -> dict[str, float]:
    """Every other time as a ratio of `base`'s."""
    return {name: value / times[base] for name, value in times.items() if name != base}


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """No warnings and nothing printed."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield
