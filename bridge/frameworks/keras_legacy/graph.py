"""The calls of a Keras 1 or 2 model, made again: Sequential lists, functional graphs, models inside models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bridge.errors import BadInput, BridgeError, Unsupported
from bridge.frameworks.keras_legacy.layers import Built, make_layer
from bridge.frameworks.keras_legacy.options import LARGEST, Scope, dtype_of, safe_name

FAILURES = (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RuntimeError, NotImplementedError)
"""What Keras raises when shapes or dtypes do not fit."""


def make_model(document: Any, scope: Scope) -> Built:
    """A Sequential or functional model without weights, from its configuration.

    Raises:
        BadInput: malformed, cyclic, or layers that do not fit together.
        Unsupported: a layer, an option or an argument that is not carried.
    """
    config = document.get("config") if isinstance(document, dict) else None
    if document.get("class_name") == "Sequential" if isinstance(document, dict) else False:
        layers = config if isinstance(config, list) else config.get("layers") if isinstance(config, dict) else None
        if isinstance(layers, list) and layers:
            return _sequential(layers, config if isinstance(config, dict) else {}, scope)
    elif isinstance(config, dict) and isinstance(config.get("layers"), list):
        return _Functional(config, scope).model()
    raise BadInput("no model: a class_name, a config and layers are expected", where=scope.path,
                   got=repr(document)[:80])  # fmt: skip


# ---------------------------------------------------------------------- Sequential


def _sequential(entries: Sequence[Any], config: Mapping[str, Any], scope: Scope) -> Built:
    import keras

    name = str(config.get("name") or "sequential")
    first = _config_of(entries[0], scope)
    recorded = _is_input(entries[0])
    built = [make_layer(entry, scope) for entry in (entries[1:] if recorded else entries)]
    shape = first.get("batch_input_shape", first.get("batch_shape", config.get("build_input_shape")))
    if shape is None:
        raise Unsupported("the Sequential does not record the shape of its input", where=scope.where(name))
    label = str(first.get("name", "input")) if recorded else f"{first.get('name', built[0].name)}_input"
    start = _input(shape, first.get("dtype"), label, scope)
    if not any(one.time_major for one in built):
        layers = [start, *(one.layer for one in built)]
        made = _guarded(lambda: keras.Sequential(layers, name=safe_name(name)), scope, name)
        return _model(name, made, built)
    end = start
    for one in built:
        end = _called(one, [end], {}, scope)
    return _model(name, _guarded(lambda: keras.Model(start, end, name=safe_name(name)), scope, name), built)


def _model(name: str, made: Any, layers: Sequence[Built]) -> Built:
    return Built(name, made, tuple(part for one in layers for part in one.parts), children=tuple(layers))


def _is_input(entry: Any) -> bool:
    return isinstance(entry, dict) and entry.get("class_name") == "InputLayer"


def _config_of(entry: Any, scope: Scope) -> Mapping[str, Any]:
    config = entry.get("config") if isinstance(entry, dict) else None
    if isinstance(config, list):  # a Sequential of old inside
        return _config_of(config[0], scope) if config else {}
    if isinstance(config, dict):
        inside = config.get("layers")
        nested = _config_of(inside[0], scope) if isinstance(inside, list) and inside else {}
        wrapped = config.get("layer")
        held = _config_of(wrapped, scope) if isinstance(wrapped, dict) else {}
        shape = {key: value for source in (held, nested) for key, value in source.items()
                 if key in ("batch_input_shape", "batch_shape")}  # fmt: skip
        return {**shape, **config}
    raise BadInput("a layer without a configuration", where=scope.path, got=repr(entry)[:80])


def _input(shape: Any, dtype: Any, name: str, scope: Scope) -> Any:
    import keras

    where = scope.where(name)
    if not isinstance(shape, list) or not all(
        size is None or (isinstance(size, int) and not isinstance(size, bool) and 0 < size <= LARGEST)
        for size in shape
    ):  # fmt: skip
        raise BadInput("no shape of an input", where=where, got=repr(shape)[:80])
    named = dtype_of(dtype, where)
    return _guarded(lambda: keras.Input(batch_shape=tuple(shape), dtype=named, name=safe_name(name)), scope, name)


def _guarded(make: Any, scope: Scope, name: str) -> Any:
    try:
        return make()
    except BridgeError:
        raise
    except FAILURES as error:
        raise BadInput(f"Keras cannot build this: {error}", where=scope.where(name)) from error


# ---------------------------------------------------------------------- functional


class _Functional:
    """A functional model on its way: layers by name, and the outputs of their calls."""

    def __init__(self, config: Mapping[str, Any], scope: Scope) -> None:
        self._config, self._scope = config, scope
        self._name = str(config.get("name") or "model")
        self._layers: dict[str, Built] = {}
        self._values: dict[tuple[str, int], list[Any]] = {}
        self._order: list[str] = []

    def model(self) -> Built:
        """The model, its layers' weights in the order of the file."""
        import keras

        calls: dict[str, list[list[Any]]] = {}
        for entry in self._config["layers"]:
            config = _config_of(entry, self._scope)
            name = str(entry.get("name") or config.get("name"))
            if name in self._layers or (name, 0) in self._values:
                raise BadInput("two layers of one name", where=self._scope.where(name))
            if _is_input(entry):
                shape = config.get("batch_input_shape", config.get("batch_shape"))
                if config.get("sparse") or config.get("ragged"):
                    raise Unsupported("sparse and ragged inputs are not carried", where=self._scope.where(name))
                self._values[name, 0] = [_input(shape, config.get("dtype"), name, self._scope)]
            else:
                self._layers[name] = make_layer({**entry, "name": name}, self._scope)
                calls[name] = list(self._nodes(entry, name))
        self._run(calls)
        inputs, outputs = (self._endpoints(self._config.get(key), key) for key in ("input_layers", "output_layers"))
        made = _guarded(lambda: keras.Model(inputs, outputs, name=safe_name(self._name)), self._scope, self._name)
        return _model(self._name, made, list(self._layers.values()))

    def _nodes(self, entry: Mapping[str, Any], name: str) -> Iterator[list[Any]]:
        nodes = entry.get("inbound_nodes", [])
        if not isinstance(nodes, list):
            raise BadInput("inbound_nodes is no list", where=self._scope.where(name))
        for node in nodes:
            node = [node] if isinstance(node, list) and node and isinstance(node[0], str) else node
            if not isinstance(node, list) or not node or not all(_is_reference(one) for one in node):
                raise BadInput("no call of a layer", where=self._scope.where(name), got=repr(node)[:80])
            yield node

    def _run(self, calls: dict[str, list[list[Any]]]) -> None:
        """Every call as soon as what it reads is there."""
        read = {key for nodes in calls.values() for node in nodes for key in _reads(node)}
        read |= {(one[0], one[1]) for one in _references(self._config.get("output_layers"))}
        # The first call of a model inside was the one that made it, which no file lists: the others count from 1.
        first = {name: int(bool(self._layers[name].children) and (name, 0) not in read) for name in calls}
        waiting = [(name, at + first[name], node) for name, nodes in calls.items() for at, node in enumerate(nodes)]
        while waiting:
            ready = [call for call in waiting if all(key in self._values for key in _reads(call[2]))]
            if not ready:
                raise BadInput("calls of layers that wait for one another, or for a layer that is not there",
                               where=self._scope.path, got=", ".join(name for name, _, _ in waiting[:5]))  # fmt: skip
            for name, at, node in ready:
                self._values[name, at] = self._call(name, node)
            done = {(name, at) for name, at, _ in ready}
            waiting = [call for call in waiting if call[:2] not in done]

    def _call(self, name: str, node: list[Any]) -> list[Any]:
        import keras

        given = node[0][3] if len(node[0]) > 3 and isinstance(node[0][3], dict) else {}
        kwargs = {key: self._argument(value, name, key) for key, value in given.items() if value is not None}
        tensors = [self._tensor(reference) for reference in node]
        result = _called(self._layers[name], tensors, kwargs, self._scope)
        return list(keras.tree.flatten(result))

    def _argument(self, value: Any, name: str, key: str) -> Any:
        if _is_reference(value) and (value[0] in self._layers or (value[0], 0) in self._values):
            return self._tensor(value)
        if isinstance(value, list) and value and all(_is_reference(one) for one in value):
            return [self._tensor(one) for one in value]
        if isinstance(value, (bool, int, float, str)):
            return value
        raise Unsupported(f"an argument {key!r} of the call is not carried", where=self._scope.where(name),
                          got=repr(value)[:80])  # fmt: skip

    def _tensor(self, reference: Sequence[Any]) -> Any:
        name, node, at = reference[:3]
        values = self._values.get((name, node), [])
        if not 0 <= at < len(values):
            raise BadInput("an output that is not there", where=self._scope.where(name), got=list(reference[:3]))
        return values[at]

    def _endpoints(self, listed: Any, key: str) -> Any:
        if isinstance(listed, dict):
            return {str(name): self._tensor(one) for name, one in listed.items() if _is_reference(one)}
        listed = [listed] if _is_reference(listed) else listed
        if not isinstance(listed, list) or not listed or not all(_is_reference(one) for one in listed):
            raise BadInput(f"no {key}", where=self._scope.where(self._name), got=repr(listed)[:80])
        tensors = [self._tensor(one) for one in listed]
        return tensors[0] if len(tensors) == 1 else tensors


