"""Whole torch models to ONNX: stub the recurrent layers, let torch export the rest, put fused operators in.

Imported only by the torch door, and only for a module that is not a recurrent layer itself.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn

from bridge.errors import Unsupported, UsageError
from bridge.frameworks.door import ExportOptions
from bridge.frameworks.metadata import metadata_of
from bridge.frameworks.stack import Stack
from bridge.frameworks.torch_own import Whole
from bridge.frameworks.torch_read import read_weights, recurrent_modules, refuse_scripted
from bridge.frameworks.torch_whole.capture import FAILURES, OLDEST, capture, explained, translate
from bridge.frameworks.torch_whole.inputs import (
    arguments_of,
    check_outputs,
    dynamic_shapes,
    fixed_axes,
    output_names,
    symbols,
)
from bridge.frameworks.torch_whole.loops import COUNTS, INSTEAD, Loops, without_whole_slices
from bridge.frameworks.torch_whole.proof import prove_loops
from bridge.frameworks.torch_whole.splice import Splice
from bridge.frameworks.torch_whole.stubs import Trace
from bridge.frameworks.whole import Fixed, check_unrolled, dtype_among, fixed_notes

if TYPE_CHECKING:
    import onnx_ir as ir

NORMS: Final = (nn.modules.batchnorm._NormBase,)  # noqa: SLF001 (the base of every norm with running statistics)
DROPOUTS: Final = (nn.modules.dropout._DropoutNd,)  # noqa: SLF001


def export_whole(module: nn.Module, options: ExportOptions) -> ir.Model:
    """The ONNX model of any module: fused nodes for its recurrent layers, torch's own export for the rest.

    Inputs take the names of forward's arguments, outputs `output`, or `output_0`, … for several, or the keys of a
    mapping; with states="inputs" a layer `encoder` that is called without states adds `encoder.initial_h` and
    `encoder.h_n`. Axes 0 and 1 of every array are symbolic where the model allows it.

    Raises:
        UsageError: no example, one on which forward fails, or options that a whole model does not have.
        Unsupported: training mode, several devices, a module that torch.jit traced or scripted, or something in it
            that cannot be exported; the path is named.
        BadInput: weights that hold NaN or inf.
    """
    from bridge.graph.finishing import same_graph

    refuse_scripted(module, parts=True)
    _check_options(module, options)
    _check_mode(module)
    _check_devices(module)
    layers = _layers(module)
    args = arguments_of(module, options.example)
    shapes = dynamic_shapes(module, args, options.dynamic)
    models = []
    for count in COUNTS:
        trace, loops = Trace(recurrent_modules(module)), Loops(count, module)
        try:
            program = capture(module, args, shapes, trace, loops)
        except FAILURES as error:
            raise explained(error, module, args) from error
        if loops.sampled:
            without_whole_slices(program)
        check_outputs(program, type(module).__name__)
        models.append(_finished(module, translate(module, program, options.opset), program, trace, layers, options))
        if not loops.sampled:
            return models[0]
    if not same_graph(*models):
        raise Unsupported("a Python loop over time does more than step a cell, and cannot become one layer",
                          where=type(module).__name__, got="; ".join(dict.fromkeys(loops.sampled)), do=INSTEAD
                          )  # fmt: skip
    prove_loops(module, models[0], args, loops.sampled, INSTEAD)
    return models[0]


def _finished(
    module: nn.Module, model: ir.Model, program: Any, trace: Trace, layers: list[tuple[str, Stack]],
    options: ExportOptions,
) -> ir.Model:  # fmt: skip
    from bridge.graph import finishing
    from bridge.graph.sorting import without_sorting
    from bridge.graph.stubs import splice

    where = type(module).__name__
    names = output_names(program)
    work = Splice(layers, options.form, options.states == "inputs")
    work.find_chains(model)
    fixed = fixed_axes(program, options.dynamic)
    check_unrolled(work.steps_by_path(), fixed, where, INSTEAD)
    dtype = dtype_among({str(value.dtype).removeprefix("torch.") for value in module.parameters()})
    splice(model, max(OLDEST, options.opset), dtype, work.write)
    model.graph.outputs.extend(value for _, value in work.outputs)
    finishing.name_outputs(model, [*names, *(name for name, _ in work.outputs)])
    finishing.tidy(model)
    if without_sorting(model):
        finishing.tidy(model)
    random = {node: finishing.line_of(node) for node in finishing.random_nodes(model)}
    finishing.rename_symbols(model, work.symbols(symbols(program, options.dynamic), model))
    finishing.name_nodes(model)
    if random:
        raise Unsupported("the model draws random numbers", where=where,
                          got="; ".join(f"{node.name}, {line}".strip(", ") for node, line in random.items()),
                          do="switch it off for inference: module.eval(), and F.dropout(..., training=self.training)"
                          )  # fmt: skip
    _describe(model, trace, work, fixed)
    finishing.settle(model, options.opset, where)
    return model


def _describe(model: ir.Model, trace: Trace, work: Splice, fixed: list[Fixed]) -> None:
    from bridge import __version__

    notes = fixed_notes(fixed) + [note for _, stack in work.layers for note in stack.notes]
    if trace.full:
        notes.append("the longest sequence of a packed batch must fill the time axis: other lengths fail when run")
    model.producer_name, model.producer_version = "rnn-bridge", __version__
    model.metadata_props.update(metadata_of("torch.nn.Module", torch.__version__, notes))
    model.metadata_props["bridge.modules"] = json.dumps({path: stack.source for path, stack in work.layers})


def _layers(module: nn.Module) -> list[tuple[str, Stack]]:
    """Path and layers of every recurrent module: read once, so that calls of one module share their weights."""
    modules = list(recurrent_modules(module))
    for path, child in modules:
        if isinstance(child, Whole):
            raise Unsupported("a module that bridge imported stands inside a torch model", where=path,
                              do="export the imported graph by itself")  # fmt: skip
    return [(path, read_weights(child, path)) for path, child in modules]


def _check_options(module: nn.Module, options: ExportOptions) -> None:
    where = type(module).__name__
    if options.lengths:
        raise UsageError("lengths of a whole model are an input of its own", where=where,
                         do="let forward take them and pack with pack_padded_sequence")  # fmt: skip
    if options.custom_objects:
        raise UsageError("custom_objects names classes of a Keras file", where=where, do="leave it out")


def _check_mode(module: nn.Module) -> None:
    """Refuse what computes otherwise in training."""
    for path, child in module.named_modules():
        random = (isinstance(child, DROPOUTS) and child.p > 0) or (
            isinstance(child, nn.RNNBase) and child.dropout > 0 and child.num_layers > 1
        ) or (isinstance(child, nn.MultiheadAttention) and child.dropout > 0)  # fmt: skip
        if child.training and (random or isinstance(child, (*NORMS, nn.RReLU))):
            what = "drops values at random" if random else "takes the statistics of the batch"
            raise Unsupported(f"the module is in training mode and {what}", where=f"{path} ({type(child).__name__})",
                              do="call .eval() on the model before the export")  # fmt: skip


def _check_devices(module: nn.Module) -> None:
    places: dict[str, str] = {}
    for name, value in (*module.named_parameters(), *module.named_buffers()):
        places.setdefault(str(value.device), name)
    if len(places) > 1:
        raise Unsupported("the model lies on several devices", where=type(module).__name__,
                          got=", ".join(f"{name} on {device}" for device, name in places.items()),
                          do="move it to one device: model.cpu()")  # fmt: skip
    if "meta" in places:
        raise Unsupported("the weights are on the device 'meta' and have no values", where=places["meta"],
                          do="load the weights first")  # fmt: skip
