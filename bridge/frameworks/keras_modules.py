"""The Keras models of imported ONNX graphs. Import this module inside functions only: it imports keras."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras.src.models.functional import Functional  # what keras.Model(inputs, outputs) is; it has no public name

from bridge.errors import BadInput
from bridge.frameworks.keras_functional import Tensors
from bridge.frameworks.keras_operator import plain_errors, weight_of
from bridge.frameworks.keras_origin import Origin
from bridge.ops.backend_keras import KerasBackend
from bridge.ops.program import Program


class Imported:
    """How an imported graph is called: inputs in graph order, or by name; one output is an array, several a tuple."""

    origin: Origin
    """The graph, and what holds its weights now."""
    recurrent: list[Any]
    """The recurrent layers, also those inside control flow."""
    _program: Program

    @property
    def input_names(self) -> tuple[str, ...]:
        """Inputs in graph order, those fixed at import left out."""
        return self._program.input_names

    @property
    def output_names(self) -> tuple[str, ...]:
        """Outputs in graph order."""
        return self._program.output_names

    @output_names.setter
    def output_names(self, names: Sequence[str]) -> None:
        """Keras sets the names of layers here; the graph's own stay."""

    def _feeds(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        first = args[0] if len(args) == 1 else None
        if isinstance(first, Mapping):
            args, kwargs = (), {**first, **kwargs}
        elif isinstance(first, (list, tuple)):
            args = first
        if len(args) > len(self.input_names):
            raise BadInput("too many inputs", where="call", got=len(args), expected=", ".join(self.input_names))
        feeds = dict(zip(self.input_names, args, strict=False))
        if twice := sorted(set(feeds) & set(kwargs)):
            raise BadInput("inputs given twice", where="call", got=", ".join(twice))
        return {**feeds, **kwargs}

    def get_config(self) -> dict[str, Any]:
        """The graph itself with its present weights, so that a saved model needs nothing else."""
        from bridge.graph import to_proto

        proto = to_proto(self.origin.present())
        return {"name": str(getattr(self, "name", "")), "onnx": base64.b64encode(proto.SerializeToString()).decode()}

    def compile_from_config(self, config: Mapping[str, Any]) -> None:
        """Compile again as the saved model was: Keras does not by itself where `compile` is overridden."""
        compiled: Any = self
        compiled.compile(**keras.saving.deserialize_keras_object(config))
        compiled.optimizer.build(compiled.trainable_variables)

    @classmethod
    def from_config(cls, config: Mapping[str, Any], custom_objects: object = None) -> Any:  # noqa: ARG003 (Keras' own)
        """The model of `get_config`. Raises BadInput where it holds no graph."""
        from bridge.frameworks.keras_import import import_model
        from bridge.graph import parse

        try:
            data = base64.b64decode(str(config["onnx"]), validate=True)
        except (ValueError, KeyError) as error:
            raise BadInput("the configuration of an imported model holds no graph", where="Keras file") from error
        return import_model(parse(data), None)


@keras.saving.register_keras_serializable(package="bridge")
class ImportedGraph(Imported, Functional):  # type: ignore[misc]
    """An ONNX graph as a functional model: native layers where Keras has them, one small layer for any other node."""

    def __init__(self, program: Program, tensors: Tensors, origin: Origin, **kwargs: Any) -> None:
        inputs, outputs = tensors.run()
        Functional.__init__(self, inputs, outputs, **kwargs)
        self._program, self.origin = program, origin
        self.recurrent = list(origin.recurrent_layers)
        self._has_operators = bool(tensors.operators)
        self.run_eagerly = self._has_operators and _static_shapes_only()

    def compile(self, *args: Any, run_eagerly: bool | None = None, **kwargs: Any) -> None:
        """As keras.Model; `run_eagerly` is True on the tensorflow backend where not all layers are Keras' own.

        Operators of the graph may need the size of the batch, and tf.function traces `fit` without it.
        """
        eager = self._has_operators and _static_shapes_only() if run_eagerly is None else run_eagerly
        super().compile(*args, run_eagerly=eager, **kwargs)

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """Run the graph: inputs in graph order, or by name, or as one list, tuple or dict (as `fit` gives them).

        Raises:
            BadInput: inputs that are missing, unexpected, or of another shape or dtype than the graph declares.
        """
        options = {name: kwargs.pop(name) for name in ("training", "mask") if name in kwargs}
        feeds = self._feeds(args, kwargs)
        missing, unexpected = (sorted(set(self.input_names) - set(feeds)), sorted(set(feeds) - set(self.input_names)))
        if missing or unexpected:
            raise BadInput("missing inputs" if missing else "unexpected names", where="call",
                           got=", ".join(missing or unexpected), expected=", ".join(self.input_names))  # fmt: skip
        values = [self._placed(name, feeds[name]) for name in self.input_names]
        outputs = super().__call__(values if len(values) > 1 else values[0], **options)
        return tuple(outputs) if isinstance(outputs, (list, tuple)) and len(self.output_names) > 1 else outputs

    def _placed(self, name: str, value: Any) -> Any:
        """A call's input on the backend, where its shape is known."""
        if any(size is None for size in getattr(value, "shape", ())):
            return value
        (port,) = (port for port in self._program.ports if port.name == name)
        return port.placed(value, KerasBackend())


@keras.saving.register_keras_serializable(package="bridge")
class ImportedModel(Imported, keras.Model):  # type: ignore[misc]
    """An ONNX graph as one Keras model, where no functional model can hold it: values of unknown type, or no inputs.

    Native layers hold the weights of recurrent nodes; what else is trainable is a weight of the model itself, by the
    name that it has in the graph.
    """

    def __init__(self, program: Program, origin: Origin, **kwargs: Any) -> None:
        keras.Model.__init__(self, **kwargs)
        self._program, self.origin = program, origin
        self.recurrent = list(origin.recurrent_layers)
        self._graph_names = list(program.parameters)
        self._graph_weights = [weight_of(self, name, array) for name, array in program.parameters.items()]
        origin.plain.update(zip(self._graph_names, self._graph_weights, strict=True))
        self.built = True
        self.run_eagerly = _static_shapes_only()

    def compile(self, *args: Any, run_eagerly: bool | None = None, **kwargs: Any) -> None:
        """As keras.Model; `run_eagerly` is True on the tensorflow backend unless it is given.

        A graph with shape arithmetic needs the batch to be known, and tf.function traces `fit` without it.
        """
        super().compile(*args, run_eagerly=_static_shapes_only() if run_eagerly is None else run_eagerly, **kwargs)

    def build(self, input_shape: Any = None) -> None:
        """Everything is built already."""

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """Run the graph: inputs in graph order, or by name, or as one list, tuple or dict (as `fit` gives them)."""
        options = {name: kwargs.pop(name) for name in ("training", "mask") if name in kwargs}
        return super().__call__(self._feeds(args, kwargs), **options)

    def call(self, inputs: Any) -> Any:
        """Keras calls this, with the inputs by name or as `fit` was given them."""
        parameters = {
            name: keras.ops.convert_to_tensor(weight)
            for name, weight in zip(self._graph_names, self._graph_weights, strict=True)
        }
        with plain_errors():
            outputs = tuple(self._program(self._feeds((inputs,), {}), parameters).values())
        return outputs[0] if len(outputs) == 1 else outputs


def is_imported(source: object) -> bool:
    """Whether `source` is a model that bridge imported."""
    return isinstance(source, Imported)


def numpy_of(variable: Any) -> np.ndarray:
    """A variable's present value."""
    return np.asarray(keras.ops.convert_to_numpy(variable))


def _static_shapes_only() -> bool:
    return str(keras.backend.backend()) == "tensorflow"