def _is_reference(value: Any) -> bool:
    """Whether `value` is [layer, call, output] with perhaps the call's arguments."""
    return (isinstance(value, list) and 3 <= len(value) <= 4 and isinstance(value[0], str)
            and all(isinstance(at, int) and not isinstance(at, bool) and at >= 0 for at in value[1:3]))  # fmt: skip


def _reads(node: Sequence[Any]) -> Iterator[tuple[str, int]]:
    """The calls whose outputs a call takes, by its arguments too."""
    given = node[0][3] if len(node[0]) > 3 and isinstance(node[0][3], dict) else {}
    for value in (*node, *given.values()):
        yield from ((one[0], one[1]) for one in _references(value))


def _references(value: Any) -> list[Any]:
    """One reference, those of a list or those of a dict."""
    listed = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    return [value] if _is_reference(value) else [one for one in listed if _is_reference(one)]


# ---------------------------------------------------------------------- one call


def _called(built: Built, tensors: list[Any], kwargs: Mapping[str, Any], scope: Scope) -> Any:
    """The layer's outputs; further inputs of a recurrent layer are its initial states."""
    import keras

    kwargs = dict(kwargs)
    if isinstance(built.layer, (keras.layers.RNN, keras.layers.Bidirectional)) and len(tensors) > 1:
        kwargs["initial_state"] = tensors[1:]
        tensors = tensors[:1]
    if built.time_major:
        return _guarded(lambda: _time_major(built, tensors[0], kwargs, scope), scope, built.name)
    first = tensors[0] if len(tensors) == 1 else tensors
    return _guarded(lambda: built.layer(first, **kwargs), scope, built.name)


def _time_major(built: Built, x: Any, kwargs: Mapping[str, Any], scope: Scope) -> Any:
    """[T, N, ...] in, and [T, N, ...] out where the layer returns sequences; Keras 3 only knows [N, T, ...]."""
    import keras

    if getattr(x, "_keras_mask", None) is not None or kwargs.get("mask") is not None:
        raise Unsupported("a mask over a time_major layer is not carried", where=scope.where(built.name))
    swapped = (1, 0, *range(2, len(x.shape)))
    outputs = keras.tree.flatten(built.layer(keras.ops.transpose(x, swapped), **kwargs))
    if built.layer.return_sequences:
        outputs[0] = keras.ops.transpose(outputs[0], swapped)
    return outputs[0] if len(outputs) == 1 else outputs
