"""explain: gate by gate, from which array of one layout, through which rows of ONNX, to which array of another."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from bridge.cell import Cell
from bridge.frameworks import conversion
from bridge.frameworks.files import layout_for
from bridge.layout import Step, layouts, op_of
from bridge.layout import explain as explain_layouts
from bridge.layout.holding import holding

SOURCES: Final = {".pt": "torch", ".pth": "torch", ".safetensors": "torch", ".npz": "torch", ".keras": "keras",
                  ".h5": "keras"}  # fmt: skip
"""Whose names a file's arrays have. An ONNX file's are bridge's own: the operator's blocks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerPath:
    """The way of every gate of one cell."""

    name: str
    """The cell's name; "" where a layout was asked about and no file."""
    source: str
    target: str
    sizes: str
    """H and I of the cell; "" where a layout was asked about."""
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """What explain found."""

    layers: tuple[LayerPath, ...]

    def to_dict(self) -> dict[str, Any]:
        """The document of schemas/explanation.schema.json."""
        return {"schema": "rnn-bridge/explanation/1", **asdict(self)}

    def __str__(self) -> str:
        return "\n\n".join(_text(layer) for layer in self.layers)


def explain(a: str, b: str) -> Explanation:
    """Explain the way from a layout or a model file to a layout or a framework.

    Args:
        a: a layout name, or a path that `cells` takes.
        b: a layout name, or a framework whose first layout that holds the cell is meant.

    Raises:
        UsageError: a name that is neither, or layouts of different operators.
        NotRepresentable: the target does not hold a cell of the file.
    """
    if a in layouts():
        target = b if b in layouts() else next(
            (name for name in layouts() if name.startswith(f"{b}.") and op_of(name) == op_of(a)), b
        )  # fmt: skip
        return Explanation(
            layers=(LayerPath(name="", source=a, target=target, sizes="", steps=explain_layouts(a, target)),)
        )
    suffix = Path(a.partition("::")[0]).suffix.lower()
    if suffix != ".onnx" and suffix not in SOURCES:
        op_of(a)  # not a file by its name, so a layout that is misspelt: the error names the nearest
    framework = SOURCES.get(suffix, "bridge")
    found = conversion.cells(a)
    return Explanation(layers=tuple(_layer(name, cell, framework, b) for name, cell in found.items()))


def _layer(name: str, cell: Cell, framework: str, wanted: str) -> LayerPath:
    source, target = (layout_for(name, cell, "explain") for name in (framework, wanted))
    steps = explain_layouts(source, target, options=holding(source, cell).options,
                            target_options=holding(target, cell).options)  # fmt: skip
    direction = "" if cell.direction == "forward" else f", {cell.direction}"
    sizes = f"H = {cell.hidden_size}, I = {cell.input_size}{direction}"
    return LayerPath(name=name, source=source, target=target, sizes=sizes, steps=steps)


def _text(layer: LayerPath) -> str:
    title = f"{layer.source} -> {layer.target}"
    if layer.name:
        title = f"{layer.name}: {title}, {layer.sizes}"
    table = [("", layer.source, "ONNX", layer.target)]
    table += [(f"{step.block} {step.gate}", str(step.source), step.onnx, str(step.target)) for step in layer.steps]
    widths = [max(len(row[column]) for row in table) for column in range(4)]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in table]
    return "\n".join([title, *lines])
