"""Whole Flax models to ONNX: trace, refuse what cannot be carried, lower the rest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import flax
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal

from bridge.errors import Unsupported, UsageError
from bridge.frameworks.door import ExportOptions
from bridge.frameworks.flax_whole.imported import nodes_stood_in
from bridge.frameworks.flax_whole.models import Model
from bridge.frameworks.flax_whole.signature import Input, arguments_of, named_leaves
from bridge.frameworks.flax_whole.sizes import Sizes, label
from bridge.frameworks.flax_whole.table import rules
from bridge.frameworks.flax_whole.terms import Lowering, Term, constant
from bridge.frameworks.flax_whole.trace import Traced, trace
from bridge.frameworks.flax_whole.walk import array_of, called, lower, missing, refuse_missing
from bridge.frameworks.metadata import metadata_of
from bridge.frameworks.whole import check_unrolled, dtype_among, fixed_notes

if TYPE_CHECKING:
    import onnx_ir as ir

    from bridge.graph.writer import Writer

OLDEST: Final = 18
"""The opset that rules are written for; an older one is made from it afterwards."""

LOOPS: Final = "write the loop as RNN(cell), nn.scan, nnx.scan or jax.lax.scan"
"""What to do about a Python loop over time."""


def export_whole(model: Model, options: ExportOptions) -> ir.Model:
    """The ONNX model of any Flax module: fused nodes for its recurrent layers, the table's operators for the rest.

    Inputs take the names of the arguments of `__call__`, outputs `output`, or `output_0`, … for several, or the keys
    of a mapping; with states="inputs" a layer `encoder` that is called without a carry adds `encoder.initial_h` and
    `encoder.h_n`. Axes 0 and 1 of every array are symbolic where the model allows it.

    Raises:
        UsageError: no example, or options that a whole model does not have.
        Unsupported: training mode, random numbers, a primitive that is not carried; the path is named.
    """
    from bridge.graph import Writer, finishing

    _check_options(model, options)
    arguments = arguments_of(model.signature, options.example, model.where)
    names: list[str] = []
    after: list[str] = []

    def flat(parameters: Sequence[Any], *arrays: Any) -> Any:
        args, kwargs = arguments.place(arrays)
        result, state = model.call(parameters, args, kwargs)
        named = named_leaves(result)
        names[:], after[:] = named, state
        return [*named.values(), *state.values()]

    with nodes_stood_in():
        traced = trace(flat, list(model.parameters), arguments.inputs, options.dynamic, model.where)
    _check_state(traced.jaxpr, model, names, after)
    closed = ClosedJaxpr(traced.jaxpr.jaxpr.replace(outvars=traced.jaxpr.jaxpr.outvars[: len(names)],
                                                    debug_info=_shortened(traced.jaxpr.jaxpr, len(names))),
                         traced.jaxpr.consts)  # fmt: skip
    known = [not random for random in model.random] + [False] * len(arguments.inputs)
    refuse_missing(list(missing(closed, known, rules())), model.where)
    dtype = dtype_among({str(value.dtype) for value in model.parameters if hasattr(value, "dtype")})
    w = Writer(max(OLDEST, options.opset), dtype, model.where)
    c, terms = _begin(w, traced, arguments.inputs, options)
    parameters = [constant(array_of(value), name=name) for value, name in
                  zip(model.parameters, model.names, strict=True)]  # fmt: skip
    results = lower(c, closed, [*parameters, *terms], rules())
    check_unrolled(Counter(c.steps), traced.fixed, model.where, LOOPS)
    _end(c, names, results, {each.name for each in arguments.inputs})
    written = w.model(metadata_of(model.source, flax.__version__, fixed_notes(traced.fixed)))
    finishing.tidy(written)
    finishing.settle(written, options.opset, model.where)
    return written


def _shortened(jaxpr: Any, count: int) -> Any:
    info = jaxpr.debug_info
    paths = info.result_paths
    return info if paths is None or not isinstance(paths, tuple) else info._replace(result_paths=paths[:count])


def _check_options(model: Model, options: ExportOptions) -> None:
    if options.lengths:
        raise UsageError("lengths of a whole model are an input of its own", where=model.where,
                         do="let __call__ take them and pass them on as seq_lengths")  # fmt: skip
    if options.custom_objects:
        raise UsageError("custom_objects names classes of a Keras file", where=model.where, do="leave it out")


def _begin(w: Writer, traced: Traced, inputs: Sequence[Input], options: ExportOptions) -> tuple[Lowering, list[Term]]:
    """The graph's inputs, and the Terms that they are."""
    symbols: dict[str, tuple[Any, int]] = {}
    terms: list[Term] = []
    avals = [var.aval for var in traced.jaxpr.jaxpr.invars[-len(inputs) :]] if inputs else []
    for at, (each, aval) in enumerate(zip(inputs, avals, strict=True)):
        value = w.input(each.name, each.dtype.name, [label(size) for size in aval.shape])
        for axis in range(len(aval.shape)):
            if (at, axis) in traced.symbolic.names:
                symbols.setdefault(traced.symbolic.names[at, axis], (value, axis))
        own = w.cast(value, each.traced.name)
        terms.append(Term(shape=tuple(aval.shape), dtype=aval.dtype, thin=tuple(aval.shape), value=own))
    return Lowering(w=w, sizes=Sizes(w, symbols), options=options), terms


def _end(c: Lowering, names: Sequence[str], results: Sequence[Term], taken: set[str]) -> None:
    for name, term in zip(names, results, strict=True):
        while name in taken:
            name = f"{name}_1"
        c.w.output(c.full(term), name, np.dtype(term.dtype).name, [label(size) for size in term.shape])
        taken.add(name)
    for value, name in c.outputs:
        c.w.output(value, name)


def _check_state(closed: ClosedJaxpr, model: Model, names: Sequence[str], after: Sequence[str]) -> None:
    """Refuse a model whose call changes its own variables: an ONNX graph keeps nothing between two runs."""
    held = {name: at for at, name in enumerate(model.names)}
    for at, name in enumerate(after, len(names)):
        if name not in held or forwarded(closed, at) != held[name]:
            raise Unsupported("the call changes a variable of the model, which a graph cannot keep", where=name,
                              do="call model.eval(), or make the state an argument and a result of __call__"
                              )  # fmt: skip


def forwarded(closed: ClosedJaxpr, at: int) -> int | None:
    """Which operand result `at` is, handed through unchanged; None where it is computed."""
    jaxpr = closed.jaxpr
    var = jaxpr.outvars[at]
    while not isinstance(var, Literal) and var not in jaxpr.invars:
        eqn = next((eqn for eqn in jaxpr.eqns if var in eqn.outvars), None)
        inner = None if eqn is None else called(eqn)
        place = None if inner is None or eqn is None else forwarded(inner, eqn.outvars.index(var))
        if place is None or eqn is None:
            return None
        var = eqn.invars[place]
    return None if isinstance(var, Literal) else jaxpr.invars.index(var)
