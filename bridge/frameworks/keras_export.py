"""Keras layers and models made of recurrent layers, written as ONNX."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bridge.errors import Unsupported, UsageError
from bridge.frameworks import keras_graph
from bridge.frameworks.keras_read import Layer, is_cell, is_recurrent, read_layer
from bridge.frameworks.keras_series import Mask, Series
from bridge.frameworks.keras_write import Written, write_layer
from bridge.frameworks.metadata import metadata_of

if TYPE_CHECKING:
    import onnx_ir as ir

    from bridge.frameworks.door import ExportOptions
    from bridge.graph import Writer


def export(source: Any, options: ExportOptions) -> ir.Model:
    """A recurrent layer, a cell, or a model.

    Raises:
        BadInput: not built.
        UsageError: a subclassed model without an example.
        Unsupported: a layer, or an option of one, that is not carried.
    """
    import keras

    if isinstance(source, keras.Model) and not keras_graph.only_recurrent(source):
        from bridge.frameworks.keras_whole.export import export_whole

        return export_whole(source, options)
    if options.dynamic is not None:
        raise Unsupported("recurrent Keras layers export with symbolic batch and time; `dynamic` cannot change that",
                          where="to_onnx", do="leave `dynamic` out")  # fmt: skip
    if isinstance(source, keras.Model):
        return ModelExport(source, options).model()
    if is_cell(source):
        return _export_cell(source, options)
    return _export_layer(source, options)


def _writer(options: ExportOptions, dtype: str, name: str) -> Writer:
    from bridge.graph import Writer

    return Writer(options.opset, dtype, name)


def _metadata(source: Any, notes: Sequence[str]) -> dict[str, str]:
    import keras

    kind = "keras.Model" if isinstance(source, keras.Model) else f"keras.layers.{type(source).__name__}"
    return metadata_of(kind, keras.__version__, notes)


def _dtype(layer: Layer) -> str:
    return str(layer.directions[0].keras_cell.variable_dtype)


def input_shape(layer: Layer) -> tuple[int, ...]:
    """The axes of a step of the layer's input after batch and time."""
    cell = layer.directions[0].keras_cell
    if layer.directions[0].convolutional:
        sizes = tuple(int(size) for size in cell.spatial_dims)
        inputs = int(cell.input_dim)
        return (*sizes, inputs) if cell.data_format == "channels_last" else (inputs, *sizes)
    return (int(cell.kernel.shape[0]),)


def state_shapes(layer: Layer) -> list[tuple[int, ...]]:
    """The axes of each state after batch, in Keras' order."""
    shapes = []
    for direction in layer.directions:
        cell = direction.keras_cell
        if direction.convolutional:
            shape = tuple(int(size) for size in cell.compute_output_shape((None, *input_shape(layer)))[0][1:])
        else:
            shape = (int(cell.units),)
        shapes += [shape] * direction.num_states
    return shapes


def state_inputs(w: Writer, layer: Layer, prefix: str = "") -> list[ir.Value]:
    """New graph inputs for the initial states of `layer`, in Keras' order and axes."""
    dtype = _dtype(layer)
    return [w.input(f"{prefix}initial_{name}", dtype, ["batch", *shape])
            for name, shape in zip(layer.state_names, state_shapes(layer), strict=True)]  # fmt: skip


def _export_layer(source: Any, options: ExportOptions) -> ir.Model:
    layer = read_layer(source)
    dtype, shape = _dtype(layer), input_shape(layer)
    w = _writer(options, dtype, layer.name)
    rank = 2 + len(shape)
    value = w.input("input", dtype, ["batch", "time", *shape])
    mask = Mask(w, w.input("lengths", "int32", ["batch"])) if options.lengths else None
    initial = state_inputs(w, layer) if options.states == "inputs" or layer.stateful else None
    written = write_layer(w, layer, Series.of(w, value, tuple(range(rank))), initial, mask, options.form)
    for name, output in zip(("output", "output_backward"), written.outputs, strict=False):
        w.output(_batch_major(output), name, dtype)
    for name, state in zip(layer.state_names, written.states, strict=True):
        w.output(state, final_name(name), dtype)
    return w.model(_metadata(source, layer.notes))


def final_name(state: str) -> str:
    """The name of the final state that goes with a state: `h_n` for "h", `h_n_forward` for "h_forward"."""
    return f"{state[0]}_n{state[1:]}"


def _batch_major(output: Series | ir.Value) -> ir.Value:
    return output.batch_major if isinstance(output, Series) else output


def _export_cell(source: Any, options: ExportOptions) -> ir.Model:
    if options.lengths:
        raise UsageError("a cell is one step and has no lengths", where=source.name)
    layer = read_layer(source)
    dtype = _dtype(layer)
    w = _writer(options, dtype, layer.name)
    value = w.input("input", dtype, ["batch", *input_shape(layer)])
    initial = state_inputs(w, layer) if options.states == "inputs" else None
    step = Series.of(w, w.unsqueeze(value, 0), (1, 0, 2))
    written = write_layer(w, layer, step, initial, None, options.form)
    for name, state in zip(layer.state_names, written.states, strict=True):
        w.output(state, final_name(name), dtype)
    return w.model(_metadata(source, layer.notes))


