"""What is written in the place of each stub of a whole Keras model: the recurrent layer, as Keras computes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bridge.errors import Unsupported
from bridge.frameworks.keras_export import final_name, state_inputs
from bridge.frameworks.keras_read import Layer
from bridge.frameworks.keras_series import Series
from bridge.frameworks.keras_whole.masks import StepMask, step_mask, write_masked
from bridge.frameworks.keras_write import Written, write_layer
from bridge.frameworks.metadata import RIGHT_PADDED

if TYPE_CHECKING:
    import onnx_ir as ir

    from bridge.frameworks.door import ExportOptions
    from bridge.graph import Writer


@dataclass(slots=True)
class Splice:
    """Writes stubs. `calls` are those of `trace`, `layers` what each recurrent layer of the model is."""

    calls: Sequence[Any]
    layers: Sequence[tuple[str, tuple[Layer, ...]]]
    options: ExportOptions
    outputs: list[tuple[str, ir.Value]] = field(default_factory=list)
    """The final states that are exposed, with the names that they take as graph outputs."""
    notes: list[str] = field(default_factory=list)
    series: dict[int, Series] = field(default_factory=dict)
    """Sequences that were written here, by the id of the value that others read."""
    masks: dict[tuple[int, int], StepMask] = field(default_factory=dict)
    """By the ids of the mask and of the graph that asks."""
    _met: set[str] = field(default_factory=set)

    def write(self, w: Writer, stub: ir.Node) -> Sequence[ir.Value | None]:
        """Write one stub: a value for each of its outputs, None for one that only stubs read."""
        from bridge.graph.foreign import name_written
        from bridge.graph.stubs import read_by_others

        call = self.calls[int(stub.attributes["call"].value)]
        path, layers = self.layers[call.layer]
        values = [value for value in stub.inputs if value is not None]
        for value, shape in zip(values, call.inputs, strict=True):
            if value.shape is None or len(value.shape) != len(shape):
                w.typed(value, tuple(shape))
        x = self.series.get(id(values[0]))
        if x is None:
            w.typed(values[0], values[0].shape, call.dtype)
            x = Series.of(w, values[0], tuple(range(len(call.inputs[0]))))
            self.series[id(values[0])] = x
        mask = self._mask(w, values[1], stub) if call.masked else None
        written = self._layers(w, path, layers, x, values[2 if call.masked else 1 :], mask)
        results: list[ir.Value | None] = []
        found = [*written.outputs, *(written.states if layers[-1].return_state else ())]
        for old, new in zip(stub.outputs, found, strict=True):
            if isinstance(new, Series):
                self.series[id(old)] = new
                results.append(new.batch_major if read_by_others(old) else None)
                if results[-1] is not None:
                    self.series[id(results[-1])] = new
            else:
                results.append(new)
        name_written(w, path)
        return results

    def _mask(self, w: Writer, mask: ir.Value, stub: ir.Node) -> StepMask:
        key = id(mask), id(stub.graph)
        if key not in self.masks:
            self.masks[key] = step_mask(w, w.typed(mask, mask.shape, "bool"))
        return self.masks[key]

    def _layers(
        self, w: Writer, path: str, layers: Sequence[Layer], x: Series, given: Sequence[ir.Value],
        mask: StepMask | None,
    ) -> Written:  # fmt: skip
        """One layer, or the cells of a stack one after another."""
        from bridge.graph import sequences

        exposed = not given and (layers[0].stateful or self.options.states == "inputs")
        if exposed and path in self._met:
            raise Unsupported("the layer starts from zeros in several calls, and its states are asked for as inputs",
                              where=path, do="give it its states in the call")  # fmt: skip
        self._met.add(path)
        states: list[ir.Value] = []
        written = Written((), ())
        for at, layer in enumerate(layers):
            count = len(layer.state_names)
            initial = list(given[len(states) : len(states) + count]) or None
            if exposed:
                initial = state_inputs(w.root, layer, f"{layer.name}.")
            written = self._written(w, layer, x, initial, mask, states=exposed or layer.return_state)
            states += written.states
            if exposed:
                self.outputs += [(f"{layer.name}.{final_name(name)}", state)
                                 for name, state in zip(layer.state_names, written.states, strict=True)]  # fmt: skip
            if at < len(layers) - 1:
                inner = written.outputs[0]
                if not isinstance(inner, Series):
                    raise Unsupported("an inner cell gives no sequence", where=layer.name)
                y = inner.in_order((1, 0, 2))
                y = sequences.flip(w, y, 0) if layer.directions[0].backwards else y
                x = Series.of(w, y, (1, 0, 2))
        return Written(written.outputs, tuple(states))

    def _written(
        self, w: Writer, layer: Layer, x: Series, initial: list[ir.Value] | None, mask: StepMask | None, *,
        states: bool,
    ) -> Written:  # fmt: skip
        self.notes += layer.notes
        if mask is None:
            return write_layer(w, layer, x, initial, None, self.options.form, states=states)
        exact = self.options.masks == "exact"
        if not exact:
            self.notes.append(f"{layer.name}: {RIGHT_PADDED}")
        return write_masked(w, layer, x, initial, mask, self.options.form, exact=exact, states=states)
