"""A whole Keras model run by Keras itself, with inputs, outputs and exposed states by the names of its export."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from bridge.errors import BadInput
from bridge.frameworks import keras_graph
from bridge.frameworks.keras_execute import twin
from bridge.frameworks.keras_export import final_name
from bridge.frameworks.keras_read import Layer, read_layers
from bridge.frameworks.keras_whole.calls import masks_may_end, open_sizes, replaced
from bridge.frameworks.keras_whole.inputs import is_functional, outputs_of


def execute_whole(model: Any, feeds: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Run `model` in inference mode. Layers whose states are among `feeds`, and stateful ones, begin from those.

    The model is left as it is: states of a stateful layer are neither used nor changed.

    Raises:
        BadInput: inputs that are missing or unexpected.
    """
    states = {name: value for name, value in feeds.items() if name.rpartition(".")[2].startswith("initial_")}
    args, kwargs = _arguments(model, {name: value for name, value in feeds.items() if name not in states})
    finals: dict[str, Any] = {}
    calls = []
    for path, layer in keras_graph.recurrent_layers(model):
        if not states and not layer.stateful:
            continue
        layers = read_layers(layer, path)
        names = [f"{part.name}.initial_{name}" for part in layers for name in part.state_names]
        if layers[0].stateful or any(name in states for name in names):
            if missing := [name for name in names if name not in states]:
                raise BadInput("the inputs do not match", where=model.name, got=f"missing {missing}",
                               expected=f"{names}")  # fmt: skip
            calls.append((layer, _stepping(layer, layers, [states.pop(name) for name in names], finals)))
    if states:
        raise BadInput("the inputs do not match", where=model.name, got=f"unexpected {list(states)}")
    with replaced(calls), open_sizes(model), masks_may_end():
        outputs = outputs_of(model, model(*args, **kwargs))
    return outputs | finals


def _arguments(model: Any, feeds: Mapping[str, np.ndarray]) -> tuple[list[Any], dict[str, Any]]:
    """What the model is called with, nested as it wants it."""
    import keras

    tensors = {name: keras.ops.convert_to_tensor(np.asarray(value)) for name, value in feeds.items()}
    names = keras_graph.input_names(model) if is_functional(model) else list(inspect.signature(model.call).parameters)
    if not is_functional(model):
        found = {name: _nested(name, tensors) for name in names}
        kwargs = {name: value for name, value in found.items() if value is not None}
        if tensors:
            raise BadInput("the inputs do not match", where=model.name, got=f"unexpected {list(tensors)}",
                           expected=f"{names}")  # fmt: skip
        first = names[0] if names else ""
        return [kwargs.pop(first)] if first in kwargs else [], kwargs
    if set(names) != set(tensors):
        raise BadInput("the inputs do not match", where=model.name, got=f"{list(tensors)}", expected=f"{names}")
    structure = keras_graph.functional_of(model)._inputs_struct  # noqa: SLF001 (how the model takes them)
    return [keras.tree.pack_sequence_as(structure, [tensors[name] for name in names])], {}


def _nested(name: str, tensors: dict[str, Any]) -> Any:
    """The argument `name`: a tensor, or a list or dict of those called `name_0` or `name_key`; None without any."""
    if name in tensors:
        return tensors.pop(name)
    inside = {key.removeprefix(f"{name}_"): key for key in list(tensors) if key.startswith(f"{name}_")}
    values = {key: tensors.pop(full) for key, full in inside.items()}
    if values and all(key.isdigit() for key in values):
        return [values[key] for key in sorted(values, key=int)]
    return values or None


def _stepping(
    layer: Any, layers: Sequence[Layer], states: Sequence[np.ndarray], finals: dict[str, Any]
) -> Callable[..., Any]:
    """A call of `layer` that begins from `states` where the model gives none, and notes its final states."""
    import keras

    def call(sequences: Any, initial_state: Any = None, mask: Any = None, training: Any = False) -> Any:
        if initial_state is not None:
            return type(layer).call(layer, sequences, initial_state=initial_state, mask=mask, training=training)
        copy = twin(layer, layers[0])
        given: Any = [keras.ops.convert_to_tensor(state) for state in states]
        if len(layers) > 1:
            given = keras.tree.pack_sequence_as(copy.cell.state_size, given)
        result = copy(sequences, initial_state=given, mask=mask)
        flat = keras.tree.flatten(result)
        names = [f"{part.name}.{final_name(name)}" for part in layers for name in part.state_names]
        finals.update(zip(names, flat[-len(names) :], strict=True))
        outputs = flat[: -len(names)]
        if layers[0].return_state:
            return result
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    return call
