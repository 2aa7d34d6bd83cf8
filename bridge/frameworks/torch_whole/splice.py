"""What is written in the place of each stub: the layers, and packed sequences as padded ones with their lengths.

A packed sequence is never packed: behind each packed value stands the padded sequence [T,N,...] with `lengths`, and a
layer over it takes `sequence_lens`. Only where the model itself reads the packed data are the rows gathered, and only
where it computed new ones are they scattered back. Both are exact: packed data is the valid steps, time by time.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from bridge.errors import Unsupported
from bridge.frameworks.stack import Stack
from bridge.frameworks.stack_export import state_names, state_shape, write_layer, write_layers
from bridge.frameworks.torch_whole.loops import COUNTS
from bridge.frameworks.torch_whole.ops import GENERAL, LONGEST
from bridge.frameworks.torch_whole.rolling import Chain, Rolling, Series
from bridge.graph.stubs import DOMAIN

if TYPE_CHECKING:
    import onnx_ir as ir

    from bridge.graph import Writer
    from bridge.graph.recurrent import Form

Values = Sequence["ir.Value | None"]

MOST_INPUTS: Final = 8

SYMBOL: Final = r"s\d+"
"""A symbol as torch writes it; anything else is an expression of several."""


UNBACKED: Final = r"u\d+"
"""A size that torch knows only when it runs."""


@dataclass(frozen=True, slots=True)
class Padded:
    """The sequence behind packed data."""

    x: ir.Value
    """[T,N,...]."""
    lengths: ir.Value
    """int32 [N]."""
    clean: bool
    """Whether it is zeros past the lengths."""


class Stub(NamedTuple):
    """One stub node: inputs (with None for those left out, at the end too), attributes, outputs."""

    inputs: Sequence[Any]
    attributes: Mapping[str, Any]
    outputs: Sequence[ir.Value]


@dataclass(slots=True)
class Splice:
    """Writes stubs. `layers` are those of each module; `exposed` says whether absent states become graph inputs."""

    layers: Sequence[tuple[str, Stack]]
    form: Form
    exposed: bool
    padded: dict[int, Padded] = field(default_factory=dict)
    """What stands behind each packed value, by its id (values live as long as the model)."""
    outputs: list[tuple[str, ir.Value]] = field(default_factory=list)
    """The final states that are exposed, with the names that they take as graph outputs."""
    axes: dict[str, str] = field(default_factory=dict)
    """The symbols of time and batch of the first layers met, with the names that they take."""
    sizes: dict[str, str] = field(default_factory=dict)
    """Symbols that can have one size only, and that size: torch leaves the axis of layers open where it is 1."""
    _met: set[str] = field(default_factory=set)
    _chains: dict[int, tuple[Chain, int]] = field(default_factory=dict)
    """The chain and the number of each step, by the id of its h: the stub's, and what is written in its place."""
    _rolling: Rolling | None = None

    def write(self, w: Writer, stub: ir.Node) -> Values:
        """Write one stub: a value for each of its outputs."""
        attributes = {name: attribute.value for name, attribute in stub.attributes.items()}
        inputs = [*stub.inputs, *[None] * MOST_INPUTS]
        return WRITERS[stub.op_type](self, w, Stub(inputs, attributes, stub.outputs))

    def find_chains(self, model: ir.Model) -> None:
        """Find the loops over a cell before anything is written."""
        self._rolling = Rolling(self._chain_output)
        open_ends: dict[tuple[int, ...], Chain] = {}
        for node in (node for node in model.graph.all_nodes() if node.domain == DOMAIN and node.op_type == "Step"):
            states = tuple(id(value) for value in node.inputs[1:3] if value is not None)
            chain = open_ends.pop(states, None) if states else None
            if chain is None or chain.steps[0].attributes["call"].value != node.attributes["call"].value:
                chain = Chain([])
            self._chains[id(node.outputs[0])] = (chain, len(chain.steps))
            chain.steps.append(node)
            count = 1 if not node.attributes["cell"].value else 2
            open_ends[tuple(id(value) for value in node.outputs[:count])] = chain

    def steps_by_path(self) -> dict[str, int]:
        """How often each cell is stepped."""
        chains = {id(chain): chain for chain, _ in self._chains.values()}.values()
        calls = [step.attributes["call"].value for chain in chains for step in chain.steps]
        return {self.layers[call][0]: calls.count(call) for call in calls}

    def _chain_output(self, values: Sequence[ir.Value]) -> Series | None:
        """The output of the layer whose steps give `values`, all of them, in order or from the last to the first."""
        found = [self._chains.get(id(value)) for value in values]
        chain = found[0][0] if found[0] is not None else None
        if chain is None or chain.output is None or len(chain.steps) != len(values):
            return None
        if all(entry == (chain, at) for at, entry in enumerate(found)):
            return chain.output
        turned = Series(chain.output.value, not chain.output.backwards)
        return turned if all(entry == (chain, at) for at, entry in enumerate(reversed(found))) else None

    def symbols(self, given: Mapping[str, str], model: ir.Model) -> dict[str, str]:
        """Names of all symbols: what the caller gave, time and batch where a layer says which, else input and axis."""
        names = {**self.axes, **given, **self.sizes}
        taken = set(names.values())
        for value in model.graph.inputs:
            for axis, dim in enumerate(value.shape or ()):
                label = None if isinstance(dim, int) else dim.value
                if label is not None and re.fullmatch(SYMBOL, label) and label not in names:
                    wanted = {0: "batch", 1: "time"}.get(axis, "")
                    free = wanted and wanted not in taken and not self.axes
                    names[label] = wanted if free else f"{value.name}_dim{axis}"
                    taken.add(names[label])
        for value in model.graph.outputs:  # sizes that hang on values: the longest of several lengths
            for axis, dim in enumerate(value.shape or ()):
                label = None if isinstance(dim, int) else dim.value
                if label is not None and re.fullmatch(UNBACKED, label):
                    names.setdefault(label, f"{value.name}_dim{axis}")
        return names

    def _see(self, x: ir.Value) -> None:
        """Learn from x [T,N,...] which symbol is which."""
        for name, dim in zip(("time", "batch"), x.shape or (), strict=False):
            label = None if isinstance(dim, int) else dim.value
            if label and re.fullmatch(SYMBOL, label) and name not in self.axes.values():
                self.axes.setdefault(label, name)

    def _see_states(self, states: Sequence[ir.Value | None], attributes: Mapping[str, Any]) -> None:
        """Learn from given h and c [rows,N,size] which symbols are no sizes of time or batch."""
        for state, size in zip(states, (attributes["state"], attributes["cell"]), strict=True):
            shape = () if state is None or state.shape is None else state.shape
            for axis, known in ((0, attributes["rows"]), (2, size)):
                dim = shape[axis] if len(shape) == 3 else 0
                label = None if isinstance(dim, int) else dim.value
                if label and re.fullmatch(SYMBOL, label):
                    self.sizes[label] = str(known)

    def _sequence(self, w: Writer, stub: Stub) -> Values:
        path, stack = self.layers[stub.attributes["call"]]
        self._see_states(stub.inputs[1:3], stub.attributes)
        batch_first = stub.attributes["batch_axis"] == 0
        x = w.transpose(stub.inputs[0], (1, 0, 2)) if batch_first else stub.inputs[0]
        initial, exposed = self._initial(w, path, stack, x, stub.inputs[1:3])
        y, finals = write_layers(w, stack, x, None, initial, self.form, batch_first=batch_first)
        return [y, *self._finals(path, finals, exposed)]

    def _packed_sequence(self, w: Writer, stub: Stub) -> Values:
        path, stack = self.layers[stub.attributes["call"]]
        data, _, source, lengths = stub.inputs[:4]
        known = self.padded.get(id(data))
        if known is None:
            known = self._unpacked(w, data, _time_major(w, source, stub.attributes["batch_axis"]), lengths)
        order, inverse = stub.inputs[6:8]
        self._see_states(stub.inputs[4:6], stub.attributes)
        initial, exposed = self._initial(w, path, stack, known.x, stub.inputs[4:6])
        y, finals = write_layers(w, stack, known.x, known.lengths, _ordered(w, initial, order), self.form)
        finals = _ordered(w, finals, inverse)
        packed = self._packed(w, stub.outputs[0], Padded(y, known.lengths, clean=True))
        return [packed, *self._finals(path, finals, exposed)]

    def _step(self, w: Writer, stub: Stub) -> Values:
        path, stack = self.layers[stub.attributes["call"]]
        chain, at = self._chains[id(stub.outputs[0])]
        if at == 0 and len(chain.steps) in COUNTS:
            self._roll(w, chain, path, stack, stub)
        if chain.output is not None:
            last = at == len(chain.steps) - 1
            results = chain.finals if last else [w.take(chain.output.in_order(w), at, 0), None]
            self._chains[id(results[0])] = (chain, at)
            return results
        x = w.unsqueeze(stub.inputs[0], 0)
        initial, exposed = self._initial(w, path, stack, x, stub.inputs[1:3], rank=2)
        own = {name: w.unsqueeze(value, 0) for name, value in initial.items()}
        _, *finals = write_layer(w, stack.layers[0], x, None, own, self.form)
        named = {name: w.squeeze(value, 0) for name, value in zip("hc", finals, strict=True) if value is not None}
        return self._finals(path, named, exposed)

    def _roll(self, w: Writer, chain: Chain, path: str, stack: Stack, stub: Stub) -> None:
        """Write a chain of steps as one layer, where their inputs are one sequence."""
        from bridge.graph.stubs import read_by_others

        inner = [value for step in chain.steps[:-1] for value in step.outputs[1:]]
        given = [value for step in chain.steps if (value := step.inputs[0])]
        x = self._rolling.series(w, given) if self._rolling else None
        if x is None or any(read_by_others(value) for value in inner):
            return
        initial, exposed = self._initial(w, path, stack, x.value, stub.inputs[1:3], rank=2)
        own = {name: w.unsqueeze(value, 0) for name, value in initial.items()}
        (layer,) = stack.layers
        layer = replace(layer, cell=replace(layer.cell, direction="reverse")) if x.backwards else layer
        y, *finals = write_layer(w, layer, x.value, None, own, self.form)
        named = {name: w.squeeze(value, 0) for name, value in zip("hc", finals, strict=True) if value is not None}
        chain.output = Series(w.squeeze(y, 1), x.backwards)
        chain.finals = self._finals(path, named, exposed)

    def _collect(self, w: Writer, stub: Stub) -> Values:
        axis, values = stub.attributes["axis"], [value for value in stub.inputs if value is not None]
        found = self._rolling.series(w, [_unwrapped(value) for value in values]) if self._rolling else None
        if found is None:  # the two traces will differ
            return [w.concat([w.unsqueeze(value, axis) for value in values], axis)]
        series = found.in_order(w)
        rank = 3 if series.shape is None else len(series.shape)
        return [w.transpose(series, [*range(1, axis + 1), 0, *range(axis + 1, rank)])]

    def _pack(self, w: Writer, stub: Stub) -> Values:
        from bridge.graph.sequences import valid_steps
        from bridge.graph.stubs import read_by_others

        lengths = w.cast(stub.inputs[1], "int32")
        x = _time_major(w, stub.inputs[0], stub.attributes["batch_axis"])
        data, sizes = stub.outputs
        packed = self._packed(w, data, Padded(x, lengths, clean=False))
        if not read_by_others(sizes):
            return [packed, None]
        counts = w.op("ReduceSum", w.cast(valid_steps(w, x, lengths), "int64"), w.constant([1]), keepdims=0)
        return [packed, _until(w, counts, _longest(w, lengths))]

    def _pad(self, w: Writer, stub: Stub) -> Values:
        from bridge.graph.sequences import valid_steps, zero_past

        data, _, source, lengths, total = stub.inputs[:5]
        known = self.padded.get(id(data))
        if known is None:
            known = self._unpacked(w, data, _time_major(w, source, stub.attributes["packed_batch_axis"]), lengths)
        y, value = known.x, stub.attributes["value"]
        rank = 3 if y.shape is None else len(y.shape)
        if value != 0:
            valid = w.unsqueeze(valid_steps(w, y, known.lengths), *range(2, rank))
            y = w.typed(w.op("Where", valid, y, _scalar(w, value, y)), y.shape)
        elif not known.clean:
            y = zero_past(w, y, known.lengths)
        if stub.attributes["mode"] == GENERAL:
            y = self._resized(w, y, w.unsqueeze(total, 0), value)
        elif stub.attributes["mode"] == LONGEST:
            y = _until(w, y, _longest(w, known.lengths))
        return [w.transpose(y, (1, 0, *range(2, rank))) if stub.attributes["batch_axis"] == 0 else y]

    def _resized(self, w: Writer, y: ir.Value, total: ir.Value, value: float) -> ir.Value:
        """`y` with exactly `total` steps; what is missing is `value`."""
        more = w.op("Max", w.op("Sub", total, w.dim(y, 0)), w.constant([0]))
        rank = 3 if y.shape is None else len(y.shape)
        pads = w.concat([w.constant([0] * rank), more, w.constant([0] * (rank - 1))], 0)
        return _until(w, w.op("Pad", y, pads, _scalar(w, value, y)), total)

    def _packed(self, w: Writer, data: ir.Value, known: Padded) -> ir.Value | None:
        """Remember what stands behind `data`; its rows where something else reads them."""
        from bridge.graph.sequences import valid_steps
        from bridge.graph.stubs import read_by_others

        self.padded[id(data)] = known
        if not read_by_others(data):
            return None
        where = w.transpose(w.op("NonZero", valid_steps(w, known.x, known.lengths)), (1, 0))
        rows = w.op("GatherND", known.x, where)
        self.padded[id(rows)] = known
        return rows

    def _unpacked(self, w: Writer, data: ir.Value, source: ir.Value, lengths: ir.Value) -> Padded:
        """The padded sequence whose valid steps are the rows of `data`."""
        from bridge.graph.sequences import valid_steps

        lengths = w.cast(lengths, "int32")
        where = w.transpose(w.op("NonZero", valid_steps(w, source, lengths)), (1, 0))
        sizes = [] if data.shape is None else [size for size in data.shape[1:] if isinstance(size, int)]
        dtype = "float32" if data.dtype is None else data.dtype.numpy().name
        zeros = w.zeros(w.dim(source, 0), w.dim(source, 1), w.constant(sizes), dtype=dtype)
        shape = (*([None, None] if source.shape is None else source.shape[:2]), *sizes)
        x = w.typed(w.op("ScatterND", w.typed(zeros, shape), where, data), shape)
        return Padded(x, lengths, clean=True)

    def _initial(self, w: Writer, path: str, stack: Stack, x: ir.Value, given: Any, rank: int = 3
                 ) -> tuple[dict[str, ir.Value], bool]:  # fmt: skip
        """The initial states, and whether they are exposed: what the model gives, graph inputs, or none for zeros."""
        from bridge.graph.zeros import is_zeros

        self._see(x)
        names = state_names(stack)
        found = {name: value for name, value in zip(names, given, strict=False) if value is not None}
        if not all(is_zeros(value) for value in found.values()):
            return found, False
        if not self.exposed:
            return {}, False
        if path in self._met:
            raise Unsupported("the layer starts from zeros in several calls, and its states are asked for as inputs",
                              where=path or stack.source, do="give it its states in forward")  # fmt: skip
        self._met.add(path)
        batch = "batch" if x.shape is None else x.shape[1]
        dtype = stack.layers[0].cell.dtype.name
        shapes = {name: state_shape(stack, name, batch)[3 - rank :] for name in names}
        return {name: w.root.input(_joined(path, f"initial_{name}"), dtype, shapes[name]) for name in names}, True

    def _finals(self, path: str, finals: dict[str, ir.Value], exposed: bool) -> list[ir.Value | None]:
        if exposed:
            self.outputs += [(_joined(path, f"{name}_n"), value) for name, value in finals.items()]
        return [finals.get("h"), finals.get("c")]


