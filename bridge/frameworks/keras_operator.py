"""Keras layers for what no native layer is: one ONNX node each, run by bridge's operator table.

Import this module inside functions only: it imports keras.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import keras
import numpy as np

from bridge.errors import BridgeError, Unsupported
from bridge.frameworks.keras_clusters import Cluster
from bridge.ops.backend_keras import KerasBackend
from bridge.ops.gather import from_start

if TYPE_CHECKING:
    import onnx_ir as ir

TOLD: Final = "_keras_call_info_injected"
"""What marks an error to which Keras adds nothing. Source: keras 3.15.1 utils/traceback_utils.py."""

Spec = tuple[tuple[int | None, ...], str]
"""Shape and dtype of a tensor."""


@contextmanager
def plain_errors() -> Iterator[None]:
    """Let bridge's errors out of a Keras layer as they are; Keras would make another of each, its own words around."""
    try:
        yield
    except BridgeError as error:
        setattr(error, TOLD, True)
        raise


class Operator(keras.layers.Layer):  # type: ignore[misc]
    """One node of an imported graph; takes a list of tensors, one output is a tensor and several are a tuple.

    Trainable constants are weights of the layer under the names that the graph has for them, unless another layer
    holds them already.
    """

    def __init__(
        self,
        cluster: Cluster,
        specs: Sequence[Spec],
        constants: Mapping[ir.Value, np.ndarray],
        names: Mapping[ir.Value, str],
        held: Mapping[ir.Value, Callable[[], Any]],
        inside: Sequence[Any],
        **kwargs: Any,
    ) -> None:
        """`names` of all trainable constants; `held`: those of other layers; `inside`: what else the layer is made of.

        Sibling branches may use a name twice, so values are told apart by identity.
        """
        super().__init__(autocast=False, **kwargs)
        self._cluster, self._specs = cluster, tuple(specs)
        self.inside = list(inside)
        self.own: dict[str, Any] = {}
        for value in cluster.parameters:
            if value not in held:
                self.own[names[value]] = weight_of(self, names[value], constants[value])
        present = {value: held[value] if value in held else partial(keras.ops.convert_to_tensor, self.own[names[value]])
                   for value in cluster.parameters}  # fmt: skip
        self._run: Callable[[Sequence[Any]], Any] = lambda inputs: self._computed(inputs, constants, present)
        self.built = True

    def _computed(
        self, inputs: Sequence[Any], constants: Mapping[ir.Value, np.ndarray], present: Mapping[ir.Value, Any]
    ) -> Any:
        cluster, backend = self._cluster, KerasBackend()
        scope: dict[ir.Value, Any] = dict(constants)
        scope.update(zip(cluster.inputs, inputs, strict=False))
        scope.update((value, tensor()) for value, tensor in present.items())
        with np.errstate(all="ignore"):
            for step in cluster.steps:
                step.run(scope)
        results = tuple(backend.asarray(scope[value]) for value in cluster.outputs)
        return results[0] if len(results) == 1 else results

    def call(self, inputs: Sequence[Any]) -> Any:
        """Run the node."""
        with plain_errors():
            return self._run(inputs)

    def compute_output_spec(self, inputs: Sequence[Any]) -> Any:  # noqa: ARG002 (the graph says it)
        """Shapes and dtypes as the graph has them."""
        tensors = tuple(keras.KerasTensor(shape, dtype=dtype) for shape, dtype in self._specs)
        return tensors[0] if len(tensors) == 1 else tensors

    def get_config(self) -> dict[str, Any]:
        """Always refused: what the layer runs, and weights that it shares, belong to the graph of its whole model.

        Raises:
            Unsupported: where one asks for it, as `keras.models.clone_model` does.
        """
        raise Unsupported("one layer of an imported graph cannot be made again by itself", where=self.name,
                          do="copy the imported model: type(model).from_config(model.get_config())")  # fmt: skip


def operator_class(op_type: str) -> type[Operator]:
    """`Operator` under the operator's name, which is what `summary` shows."""
    return type(op_type, (Operator,), {"__doc__": f"The ONNX operator {op_type}.", "__module__": __name__})


class Weight(keras.layers.Layer):  # type: ignore[misc]
    """A trainable constant that several layers read; it is not called."""

    def __init__(self, graph_name: str, array: np.ndarray, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.own = {graph_name: weight_of(self, graph_name, array)}
        self.built = True

    def present(self) -> Any:
        """Its present value."""
        (variable,) = self.own.values()
        return keras.ops.convert_to_tensor(variable)


class FromTheEnd(keras.layers.Layer):  # type: ignore[misc]
    """Indices of rows as Keras takes them: negative ones count from the end."""

    def __init__(self, rows: int, **kwargs: Any) -> None:
        super().__init__(autocast=False, **kwargs)
        self.rows = rows
        self.built = True

    def call(self, indices: Any) -> Any:
        """The indices, none negative."""
        return from_start(keras.ops, indices, self.rows)

    def compute_output_spec(self, indices: Any) -> Any:
        """As the indices."""
        return keras.KerasTensor(indices.shape, dtype=indices.dtype)


def weight_of(layer: Any, name: str, array: np.ndarray) -> Any:
    """A weight of `layer` with the value `array`."""
    weight = layer.add_weight(shape=array.shape, dtype=array.dtype.name, name=keras_name(name), initializer="zeros")
    weight.assign(array)
    return weight


def keras_name(name: str) -> str:
    """`name` with what Keras allows in names; its torch backend allows no dots."""
    dots = "" if str(keras.backend.backend()) == "torch" else "."
    return re.sub(rf"[^A-Za-z0-9_{dots}-]", "_", name).strip("_")
