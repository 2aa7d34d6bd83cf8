"""Flax layers to ONNX, for both APIs: one fused node per layer, and Flax's own rules of order, padding and final carry.

With `seq_lengths` Flax keeps computing on the padding, flips each sequence within its length and then the padding
behind it, and takes the final carry at step length - 1 (length 0: the last step). ONNX zero-fills instead, so the
outputs come from a node without lengths; GRU and RNN states are picked from those outputs, and LSTM states from a
second node that has lengths and shares the weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bridge.cell import Cell
from bridge.errors import BadInput, Unsupported, UsageError
from bridge.frameworks.door import ExportOptions
from bridge.frameworks.flax_layers import Direction, Layer, reversed_in_time
from bridge.frameworks.flax_lengths import Lengths
from bridge.frameworks.metadata import metadata_of

if TYPE_CHECKING:
    import onnx_ir as ir

    from bridge.graph.writer import Writer

States = list[Any]
"""Values of one direction: h [N, H], and c where it has one."""

PADDING_NOTE = (
    "outputs beyond a sequence's length are computed on the padding, as Flax does; "
    "an LSTM's final states come from a second node that shares the weights"
)


def export_layers(layers: Sequence[Layer], source: str, options: ExportOptions) -> ir.Model:
    """The ONNX model of `layers`, one after another. `source` names the module class ("flax.nnx.RNN").

    Raises:
        Unsupported: lengths for a bare cell, layers that disagree about the time axis, or a carry inside a stack.
    """
    import flax

    from bridge.graph import Writer

    _check_stack(layers, options)
    first, last = layers[0], layers[-1]
    dtype = first.directions[0].body.dtype.name
    w = Writer(opset=options.opset, dtype=dtype)
    features = first.directions[0].input_shape
    x = w.input("input", dtype, [*_leading(first), *features])
    lengths = Lengths(w, w.input("lengths", "int32", ["batch"])) if options.lengths else None
    x = _time_first(w, first, x)
    finals: list[tuple[Layer, list[States]]] = []
    for layer in layers:
        states = _state_inputs(w, layer, "" if len(layers) == 1 else f"{layer.path}.", options)
        x, final = write_layer(w, layer, x, lengths, states, options)
        finals.append((layer, final))
    if not last.is_step:
        w.output(_framework_order(w, last, x), "output", dtype, [*_leading(last), *_output_shape(last)])
    for layer, final in finals:
        if len(layers) == 1 or options.states == "inputs" or layer.return_carry:
            _write_states(w, layer, final, "" if len(layers) == 1 else f"{layer.path}.")
    return w.model(metadata_of(source, flax.__version__, [PADDING_NOTE] if options.lengths else []))


def _check_stack(layers: Sequence[Layer], options: ExportOptions) -> None:
    first = layers[0]
    _check_options(first, options)
    if options.lengths and first.is_step:
        raise Unsupported("a bare cell runs one step and takes no lengths", where=first.path, do="export nnx.RNN(cell)")
    if len(layers) > 1 and any(layer.is_step for layer in layers):
        raise Unsupported("a bare cell inside a Sequential", where=first.path, do="wrap each cell in RNN")
    if len({layer.time_major for layer in layers}) > 1:
        raise Unsupported("the layers disagree about time_major", where=first.path, do="make them agree")
    if len({each.body.dtype for layer in layers for each in layer.directions}) > 1:
        raise Unsupported("the layers compute in different dtypes", where=first.path, do="cast them to one")
    for layer in layers[:-1]:
        if layer.return_carry:
            raise Unsupported("return_carry inside a Sequential hands a tuple to the next layer", where=layer.path,
                              do="leave return_carry to the last layer")  # fmt: skip


def _check_options(first: Layer, options: ExportOptions) -> None:
    if options.custom_objects:
        raise UsageError("custom_objects names classes of a Keras file", where=first.path, do="leave it out")
    if options.dynamic is not None:
        raise Unsupported("`dynamic` is for whole models; batch and time of a recurrent layer are always symbolic",
                          where=first.path, do="leave dynamic out")  # fmt: skip
    if options.example is None:
        return
    listed = list(options.example.values()) if isinstance(options.example, Mapping) else options.example
    x = listed[0] if isinstance(listed, (tuple, list)) and listed else listed
    shape, features = tuple(getattr(x, "shape", ())), first.directions[0].input_shape
    rank = len(_leading(first)) + len(features)
    if len(shape) != rank or shape[-1] != features[-1]:
        raise BadInput("the example does not fit the module", where=first.path, got=list(shape),
                       expected=f"{rank} axes, the last of {features[-1]}")  # fmt: skip


def _leading(layer: Layer) -> list[str]:
    if layer.is_step:
        return ["batch"]
    return ["time", "batch"] if layer.time_major else ["batch", "time"]


def _output_shape(layer: Layer) -> tuple[int | str, ...]:
    return (*layer.directions[0].state_shape[:-1], sum(each.width for each in layer.directions))


def _swap(rank: int) -> list[int]:
    return [1, 0, *range(2, rank)]


def _time_first(w: Writer, layer: Layer, x: ir.Value) -> ir.Value:
    if layer.is_step:
        return w.unsqueeze(x, 0)
    return x if layer.time_major else w.transpose(x, _swap(layer.feature_rank + 2))


def _framework_order(w: Writer, layer: Layer, y: ir.Value) -> ir.Value:
    return y if layer.time_major else w.transpose(y, _swap(layer.feature_rank + 2))


def _suffixes(layer: Layer) -> tuple[str, ...]:
    return ("_forward", "_backward") if layer.is_bidirectional else ("",)


def _state_inputs(w: Writer, layer: Layer, prefix: str, options: ExportOptions) -> list[States | None]:
    if options.states == "zero":
        return [None] * len(layer.directions)
    return [
        [
            w.input(f"{prefix}initial_{name}{suffix}", each.body.dtype.name, ["batch", *each.state_shape])
            for name in each.states
        ]
        for each, suffix in zip(layer.directions, _suffixes(layer), strict=True)
    ]


def _write_states(w: Writer, layer: Layer, final: Sequence[States], prefix: str) -> None:
    for each, states, suffix in zip(layer.directions, final, _suffixes(layer), strict=True):
        for name, value in zip(each.states, states, strict=True):
            shape = ["batch", *each.state_shape]
            w.output(value, f"{prefix}{name}_n{suffix}", each.body.dtype.name, shape)


def write_layer(
    w: Writer, layer: Layer, x: ir.Value, lengths: Lengths | None, states: Sequence[States | None],
    options: ExportOptions,
) -> tuple[ir.Value, list[States]]:  # fmt: skip
    """Write `layer` on x [T, N, ...]: its output [T, N, ...] in its own order of time, the final states per direction.

    `states` are the initial states [N, ...] of each direction, h first; None for zeros or the cell's own constants.
    """
    joined = layer.joined()
    if joined is not None and lengths is None:
        return _write_pair(w, layer, joined, x, states, options)
    if not layer.is_bidirectional:
        y, final = _write_direction(
            w, layer.directions[0], x, lengths, states[0], options, reverse=layer.reverse, keep_order=layer.keep_order
        )
        return y, [final]
    forward, backward = layer.directions
    y_forward, final_forward = _write_direction(w, forward, x, lengths, states[0], options)
    y_backward, final_backward = _write_direction(
        w, backward, x, lengths, states[1], options, reverse=True, keep_order=True
    )
    return w.concat([y_forward, y_backward], -1), [final_forward, final_backward]


def write_counted(
    w: Writer, layer: Layer, x: ir.Value, lengths: ir.Value, states: Sequence[States | None], options: ExportOptions
) -> tuple[ir.Value, list[States]]:
    """`write_layer` with lengths int32 [N] as the operator has them: zeros beyond, and in the end of an empty sequence.

    For layers whose directions are one operator, in the order of time.
    """
    pair, only = layer.joined(), layer.directions[0]
    if pair is not None:
        return _write_pair(w, layer, pair, x, states, options, lengths=lengths)
    if not isinstance(only.body, Cell):
        raise Unsupported("lengths of a recurrence that is no operator", where=layer.path)
    cell = reversed_in_time(only.body) if layer.reverse else only.body
    y, finals = _lone_node(w, cell, x, only.path, only.kind, states[0], options, lengths=lengths)
    return y, [finals]


def _write_pair(
    w: Writer, layer: Layer, cell: Cell, x: ir.Value, states: Sequence[States | None], options: ExportOptions,
    **initial: Any,
) -> tuple[ir.Value, list[States]]:  # fmt: skip
    from bridge.graph import sequences

    if states[0] is not None and states[1] is not None:
        pairs = zip(layer.directions[0].states, states[0], states[1], strict=True)
        initial |= {f"initial_{name}": w.concat([w.unsqueeze(each, 0) for each in both], 0) for name, *both in pairs}
    y, *finals = _node(w, cell, x, layer.path, layer.directions[0].kind, options, **initial)
    per_direction = [[w.take(final, at, 0) for final in finals if final is not None] for at in (0, 1)]
    return sequences.merge_directions(w, y), per_direction


def _write_direction(
    w: Writer, direction: Direction, x: ir.Value, lengths: Lengths | None, states: States | None,
    options: ExportOptions, *, reverse: bool = False, keep_order: bool = False,
) -> tuple[ir.Value, States]:  # fmt: skip
    from bridge.graph import sequences

    body = direction.body
    if not isinstance(body, Cell):
        return body.write(w, x, states, direction.path, lengths, reverse, keep_order)
    if lengths is not None:
        return _write_with_lengths(w, direction, body, x, lengths, states, options, reverse, keep_order)
    cell = reversed_in_time(body) if reverse else body
    y, finals = _lone_node(w, cell, x, direction.path, direction.kind, states, options)
    return (sequences.flip(w, y, 0) if reverse and not keep_order else y), finals


def _write_with_lengths(
    w: Writer, direction: Direction, cell: Cell, x: ir.Value, lengths: Lengths, states: States | None,
    options: ExportOptions, reverse: bool, keep_order: bool,
) -> tuple[ir.Value, States]:  # fmt: skip
    """The outputs on the padding too, and the states at length - 1."""
    x = lengths.flip(x) if reverse else x
    y, finals = _lone_node(w, cell, x, direction.path, direction.kind, states, options)
    if cell.op == "LSTM":
        last = {"lengths": lengths.at_least_one(x)}
        _, finals = _lone_node(w, cell, x, f"{direction.path}.final", direction.kind, states, options, **last)
    else:
        finals = [lengths.gather_last(y)]
    return (lengths.flip(y) if reverse and keep_order else y), finals


def _lone_node(
    w: Writer, cell: Cell, x: ir.Value, name: str, kind: str, states: States | None, options: ExportOptions,
    **lengths: Any,
) -> tuple[ir.Value, States]:  # fmt: skip
    names = ("initial_h", "initial_c")
    initial = {} if states is None else {n: w.unsqueeze(v, 0) for n, v in zip(names, states, strict=False)}
    y, *finals = _node(w, cell, x, name, kind, options, **initial, **lengths)
    return w.squeeze(y, 1), [w.squeeze(final, 0) for final in finals if final is not None]


def _node(w: Writer, cell: Cell, x: ir.Value, name: str, kind: str, options: ExportOptions, **inputs: Any) -> Any:
    metadata = {"bridge.path": name, "bridge.layout": kind}
    return w.recurrent(cell, x, name=name, form=options.form, metadata=metadata, **inputs)
