"""A Keras model through tf2onnx, with a stub in the place of each recurrent layer. Keras must run on TensorFlow.

During the trace only, `call` of every layer is replaced on the layer itself: a recurrent layer becomes a PyFunc node,
which tf2onnx hands to us, and every other layer's operators are put under a scope that names it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from types import SimpleNamespace
from typing import Any, Final

import keras
import tensorflow as tf
import tf2onnx

from bridge.errors import Unsupported
from bridge.frameworks import keras_graph
from bridge.frameworks.keras_whole.calls import masks_may_end, replaced
from bridge.frameworks.keras_whole.inputs import Signature, outputs_of
from bridge.frameworks.keras_whole.layers import plain_signbit, rewritten, told, without_xla
from bridge.frameworks.keras_whole.operators import complaints_of, erfc, expm1, loops_as_they_are, where

OPSET: Final = 18
"""The newest that tf2onnx 1.17.0 writes."""

FAILURES: Final = (ValueError, TypeError, NotImplementedError, AttributeError, KeyError, IndexError, RuntimeError,
                   AssertionError, tf.errors.OpError)  # fmt: skip
"""What tracing raises on a model that cannot be traced."""

STUB: Final = ("bridge.stub", "Layer")
"""Domain and operator of the node that stands for a call of a recurrent layer; its attribute `call` is a number."""

SCOPE: Final = "bridge.layer"
"""Operators of layer 7 of `all_layers` are called `bridge.layer.7/…`."""


@dataclass(frozen=True, slots=True)
class StubCall:
    """One call of a recurrent layer: what its stub's inputs and outputs are."""

    layer: int
    """Which of the model's recurrent layers."""
    masked: bool
    """Whether the second input is a mask."""
    inputs: Sequence[Sequence[int | None]]
    """Shapes: the sequence, the mask where there is one, the initial states."""
    outputs: Sequence[Sequence[int | None]]
    dtype: str
    """Of the sequence, the states and the outputs."""


@dataclass(slots=True)
class Traced:
    """What tf2onnx made of a model."""

    proto: bytes
    """ONNX, its inputs called `bridge.input.0`, …"""
    calls: list[StubCall]
    inputs: list[list[int | None]]
    """The shapes that the model was traced with."""
    outputs: list[str]
    """Names."""
    shapes: list[list[int | None]]
    """Of the outputs, as far as TensorFlow knows them."""
    constants: dict[str, Any] = field(default_factory=dict)
    """Arrays that the model holds and that are no weights: tf2onnx makes inputs of them."""
    complaints: list[str] = field(default_factory=list)
    """Errors that tf2onnx logged."""

    def document(self) -> dict[str, Any]:
        """Everything but the ONNX and the constants, as JSON values."""
        return {name: value for name, value in asdict(self).items() if name not in ("proto", "constants")}


def trace(model: Any, signature: Signature, plain: Sequence[int] = ()) -> Traced:
    """Trace `model` in inference mode with the first of the signature's shapes that it takes.

    Recurrent layers whose numbers are in `plain` get no stubs.

    Raises:
        Unsupported: the model cannot be traced, or calls a layer in training mode.
    """
    errors: list[BaseException] = []
    for shapes in signature.shapes:
        stubs = Stubs(model, plain)
        try:
            with replaced(stubs.calls()), plain_signbit(), without_xla(), masks_may_end():
                return _traced(model, signature, shapes, stubs)
        except FAILURES as error:
            errors.append(error)
    raise explained(model, errors[-1]) from errors[-1]


def _traced(model: Any, signature: Signature, shapes: Sequence[Sequence[int | None]], stubs: Stubs) -> Traced:
    names: list[str] = []

    def run(*leaves: Any) -> list[Any]:
        args, kwargs = signature.bound(leaves)
        found = outputs_of(model, model(*args, **kwargs))
        names[:] = list(found)
        return [tf.identity(value) for value in found.values()]

    specs = [tf.TensorSpec(shape, dtype, name=f"bridge.input.{at}")
             for at, (shape, dtype) in enumerate(zip(shapes, signature.dtypes, strict=True))]  # fmt: skip
    concrete = tf.function(run, autograph=False).get_concrete_function(*specs)
    traced = SimpleNamespace(get_concrete_function=lambda *_: concrete)  # tf2onnx would trace once more
    outputs = [_dims(value.shape) for value in concrete.outputs]
    constants = {inner.name: outer.numpy() for outer, inner in concrete.graph.captures if outer.dtype != tf.resource}
    with complaints_of() as complaints, loops_as_they_are():
        proto, _ = tf2onnx.convert.from_function(
            traced, input_signature=specs, opset=min(OPSET, signature.opset),
            custom_op_handlers={"PyFunc": (stubs.convert, []), "Select": (where, []), "SelectV2": (where, []),
                                "Erfc": (erfc, []), "Expm1": (expm1, [])},
            extra_opset=[tf2onnx.utils.make_opsetid(STUB[0], 1)],
        )  # fmt: skip
    return Traced(proto.SerializeToString(), stubs.made, [list(shape) for shape in shapes], names, outputs, constants,
                  complaints)  # fmt: skip


