"""What every framework door offers, and the options of an export."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, Protocol

from bridge.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from bridge.cell import Cell

OLDEST_OPSET, NEWEST_OPSET = 17, 22
"""17 to 22: onnxruntime 1.31.1 runs all of them, and LSTM, GRU and RNN mean the same throughout."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """The options of `to_onnx`, validated once.

    Raises:
        UsageError: an opset outside 17 to 22, or a value that an option does not have.
    """

    example: object = None
    """Positional arguments as a tuple, one array, or a dict of keywords."""
    dynamic: object = None
    """Which axes are symbolic; None makes axes 0 and 1 of every array so."""
    opset: int = 20
    """The ONNX operator set of the result."""
    states: Literal["zero", "inputs"] = "zero"
    """Whether initial states are zeros (or the layer's own constants) or graph inputs."""
    lengths: bool = False
    """Whether `lengths` (int32 [batch]) is a graph input."""
    form: Literal["fused", "scan"] = "fused"
    """One operator per layer, or the same equations as an ONNX Scan."""
    masks: Literal["exact", "right"] = "exact"
    """How Keras masks are carried: exactly, or as right padding only."""
    custom_objects: Mapping[str, type] | None = None
    """Classes of the caller's own that a file may name."""

    def __post_init__(self) -> None:
        if isinstance(self.opset, bool) or not isinstance(self.opset, int) or not (
            OLDEST_OPSET <= self.opset <= NEWEST_OPSET
        ):  # fmt: skip
            raise UsageError("not an opset that is written", where="to_onnx", got=repr(self.opset),
                             expected=f"an int, {OLDEST_OPSET} to {NEWEST_OPSET}")  # fmt: skip
        choices = {"states": ("zero", "inputs"), "form": ("fused", "scan"), "masks": ("exact", "right")}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise UsageError(f"unknown value for {name}", where="to_onnx", got=repr(getattr(self, name)),
                                 expected=" or ".join(map(repr, allowed)))  # fmt: skip

    @property
    def given(self) -> tuple[str, ...]:
        """Names of the options with another value than their default. An array, as an example is, is not compared."""
        values = ((each.name, getattr(self, each.name), each.default) for each in fields(self))
        return tuple(name for name, value, plain in values
                     if value is not plain and (plain is None or value != plain))  # fmt: skip

    def refuse_changes(self, inputs: Iterable[ir.Value]) -> None:
        """Refuse what asks for another graph than an imported one of these inputs, which may have lengths and states.

        Raises:
            UsageError: an option that would change the graph.
        """
        own = {str(value.name).rpartition(".")[2] for value in inputs}
        has = {"lengths": "lengths" in own, "states": any(name.startswith("initial_") for name in own)}
        changing = ", ".join(name for name in self.given if not has.get(name))
        if changing:
            raise UsageError("an imported graph is exported as it is, without options", where="to_onnx", got=changing,
                             do="give them where the graph is exported from its framework")  # fmt: skip


class Door(Protocol):
    """One framework, both ways. Every function is at the top of that framework's module."""

    def owns(self, source: object) -> bool:
        """Whether `source` is this framework's; never imports a framework that is not loaded yet."""

    def export(self, source: Any, options: ExportOptions) -> ir.Model:
        """The ONNX model of `source`, made for the caller, who may take it apart.

        Raises:
            Refused: it could not be exact.
        """

    def cells(self, source: Any) -> dict[str, Cell]:
        """Every recurrent cell of `source` by module path, named as `export` names the nodes."""

    def assign(self, model: Any, mapping: Mapping[str, Cell | Sequence[Cell]]) -> Any:
        """Put cells into the layers of `model` at the given paths and return it."""

    def build(self, cells: Sequence[Cell], own_cells: bool) -> Any:
        """The bare native layer or layers that hold `cells`."""

    def import_model(self, model: ir.Model, static: Mapping[str, object] | None) -> Any:
        """`model` as this framework's own module, native layers where it has them."""

    def execute(self, source: Any, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the framework's own forward pass, inputs and outputs named as `export` names them."""
