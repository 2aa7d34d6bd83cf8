"""inspect: what a model holds and what each target would hold of it, without importing a framework for a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from bridge import graph
from bridge.cell import Activation, Cell
from bridge.errors import Refused
from bridge.frameworks import conversion
from bridge.layout import layouts, op_of
from bridge.layout.holding import holding
from bridge.verification.sides import label


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What one layout makes of one cell."""

    layout: str
    holds: bool
    parameters: int | None
    """How many numbers this framework stores for the cell, both directions; None where it cannot hold it."""
    options: dict[str, Any]
    """The options that the layer needs, such as its activations."""
    reason: str
    """Why it cannot be held; empty where it can."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One recurrent cell of the model."""

    name: str
    op: str
    direction: str
    input_size: int
    hidden_size: int
    dtype: str
    activations: tuple[str, ...]
    """With alpha and beta, those of the second direction after those of the first."""
    attributes: dict[str, Any]
    """clip, input_forget, linear_before_reset, where they differ from the operator's default."""
    optional_inputs: tuple[str, ...]
    """Which of B, P, initial_h, initial_c are present as constants."""
    parameters: int
    """How many numbers the ONNX node stores: W, R, B, P and constant states."""
    targets: tuple[Target, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """The recurrent layers of a source."""

    source: str
    layers: tuple[Layer, ...]
    notes: tuple[str, ...]
    """What reading the source had to decide: defaults that a file does not record, what an export leaves out."""

    def to_dict(self) -> dict[str, Any]:
        """The document that schemas/inspection.schema.json describes."""
        return {"schema": "rnn-bridge/inspection/1", **asdict(self)}

    def __str__(self) -> str:
        lines = [f"{self.source}: {len(self.layers)} recurrent layer{'s' if len(self.layers) != 1 else ''}"]
        for layer in self.layers:
            lines.append(
                f"{layer.name}: {layer.op} {layer.input_size} -> {layer.hidden_size}, {layer.direction}, "
                f"{layer.dtype}, {layer.parameters:,} parameters, {' '.join(layer.activations)}"
            )
            for target in layer.targets:
                if target.holds:
                    options = " with " * bool(target.options)
                    options += ", ".join(f"{name}={value}" for name, value in target.options.items())
                    lines.append(f"  {target.layout}: {target.parameters:,} parameters{options}")
                else:
                    lines.append(f"  {target.layout}: no: {target.reason}")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def inspect(source: object) -> Inspection:
    """List the recurrent cells of `source`, their sizes, and what every layout of their operator would make of them.

    Raises:
        BadInput: a malformed file.
    """
    name = label(source)
    if not isinstance(source, Cell) and conversion.door_of(source) is None:
        source = graph.as_model(source)  # read the file once
    layers = tuple(_layer(path, cell) for path, cell in conversion.cells(source).items())
    return Inspection(source=name, layers=layers, notes=conversion.notes(source))


def _layer(name: str, cell: Cell) -> Layer:
    stored = {field: value for field in ("W", "R", "B", "P", "initial_h", "initial_c")
              if (value := getattr(cell, field)) is not None}  # fmt: skip
    attributes = {field: value for field in ("clip", "input_forget", "linear_before_reset")
                  if (value := getattr(cell, field)) not in (None, False)}  # fmt: skip
    return Layer(
        name=name,
        op=cell.op,
        direction=cell.direction,
        input_size=cell.input_size,
        hidden_size=cell.hidden_size,
        dtype=cell.dtype.name,
        activations=tuple(str(activation) for direction in cell.activation_table() for activation in direction),
        attributes=attributes,
        optional_inputs=tuple(field for field in stored if field not in ("W", "R")),
        parameters=sum(array.size for array in stored.values()),
        targets=tuple(_target(layout, cell) for layout in layouts() if op_of(layout) == cell.op),
    )


def _target(layout: str, cell: Cell) -> Target:
    try:
        held = holding(layout, cell)
    except Refused as refusal:
        return Target(layout=layout, holds=False, parameters=None, options={}, reason=refusal.what)
    return Target(layout=layout, holds=True, parameters=held.parameters, options=_plain(held.options), reason="")


def _plain(options: Mapping[str, object]) -> dict[str, Any]:
    """Options in JSON's own types; activations by their text."""
    plain: dict[str, Any] = {}
    for name, value in options.items():
        if isinstance(value, tuple) and not isinstance(value, Activation):
            plain[name] = " ".join(map(str, value))
        else:
            plain[name] = value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
    return plain
