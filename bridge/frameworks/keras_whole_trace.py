"""A Keras model through tf2onnx, with a stub in the place of each recurrent layer. Keras must run on TensorFlow.

During the trace only, `call` of every layer is replaced on the layer itself: a recurrent layer becomes a PyFunc node,
which tf2onnx hands to us, and every other layer's operators are put under a scope that names it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import keras
import tensorflow as tf
import tf2onnx

from bridge.errors import Unsupported
from bridge.frameworks import keras_graph
from bridge.frameworks.keras_read import is_recurrent
from bridge.frameworks.keras_whole_calls import replaced
from bridge.frameworks.keras_whole_inputs import Signature, named_outputs

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
    complaints: list[str] = field(default_factory=list)
    """Errors that tf2onnx logged."""

    def document(self) -> dict[str, Any]:
        """Everything but the ONNX, as JSON values."""
        return {name: value for name, value in asdict(self).items() if name != "proto"}


def trace(model: Any, signature: Signature) -> Traced:
    """Trace `model` in inference mode with the first of the signature's shapes that it takes.

    Raises:
        Unsupported: the model cannot be traced, or calls a layer in training mode.
    """
    errors: list[BaseException] = []
    for shapes in signature.shapes:
        stubs = Stubs(model)
        try:
            with replaced(stubs.calls()):
                return _traced(model, signature, shapes, stubs)
        except FAILURES as error:
            errors.append(error)
    raise explained(model, errors[0]) from errors[0]


def _traced(model: Any, signature: Signature, shapes: Sequence[Sequence[int | None]], stubs: Stubs) -> Traced:
    names: list[str] = []

    def run(*leaves: Any) -> list[Any]:
        args, kwargs = signature.bound(leaves)
        if getattr(model, "_call_has_training_arg", False):
            kwargs["training"] = False
        found = named_outputs(model, model(*args, **kwargs))
        names[:] = list(found)
        return [tf.identity(value) for value in found.values()]

    specs = [tf.TensorSpec(shape, dtype, name=f"bridge.input.{at}")
             for at, (shape, dtype) in enumerate(zip(shapes, signature.dtypes, strict=True))]  # fmt: skip
    function = tf.function(run, autograph=False)
    concrete = function.get_concrete_function(*specs)
    outputs = [_dims(value.shape) for value in concrete.outputs]
    with _complaints() as complaints:
        proto, _ = tf2onnx.convert.from_function(
            function, input_signature=specs, opset=min(OPSET, signature.opset),
            custom_op_handlers={"PyFunc": (stubs.convert, []), "Select": (_where, []), "SelectV2": (_where, []),
                                "Erfc": (_erfc, [])},
            extra_opset=[tf2onnx.utils.make_opsetid(STUB[0], 1)],
        )  # fmt: skip
    return Traced(proto.SerializeToString(), stubs.made, [list(shape) for shape in shapes], names, outputs, complaints)


def _dims(shape: Any) -> list[int | None]:
    return [None if size is None else int(size) for size in shape.as_list()]


class Stubs:
    """The calls that stand in for those of a model's layers, and the stubs that they have made."""

    def __init__(self, model: Any) -> None:
        self._layers = list(keras_graph.all_layers(model))
        self._numbers = {id(layer): at for at, (_, layer) in enumerate(keras_graph.recurrent_layers(model))}
        self._tokens: dict[bytes, int] = {}
        self.made: list[StubCall] = []

    def calls(self) -> list[tuple[Any, Callable[..., Any]]]:
        """Each layer with its replacement."""
        return [(layer, self._call_of(at, layer)) for at, (_, layer) in enumerate(self._layers)]

    def _call_of(self, at: int, layer: Any) -> Callable[..., Any]:
        if is_recurrent(layer):
            inner: Callable[..., Any] = self._stub(layer)
        elif isinstance(layer, keras.layers.TimeDistributed) and _native(layer, keras.layers.TimeDistributed):
            inner = _time_distributed(layer)
        elif type(layer) is keras.layers.Dense and getattr(layer, "quantization_mode", None) is None:
            inner = _dense(layer)
        else:
            inner = layer.call

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
            shapes = layer.compute_output_shape(tuple(sequences.shape))
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


def _never(*_: Any) -> None:
    raise RuntimeError("a stub was run")


def _refuse_training(layer: Any) -> None:
    if any(getattr(part, rate, 0) for part in (layer, getattr(layer, "forward_layer", None))
           for rate in ("dropout", "recurrent_dropout")):  # fmt: skip
        raise Unsupported("called with training=True, so its dropout is active", where=layer.name)


