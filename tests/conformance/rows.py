"""The rows of the matrix, derived from the layouts: every layout, every option it declares, four sizes.

Only the declarations are used (names of arrays, their shapes, the options), never the code that reads or writes them.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.layout import layouts
from bridge.layout.files import find
from bridge.layout.options import vocabulary
from tests.cells import uniform

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from bridge.layout.records import Layout, Option, Slot, Variant

SIZES = ((1, 1), (3, 5), (5, 3), (7, 7))
"""(inputs, hidden); options that only choose a function or a number are run at the second."""

TIME, BATCH = 5, 3

ATTRIBUTES: dict[str, tuple[Any, ...]] = {
    "clip": (0.4,),
    "input_forget": (True,),
    "linear_before_reset": (True,),
}

LISTS = {
    "LSTM": [("HardSigmoid", "Softsign", "Elu"), ("Sigmoid", "Relu", "LeakyRelu")],
    "GRU": [("HardSigmoid", "Softsign"), ("Sigmoid", "LeakyRelu")],
    "RNN": [("ThresholdedRelu",), ("Softplus",), ("Elu",), ("Relu",)],
}
"""Activations per gate, where a layout takes whole lists."""


@dataclass(frozen=True)
class Row:
    """One layout under one choice of options, with some optional arrays left out, at one size."""

    layout: str
    inputs: int
    hidden: int
    options: dict[str, Any] = field(default_factory=dict)
    absent: frozenset[str] = frozenset()

    def __str__(self) -> str:
        chosen = [f"{name}={value}" for name, value in self.options.items()] + [
            f"no {name}" for name in sorted(self.absent)
        ]
        return f"{self.layout}[{', '.join(chosen)}]-{self.inputs}x{self.hidden}".replace(" ", "")

    @property
    def record(self) -> Layout:
        return find(self.layout)

    @property
    def variant(self) -> Variant:
        """The one set of slots that the flags choose."""
        flags = {name: option.default for name, option in self.record.options.items()} | self.options
        (chosen,) = (
            one for one in self.record.variants if all(flags[name] == value for name, value in one.when.items())
        )
        return chosen

    @property
    def usually_absent(self) -> frozenset[str]:
        """Optional arrays that the layer has only where it says so."""
        return _usually_absent(self.layout)

    @property
    def slots(self) -> tuple[Slot, ...]:
        return tuple(slot for slot in self.variant.slots if slot.optional not in self.absent)

    def shape(self, slot: Slot) -> tuple[int, ...]:
        """From the definition of a slot: blocks are stacked along "block", "in" or "out", gates along "out"."""
        rows = len(slot.gates) * self.hidden
        if "block" in slot.axes:
            return (len(slot.blocks), rows)
        if "in" not in slot.axes:
            return (len(slot.blocks) * rows,)
        columns = sum(self.inputs if block == "W" else self.hidden for block in slot.blocks)
        return (columns, rows) if slot.axes == ("in", "out") else (rows, columns)

    def rng(self) -> np.random.Generator:
        return np.random.default_rng(zlib.crc32(str(self).encode()))

    def params(self) -> dict[str, np.ndarray]:
        """Random native parameters."""
        rng = self.rng()
        return {slot.key: uniform(rng, self.shape(slot), self.hidden) for slot in self.slots}

    def inputs_and_states(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """x [T, N, I] and non-zero initial states [N, H]."""
        rng = np.random.default_rng(zlib.crc32(str(self).encode()) + 1)
        x = rng.standard_normal((TIME, BATCH, self.inputs)).astype(np.float32)
        h, c = rng.uniform(-0.8, 0.8, (2, BATCH, self.hidden)).astype(np.float32)
        return x, h, c


def rows(framework: str) -> list[Row]:
    """Every row of the layouts whose name begins with `framework` and a dot."""
    names = [name for name in layouts() if name.rpartition(".")[0] == framework]
    return [row for name in names for row in _rows(name)]


def _rows(name: str) -> Iterator[Row]:
    options = find(name).options
    (inputs, hidden), bases = SIZES[1], list(_bases(options))
    said, off = needed(name), _usually_absent(name)
    for (flags, absent), (i, h) in product(bases, SIZES):
        yield Row(name, i, h, said | flags, absent)
    for option, values in _singles(name, options).items():
        for value in values:
            yield Row(name, inputs, hidden, said | {option: value}, off)


def broken_rows(framework: str) -> list[Row]:
    """Square rows with every array that the layer usually has, under every combination of flags."""
    square = [row for row in rows(framework) if (row.inputs, row.hidden) == SIZES[-1]]
    return [row for row in square if row.absent == row.usually_absent]


def _usually_absent(name: str) -> frozenset[str]:
    options = find(name).options.items()
    return frozenset(key for key, option in options if option.kind == "presence" and option.default is False)


def needed(layout: str) -> dict[str, Any]:
    """What must be said because the framework's own default is refused (the cell clip of BlockLSTM)."""
    fixed = {name: option for name, option in find(layout).options.items() if option.kind == "fixed"}
    return {name: option.carried[0] for name, option in fixed.items() if option.default not in (None, *option.carried)}


def _bases(options: Mapping[str, Option]) -> Iterator[tuple[dict[str, Any], frozenset[str]]]:
    """Every combination of the flags and of arrays that may be absent; a flag at its default is left unsaid."""
    flags = [name for name, option in options.items() if option.kind == "flag"]
    optional = [name for name, option in options.items() if option.kind == "presence"]
    for values in product(*[(options[name].default, not options[name].default) for name in flags]):
        chosen = {name: value for name, value in zip(flags, values, strict=True) if value != options[name].default}
        for present in product((True, False), repeat=len(optional)):
            yield chosen, frozenset(name for name, there in zip(optional, present, strict=True) if not there)


def _singles(name: str, options: Mapping[str, Option]) -> dict[str, list[Any]]:
    """Options that choose a function or a number, one at a time."""
    record = find(name)
    values: dict[str, list[Any]] = {}
    for key, option in options.items():
        if option.kind == "number":
            values[key] = [0.25]
        elif option.kind == "activation":
            values[key] = [word for word in vocabulary(record.framework) if word != option.default]
        elif option.kind == "activations":
            values[key] = list(LISTS[record.op])
        elif option.kind == "attribute":
            values[key] = list(ATTRIBUTES[key])
    return values
