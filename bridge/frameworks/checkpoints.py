"""The door of weight files: .npz, .safetensors, .pt and .pth, whose recurrent stacks are found by parameter names.

A file with one stack is a source like any other: it exports as the torch stack (time-major) with the same weights.
Of several, `path::prefix` chooses one, as in `model.pt::encoder.rnn`. What names cannot tell takes the layout's default
and is noted in the model; `path::prefix?nonlinearity=relu` says otherwise.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from bridge.errors import BadInput, UsageError
from bridge.frameworks.checkpoint_files import SUFFIXES, Entry, read_entries, save_params
from bridge.frameworks.checkpoint_stacks import Found, find_stacks
from bridge.frameworks.door import ExportOptions
from bridge.frameworks.stack import Stack, read_layer

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from bridge.cell import Cell

__all__ = ["assign", "build", "cells", "execute", "export", "import_model", "owns", "read_arrays", "read_stack",
           "save_params"]  # fmt: skip

Source = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class Choice:
    """A path with the stack that it chooses."""

    path: Path
    prefix: str | None
    """None where any stack will do."""
    options: Mapping[str, Any]
    """Options of the layout, as the path gives them."""


def owns(source: object) -> bool:
    """Whether `source` is the path of a weight file."""
    return isinstance(source, (str, os.PathLike)) and _choice(source).path.suffix.lower() in SUFFIXES


def read_arrays(path: Source) -> dict[str, np.ndarray]:
    """Every array of a weight file by flat dotted name (nested dicts joined with dots).

    Raises:
        BadInput: a malformed or hostile file; nothing in it is ever executed.
    """
    return {name: entry.load() for name, entry in read_entries(path).items()}


def export(source: Source, options: ExportOptions) -> ir.Model:
    """The ONNX model of the one stack in the file, or of the one that `path::prefix` chooses.

    Raises:
        UsageError: several stacks, all of them named, or a prefix that the file does not have.
        BadInput: a malformed file, or one without recurrent weights.
    """
    from bridge.frameworks.stack_export import export_stack

    return export_stack(read_stack(source), options)


def cells(source: Source) -> dict[str, Cell]:
    """Every cell in the file: `prefix.l0`, `prefix.l1` of a stack, `prefix` of a cell without a layer number."""
    choice = _choice(source)
    entries = read_entries(choice.path)
    found = find_stacks(entries)
    if choice.prefix is not None:
        found = {choice.prefix: _pick(choice, found)}
    stacks = (_stack(entries, one, choice) for one in found.values())
    return {name: cell for stack in stacks for name, cell in stack.cells.items()}


def execute(source: Source, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run the stack in torch: torch's own weights go into torch's own module as they are.

    Raises:
        NotRepresentable: weights of another framework that torch's modules cannot hold.
    """
    from bridge.frameworks import torch as door
    from bridge.frameworks.checkpoint_files import torch_files

    choice = _choice(source)
    entries = read_entries(choice.path)
    found = _pick(choice, find_stacks(entries))
    if not found.layout.startswith("torch."):
        return door.execute(door.build(list(_stack(entries, found, choice).cells.values()), own_cells=False), feeds)
    arrays = [[_load(entries, names) for names in layer] for layer in found.layers]
    return door.execute(torch_files().module_of(found.layout, arrays, choice.options), feeds)


def read_stack(source: Source) -> Stack:
    """The one stack of the file, or the one that `path::prefix` chooses."""
    choice = _choice(source)
    entries = read_entries(choice.path)
    return _stack(entries, _pick(choice, find_stacks(entries)), choice)


def assign(model: Any, mapping: Mapping[str, Cell | Sequence[Cell]]) -> NoReturn:  # noqa: ARG001 (the Door's signature)
    """Refuse: a file is no live model."""
    _refuse("assign")


def build(cells: Sequence[Cell], own_cells: bool) -> NoReturn:  # noqa: ARG001 (the Door's signature)
    """Refuse: a file is no framework."""
    _refuse("build")


def import_model(model: ir.Model, static: Mapping[str, object] | None) -> NoReturn:  # noqa: ARG001 (the Door's signature)
    """Refuse: a file is no framework."""
    _refuse("import_model")


def _refuse(where: str) -> NoReturn:
    raise UsageError("a weight file is a source only", where=where,
                     do="write_params and save_params write one layer's arrays")  # fmt: skip


def _choice(source: Source) -> Choice:
    path, separator, rest = os.fspath(source).partition("::")
    prefix, _, query = rest.partition("?")
    options = dict(part.partition("=")[::2] for part in query.split("&") if part)
    return Choice(Path(path), prefix if separator else None, {name: _value(text) for name, text in options.items()})


def _value(text: str) -> str | bool:
    return {"true": True, "false": False}.get(text.lower(), text)


def _pick(choice: Choice, found: Mapping[str, Found]) -> Found:
    where = str(choice.path)
    if not found:
        raise BadInput(
            "no recurrent weights in this file",
            where=where,
            expected="names such as weight_ih_l0 and weight_hh_l0, or kernel and recurrent_kernel",
        )
    if choice.prefix is not None and choice.prefix in found:
        return found[choice.prefix]
    names = ", ".join(repr(prefix) for prefix in found)
    if choice.prefix is not None:
        raise UsageError("no recurrent stack of this name", where=where, got=repr(choice.prefix), expected=names)
    if len(found) > 1:
        raise UsageError(f"{len(found)} recurrent stacks", where=where, got=names, expected="one",
                         do=f"choose with {where}::{next(iter(found))}")  # fmt: skip
    return next(iter(found.values()))


def _stack(entries: Mapping[str, Entry], found: Found, choice: Choice) -> Stack:
    layers = []
    for at, layer in enumerate(found.layers):
        name = found.prefix if found.is_cell else f"{found.prefix}.l{at}".removeprefix(".")
        directions = [_load(entries, names) for names in layer]
        layers.append(read_layer(name or "cell", found.layout, directions, choice.options))
    return Stack(source=f"checkpoint of {found.layout}", version="", layers=tuple(layers),
                 notes=_notes(found, choice.options))  # fmt: skip


def _notes(found: Found, options: Mapping[str, Any]) -> tuple[str, ...]:
    """What the names cannot tell and the layout's default decides."""
    from bridge.layout.files import catalogue

    assumed = {
        name: option.default
        for name, option in catalogue().layouts[found.layout].options.items()
        if option.kind != "presence" and name not in {*options, *found.told} and option.default is not None
    }
    if not assumed:
        return ()
    values = ", ".join(f"{name}={value}" for name, value in assumed.items())
    return (f"{found.prefix or 'checkpoint'}: a weight file does not tell {values}; the framework's default is used",)


def _load(entries: Mapping[str, Entry], names: Mapping[str, str]) -> dict[str, np.ndarray]:
    from bridge.frameworks.stack import check_dtype

    for name in names.values():
        check_dtype(name, entries[name].dtype)
    return {key: entries[name].load() for key, name in names.items()}
