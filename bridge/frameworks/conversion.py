"""The public conversions: find the door that owns a source, go through ONNX, leave by another door."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal, cast

from bridge.cell import Cell
from bridge.errors import BridgeError, UsageError, check_mapping
from bridge.frameworks.door import Door, ExportOptions
from bridge.frameworks.loadable import check_loadable
from bridge.frameworks.metadata import notes_of

if TYPE_CHECKING:
    import numpy as np
    import onnx
    import onnx_ir as ir

DOORS: Final = MappingProxyType(
    {"torch": "bridge.frameworks.torch", "keras": "bridge.frameworks.keras",
     "flax.nnx": "bridge.frameworks.flax_nnx", "flax.linen": "bridge.frameworks.flax_linen"}
)  # fmt: skip
"""The frameworks of live objects, each with the module that is its door."""

FILES: Final = MappingProxyType(
    {".keras": "bridge.frameworks.keras", ".h5": "bridge.frameworks.keras",
     ".pt": "bridge.frameworks.checkpoints", ".pth": "bridge.frameworks.checkpoints",
     ".safetensors": "bridge.frameworks.checkpoints", ".npz": "bridge.frameworks.checkpoints"}
)  # fmt: skip
"""The doors of files that are not ONNX, by suffix."""


EXPORTING: Final = threading.RLock()
"""Held by whoever exports or runs a live model: while a framework traces, methods of its classes are replaced for all
threads at once.

Re-entrant, because an export may meet another one inside (a file that is loaded, an imported graph).
"""


def door(framework: str) -> Door:
    """The door of a framework by name, importing bridge's module for it and not yet the framework.

    Raises:
        UsageError: an unknown framework.
    """
    if framework not in DOORS:
        raise UsageError("unknown framework", where="build", got=repr(framework), expected=", ".join(DOORS))
    return cast("Door", import_module(DOORS[framework]))


def door_of(source: object) -> Door | None:
    """The door that owns `source`; None where it is already an ONNX graph.

    Raises:
        UsageError: nothing here knows what `source` is.
    """
    if isinstance(source, (str, os.PathLike)):
        return _door_of_path(source)
    if type(source).__module__.partition(".")[0] in ("onnx", "onnx_ir"):
        return None
    for framework in DOORS:
        candidate = door(framework)
        if candidate.owns(source):
            return candidate
    raise UsageError(
        "not a source that bridge knows",
        got=type(source).__qualname__,
        expected="a torch module, a Keras model or layer, an nnx module, a (linen module, variables) pair, "
        "an onnx.ModelProto or a path",
    )


def _door_of_path(path: str | os.PathLike[str]) -> Door | None:
    # A checkpoint may name one stack inside it: `model.pt::encoder.rnn`.
    suffix = Path(os.fspath(path).partition("::")[0]).suffix.lower()
    if suffix == ".onnx":
        return None
    if suffix not in FILES:
        raise UsageError(
            f"cannot tell what {os.fspath(path)!r} is",
            expected="a path ending in " + ", ".join((".onnx", *FILES)),
        )
    return cast("Door", import_module(FILES[suffix]))


def to_ir(source: object, options: ExportOptions | None = None) -> ir.Model:
    """`source` as an onnx-ir model: exported by its door, or loaded where it is an ONNX graph.

    Threads that export wait for one another.

    Raises:
        Unsupported: onnxruntime has no kernel for a node of the export (a dtype, an operator).
        UsageError: export options given for a source that is a graph already.
    """
    from bridge import graph
    from bridge.graph.runnable import runnable

    if isinstance(source, Cell):
        return _export_cell(source, options or ExportOptions())
    owner = door_of(source)
    if owner is not None:
        model = export(owner, source, options or ExportOptions())
        check_loadable(model, _named(source))
        return model
    if options is not None and options.given:
        raise UsageError(
            "the source is an ONNX graph already, and export options cannot change it",
            where="to_onnx",
            got=", ".join(options.given),
            do="give them where the graph is exported from its framework",
        )
    return runnable(graph.as_model(source))


def export(owner: Door, source: object, options: ExportOptions) -> ir.Model:
    """What `owner` exports, while no other thread exports or runs a live model."""
    with EXPORTING:
        return owner.export(source, options)


def execute(owner: Door, source: object, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What `owner` computes, while no other thread exports: the classes that it runs may be replaced then."""
    with EXPORTING:
        return owner.execute(source, feeds)


def _named(source: object) -> str:
    """How an error names a source: a path as it is, a live model by its class."""
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    return type(source[0] if isinstance(source, tuple) else source).__name__


def _export_cell(cell: Cell, options: ExportOptions) -> ir.Model:
    """A bare Cell as a layer of its own: time-major, one node named `l0`."""
    from bridge.frameworks.stack import Layer, Stack
    from bridge.frameworks.stack_export import export_stack

    return export_stack(Stack(source=f"onnx.{cell.op}", version="", layers=(Layer(name="l0", cell=cell),)), options)


