"""Other calls in the place of layers' own, for the time of one trace or run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any


@contextmanager
def replaced(calls: Sequence[tuple[Any, Callable[..., Any]]]) -> Iterator[None]:
    """`call` of these layers is another for a while. The layers are left as they were, whatever happens."""
    kept: list[tuple[Any, Mapping[str, Any]]] = []
    try:
        for layer, call in calls:
            own = vars(layer)
            kept.append((layer, {"call": own["call"]} if "call" in own else {}))
            own["call"] = call
        yield
    finally:
        for layer, own in reversed(kept):
            vars(layer).pop("call", None)
            vars(layer).update(own)
