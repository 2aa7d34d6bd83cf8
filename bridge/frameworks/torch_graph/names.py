"""Names of an imported torch graph: paths in the tree of modules, and names of variables in its code."""

from __future__ import annotations

import keyword
import re
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from torch import nn

Path = tuple[str, ...]
Key = TypeVar("Key")


def clean_path(name: str) -> Path:
    """A node's or initialiser's name as attribute names: "/enc/rnn.l0" is enc, rnn, l0; numbers stay numbers."""
    parts = [re.sub(r"\W+", "_", part).strip("_") for part in re.split(r"[./]+", name)]
    return tuple(f"{part}_" if keyword.iskeyword(part) else part for part in parts if part) or ("unnamed",)


def shortened(paths: Mapping[Key, Path], operators: Mapping[Key, str]) -> dict[Key, Path]:
    """Paths without the operator at their end where nothing else is below: "fc1.MatMul" is the module fc1."""
    below = Counter(path[:at] for path in paths.values() for at in range(1, len(path)))
    taken = set(paths.values())
    return {
        key: path[:-1] if len(path) > 1 and path[-1] == operators[key] and below[path[:-1]] == 1
        and path[:-1] not in taken else path
        for key, path in paths.items()
    }  # fmt: skip


def place(owner: nn.Module, path: Path, leaf: Any, reserved: Collection[str] = ()) -> str:
    """Make `leaf`, a module or parameter, an attribute at `path` or near it where names are taken; its dotted path."""
    got: list[str] = []
    for wanted in path[:-1]:
        inner = owner._modules.get(wanted)  # noqa: SLF001 (getattr would find methods too)
        name = wanted if type(inner) is nn.Module else free_name(owner, wanted, () if got else reserved)
        if type(inner) is not nn.Module:
            inner = nn.Module()
            owner.add_module(name, inner)
        owner = inner
        got.append(name)
    name = free_name(owner, path[-1], () if got else reserved)
    if isinstance(leaf, nn.Module):
        owner.add_module(name, leaf)
    else:
        owner.register_parameter(name, leaf)
    return ".".join([*got, name])


def free_name(owner: nn.Module, wanted: str, reserved: Collection[str] = ()) -> str:
    """`wanted`, with a number where `owner` uses it or may not."""
    name, count = wanted, 0
    while hasattr(owner, name) or name in reserved:
        count += 1
        name = f"{wanted}_{count}"
    return name


def variable(name: str) -> str:
    """`name` as a Python variable in small letters; the graph keeps it apart from others, keywords and builtins."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    cleaned = re.sub(r"[^0-9a-z]+", "_", words.lower()).strip("_") or "value"
    return f"_{cleaned}" if cleaned[0].isdigit() else "self_" if cleaned == "self" else cleaned