def to_onnx(
    source: object,
    path: str | os.PathLike[str] | None = None,
    *,
    example: object = None,
    dynamic: object = None,
    opset: int = 20,
    states: Literal["zero", "inputs"] = "zero",
    lengths: bool = False,
    form: Literal["fused", "scan"] = "fused",
    masks: Literal["exact", "right"] = "exact",
    custom_objects: Mapping[str, type] | None = None,
    external_data: bool | None = None,
    overwrite: bool = False,
) -> onnx.ModelProto:
    """Export `source` to ONNX with one fused operator per recurrent layer.

    Args:
        source: a torch module, a Keras model or layer, an nnx module, a (linen module, variables) pair, a path, or a
            Cell (exported as a time-major layer).
        path: where to write the model as well; None writes nothing.
        example: positional arguments as a tuple, one array, or a dict of keywords.
        dynamic: which axes are symbolic; None makes axes 0 and 1 of every array so.
        opset: 17 to 22; the IR version is at most 10.
        states: "zero" starts from zeros (or the layer's own learned states), "inputs" makes them graph inputs.
        lengths: whether `lengths`, int32 [batch], is a graph input.
        form: "fused" operators, or the same equations as an exact ONNX Scan.
        masks: "exact" carries any Keras mask, "right" only right padding.
        custom_objects: classes of the caller's own that a Keras file may name.
        external_data: write weights into `path` + ".data"; None does so past 1 GB. The returned model refers to it.
        overwrite: replace `path` if it exists.

    Returns:
        The model. Inputs `input`[, `lengths`][, `initial_h`][, `initial_c`] and outputs `output`, `h_n`[, `c_n`] for a
        bare recurrent layer, in the source framework's own axis order.

    Raises:
        Refused: the source holds something that could not be carried exactly.
        UsageError: an option out of range, or `path` exists.
        BadInput: a malformed file or module.
    """
    from bridge import graph

    options = ExportOptions(example=example, dynamic=dynamic, opset=opset, states=states, lengths=lengths,
                            form=form, masks=masks, custom_objects=custom_objects)  # fmt: skip
    if path is not None and not isinstance(path, (str, os.PathLike)):
        raise UsageError("not a path", where="to_onnx", got=repr(path)[:80],
                         do="give a path, or None to write nothing; an example as example=")  # fmt: skip
    fresh = isinstance(source, Cell) or door_of(source) is not None  # exported for this call; else the caller's own
    model = to_ir(source, options)
    if path is None:
        return graph.to_proto(model, consume=fresh)
    return graph.save(model, path, external=external_data, overwrite=overwrite)


def to_flax(
    source: object,
    *,
    api: Literal["nnx", "linen"] = "nnx",
    static: Mapping[str, object] | None = None,
    remat: int | None = None,
) -> Any:
    """Import `source` into Flax: an nnx module, or with api="linen" a pair (module, variables).

    The result is called positionally in the order of the ONNX inputs, or by name; one output is an array, several a
    tuple. `static` fixes inputs at import time: they leave the signature. For long sequences `remat` saves memory
    under grad: only the states of every `remat`-th time step are kept, the others are computed again.

    Raises:
        Unsupported: operators that bridge does not carry, all of them named.
        UsageError: an unknown api, or a `remat` below 1.
    """
    if api not in ("nnx", "linen"):
        raise UsageError("unknown api", where="to_flax", got=repr(api), expected="'nnx' or 'linen'")
    if remat is not None and (isinstance(remat, bool) or not isinstance(remat, int) or remat < 1):
        raise UsageError("not a number of time steps", where="to_flax", got=f"remat={remat!r}", expected="1 or more")
    _check_static(static, "to_flax")
    flax: Any = door(f"flax.{api}")  # the doors of Flax take one option more than Door says
    return flax.import_model(to_ir(source), static, remat)


def to_torch(source: object, *, static: Mapping[str, object] | None = None) -> Any:
    """Import `source` into torch: a `torch.nn.Module` with native recurrent layers, called as `to_flax` says."""
    _check_static(static, "to_torch")
    return door("torch").import_model(to_ir(source), static)


def to_keras(source: object, *, static: Mapping[str, object] | None = None) -> Any:
    """Import `source` into Keras 3: a `keras.Model` with native recurrent layers, called as `to_flax` says.

    Outputs are those of the graph, in the order of time for a layer that runs backwards too; the Keras layer inside
    gives them last step first. A process that loads the saved model imports `bridge.keras` before.

    Raises:
        Unsupported: operators that bridge does not carry, all of them named; an input in float64.
    """
    _check_static(static, "to_keras")
    return door("keras").import_model(to_ir(source), static)


def _check_static(static: object, where: str) -> None:
    if static is not None:
        check_mapping(static, f"{where}, static", "input names to values")


