"""Loggers of libraries, kept quiet while they tell of what their caller knows."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_LOCK: Final = threading.Lock()
_QUIET: Final[dict[str, tuple[int, int]]] = {}
"""By name of a logger: how many ask for quiet at this moment, and the level to go back to."""


@contextmanager
def quiet(name: str) -> Iterator[None]:
    """Only errors from the logger of this name; it has its level again when the last of all threads leaves."""
    log = logging.getLogger(name)
    with _LOCK:
        count, level = _QUIET.get(name, (0, log.level))
        _QUIET[name] = count + 1, level
        log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        with _LOCK:
            count, level = _QUIET.pop(name)
            if count > 1:
                _QUIET[name] = count - 1, level
            else:
                log.setLevel(level)