class ModelExport:
    """One model on its way to ONNX: its layers are written in the order in which Keras runs them."""

    def __init__(self, source: Any, options: ExportOptions) -> None:
        self._source, self._options = source, options
        self._graph = keras_graph.functional_of(source)
        floats = [str(tensor.dtype) for tensor in self._graph.inputs if str(tensor.dtype).startswith("float")]
        self._w = _writer(options, floats[0] if floats else "float32", source.name)
        self._notes: list[str] = []
        self._states: list[tuple[str, ir.Value]] = []

    def model(self) -> ir.Model:
        """The whole model."""
        values = self._inputs()
        outputs = keras_graph.walk(self._source, values, self._call)
        for name, output in zip(keras_graph.output_names(self._source), outputs, strict=True):
            self._w.output(_batch_major(output), name)
        for name, state in self._states:
            self._w.output(state, name)
        return self._w.model(_metadata(self._source, self._notes))

    def _inputs(self) -> list[Series | ir.Value]:
        w, values = self._w, list[Any]()
        sequences = [tensor for tensor in self._graph.inputs if len(tensor.shape) > 2]
        for name, tensor in zip(keras_graph.input_names(self._source), self._graph.inputs, strict=True):
            dims = list(tensor.shape)
            symbols = ["batch", "time" if len(sequences) < 2 else f"{name}.time"][: min(2, len(dims) - 1)]
            value = w.input(name, str(tensor.dtype), [*symbols, *dims[len(symbols) :]])
            values.append(Series.of(w, value, tuple(range(len(dims)))) if len(dims) > 2 else value)
        if not self._options.lengths:
            return values
        names = keras_graph.input_names(self._source)
        for at, (name, value) in enumerate(zip(names, values, strict=True)):
            if isinstance(value, Series):
                label = "lengths" if len(sequences) == 1 else f"{name}.lengths"
                values[at] = value.masked(Mask(w, w.input(label, "int32", ["batch"])))
        return values

    def _call(self, operation: Any, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if type(operation).__name__ in keras_graph.IDENTITIES and type(operation).__module__.startswith("keras."):
            _refuse_arguments(path, {name: value for name, value in kwargs.items() if name not in ("training", "mask")})
            _refuse_training(path, kwargs, dropout=True)
            self._notes.append(f"{path}: {type(operation).__name__} does nothing in inference")
            return args[0]
        if not is_recurrent(operation):
            raise Unsupported("only recurrent layers are carried here", where=path, got=type(operation).__name__,
                              do="export the recurrent layers of the model one by one")  # fmt: skip
        layer = read_layer(operation, path)
        sequence, initial = call_arguments(path, args, kwargs)
        _refuse_training(path, kwargs, dropout=bool(layer.notes))
        if not isinstance(sequence, Series):
            raise Unsupported("a recurrent layer over something that is no sequence", where=path)
        self._notes += layer.notes
        return self._write(layer, sequence, initial)

    def _write(self, layer: Layer, x: Series, initial: list[ir.Value] | None) -> Any:
        # Keras hands a layer that is called with states no implicit mask; its output carries the mask all the same.
        mask = x.mask if initial is None else None
        exposed = initial is None and (layer.stateful or self._options.states == "inputs")
        if exposed:
            initial = state_inputs(self._w, layer, f"{layer.name}.")
        written = write_layer(
            self._w, layer, x, initial, mask, self._options.form, states=exposed or layer.return_state
        )
        if exposed:
            self._states += [(f"{layer.name}.{final_name(name)}", state)
                             for name, state in zip(layer.state_names, written.states, strict=True)]  # fmt: skip
        outputs = [output.masked(x.mask) if isinstance(output, Series) else output for output in written.outputs]
        return nested_outputs(layer, outputs, written)


def nested_outputs(layer: Layer, outputs: Sequence[Any], written: Written) -> Any:
    """Outputs as the Keras layer returns them."""
    values = [*outputs, *(written.states if layer.return_state else ())]
    return values[0] if len(values) == 1 else tuple(values)


def call_arguments(path: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, list[Any] | None]:
    """The sequence and the initial states (flat) that a recurrent layer was called with.

    Raises:
        Unsupported: an explicit mask, or an argument that is not known.
    """
    import keras

    given = dict(zip(("sequences", "initial_state", "mask", "training"), args, strict=False)) | dict(kwargs)
    unknown = {name: value for name, value in given.items()
               if name not in ("sequences", "initial_state", "mask", "training")}  # fmt: skip
    _refuse_arguments(path, unknown)
    if any(value is not None for value in keras.tree.flatten(given.get("mask"))):
        raise Unsupported("a mask given in the call is not carried", where=path,
                          do="export with lengths=True instead")  # fmt: skip
    initial = given.get("initial_state")
    return given["sequences"], None if initial is None else list(keras.tree.flatten(initial))


def _refuse_arguments(path: str, unknown: Mapping[str, Any]) -> None:
    if unknown:
        raise Unsupported("an argument of the call is not carried", where=path, got=", ".join(unknown))


def _refuse_training(path: str, kwargs: Mapping[str, Any], dropout: bool) -> None:
    if kwargs.get("training") and dropout:
        raise Unsupported("called with training=True, so its dropout is active", where=path)
