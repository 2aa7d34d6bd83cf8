"""The graph of a Keras model made of recurrent layers: its inputs, its calls in order, the names of its outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from bridge.errors import BadInput, Unsupported
from bridge.frameworks.keras_read import is_recurrent

Call = Callable[[Any, str, tuple[Any, ...], dict[str, Any]], Any]
"""What stands in for a layer: (layer, path, positional and keyword arguments) -> outputs as the layer nests them."""


def functional_of(model: Any, where: str = "") -> Any:
    """The functional graph of a Sequential or functional model.

    Raises:
        BadInput: the model is not built.
        Unsupported: a subclassed model, whose graph is its Python code.
    """
    import keras

    where = where or model.name
    if isinstance(model, keras.Sequential):
        if not model.built or getattr(model, "_functional", None) is None:
            raise BadInput("the model is not built", where=where,
                           do="start it with keras.Input(shape), or call it once on data")  # fmt: skip
        return model._functional  # noqa: SLF001 (Sequential keeps its graph here since Keras 3.0)
    if type(model).__name__ != "Functional" or not hasattr(model, "_run_through_graph"):
        raise Unsupported("only Sequential and functional models have a graph that can be read", where=where,
                          got=type(model).__qualname__)  # fmt: skip
    return model


def walk(model: Any, values: Sequence[Any], call: Call, prefix: str = "") -> list[Any]:
    """Run `call` in the place of every layer, in the model's own order; the values of the model's outputs, flat.

    Models inside the model are walked too, their name before a dot. A layer's second call is `name:2`.
    """
    import keras

    functional = functional_of(model, prefix.rstrip("."))
    seen: dict[int, int] = {}

    def in_place_of(operation: Any) -> Callable[..., Any]:
        path = f"{prefix}{operation.name}"
        seen[id(operation)] = seen.get(id(operation), 0) + 1
        path = path if seen[id(operation)] == 1 else f"{path}:{seen[id(operation)]}"

        def replacement(*args: Any, **kwargs: Any) -> Any:
            if isinstance(operation, keras.Model):
                inner = keras.tree.flatten(args[0])
                outputs = walk(operation, inner, call, f"{path}.")
                return outputs[0] if len(outputs) == 1 else outputs
            return call(operation, path, args, kwargs)

        return replacement

    outputs = functional._run_through_graph(list(values), operation_fn=in_place_of)  # noqa: SLF001 (no public walk)
    return list(keras.tree.flatten(outputs))


def input_names(model: Any) -> list[str]:
    """The names that the model's inputs have."""
    return [str(tensor.name) for tensor in functional_of(model).inputs]


def output_names(model: Any) -> list[str]:
    """One name per output: the key where outputs are a dict, else the layer that makes it.

    The further outputs of one layer are called `layer.1`, `layer.2`: Keras itself gives them one name.
    """
    functional = functional_of(model)
    struct = getattr(functional, "_outputs_struct", None)
    if isinstance(struct, dict):
        return [str(key) for key in sorted(struct)]
    names: list[str] = []
    for name in functional.output_names:
        count = sum(1 for other in functional.output_names[: len(names)] if other == name)
        names.append(str(name) if count == 0 else f"{name}.{count}")
    return names


def recurrent_layers(source: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every recurrent layer inside a model, with its path, in the order in which Keras lists them."""
    import keras

    for layer in source.layers:
        if is_recurrent(layer):
            yield f"{prefix}{layer.name}", layer
        elif isinstance(layer, keras.Model):
            yield from recurrent_layers(layer, f"{prefix}{layer.name}.")
        elif isinstance(layer, keras.layers.Wrapper) and is_recurrent(layer.layer):
            yield f"{prefix}{layer.name}.{layer.layer.name}", layer.layer