WRITERS: Final = {
    "Sequence": Splice._sequence,  # noqa: SLF001 (the table of this very class)
    "PackedSequence": Splice._packed_sequence,  # noqa: SLF001
    "Step": Splice._step,  # noqa: SLF001
    "Pack": Splice._pack,  # noqa: SLF001
    "Pad": Splice._pad,  # noqa: SLF001
    "Collect": Splice._collect,  # noqa: SLF001
}
"""What writes each stub."""


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _ordered(w: Writer, states: Mapping[str, ir.Value], order: ir.Value | None) -> dict[str, ir.Value]:
    """States [rows, N, size] with the batch in another order."""
    if order is None:
        return dict(states)
    return {name: w.typed(w.op("Gather", value, order, axis=1), value.shape) for name, value in states.items()}


def _time_major(w: Writer, x: ir.Value, batch_axis: int) -> ir.Value:
    rank = 3 if x.shape is None else len(x.shape)
    return w.transpose(x, (1, 0, *range(2, rank))) if batch_axis == 0 else x


def _unwrapped(value: ir.Value) -> ir.Value:
    """`value` without an Unsqueeze whose axis a Squeeze takes away again."""
    outer = value.producer()
    inner = None if outer is None or outer.op_type != "Squeeze" else _producer(outer.inputs[0])
    return inner.inputs[0] if inner is not None and inner.op_type == "Unsqueeze" and inner.inputs[0] else value


def _producer(value: ir.Value | None) -> ir.Node | None:
    return None if value is None else value.producer()


def _longest(w: Writer, lengths: ir.Value) -> ir.Value:
    return w.cast(w.op("ReduceMax", lengths, keepdims=1), "int64")


def _until(w: Writer, x: ir.Value, stop: ir.Value) -> ir.Value:
    return w.op("Slice", x, w.constant([0]), stop, w.constant([0]))


def _scalar(w: Writer, value: float, like: ir.Value) -> ir.Value:
    return w.constant(np.asarray(value, "float32" if like.dtype is None else like.dtype.numpy()))