def _dims(shape: Any) -> list[int | None]:
    return [None if size is None else int(size) for size in shape.as_list()]


class Stubs:
    """The calls that stand in for those of a model's layers, and the stubs that they have made."""

    def __init__(self, model: Any, plain: Sequence[int] = ()) -> None:
        self._layers = list(keras_graph.all_layers(model))
        self._numbers = {id(layer): at for at, (_, layer) in enumerate(keras_graph.recurrent_layers(model))
                         if at not in plain}  # fmt: skip
        self._tokens: dict[bytes, int] = {}
        self.made: list[StubCall] = []

    def calls(self) -> list[tuple[Any, Callable[..., Any]]]:
        """Each layer with its replacement."""
        return [(layer, self._call_of(at, layer)) for at, (_, layer) in enumerate(self._layers)]

    def _call_of(self, at: int, layer: Any) -> Callable[..., Any]:
        inner = self._stub(layer) if id(layer) in self._numbers else rewritten(layer)

        def call(*args: Any, **kwargs: Any) -> Any:
            with tf.name_scope(f"{SCOPE}.{at}/"):
                return inner(*args, **kwargs)

        return call

    def _stub(self, layer: Any) -> Callable[..., Any]:
        def call(sequences: Any, initial_state: Any = None, mask: Any = None, training: Any = False) -> Any:
            if training:
                _refuse_training(layer)
            dtype = layer.compute_dtype
            masks = [tf.cast(value, "bool") for value in keras.tree.flatten(mask) if value is not None][:1]
            states = [tf.cast(value, dtype) for value in keras.tree.flatten(initial_state) if value is not None]
            inputs = [tf.cast(sequences, dtype), *masks, *states]
            shapes = _output_shapes(layer, tuple(sequences.shape))
            flat: list[tuple[int | None, ...]] = []
            structure = keras.tree.map_shape_structure(flat.append, shapes)
            outputs = tf.numpy_function(_never, inputs, [tf.as_dtype(dtype)] * len(flat))
            outputs = outputs if isinstance(outputs, (list, tuple)) else [outputs]
            self._tokens[outputs[0].op.get_attr("token")] = len(self.made)
            # An operator, since tf2onnx reads the graph again and a shape that is only set would be lost.
            outputs = [tf.ensure_shape(output, shape) for output, shape in zip(outputs, flat, strict=True)]
            self.made.append(StubCall(self._numbers[id(layer)], bool(masks), [_dims(value.shape) for value in inputs],
                                      [_dims(value.shape) for value in outputs], str(dtype)))  # fmt: skip
            return keras.tree.pack_sequence_as(structure, list(outputs))

        return call

    def convert(self, _graph: Any, node: Any, _name: str, _args: Any) -> None:
        """Write the stub node of a PyFunc, for tf2onnx."""
        token = node.attr["token"].s
        for name in list(node.attr):
            del node.attr[name]
        node.domain, node.type = STUB
        node.set_attr("call", self._tokens[token])


def _output_shapes(layer: Any, shape: tuple[int | None, ...]) -> Any:
    """The shapes of what a layer returns, of which Keras' Bidirectional takes both layers' states to be alike."""
    shapes = layer.compute_output_shape(shape)
    if not isinstance(layer, keras.layers.Bidirectional) or not layer.return_state:
        return shapes
    forward, backward = (each.compute_output_shape(shape)[1:] for each in (layer.forward_layer, layer.backward_layer))
    return (*shapes[: len(shapes) - 2 * len(forward)], *forward, *backward)


def _never(*_: Any) -> None:
    raise RuntimeError("a stub was run")


def _refuse_training(layer: Any) -> None:
    if any(getattr(part, rate, 0) for part in (layer, getattr(layer, "forward_layer", None))
           for rate in ("dropout", "recurrent_dropout")):  # fmt: skip
        raise told(Unsupported("called with training=True, so its dropout is active", where=layer.name,
                                do="call it without training"))  # fmt: skip


def explained(model: Any, error: BaseException) -> Unsupported:
    """The refusal of a model that cannot be traced: the deepest layer whose code raised, and its own message."""
    paths = {id(layer): f"{path} ({type(layer).__name__})" for path, layer in keras_graph.all_layers(model)}
    where, line = f"{model.name} ({type(model).__name__})", ""
    step = error.__traceback__
    while step is not None:
        owner = step.tb_frame.f_locals.get("self")
        if id(owner) in paths:
            where = paths[id(owner)]
        name = step.tb_frame.f_code.co_filename
        if not any(part in name for part in ("/keras/src/", "/tensorflow/", "/tf2onnx/", "/bridge/frameworks/")):
            line = f"{name.rpartition('/')[2]}:{step.tb_lineno}"
        step = step.tb_next
    said = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()  # without Keras' colours
    return Unsupported("the model cannot be traced by TensorFlow", where=where, got=said[:800],
                       do=f"change {line or 'the layer'} so that it uses keras.ops on whole tensors")  # fmt: skip