def _native(layer: Any, kind: type) -> bool:
    return vars(kind).get("call") is getattr(type(layer), "call", None)


def _dense(layer: Any) -> Callable[..., Any]:
    """Dense by one product: Keras' own is a chain of reshapes on TensorFlow."""

    def call(inputs: Any, training: Any = None) -> Any:  # noqa: ARG001 (Keras' signature)
        if len(inputs.shape) < 3 or isinstance(inputs, tf.SparseTensor) or inputs.dtype != layer.compute_dtype:
            return type(layer).call(layer, inputs)
        x = tf.matmul(inputs, tf.convert_to_tensor(layer.kernel))
        x = x if layer.bias is None else x + layer.bias
        return x if layer.activation is None else layer.activation(x)

    return call


def _time_distributed(layer: Any) -> Callable[..., Any]:
    """TimeDistributed with time folded into the batch: Keras' own is a loop, or a vectorised map."""

    def call(inputs: Any, training: Any = None, mask: Any = None) -> Any:
        inner, options = layer.layer, {}
        if mask is not None and inner._call_has_mask_arg:  # noqa: SLF001 (what Keras' own call asks)
            if is_recurrent(inner):
                raise Unsupported("TimeDistributed hands its layer one mask for each step, not for each sequence",
                                  where=layer.name, do="mask inside of the wrapped model")  # fmt: skip
            options["mask"] = _folded(mask)
        if inner._call_has_training_arg:  # noqa: SLF001
            options["training"] = training
        outputs = inner.call(_folded(inputs), **options)
        lead, steps = tf.shape(inputs)[:2], inputs.shape[1]

        def unfolded(value: Any) -> Any:
            y = tf.reshape(value, tf.concat([lead, tf.shape(value)[1:]], 0))
            y.set_shape((inputs.shape[0], steps, *value.shape[1:]))
            return y

        return keras.tree.map_structure(unfolded, outputs)

    return call


def _folded(x: Any) -> Any:
    y = tf.reshape(x, tf.concat([[-1], tf.shape(x)[2:]], 0))
    y.set_shape((None, *x.shape[2:]))
    return y


def _where(graph: Any, node: Any, _name: str, _args: Any) -> None:
    """Select as ONNX's Where: tf2onnx's own, c * x + (1 - c) * y, is NaN where what is not chosen is not finite."""
    condition, value = graph.get_rank(node.input[0]), graph.get_rank(node.output[0])
    if node.type == "Select" and condition == 1 and value is not None and value > 1:
        shape = graph.make_const(tf2onnx.utils.make_name(node.name), _column(value)).output[0]
        column = graph.make_node("Reshape", [node.input[0], shape], op_name_scope=node.name).output[0]
        graph.replace_input(node, node.input[0], column, 0)
    node.type = "Where"


def _erfc(graph: Any, node: Any, _name: str, _args: Any) -> None:
    """1 - erf(x), which tf2onnx lacks: GELU on TensorFlow is written with it."""
    one = graph.make_const(tf2onnx.utils.make_name(node.name), _one(tf2onnx.utils.map_onnx_to_numpy_type(
        graph.get_dtype(node.output[0])))).output[0]  # fmt: skip
    inner = graph.make_node("Erf", [node.input[0]], op_name_scope=node.name).output[0]
    shape, dtype, outputs = graph.get_shape(node.output[0]), graph.get_dtype(node.output[0]), list(node.output)
    graph.remove_node(node.name)
    graph.make_node("Sub", [one, inner], outputs=outputs, name=node.name, shapes=[shape], dtypes=[dtype])


def _one(dtype: Any) -> Any:
    import numpy as np

    return np.array(1, dtype)


def _column(rank: int) -> Any:
    import numpy as np

    return np.array([-1, *[1] * (rank - 1)], np.int64)


@contextmanager
def _complaints() -> Iterator[list[str]]:
    """What tf2onnx logs as errors, instead of its log on stderr."""
    found: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage()[:500])

    log, handler = logging.getLogger("tf2onnx"), Collect(logging.ERROR)
    kept = log.handlers, log.level, log.propagate
    log.handlers, log.propagate = [handler], False
    log.setLevel(logging.ERROR)
    try:
        yield found
    finally:
        log.handlers, log.propagate = kept[0], kept[2]
        log.setLevel(kept[1])


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
    return Unsupported("the model cannot be traced by TensorFlow", where=where, got=str(error).strip()[:800],
                       do=f"change {line or 'the layer'} so that it uses keras.ops on whole tensors")  # fmt: skip
