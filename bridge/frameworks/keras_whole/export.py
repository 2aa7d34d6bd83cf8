"""Whole Keras models to ONNX: stub the recurrent layers, let tf2onnx export the rest, put fused operators in.

Imported only by the Keras door, and only for a model that is more than recurrent layers.
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from bridge.errors import MissingExtra, Unsupported, UsageError
from bridge.frameworks import keras_graph
from bridge.frameworks.keras_read import Layer, keras_array, read_layers
from bridge.frameworks.keras_whole.inputs import Signature, signature_of, symbols
from bridge.frameworks.keras_whole.proof import has_loops, opens_more, prove_loops, runs_at_other_sizes
from bridge.frameworks.keras_whole.splice import Splice
from bridge.frameworks.metadata import metadata_of
from bridge.frameworks.whole import dtype_among, fixed_notes

if TYPE_CHECKING:
    import onnx_ir as ir

    from bridge.frameworks.door import ExportOptions

RESHAPED: Final = ("DFT", "GridSample", "GroupNormalization")
"""Operators that mean something else from opset 20 or 21 on than in the opset that tf2onnx writes."""


NARROW: Final = MappingProxyType({
    "float16": "onnxruntime 1.31.1 ends the process on float16 where a Transpose goes into a MatMul, and rounds "
    "elsewhere than Keras",
    "bfloat16": "no kernel of onnxruntime computes bfloat16",
})  # fmt: skip
"""Why a layer that computes in this dtype is no part of a whole model."""


INSTEAD: Final = "write the layer with keras.ops that ONNX has, or export the part around it"


def export_whole(model: Any, options: ExportOptions) -> ir.Model:
    """The ONNX model of any Keras model: fused nodes for its recurrent layers, tf2onnx's export for the rest.

    Inputs and outputs of a Sequential or functional model keep their names and order; a subclassed one gives the names
    of call's arguments, and `output`, or `output_0`, …, or the keys of a mapping. A stateful layer `encoder`, and any
    layer called without states under states="inputs", adds `encoder.initial_h` and `encoder.h_n`. The batch is
    symbolic, and every axis that the model leaves open.

    Raises:
        UsageError: a subclassed model without an example, or options that a whole model does not have.
        BadInput: a model that is not built.
        Unsupported: something in it that cannot be exported; its path is named.
    """
    if options.lengths:
        raise UsageError("lengths of a whole model are a mask of its own", where=model.name,
                         do="give the model a Masking layer, or an input that is passed as mask=")  # fmt: skip
    _check_dtypes(model)
    signature = signature_of(model, options.example, options.dynamic, min(18, options.opset))
    found, looped = _export(model, signature, options)
    if looped:
        prove_loops(model, found, INSTEAD)
    while len(signature.shapes) > 1 and opens_more(model, found) and not runs_at_other_sizes(model, found):
        signature = replace(signature, shapes=signature.shapes[1:])
        found, _ = _export(model, signature, options)
    return found


def _export(model: Any, signature: Signature, options: ExportOptions) -> tuple[ir.Model, bool]:
    """The graph, and whether tf2onnx has written control flow into it."""
    from bridge.graph import as_model

    layers, reasons = _layers(model, options)
    traced = _traced(model, signature, list(reasons))
    graph = as_model(traced.proto)
    looped = has_loops(graph)
    return _finished(model, graph, traced, signature, layers, reasons, options), looped


def _layers(model: Any, options: ExportOptions) -> tuple[list[tuple[str, tuple[Layer, ...]]], dict[int, str]]:
    """Path and facts of every recurrent layer, none of one that is left to tf2onnx; the reasons by number.

    Raises:
        Unsupported: such a layer has states that are asked for.
    """
    found: list[tuple[str, tuple[Layer, ...]]] = []
    reasons: dict[int, str] = {}
    for at, (path, layer) in enumerate(keras_graph.recurrent_layers(model)):
        try:
            found.append((path, read_layers(layer, path)))
        except Unsupported as error:
            if layer.stateful or options.states == "inputs":
                raise
            found.append((path, ()))
            reasons[at] = f"{path}: {error.what}; it is written as the loop that Keras runs"
    return found, reasons


def _check_dtypes(model: Any) -> None:
    """Refuse what onnxruntime does not survive, or rounds elsewhere than Keras."""
    for path, layer in keras_graph.all_layers(model):
        if layer.compute_dtype in NARROW:
            raise Unsupported(f"a layer in {layer.compute_dtype} (dtype policy {layer.dtype_policy.name!r})",
                              where=f"{path} ({type(layer).__name__})", got=NARROW[layer.compute_dtype],
                              do="build the model with the policy float32 and the same weights")  # fmt: skip


def _traced(model: Any, signature: Signature, plain: list[int]) -> Any:
    import keras

    for package in ("tensorflow", "tf2onnx"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtra(f"{package} is not installed, and whole Keras models go through it", where="to_onnx",
                               do="pip install 'rnn-bridge[keras]'")  # fmt: skip
    if keras.backend.backend() == "tensorflow":
        from bridge.frameworks.keras_whole.trace import trace

        return trace(model, signature, plain)
    from bridge.frameworks.keras_whole.process import trace_elsewhere

    return trace_elsewhere(model, signature, plain)


def _finished(
    model: Any, graph: ir.Model, traced: Any, signature: Signature, layers: list[tuple[str, tuple[Layer, ...]]],
    reasons: dict[int, str], options: ExportOptions,
) -> ir.Model:  # fmt: skip
    from bridge.graph import finishing, foreign
    from bridge.graph.stubs import splice

    paths = [path for path, _ in keras_graph.all_layers(model)]
    _check_operators(model, graph, traced, paths, options)
    labels = symbols(signature.names, traced.inputs, options.dynamic)
    foreign.settle_inputs(graph, [f"bridge.input.{at}" for at in range(len(labels))], signature.names,
                          signature.dtypes, labels, traced.constants)  # fmt: skip
    finishing.tidy(graph)
    foreign.name_by_scope(graph, "bridge.layer", paths, _weights(model))
    work = Splice(traced.calls, layers, options)
    dtype = dtype_among({str(weight.dtype) for weight in model.weights})
    splice(graph, max(18, options.opset), dtype, work.write)
    graph.graph.outputs.extend(value for _, value in work.outputs)
    foreign.remove_unused(graph)
    finishing.name_outputs(graph, [*traced.outputs, *(name for name, _ in work.outputs)])
    foreign.infer_shapes(graph, traced.shapes)
    _describe(model, graph, [*work.notes, *reasons.values()], layers, traced, signature)
    finishing.settle(graph, options.opset, model.name)
    return graph


def _check_operators(model: Any, graph: ir.Model, traced: Any, paths: list[str], options: ExportOptions) -> None:
    from bridge.graph import finishing, foreign

    unknown = foreign.unknown_operators(graph, "bridge.layer", paths)
    if options.opset > 19:
        unknown += foreign.named_operators(graph, RESHAPED, "bridge.layer", paths)
    failed = [] if unknown else traced.complaints
    if failed:
        where = foreign.path_of(failed[0], "bridge.layer", paths) or model.name
        raise Unsupported("tf2onnx cannot convert an operator", where=where, got=failed[0], do=INSTEAD)
    if unknown:
        where, operators = unknown[0][0] or model.name, ", ".join(dict.fromkeys(name for _, name in unknown))
        raise Unsupported(f"tf2onnx has no ONNX for {operators}", where=where,
                          got="; ".join(traced.complaints)[:800] or None,
                          do=INSTEAD)  # fmt: skip
    random = finishing.random_nodes(graph)
    if random:
        raise Unsupported("the model draws random numbers", where=model.name,
                          got=", ".join(node.op_type for node in random),
                          do="switch it off for inference: give the layer a training argument")  # fmt: skip


def _weights(model: Any) -> dict[str, Any]:
    """Each weight by its layer's path and its own name."""
    found: dict[str, Any] = {}
    for path, layer in keras_graph.all_layers(model):
        own = getattr(layer, "_trainable_variables", [])
        other = getattr(layer, "_non_trainable_variables", [])
        for weight in (*own, *other):
            found.setdefault(f"{path}.{weight.name}", keras_array(weight))
    return found


def _describe(
    model: Any, graph: ir.Model, said: list[str], layers: list[tuple[str, tuple[Layer, ...]]], traced: Any,
    signature: Signature,
) -> None:  # fmt: skip
    import keras

    from bridge import __version__

    graph.producer_name, graph.producer_version = "rnn-bridge", __version__
    graph.graph.name = str(model.name)
    graph.metadata_props.clear()
    fixed = [(name, axis, size) for name, shape in zip(signature.names, traced.inputs, strict=True)
             for axis, size in enumerate(shape[:2]) if size is not None and axis < max(1, len(shape) - 1)]  # fmt: skip
    graph.metadata_props.update(metadata_of("keras.Model", keras.__version__, [*fixed_notes(fixed), *said]))
    kinds = dict(keras_graph.recurrent_layers(model))
    graph.metadata_props["bridge.modules"] = json.dumps(
        {path: f"keras.layers.{type(kinds[path]).__name__}" for path, _ in layers}
    )