def cells(source: object) -> dict[str, Cell]:
    """Every recurrent cell in a model or file, by module path or node name.

    Raises:
        BadInput: a file that is malformed, or weights that do not fit together.
    """
    if isinstance(source, Cell):
        return {"l0": source}
    owner = door_of(source)
    if owner is not None:
        return owner.cells(source)
    from bridge import graph

    return graph.find_cells(graph.as_model(source))


def notes(source: object) -> tuple[str, ...]:
    """What reading `source` had to decide or leave out, in words: dropout, padding, activations that no file records.

    Empty for a source that cannot be exported, whose own error says why.
    """
    if isinstance(source, (str, os.PathLike)) and os.fspath(source).lower().endswith(".h5"):
        from bridge.frameworks.keras_h5 import read_h5

        return read_h5(os.fspath(source)).notes
    try:
        model = to_ir(source)
    except BridgeError:
        return ()
    return notes_of(model)


def assign(model: Any, mapping: Mapping[str, Cell | Sequence[Cell]]) -> Any:
    """Put cells into layers of the user's own torch, Keras or nnx model or linen pair, by path; return the model.

    Raises:
        UsageError: a path that the model does not have.
        NotRepresentable: a layer that has no place for its cell. The model is unchanged then.
    """
    owner = None if isinstance(model, (str, os.PathLike)) else door_of(model)
    if owner is None:
        raise UsageError("takes a live model", where="assign", got=type(model).__qualname__,
                         do="import the file into a framework first")  # fmt: skip
    check_mapping(mapping, "assign", "paths to cells")
    for path, given in mapping.items():
        _listed(given, f"assign, {path!r}")
    return owner.assign(model, mapping)


def build(
    cell_or_cells: Cell | Sequence[Cell],
    framework: Literal["torch", "keras", "flax.nnx", "flax.linen"],
    *,
    own_cells: bool = False,
) -> Any:
    """The bare native layer (a stack for several cells) of a framework; linen gives (module, variables).

    Outputs of a cell with direction="reverse" are in the order of time in ONNX. In Keras they are not: its layer
    (go_backwards=True) gives them in the order in which it computes them, last step first, and the next layer of a
    stack reads them so. A Keras Bidirectional puts those of its backward layer in the order of time.

    Raises:
        NotRepresentable: the framework has no place for a cell, and `own_cells` is False.
    """
    return door(framework).build(_listed(cell_or_cells, "build"), own_cells)


def _listed(given: Cell | Iterable[Cell], where: str) -> list[Cell]:
    """One cell or several as a list. Raises UsageError for anything else, and for none at all."""
    listed = list(given) if isinstance(given, Iterable) else [given]
    if not listed or not all(isinstance(cell, Cell) for cell in listed):
        raise UsageError("takes one Cell or a sequence of them", where=where, got=repr(given)[:80],
                         do="read them with cells(source)")  # fmt: skip
    return listed


def run(
    source: object, inputs: Mapping[str, np.ndarray], *, device: Literal["auto", "cpu", "cuda"] = "auto"
) -> dict[str, np.ndarray]:
    """Run `source` in onnxruntime, exported first where it is not ONNX. Outputs by name.

    A whole model is exported from `inputs` themselves, by the names of its forward's arguments; states such as
    `encoder.initial_h` are asked for by their names.

    Raises:
        BadInput: an input that is missing, unexpected, of another dtype or shape, or empty.
        DeviceUnavailable: device="cuda" and a recurrent node would not run there.
        MissingExtra: onnxruntime is not installed.
    """
    from bridge import graph, runtime

    check_mapping(inputs, "run, inputs", "input names to arrays")
    if not isinstance(source, Cell) and door_of(source) is None:
        return dict(runtime.run_model(cast("Any", source), inputs, device=device).outputs)
    model = graph.to_proto(_for_inputs(source, inputs))
    return dict(runtime.run_model(model, inputs, device=device).outputs)


def _for_inputs(source: object, inputs: Mapping[str, np.ndarray]) -> ir.Model:
    """The export of a live source whose graph takes `inputs`, which are the example where it needs one."""
    try:
        return to_ir(source, options_for(inputs))
    except UsageError as error:
        if "needs an example" not in error.what:
            raise
    states = {name for name in inputs if name.rpartition(".")[2].startswith("initial_")}
    arrays = {name: array for name, array in inputs.items() if name not in states}
    return to_ir(source, ExportOptions(example=arrays, states="inputs" if states else "zero"))


def options_for(input_names: Iterable[str]) -> ExportOptions:
    """The export whose graph takes these inputs: lengths and initial states are asked for by their names."""
    names = set(input_names)
    states = any(name.rpartition(".")[2].startswith("initial_") for name in names)
    return ExportOptions(lengths="lengths" in names, states="inputs" if states else "zero")
