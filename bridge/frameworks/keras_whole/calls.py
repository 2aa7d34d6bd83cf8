"""Other calls in the place of layers' own, for the time of one trace or run."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from bridge.frameworks import keras_graph


@contextmanager
def replaced(calls: Sequence[tuple[Any, Callable[..., Any]]], name: str = "call") -> Iterator[None]:
    """The method `name` of these layers is another for a while. They are left as they were, whatever happens."""
    kept: list[tuple[Any, Mapping[str, Any]]] = []
    try:
        for layer, call in calls:
            own = vars(layer)
            kept.append((layer, {name: own[name]} if name in own else {}))
            own[name] = call
        yield
    finally:
        for layer, own in reversed(kept):
            vars(layer).pop(name, None)
            vars(layer).update(own)


def open_sizes(model: Any) -> AbstractContextManager[None]:
    """A functional model, and those inside of it, take other sizes for a while than their inputs declare.

    An export may have opened an axis (recurrent layers alone, or `dynamic`) that Keras takes as its Input says.
    """
    import keras

    models = [layer for layer in (model, *(layer for _, layer in keras_graph.all_layers(model)))
              if isinstance(layer, keras.Model)]  # fmt: skip
    return replaced([(inner, _unchecked) for inner in models], "_assert_input_compatibility")


@contextmanager
def masks_may_end() -> Iterator[None]:
    """Without Keras' warning that a layer ends a mask: it says so of a model that is given one, after handing it on."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not support masking and will therefore destroy.*")
        yield


def _unchecked(*_: Any) -> None:
    """Check nothing."""
