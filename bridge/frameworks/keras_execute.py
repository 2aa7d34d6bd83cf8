"""Keras' own forward pass, with inputs and outputs named as the export names them. Nothing here computes anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bridge.errors import BadInput
from bridge.frameworks import keras_graph
from bridge.frameworks.keras_export import call_arguments, final_name, input_shape, nested_outputs
from bridge.frameworks.keras_read import Layer, is_cell, is_recurrent, keras_array, read_layer
from bridge.frameworks.keras_whole.calls import masks_may_end, open_sizes
from bridge.frameworks.keras_write import Written


def execute(source: Any, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run `source` on numpy arrays; which lengths and states there are is read off `feeds`.

    The source is left as it is: states of a stateful layer are neither used nor changed.

    Raises:
        BadInput: inputs that are missing or unexpected.
    """
    import keras

    if isinstance(source, keras.Model) and not keras_graph.only_recurrent(source):
        from bridge.frameworks.keras_whole.execute import execute_whole

        found = execute_whole(source, feeds)
    elif isinstance(source, keras.Model):
        found = _execute_model(source, feeds)
    elif is_cell(source):
        found = _execute_cell(source, feeds)
    else:
        found = _execute_layer(source, feeds)
    return {name: keras_array(value) for name, value in found.items()}


def execute_imported(model: Any, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run a model that bridge imported, inputs and outputs named as in its graph."""
    outputs = model(**feeds)
    values = outputs if isinstance(outputs, tuple) else (outputs,)
    return {name: keras_array(value) for name, value in zip(model.output_names, values, strict=True)}


def _check_names(feeds: Mapping[str, np.ndarray], required: Sequence[str], optional: Sequence[str], where: str) -> None:
    missing = [name for name in required if name not in feeds]
    unexpected = [name for name in feeds if name not in (*required, *optional)]
    if missing or unexpected:
        raise BadInput("the inputs do not match", where=where,
                       got=f"missing {missing}, unexpected {unexpected}", expected=f"{list(required)}")  # fmt: skip


def _states(layer: Layer, feeds: Mapping[str, np.ndarray], prefix: str = "") -> list[np.ndarray] | None:
    names = [f"{prefix}initial_{name}" for name in layer.state_names]
    present = [name for name in names if name in feeds]
    if not present and not layer.stateful:
        return None
    _check_names({name: feeds[name] for name in present}, names, (), layer.name)
    return [np.asarray(feeds[name]) for name in names]


def _mask(lengths: np.ndarray, time: int) -> np.ndarray:
    return np.arange(time)[None, :] < np.asarray(lengths)[:, None]


def twin(source: Any, layer: Layer) -> Any:
    """A layer of the same class and weights that returns its states and keeps none of its own."""
    config = source.get_config()
    halves = [config[key]["config"] for key in ("layer", "backward_layer") if key in config]
    for part in halves or [config]:
        part.update(return_state=True, stateful=False)
    copy = type(source).from_config(config)
    copy.build((None, None, *input_shape(layer)))
    for variable, value in zip(copy.weights, source.weights, strict=True):
        variable.assign(value)
    return copy


def _arguments(states: Sequence[Any] | None, mask: Any) -> dict[str, Any]:
    import keras

    found: dict[str, Any] = {}
    if states is not None:
        found["initial_state"] = [keras.ops.convert_to_tensor(state) for state in states]
    if mask is not None:
        found["mask"] = keras.ops.convert_to_tensor(mask)
    return found


def _split_outputs(layer: Layer, values: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    count = len(values) - len(layer.state_names)
    return list(values[:count]), list(values[count:])


def _execute_layer(source: Any, feeds: Mapping[str, np.ndarray]) -> dict[str, Any]:
    import keras

    layer = read_layer(source)
    states = _states(layer, feeds)
    _check_names(feeds, ["input"], ["lengths", *(f"initial_{name}" for name in layer.state_names)], layer.name)
    x = np.asarray(feeds["input"])
    mask = _mask(feeds["lengths"], x.shape[1]) if "lengths" in feeds else None
    values = keras.tree.flatten(twin(source, layer)(keras.ops.convert_to_tensor(x), **_arguments(states, mask)))
    outputs, finals = _split_outputs(layer, values)
    return dict(zip(("output", "output_backward"), outputs, strict=False)) | dict(
        zip(map(final_name, layer.state_names), finals, strict=True)
    )


def _execute_cell(source: Any, feeds: Mapping[str, np.ndarray]) -> dict[str, Any]:
    import keras

    layer = read_layer(source)
    _check_names(feeds, ["input"], [f"initial_{name}" for name in layer.state_names], layer.name)
    x = keras.ops.convert_to_tensor(np.asarray(feeds["input"]))
    states = _states(layer, feeds)
    if states is None:
        initial = source.get_initial_state(batch_size=int(x.shape[0]))
    else:
        initial = [keras.ops.convert_to_tensor(state) for state in states]
    _, finals = source(x, initial if isinstance(initial, list) else [initial])
    return dict(zip(map(final_name, layer.state_names), keras.tree.flatten(finals), strict=True))


def _execute_model(model: Any, feeds: Mapping[str, np.ndarray]) -> dict[str, Any]:
    import keras

    names = keras_graph.input_names(model)
    tensors = keras_graph.functional_of(model).inputs
    layers = [read_layer(layer, path) for path, layer in keras_graph.recurrent_layers(model)]
    lengths = {name: label for name, tensor in zip(names, tensors, strict=True) if len(tensor.shape) > 2
               for label in (f"{name}.lengths", "lengths") if label in feeds}  # fmt: skip
    states = [f"{layer.name}.initial_{name}" for layer in layers for name in layer.state_names]
    _check_names(feeds, names, [*lengths.values(), *states], model.name)
    inputs = [keras.ops.convert_to_tensor(np.asarray(feeds[name])) for name in names]
    masks = [keras.ops.convert_to_tensor(_mask(feeds[lengths[name]], value.shape[1])) if name in lengths else None
             for name, value in zip(names, inputs, strict=True)]  # fmt: skip
    labels = keras_graph.output_names(model)
    if any(layer.stateful for layer in layers) or any(name in feeds for name in states):
        return _execute_exposed(model, feeds, inputs, masks, labels)
    given = {"mask": masks if len(masks) > 1 else masks[0]} if lengths else {}
    structure = keras_graph.functional_of(model)._inputs_struct  # noqa: SLF001 (a model may want a dict or nested lists)
    with open_sizes(model), masks_may_end():
        outputs = model(keras.tree.pack_sequence_as(structure, inputs), training=False, **given)
    return dict(zip(labels, keras.tree.flatten(outputs), strict=True))


def _execute_exposed(
    model: Any, feeds: Mapping[str, np.ndarray], inputs: list[Any], masks: list[Any], labels: list[str]
) -> dict[str, Any]:
    """Layer by layer: Keras has no call that gives a model states and takes them back."""
    import keras

    finals: dict[str, Any] = {}
    mask_of = {id(value): mask for value, mask in zip(inputs, masks, strict=True)}
    kept = list(inputs)  # so that no id is used twice

    def call(operation: Any, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not is_recurrent(operation):
            kept.append(result := operation(*args, **kwargs))
            mask_of[id(result)] = mask_of.get(id(args[0]))
            return result
        layer = read_layer(operation, path)
        sequence, initial = call_arguments(path, args, kwargs)
        mask = mask_of.get(id(sequence))
        exposed = initial is None
        states = _states(layer, feeds, f"{path}.") if exposed else initial
        arguments = _arguments(states, mask if exposed else None)
        values = keras.tree.flatten(twin(operation, layer)(sequence, **arguments))
        outputs, final = _split_outputs(layer, values)
        if exposed:
            finals.update(
                {f"{path}.{name}": value for name, value in zip(map(final_name, layer.state_names), final, strict=True)}
            )
        if layer.sequences:
            kept.extend(outputs)
            mask_of.update({id(output): mask for output in outputs})
        return nested_outputs(layer, outputs, Written((), tuple(final)))

    outputs = keras_graph.walk(model, inputs, call)
    return dict(zip(labels, outputs, strict=True)) | finals
