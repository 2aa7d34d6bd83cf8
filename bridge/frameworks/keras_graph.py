"""The graph of a Keras model made of recurrent layers: its inputs, its calls in order, the names of its outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from bridge.errors import BadInput, Unsupported
from bridge.frameworks.keras_read import is_recurrent

Call = Callable[[Any, str, tuple[Any, ...], dict[str, Any]], Any]
"""What stands in for a layer: (layer, path, positional and keyword arguments) -> outputs as the layer nests them."""


IDENTITIES: Final = ("Dropout", "SpatialDropout1D", "GaussianNoise", "GaussianDropout")
"""Layers between recurrent ones that do nothing in inference."""


def only_recurrent(model: Any) -> bool:
    """Whether a model is nothing but native recurrent layers, one after another or side by side, without masks."""
    import keras

    functional: Any = getattr(model, "_functional", None) if isinstance(model, keras.Sequential) else model
    if type(functional).__name__ != "Functional" or not hasattr(functional, "_run_through_graph"):
        return functional is None  # not built yet: the error of that is the same
    for operation in functional.operations:
        native = type(operation).__module__.startswith("keras.")
        if isinstance(operation, keras.Model):
            if not only_recurrent(operation):
                return False
        elif is_recurrent(operation):
            if isinstance(getattr(operation, "cell", None), keras.layers.StackedRNNCells):
                return False
        elif not (native and type(operation).__name__ in (*IDENTITIES, "InputLayer")):
            return False
    nodes = [node for level in functional._nodes_by_depth.values() for node in level]  # noqa: SLF001 (no public list)
    return not any(_given_mask(node) for node in nodes)


def _given_mask(node: Any) -> bool:
    arguments = getattr(node, "arguments", None)
    return arguments is not None and (len(arguments.args) > 2 or arguments.kwargs.get("mask") is not None)


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


def all_layers(source: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every layer inside a model or layer, with its path, once, in the order in which Keras lists them.

    A recurrent layer is one layer: nothing inside of it is listed.
    """
    yield from _listed(source, prefix, set(), set())


def _listed(source: Any, prefix: str, seen: set[int], taken: set[str]) -> Iterator[tuple[str, Any]]:
    for layer in _children(source):
        if id(layer) in seen:
            continue
        seen.add(id(layer))
        path, count = f"{prefix}{layer.name}", 0
        while path in taken:  # names are unique in a functional model only
            count += 1
            path = f"{prefix}{layer.name}_{count}"
        taken.add(path)
        yield path, layer
        if not is_recurrent(layer):
            yield from _listed(layer, f"{path}.", seen, taken)


def _children(source: Any) -> list[Any]:
    import keras

    if isinstance(source, keras.Model):
        return list(source.layers)
    return list(source._flatten_layers(include_self=False, recursive=False))  # noqa: SLF001 (no public list)


def recurrent_layers(source: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every recurrent layer inside a model, with its path, in the order in which Keras lists them."""
    for path, layer in all_layers(source, prefix):
        if is_recurrent(layer):
            yield path, layer
