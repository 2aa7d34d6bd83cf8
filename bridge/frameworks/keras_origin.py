"""Where an imported Keras model keeps the weights of its graph, and the graph with what they are now."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.errors import Unsupported
from bridge.frameworks.door import ExportOptions
from bridge.frameworks.keras_native import Native
from bridge.frameworks.keras_read import LAYOUTS, OPERATORS, keras_array, read_layer, weights_of
from bridge.frameworks.keras_scan import LAYER, OWN_LAYOUTS, to_convolution

if TYPE_CHECKING:
    import onnx_ir as ir

    from bridge.ops.program import Program


@dataclass(frozen=True, slots=True, eq=False)
class Origin:
    """The imported graph, and the layers that hold its weights."""

    model: ir.Model
    program: Program
    recurrent: Mapping[str, Any]
    """Layers by node; nodes on the same weights share one."""
    scans: Mapping[str, Any]
    """Layers that bridge wrote as a Scan, by node."""
    native: dict[str, Native] = field(default_factory=dict)
    plain: dict[str, Any] = field(default_factory=dict)
    """Variables by the name of the program's parameter."""
    before: dict[int, list[np.ndarray]] = field(default_factory=dict)
    """What each recurrent layer held when it was made."""

    def __post_init__(self) -> None:
        for layer in self.recurrent_layers:
            self.before[id(layer)] = [keras_array(weight).copy() for weight in layer.weights]

    @property
    def recurrent_layers(self) -> Iterator[Any]:
        """Every recurrent layer once."""
        yield from {id(layer): layer for layer in (*self.recurrent.values(), *self.scans.values())}.values()

    def present(self, options: ExportOptions = ExportOptions()) -> ir.Model:  # noqa: B008 (frozen)
        """The imported graph with the present weights; those that have not changed keep their bits and their place.

        Raises:
            UsageError: export options, which cannot change a graph.
        """
        from bridge.graph.updating import with_weights

        options.refuse_changes(self.model.graph.inputs)
        now = {name: (array, keras_array(self.plain[name])) for name, array in self.program.parameters.items()
               if name in self.plain}  # fmt: skip
        for native in self.native.values():
            for name, weight in native.module.weights.items():
                now[str(weight.value.name)] = (weight.array, native.array(name))
        weights = {name: array for name, (before, array) in now.items() if not np.array_equal(before, array)}
        nodes = {name: _inputs_of(layer) for name, layer in self.recurrent.items() if self._has_changed(layer)}
        for name, layer in self.scans.items():
            if self._has_changed(layer):
                weights |= self._scan_weights(name, layer)
        return with_weights(self.model, weights, nodes)

    def _has_changed(self, layer: Any) -> bool:
        now = [keras_array(weight) for weight in layer.weights]
        return not all(np.array_equal(one, other) for one, other in zip(self.before[id(layer)], now, strict=True))

    def _scan_weights(self, name: str, layer: Any) -> dict[str, np.ndarray]:
        from bridge import layout
        from bridge.ops.steps import node_name

        node = next(node for node in self.model.graph if node_name(node) == name)
        stored: dict[str, str] = json.loads(node.metadata_props[LAYER])["weights"]
        cell = layer.cell
        if type(cell).__name__ == "ConvLSTMCell":
            arrays = {key: to_convolution(keras_array(getattr(cell, key))) for key in stored}
        else:
            op = OPERATORS[type(cell).__name__]
            options = {"reset_after": bool(cell.reset_after)} if op == "GRU" else {}
            held = layout.read_params(LAYOUTS[op], weights_of(cell, name), **options)
            arrays = dict(layout.write_params(OWN_LAYOUTS[op], held))
        if set(stored) - set(arrays):
            raise Unsupported("a weight of this Scan cannot be put back", where=name,
                              got=", ".join(set(stored) - set(arrays)))  # fmt: skip
        return {stored[key]: arrays[key] for key in stored}


def _inputs_of(layer: Any) -> dict[int, np.ndarray]:
    """W, R, B and P of a node by input position."""
    from bridge.graph.updating import weight_inputs

    facts = read_layer(layer)
    cells = list(facts.nodes.values())
    if len(cells) != 1:
        raise Unsupported("the layer's directions are no longer one node", where=facts.name)
    return weight_inputs(cells[0])
