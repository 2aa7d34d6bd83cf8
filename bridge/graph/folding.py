"""Make the weights of recurrent nodes initialisers, and fix inputs of a model to values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from bridge.errors import BadInput, MissingExtra, UsageError
from bridge.graph.declaring import settle
from bridge.graph.expressions import evaluate, is_expression
from bridge.graph.functions import inline
from bridge.graph.naming import unused, value_names
from bridge.graph.nodes import input_of, is_recurrent

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx_ir as ir

SIZE_LIMIT: Final = 10**9
"""Elements that onnxscript may read or make: its default folds none of silero-vad's weights."""

WEIGHTS: Final = {1: "W", 2: "R", 3: "B", 5: "initial_h", 6: "initial_c", 7: "P"}
"""Inputs of a recurrent node that may be constants."""


def fold(model: ir.Model, static: Mapping[str, object] | None = None) -> ir.Model:
    """Return the model with its recurrent weights as initialisers and `static` inputs fixed; `model` is not changed.

    Weights behind constant expressions (gates concatenated, transposed, cast, …) are evaluated, and functions that hold
    recurrent nodes are inlined. All else keeps its nodes and names, and a model that needs neither is returned itself.
    With `static`, onnxscript folds what hangs on the values: an If whose condition they decide goes away.

    Args:
        model: any model.
        static: values of graph inputs, which leave the signature.

    Raises:
        UsageError: a name in `static` that is no input.
        BadInput: a value that does not fit its input; an expression that cannot be evaluated.
        MissingExtra: `static` needs onnxscript, and it is not installed.
    """
    if static:
        model = model.clone()
        for name, value in static.items():
            _fix(model, name, value)
        _fold_in_place(model)
    if _recurrent_functions(model):
        model = inline(model)
    if any(is_expression(value) for node in model.graph.all_nodes() for _, value in _weights(node)):
        model = model.clone()
        for node in list(model.graph.all_nodes()):
            _bake(node, model)
    return model


def _recurrent_functions(model: ir.Model) -> bool:
    return any(is_recurrent(node) for function in model.functions.values() for node in function.all_nodes())


def _weights(node: ir.Node) -> list[tuple[int, ir.Value]]:
    """The weights and states of a recurrent node with their places; of any other node nothing."""
    found = [(at, input_of(node, at)) for at in WEIGHTS if is_recurrent(node)]
    return [(at, value) for at, value in found if value is not None]


def _bake(node: ir.Node, model: ir.Model) -> None:
    import onnx_ir as ir

    for at, value in _weights(node):
        if not is_expression(value):
            continue
        array = evaluate(value, node.version or model.opset_imports.get("", 0))
        name = unused(f"{node.name or node.op_type}.{WEIGHTS[at]}", value_names(model))
        baked = ir.Value(name=name, type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
                         shape=ir.Shape(array.shape), const_value=ir.Tensor(array, name=name))  # fmt: skip
        model.graph.register_initializer(baked)
        node.replace_input_with(at, baked)
        _remove_unused(value)


def _remove_unused(value: ir.Value) -> None:
    # The nodes of an expression that nobody reads any more, from the end backwards.
    waiting = [value.producer()]
    while waiting:
        node = waiting.pop()
        if node is None or node.graph is None or any(out.uses() or out.is_graph_output() for out in node.outputs):
            continue
        above = {entry.producer() for entry in node.inputs if entry is not None}
        node.graph.remove(node, safe=True)
        waiting += list(above)


def _fix(model: ir.Model, name: str, value: object) -> None:
    import onnx_ir as ir

    found = next((entry for entry in model.graph.inputs if entry.name == name), None)
    if found is None:
        raise UsageError(f"static: the model has no input {name!r}", where="fold",
                         expected=", ".join(str(entry.name) for entry in model.graph.inputs))  # fmt: skip
    array = _fitting(value, found)
    model.graph.inputs.remove(found)
    settle(model.graph, found.shape, array.shape)
    found.const_value = ir.Tensor(array, name=name)
    found.shape = ir.Shape(array.shape)
    model.graph.register_initializer(found)


def _fitting(value: object, found: ir.Value) -> np.ndarray:
    array = np.asarray(value)
    wanted = array.dtype if found.dtype is None else found.dtype.numpy()
    fitting = array.astype(wanted)
    if not np.array_equal(fitting, array):
        raise BadInput(f"static: the value of {found.name!r} does not fit its dtype", where="fold", got=value,
                       expected=wanted)  # fmt: skip
    if found.shape is None:
        return fitting
    sizes = list(found.shape)
    if len(sizes) == 1 and fitting.ndim == 0:
        fitting = fitting.reshape(1)
    if len(sizes) != fitting.ndim or any(isinstance(want, int) and want != have
                                         for want, have in zip(sizes, fitting.shape, strict=True)):  # fmt: skip
        raise BadInput(f"static: the value of {found.name!r} has another shape", where="fold", got=fitting.shape,
                       expected=found.shape)  # fmt: skip
    return fitting


def _fold_in_place(model: ir.Model) -> None:
    try:
        from onnxscript.optimizer import fold_constants
    except ImportError as error:
        raise MissingExtra("fixing an input needs onnxscript", where="fold", do="pip install 'rnn-bridge[fold]'"
                           ) from error  # fmt: skip
    import onnx
    from onnx_ir.serde import SerdeError

    try:
        fold_constants(model, input_size_limit=SIZE_LIMIT, output_size_limit=SIZE_LIMIT)
    except (ValueError, TypeError, RuntimeError, LookupError, SerdeError, onnx.shape_inference.InferenceError,
            onnx.checker.ValidationError) as error:  # fmt: skip
        raise BadInput("the model cannot be folded", where="fold", got=str(error)[:200]) from error
    for graph in model.graphs():  # what only folded nodes read; onnxruntime warns of each
        for name, value in list(graph.initializers.items()):
            if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
                del graph.initializers[name]
