"""The sides of a verification: whoever can turn named inputs into named outputs."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bridge import graph, runtime
from bridge.errors import Refused, UsageError
from bridge.frameworks import conversion
from bridge.frameworks.door import ExportOptions
from bridge.graph.interface import Interface, arranged, neutral

if TYPE_CHECKING:
    import onnx_ir as ir

Executor = Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]

TARGETS = {
    "flax": lambda model: conversion.to_flax(model),
    "flax.nnx": lambda model: conversion.to_flax(model),
    "flax.linen": lambda model: conversion.to_flax(model, api="linen"),
    "torch": lambda model: conversion.to_torch(model),
    "keras": lambda model: conversion.to_keras(model),
}
"""Target names that `verify` takes for `b`, each with its import."""


@dataclass(frozen=True, slots=True)
class Side:
    """One candidate: a name for the report and how it computes."""

    name: str
    execute: Executor
    same_padding: bool = True
    """Whether it fills outputs past a sequence's length as the judged graph does; where not, they are not compared."""


def label(source: object) -> str:
    """How a report names a source: a path or a target as it is, anything else by its type."""
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    if isinstance(source, tuple):
        return f"({type(source[0]).__qualname__}, variables)"
    kind = type(source)
    return f"{kind.__module__.partition('.')[0]} {kind.__qualname__}"


def is_target(b: object) -> bool:
    """Whether `b` is the name of a framework rather than a model or a path."""
    return isinstance(b, str) and (b in TARGETS or not any(mark in b for mark in "./\\"))


def common_options(
    sources: list[object], wanted: frozenset[str] | None = None, example: Mapping[str, np.ndarray] | None = None
) -> ExportOptions:
    """The widest export that every live source allows: lengths and states as inputs, or one of them, or neither.

    Args:
        sources: the sources that are not graphs yet.
        wanted: input names of a graph that the options must produce; None leaves the choice free.
        example: inputs by name, from which a whole model is exported where no export goes without.

    Raises:
        Refused: a source that cannot be exported at all; its own error.
    """
    if wanted is not None and not (example and any(_asks_for_example(source) for source in sources)):
        return conversion.options_for(wanted)
    plain = ExportOptions()
    for options in (
        ExportOptions(lengths=True, states="inputs"),
        ExportOptions(states="inputs"),
        ExportOptions(lengths=True),
    ):
        if example is not None and not _gives(example, options):
            continue
        try:
            for source in sources:
                conversion.to_ir(source, options)
        except (Refused, UsageError):
            continue
        return options
    if example is not None and any(_asks_for_example(source) for source in sources):
        arrays = {name: array for name, array in example.items() if not _is_state(name)}
        return ExportOptions(example=arrays, states="inputs" if len(arrays) < len(example) else "zero")
    return plain


def _gives(example: Mapping[str, np.ndarray], options: ExportOptions) -> bool:
    """Whether the caller's inputs hold the lengths and the states that an export would ask for."""
    lengths = any(name.rpartition(".")[2] == "lengths" for name in example)
    return (lengths or not options.lengths) and (any(map(_is_state, example)) or options.states == "zero")


def _is_state(name: str) -> bool:
    return name.rpartition(".")[2].startswith("initial_")


def _asks_for_example(source: object) -> bool:
    try:
        conversion.to_ir(source, ExportOptions())
    except UsageError:
        return True
    return False


def native(source: object, options: ExportOptions, model: ir.Model) -> Side:
    """A live source (or a checkpoint) run by its own framework, its arrays arranged as those of `model`."""
    owner = conversion.door_of(source)
    if owner is None:
        raise UsageError("not a live source", where="verify", got=label(source))
    own = conversion.export(owner, source, options)
    execute = _rearranged(
        lambda feeds: conversion.execute(owner, source, feeds), Interface.of(own), Interface.of(model)
    )
    return Side(label(source), execute, same_padding=_framework(own) == _framework(model))


def _framework(model: ir.Model) -> str:
    """Which framework's padding rule a graph reproduces: that of its source, else ONNX's own."""
    return model.metadata_props.get("bridge.source", "onnx").partition(".")[0]


def onnx_side(source: object, own: ir.Model, model: ir.Model, device: runtime.Device) -> Side:
    """An ONNX graph run by onnxruntime, its arrays arranged as those of `model`."""
    payload = source if isinstance(source, (str, os.PathLike)) else graph.to_proto(own)
    session = runtime.Session(payload, device=device)

    def execute(feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return session.run(feeds).outputs

    execute_ = _rearranged(execute, Interface.of(own), Interface.of(model))
    return Side(label(source), execute_, same_padding=_framework(own) == _framework(model))


def imported(target: str, model: ir.Model) -> Side:
    """The import of `model` into a framework, run there.

    Raises:
        UsageError: an unknown target.
    """
    if target not in TARGETS:
        raise UsageError("unknown target", where="verify", got=repr(target), expected=", ".join(TARGETS))
    module = TARGETS[target](model)
    return Side(target, lambda feeds: call_imported(module, feeds))


def call_imported(module: Any, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Call an imported model by name and give its outputs by name, as numpy."""
    if isinstance(module, tuple):
        linen, variables = module
        names, result = linen.output_names, linen.apply(variables, **feeds)
    else:
        names, result = module.output_names, module(**feeds)
    values = result if isinstance(result, tuple) else (result,)
    return {name: _numpy(value) for name, value in zip(names, values, strict=True)}


def _numpy(value: Any) -> np.ndarray:
    detach = getattr(value, "detach", None)  # a torch tensor that requires grad refuses __array__
    return np.asarray(detach().cpu() if detach is not None else value)


def _rearranged(execute: Executor, own: Interface, reference: Interface) -> Executor:
    conflict = own.conflict(reference)
    if conflict is not None:
        raise UsageError("the two sides take different inputs", where="verify", got=conflict[0], expected=conflict[1])
    if own.matches(reference):
        return execute

    def execute_in_reference_order(feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        known = arranged(own.inputs, neutral(tuple(p for p in reference.inputs if p.name in feeds), feeds))
        if missing := {port.name for port in own.inputs} - set(known):
            raise UsageError(
                "the two sides take different inputs",
                where="verify",
                got=", ".join(sorted(missing)) + " has no counterpart",
                expected=", ".join(port.name for port in reference.inputs),
            )
        results = execute(known)
        return arranged(reference.outputs, neutral(tuple(p for p in own.outputs if p.name in results), results))

    return execute_in_reference_order
