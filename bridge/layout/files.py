"""The layout files, parsed once per process into records."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any

from bridge.cell import Activation
from bridge.errors import BadInput, UsageError
from bridge.layout.records import Constant, Layout, Option, Slot, Variant
from bridge.schema_files import schema_files


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalogue:
    """Every layout by name, and every framework's activation names in the order of preference."""

    layouts: Mapping[str, Layout]
    vocabularies: Mapping[str, Mapping[str, Activation]]
    keywords: Mapping[str, Mapping[str, str]]
    """By framework: ONNX activations whose alpha is a keyword of the framework's function, and that keyword."""


@cache
def catalogue() -> Catalogue:
    """All layout files. Raises BadInput where one is malformed or a name is there twice."""
    layouts: dict[str, Layout] = {}
    vocabularies: dict[str, Mapping[str, Activation]] = {}
    keywords: dict[str, Mapping[str, str]] = {}
    folder = schema_files() / "layouts"
    for file in sorted(folder.iterdir(), key=lambda file: file.name):
        if not file.name.endswith(".toml"):
            continue
        document = _parse(file.name, file.read_text("utf-8"))
        for framework, table in document.get("vocabulary", {}).items():
            _add(vocabularies, framework, MappingProxyType({name: _activation(one) for name, one in table.items()}))
        for framework, table in document.get("keywords", {}).items():
            _add(keywords, framework, MappingProxyType(table))
        for row in document.get("layout", ()):
            _add(layouts, row["name"], _layout(document["framework"], row))
    return Catalogue(
        layouts=MappingProxyType(layouts),
        vocabularies=MappingProxyType(vocabularies),
        keywords=MappingProxyType(keywords),
    )


def find(name: str) -> Layout:
    """The layout of that name. Raises UsageError with the nearest names."""
    known = catalogue().layouts
    if name in known:
        return known[name]
    lowered = {other.lower(): other for other in known}
    near = [lowered[match] for match in difflib.get_close_matches(str(name).lower(), lowered, n=3, cutoff=0.5)]
    raise UsageError(
        f"unknown layout {name!r}",
        where="layout",
        expected=f"nearest: {', '.join(near)}" if near else ", ".join(known),
        do="bridge.layouts() lists them all",
    )


def _parse(name: str, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise BadInput(f"not TOML: {error}", where=name) from error


def _add(table: dict[str, Any], name: str, value: object) -> None:
    if name in table:
        raise BadInput("declared twice", where=name)
    table[name] = value


def _layout(framework: str, row: dict[str, Any]) -> Layout:
    try:
        shared = {"slots": row.get("slots", ()), "constants": row.get("constants", ())}
        variants = [_variant(row, shared, one) for one in row.get("variant", ({},))]
        return Layout(
            name=row["name"],
            framework=framework,
            op=row["op"],
            source=row["source"],
            options=MappingProxyType({name: _option(one) for name, one in row.get("options", {}).items()}),
            activations=tuple(map(_activation, row.get("activations", ()))),
            variants=tuple(variants),
        )
    except (KeyError, TypeError) as error:
        raise BadInput(f"a key is missing or unknown: {error}", where=f"layout {row.get('name')}") from error


def _variant(row: dict[str, Any], shared: dict[str, Any], one: dict[str, Any]) -> Variant:
    return Variant(
        when=MappingProxyType(one.get("when", {})),
        linear_before_reset=one.get("linear_before_reset", row.get("linear_before_reset")),
        slots=tuple(_slot(row["op"], slot) for slot in (*shared["slots"], *one.get("slots", ()))),
        constants=tuple(Constant(**constant) for constant in (*shared["constants"], *one.get("constants", ()))),
    )


def _slot(op: str, fields: dict[str, Any]) -> Slot:
    own = dict(fields)
    blocks = (own.pop("block"),) if "block" in own else tuple(own.pop("blocks"))
    gates = own.pop("gates", "i" if op == "RNN" else "")
    axes = own.pop("axes", "out")
    return Slot(blocks=blocks, gates=_gates(gates), axes=tuple(axes.split(",")), **own)


def _gates(text: str) -> tuple[str, ...]:
    """Gates in order; "=" ties two letters to one stored gate: "z=rh" is (zr, h)."""
    gates: list[str] = []
    for at, letter in enumerate(text):
        if letter == "=":
            continue
        if at and text[at - 1] == "=":
            gates[-1] += letter
        else:
            gates.append(letter)
    return tuple(gates)


def _option(fields: dict[str, Any]) -> Option:
    return Option(**{**fields, "carried": tuple(fields.get("carried", ()))})


def _activation(fields: dict[str, Any] | str) -> Activation:
    return Activation(fields) if isinstance(fields, str) else Activation(**fields)
