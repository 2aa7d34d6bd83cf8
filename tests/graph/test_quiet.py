"""A logger is as it was when the last who asked for quiet is gone, in whatever order they go."""

from __future__ import annotations

import logging

from bridge.graph.quiet import quiet

NAME = "bridge.test_quiet"


def test_the_level_comes_back_when_the_last_leaves() -> None:
    log = logging.getLogger(NAME)
    log.setLevel(logging.INFO)
    first, second = quiet(NAME), quiet(NAME)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not log.isEnabledFor(logging.WARNING)
    assert log.isEnabledFor(logging.ERROR)
    second.__exit__(None, None, None)
    assert log.level == logging.INFO
