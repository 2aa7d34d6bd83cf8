"""Write a Stack as an ONNX graph: one fused node a layer, and the few nodes that torch's axis order needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bridge.errors import BadInput, Unsupported, UsageError
from bridge.frameworks.door import ExportOptions
from bridge.frameworks.metadata import metadata_of
from bridge.frameworks.projection import write_projected
from bridge.frameworks.stack import Layer, Stack

if TYPE_CHECKING:
    import onnx_ir as ir

    from bridge.graph import Writer
    from bridge.graph.recurrent import Form


def export_stack(stack: Stack, options: ExportOptions) -> ir.Model:
    """The ONNX model of `stack`.

    Inputs `input`[, `lengths`][, `initial_h`][, `initial_c`], outputs `output`, `h_n`[, `c_n`] as torch arranges
    them; a one-step module has no `output` and no time axis.

    Raises:
        UsageError: options that this kind of source does not have.
        BadInput: an `example` that does not fit the module.
    """
    from bridge.graph import Writer

    _check_options(stack, options)
    w = Writer(opset=options.opset, dtype=stack.layers[0].cell.dtype.name, name=stack.source)
    if stack.one_step:
        _write_step(w, stack, options)
    else:
        _write_sequence(w, stack, options)
    return w.model(metadata_of(stack.source, stack.version, stack.notes))


def _write_sequence(w: Writer, stack: Stack, options: ExportOptions) -> None:
    dtype, first = stack.layers[0].cell.dtype.name, stack.layers[0].cell
    axes = ("batch", "time") if stack.batch_first else ("time", "batch")
    x: Any = w.input("input", dtype, (*axes, first.input_size))
    lengths = w.input("lengths", "int32", ("batch",)) if options.lengths else None
    initial = _state_inputs(w, stack, options)
    if stack.batch_first:
        x = w.transpose(x, (1, 0, 2))
    y, finals = write_layers(w, stack, x, lengths, initial, options.form, batch_first=stack.batch_first)
    top = stack.layers[-1]
    w.output(y, "output", dtype, (*axes, top.state_size * top.cell.num_directions))
    for name, value in finals.items():
        w.output(value, f"{name}_n", dtype, state_shape(stack, name))


def write_layers(
    w: Writer, stack: Stack, x: ir.Value, lengths: ir.Value | None, initial: Mapping[str, ir.Value], form: Form, *,
    batch_first: bool = False,
) -> tuple[ir.Value, dict[str, ir.Value]]:  # fmt: skip
    """Write every layer over x [T,N,I]: the output [T,N,D*H] ([N,T,D*H] with `batch_first`) and the final states.

    Args:
        w: the Writer.
        stack: the layers.
        x: of the cells' dtype.
        lengths: int32 [N], or None.
        initial: "h" and "c" as torch stacks them, [layers * D, N, size]; one that is missing is zeros.
        form: "fused" or "scan".
        batch_first: of the output.
    """
    from bridge.graph.sequences import merge_directions

    parts = {name: _cut(w, stack, value) for name, value in initial.items()}
    finals: dict[str, list[ir.Value]] = {name: [] for name in state_names(stack)}
    for at, layer in enumerate(stack.layers):
        own = {name: values[at] for name, values in parts.items()}
        y, *states = write_layer(w, layer, x, lengths, own, form)
        for name, state in zip("hc", states, strict=True):
            if state is not None:
                finals[name].append(state)
        x = merge_directions(w, y, batch_first=batch_first and at == len(stack.layers) - 1)
    return x, {name: w.concat(values, 0) for name, values in finals.items()}


def _write_step(w: Writer, stack: Stack, options: ExportOptions) -> None:
    (layer,) = stack.layers
    cell = layer.cell
    x = w.input("input", cell.dtype.name, ("batch", cell.input_size))
    own = {}
    if options.states == "inputs":
        for name in state_names(stack):
            state = w.input(f"initial_{name}", cell.dtype.name, ("batch", cell.hidden_size))
            own[name] = w.unsqueeze(state, 0)
    _, *finals = write_layer(w, layer, w.unsqueeze(x, 0), None, own, options.form)
    for name, final in zip("hc", finals, strict=True):
        if final is not None:
            w.output(w.squeeze(final, 0), f"{name}_n", cell.dtype.name, ("batch", cell.hidden_size))


def write_layer(
    w: Writer, layer: Layer, x: ir.Value, lengths: ir.Value | None, own: Mapping[str, ir.Value], form: Form
) -> tuple[ir.Value, ir.Value, ir.Value | None]:
    """Write one layer over x [T,N,I] from the states "h" and "c" [D,N,size]: Y [T,D,N,H], Y_h and Y_c [D,N,size]."""
    if layer.projection is not None:
        return write_projected(w, layer, x, lengths, own.get("h"), own.get("c"))
    return w.recurrent(layer.cell, x, lengths=lengths, initial_h=own.get("h"), initial_c=own.get("c"),
                       name=layer.name, form=form)  # fmt: skip


def _state_inputs(w: Writer, stack: Stack, options: ExportOptions) -> dict[str, ir.Value]:
    """The initial states, as torch stacks them."""
    if options.states == "zero":
        return {}
    dtype = stack.layers[0].cell.dtype.name
    return {name: w.input(f"initial_{name}", dtype, state_shape(stack, name)) for name in state_names(stack)}


def _cut(w: Writer, stack: Stack, value: ir.Value) -> list[ir.Value]:
    """The states of each layer, cut from torch's [layers * D, N, size]."""
    count, directions = len(stack.layers), stack.layers[0].cell.num_directions
    if count == 1:
        return [value]
    return list(w.op("Split", value, w.constant([directions] * count), outputs=count, axis=0))


def state_names(stack: Stack) -> tuple[str, ...]:
    """The states of the stack's operator: "h", and "c" for LSTM."""
    return ("h", "c") if stack.layers[0].cell.op == "LSTM" else ("h",)


def state_shape(stack: Stack, name: str, batch: Any = "batch") -> tuple[Any, ...]:
    """The shape of a state as torch stacks it."""
    first = stack.layers[0]
    size = first.state_size if name == "h" else first.cell.hidden_size
    return (len(stack.layers) * first.cell.num_directions, batch, size)


def _check_options(stack: Stack, options: ExportOptions) -> None:
    if stack.one_step and options.lengths:
        raise UsageError("one step has no lengths", where=stack.source, do="leave lengths out")
    if options.custom_objects:
        raise UsageError("custom_objects names classes of a Keras file", where=stack.source, do="leave it out")
    if options.dynamic is not None:
        raise Unsupported("`dynamic` is for whole models; batch and time of a recurrent layer are always symbolic",
                          where=stack.source, do="leave dynamic out")  # fmt: skip
    if options.example is not None:
        _check_example(stack, options.example)


def _check_example(stack: Stack, example: object) -> None:
    values = list(example.values()) if isinstance(example, dict) else example
    first = values[0] if isinstance(values, (tuple, list)) and values else values
    shape, rank = tuple(getattr(first, "shape", ())), 2 if stack.one_step else 3
    if len(shape) != rank or shape[-1] != stack.layers[0].cell.input_size:
        raise BadInput("the example does not fit the module", where=stack.source, got=list(shape),
                       expected=f"{rank} axes, the last of {stack.layers[0].cell.input_size}")  # fmt: skip
