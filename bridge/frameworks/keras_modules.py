"""The keras.Model of an imported ONNX graph. Import this module inside functions only: it imports keras."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from bridge.errors import BadInput
from bridge.ops.program import Program


class ImportedModel(keras.Model):  # type: ignore[misc]
    """An ONNX graph as a Keras model: called in graph order or by name; one output is an array, several a tuple.

    Native layers hold the weights of recurrent nodes; what else is trainable is a weight of the model itself, by the
    name that it has in the graph.
    """

    def __init__(self, program: Program, layers: Sequence[Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.recurrent = list(layers)
        self._program = program
        self._graph_names = list(program.parameters)
        self._graph_weights = [self._graph_weight(name, array) for name, array in program.parameters.items()]
        self.built = True
        self.run_eagerly = _static_shapes_only()

    def compile(self, *args: Any, run_eagerly: bool | None = None, **kwargs: Any) -> None:
        """As keras.Model; `run_eagerly` is True on the tensorflow backend unless it is given.

        A graph with shape arithmetic needs the batch to be known, and tf.function traces `fit` without it.
        """
        super().compile(*args, run_eagerly=_static_shapes_only() if run_eagerly is None else run_eagerly, **kwargs)

    def _graph_weight(self, name: str, array: np.ndarray) -> Any:
        weight = self.add_weight(shape=array.shape, dtype=array.dtype.name, name=name.replace("/", "_"),
                                 initializer="zeros")  # fmt: skip
        weight.assign(array)
        return weight

    @property
    def input_names(self) -> tuple[str, ...]:
        """Inputs in graph order, those fixed at import left out."""
        return self._program.input_names

    @property
    def output_names(self) -> tuple[str, ...]:
        """Outputs in graph order."""
        return self._program.output_names

    def build(self, input_shape: Any = None) -> None:
        """Everything is built already."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the graph: inputs in graph order, or by name, or as one list, tuple or dict (as `fit` gives them)."""
        options = {name: kwargs.pop(name) for name in ("training", "mask") if name in kwargs}
        return super().__call__(self._feeds(args, kwargs), **options)

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

    def call(self, inputs: Any) -> Any:
        """Keras calls this, with the inputs by name or as `fit` was given them."""
        parameters = {
            name: keras.ops.convert_to_tensor(weight)
            for name, weight in zip(self._graph_names, self._graph_weights, strict=True)
        }
        outputs = tuple(self._program(self._feeds((inputs,), {}), parameters).values())
        return outputs[0] if len(outputs) == 1 else outputs


def _static_shapes_only() -> bool:
    return str(keras.backend.backend()) == "tensorflow"
