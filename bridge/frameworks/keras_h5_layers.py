"""Which layer of a configuration an h5 group of weights belongs to: wrappers, cells and models inside taken apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Config = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Entry:
    """A layer of a model, or of a model inside it."""

    path: tuple[str, ...]
    """Its name, below those of the models that it is in; `/` in a name is `_`, as in Keras 3."""
    kind: str
    config: Config

    def resolved(self, half: str, at: int) -> tuple[str, Config]:
        """The path and the configuration of one set of recurrent weights.

        Args:
            half: "forward" or "backward" inside a Bidirectional, else "".
            at: which of the layer's sets this is, for several cells in one layer.
        """
        return _unwrapped(".".join(self.path), self.kind, self.config, half, at)


def entries(document: Any) -> list[Entry]:
    """Every layer of a model's configuration, in its order; none where there is no configuration."""
    return list(_entries(document, ()))


def _entries(document: Any, above: tuple[str, ...]) -> Iterator[Entry]:
    pending = [(document, above, True)]
    while pending:
        node, path, is_root = pending.pop(0)
        if not isinstance(node, dict) or not isinstance(node.get("class_name"), str):
            continue
        config = node.get("config")
        inside = config if isinstance(config, list) else config.get("layers") if isinstance(config, dict) else None
        name = safe(config.get("name") if isinstance(config, dict) else node.get("name"))
        own = path if is_root else (*path, name)
        if isinstance(inside, list):
            pending = [(layer, own, False) for layer in inside] + pending
        elif isinstance(config, dict):
            yield Entry(own, node["class_name"], config)
            wrapped = config.get("layer")
            if isinstance(wrapped, dict):
                pending = [(each, (*own, part), False) for each, part in _models_inside(wrapped)] + pending


def _models_inside(wrapped: Config) -> Iterator[tuple[Any, str]]:
    """The layers of a model that a TimeDistributed repeats."""
    config = wrapped.get("config")
    inside = config if isinstance(config, list) else config.get("layers") if isinstance(config, dict) else None
    if isinstance(inside, list):
        yield from ((layer, safe(config.get("name") if isinstance(config, dict) else "")) for layer in inside)


def find(known: Sequence[Entry], groups: Sequence[str]) -> Entry | None:
    """The entry whose names are all among `groups`, the deepest one; a group may be several names long."""
    matching = [entry for entry in known if entry.path and entry.path[-1] in groups]
    return max(matching, key=lambda entry: sum(part in groups for part in entry.path), default=None)


def with_safe_names(path: str, known: Sequence[Any]) -> str:
    """A path in the file where layers have `/` in their names, with `_` instead."""
    for name in known:
        if "/" in name:
            path = path.replace(name, safe(name))
    return path


def safe(name: Any) -> str:
    """A layer's name as Keras 3 allows it."""
    return str(name or "").replace("/", "_")


def _unwrapped(path: str, kind: str, config: Config, half: str, at: int) -> tuple[str, Config]:
    kind = kind.rpartition(">")[2]
    if kind == "Bidirectional":
        key = "backward_layer" if half == "backward" and config.get("backward_layer") else "layer"
        inner_kind, inner = _inner(config, key)
        return path, _unwrapped(path, inner_kind, inner, "", at)[1]
    if kind == "TimeDistributed":
        inner_kind, inner = _inner(config, "layer")
        return _unwrapped(f"{path}.{safe(inner.get('name'))}", inner_kind, inner, half, at)
    if kind == "RNN":
        cell_kind, cell = _inner(config, "cell")
        cells = cell.get("cells")
        if cell_kind == "StackedRNNCells" and isinstance(cells, list):
            chosen = cells[at] if at < len(cells) and isinstance(cells[at], dict) else {}
            cell, path = chosen.get("config") or {}, f"{path}.{at}"
        layer = {key: config[key] for key in ("go_backwards", "time_major") if key in config}
        return path, {**cell, **layer}
    return path, config


def _inner(config: Config, key: str) -> tuple[str, Config]:
    inner = config.get(key)
    found = inner.get("config") if isinstance(inner, dict) else None
    return str(inner.get("class_name", "")) if isinstance(inner, dict) else "", found if isinstance(found, dict) else {}
