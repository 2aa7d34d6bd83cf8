"""Convert one file into another: a model to ONNX, cells to the parameters of a layout, a stack to a Keras file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.cell import Cell
from bridge.errors import BadInput, NotRepresentable, Refused, UsageError
from bridge.frameworks import conversion
from bridge.frameworks.checkpoint_files import SUFFIXES
from bridge.frameworks.door import ExportOptions
from bridge.graph.finding import INPUTS
from bridge.graph.interface import Interface, arranged, neutral
from bridge.layout import fit, layouts, op_of
from bridge.layout.holding import holding
from bridge.ops.program import evaluate

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What convert_file wrote."""

    source: str
    target: str
    layers: tuple[str, ...]
    """The recurrent cells by name; of flax-code every layer that owns weights."""
    layouts: tuple[str, ...]
    """The layout of each cell where arrays were written."""
    bytes: int

    def to_dict(self) -> dict[str, Any]:
        """The document of schemas/convert.schema.json."""
        return asdict(self)

    def __str__(self) -> str:
        held = f" as {', '.join(dict.fromkeys(self.layouts))}" if self.layouts else ""
        return f"{self.target}: {len(self.layers)} layers{held}, {self.bytes:,} bytes"


def convert_file(
    source: str,
    target: Path,
    *,
    layout: str,
    overwrite: bool,
    external_data: bool | None,
    export: Mapping[str, Any],
    static: Mapping[str, object] | None = None,
    shapes: Mapping[str, Sequence[int | str]] | None = None,
) -> Written:
    """Write `source` to `target`, whose suffix says what becomes of it.

    Args:
        source: any path that `to_onnx` takes.
        target: `.onnx`; `.npz`, `.safetensors`, `.pt` or `.pth` for parameters; `.keras` for a stack of native layers.
        layout: of a parameter file: a layout ("flax.nnx.GRUCell") or a framework ("flax.nnx", "torch"); "flax-code"
            makes `target` a folder of readable code.
        overwrite: replace an existing target.
        external_data: weights beside an ONNX file.
        export: the other options of `to_onnx`.
        static: values of inputs that flax-code fixes.
        shapes: sizes of inputs that flax-code fixes.

    Raises:
        UsageError: a suffix or a layout that is unknown, or a target that exists.
        NotRepresentable: the layout cannot hold a cell.
    """
    if layout == "flax-code":
        if external_data is not None:
            raise UsageError("only an ONNX model has weights beside it", where="convert --external-data", got=layout,
                             do="leave it out: the weights of the code are a file of their own anyway")  # fmt: skip
        return _write_code(source, target, overwrite, {"static": static, "shapes": shapes, **export})
    for option, fixed in (("--static", static), ("--shape", shapes)):
        if fixed:
            raise UsageError("only flax-code fixes inputs", where=f"convert {option}", got=", ".join(fixed))
    suffix = target.suffix.lower()
    used: list[str] = []
    if suffix == ".onnx":
        if layout and layout != "onnx":
            raise UsageError("an ONNX file has no layout to choose", where="convert", got=layout)
        if Path(source).suffix.lower() == ".onnx":
            conversion.cells(source)  # a node that cannot be read is refused before the target is there, not after
        conversion.to_onnx(source, target, external_data=external_data, overwrite=overwrite, **export)
        found = conversion.cells(target)
    else:
        _refuse_export_options(target, layout if suffix == ".keras" else "", external_data, export)
        check_target(target, overwrite=overwrite)
        found = conversion.cells(source)
        if suffix == ".keras":
            _save_keras(source, found, target)
        elif suffix in SUFFIXES:
            used = _save_arrays(found, target, layout or ("torch" if suffix in (".pt", ".pth") else ""), overwrite)
        else:
            raise UsageError(f"cannot write {target.name!r}", where="convert",
                             expected="a name ending in " + ", ".join((".onnx", ".keras", *SUFFIXES)))  # fmt: skip
    return Written(source=source, target=str(target), layers=tuple(found), layouts=tuple(used),
                   bytes=target.stat().st_size)  # fmt: skip


def _refuse_export_options(target: Path, layout: str, external_data: bool | None, export: Mapping[str, Any]) -> None:
    """Refuse what the target would drop: the options of an ONNX model, and for a Keras file a layout.

    Raises:
        UsageError: an option with another value than its default.
    """
    if layout not in ("", "keras"):
        raise UsageError("a Keras file has no layout to choose", where="convert --to", got=layout,
                         do=f"leave it out, or write the arrays of a layout: {', '.join(SUFFIXES)}")  # fmt: skip
    given = [*ExportOptions(**export).given, *([] if external_data is None else ["external_data"])]
    if given:
        raise UsageError("only an ONNX model has these options", where=f"convert {target.name}",
                         got=", ".join(f"--{name.replace('_', '-')}" for name in given),
                         do="leave them out, or choose a target ending in .onnx")  # fmt: skip


def parse_static(given: Sequence[str]) -> dict[str, object]:
    """Values of inputs from `name=value`, the value in JSON.

    >>> parse_static(["sr=16000", "scale=[1.5, 2]"])
    {'sr': 16000, 'scale': [1.5, 2]}

    Raises:
        UsageError: something else than a name and a number, a truth value or lists of them.
    """
    values: dict[str, object] = {}
    for each in given:
        name, found, text = each.partition("=")
        try:
            values[name] = json.loads(text)
        except ValueError:
            values[name] = None
        if not found or not name or isinstance(values[name], str | dict | None):
            raise UsageError("no name=value with a number or a list of numbers", where="convert --static", got=each,
                             expected="sr=16000, or a=[1, 2]")  # fmt: skip
    return values


def parse_shapes(given: Sequence[str]) -> dict[str, tuple[int | str, ...]]:
    """Sizes of inputs from `name=size,size`: numbers, and names for sizes that stay symbolic.

    >>> parse_shapes(["x=batch,576"])
    {'x': ('batch', 576)}

    Raises:
        UsageError: something else than a name and sizes.
    """
    shapes: dict[str, tuple[int | str, ...]] = {}
    for each in given:
        name, _, text = each.partition("=")
        sizes = [size.strip() for size in text.split(",")]
        if not name or not all(size.isdecimal() or size.isidentifier() for size in sizes):
            raise UsageError("no name=sizes", where="convert --shape", got=each, expected="x=batch,576")
        shapes[name] = tuple(int(size) if size.isdecimal() else size for size in sizes)
    return shapes


def _write_code(source: str, target: Path, overwrite: bool, options: Mapping[str, Any]) -> Written:
    from bridge.frameworks.flax_code import write_code

    found = write_code(source, target, overwrite=overwrite, **options)
    size = sum(path.stat().st_size for path in target.iterdir() if path.is_file())
    return Written(source=source, target=str(target), layers=found.layers, layouts=(), bytes=size)


def check_target(target: Path, *, overwrite: bool) -> None:
    """Refuse a target that exists, or whose folder is none, before any work.

    Raises:
        UsageError: it exists and is not to be replaced.
        BadInput: its folder does not exist or is a file.
    """
    if target.is_dir() or (target.exists() and not overwrite):
        raise UsageError("the target exists", where=str(target), do="choose another name, or pass --overwrite")
    if not target.parent.is_dir():
        raise BadInput("there is no such folder", where=str(target.parent), do="make it first")


def layout_for(wanted: str, cell: Cell, where: str = "convert --to") -> str:
    """The layout that a framework or layout name means for a cell: the first of that framework that holds it.

    `where` is what an error says of the place that `wanted` was given at.

    Raises:
        UsageError: no layout of that name.
        NotRepresentable: none of the framework's layouts holds the cell; the first one's reason.
    """
    if wanted in layouts():
        return wanted
    candidates = [name for name in layouts() if name.startswith(f"{wanted}.") and op_of(name) == cell.op]
    if not wanted or not candidates:
        frameworks = dict.fromkeys(name.rpartition(".")[0] for name in layouts())
        raise UsageError(f"unknown layout or framework {wanted!r}" if wanted else "which layout?", where=where,
                         expected=", ".join(frameworks))  # fmt: skip
    first: Refused | None = None
    for name in candidates:
        try:
            holding(name, cell)
        except NotRepresentable as refusal:
            first = first or refusal
        else:
            return name
    raise first or NotRepresentable(f"{wanted} has no {cell.op}", where=where)


def named_arrays(found: Mapping[str, Cell], wanted: str) -> tuple[dict[str, np.ndarray], list[str]]:
    """All parameters of a file, and the layout of each cell.

    torch's names are those of one module (`weight_ih_l0_reverse`), so that `load_state_dict` takes them; elsewhere a
    name is the cell's name, `forward` or `backward` where not all runs forwards, and the layout's own key.
    """
    arrays: dict[str, np.ndarray] = {}
    used = []
    for at, (name, cell) in enumerate(found.items()):
        layout = layout_for(wanted, cell)
        used.append(layout)
        directions = {"forward": ("",), "reverse": ("backward",)}.get(cell.direction, ("forward", "backward"))
        for half, direction in zip(cell.split(), directions, strict=True):
            for key, array in fit(layout, half).params.items():
                if layout in ("torch.LSTM", "torch.GRU", "torch.RNN"):
                    if cell.direction == "reverse":
                        raise NotRepresentable("torch has no layer that runs in reverse only", where=name,
                                               do="write the model: convert it to .onnx")  # fmt: skip
                    arrays[f"{key}_l{at}{'_reverse' * (direction == 'backward')}"] = array
                else:
                    arrays[".".join(filter(None, (name, direction, key)))] = array
    return arrays, used


def _save_arrays(found: Mapping[str, Cell], target: Path, wanted: str, overwrite: bool) -> list[str]:
    from bridge.frameworks.checkpoints import save_params

    arrays, used = named_arrays(found, wanted)
    save_params(target, arrays, overwrite=overwrite)
    return used


def _save_keras(source: str, found: Mapping[str, Cell], target: Path) -> None:
    from bridge.frameworks import keras_save

    if not found:
        raise NotRepresentable("there is no recurrent layer to write", where=source)
    model = keras_save.sequential(list(found.values()))
    check_same_function(conversion.to_ir(source), with_biases(conversion.to_ir(model), found.values()), source)
    keras_save.save(model, target)


def with_biases(model: ir.Model, found: Iterable[Cell]) -> ir.Model:
    """`model` with the biases of `found` in those of its recurrent nodes, in order, that hold their rounded sum.

    A layer with one bias holds the sum of the operator's two in its dtype. That rounding is right and is no other
    function, but two graphs can be told apart by it. A node with any other bias keeps it.
    """
    from bridge.graph import recurrent_nodes
    from bridge.graph.updating import with_weights

    # A Scan (float64) keeps its own: evaluated in float64, its sum is rounded as every other one.
    biases = {str(node.name): {INPUTS.index("B"): cell.B}
              for (_, node, own, _), cell in zip(recurrent_nodes(model), found, strict=True)
              if node.op_type != "Scan" and own is not None and cell.B is not None and _holds_sum(own, cell)
              }  # fmt: skip
    return with_weights(model, {}, biases)


def _holds_sum(own: Cell, cell: Cell) -> bool:
    """Whether only the sum of the two biases of `cell` counts, and `own` has that sum, rounded once."""
    if own.B is None or cell.B is None or (cell.op == "GRU" and cell.linear_before_reset):
        return False
    first, second = (np.add(*np.split(biases, 2, axis=1)) for biases in (own.B, cell.B))
    return bool(np.array_equal(first, second))


def check_same_function(first: ir.Model, second: ir.Model, where: str) -> None:
    """Refuse a stack of layers that is not the whole of the model it was taken from.

    Both graphs are evaluated in float64 on one random input: what lies between recurrent layers, an order of layers
    or a reversed one shows there.

    Raises:
        NotRepresentable: the graphs have other inputs or compute something else.
    """
    sides = [(model, Interface.of(model)) for model in (first, second)]
    do = "carry the whole model: convert it to .onnx, or save the model that bridge.to_keras(source) gives"
    if any(len(interface.inputs) != 1 for _, interface in sides):
        raise NotRepresentable("the model has several inputs and is no plain stack", where=where, do=do)
    sequence = np.random.default_rng(0).standard_normal((5, 3, _features(sides[0][1])))
    results = []
    for model, interface in sides:
        port = interface.inputs[0]
        feeds = arranged(interface.inputs, {port.name: sequence})
        outputs = interface.outputs[:1]
        results.append(neutral(outputs, evaluate(model, feeds))[outputs[0].name])
    one, other = (np.asarray(result) for result in results)
    # float64 against float64: a thousand roundings of the largest value are far below any wrong layer.
    bound = 1000 * np.finfo(np.float64).eps * max(1.0, float(np.max(np.abs(one), initial=0.0)))
    if one.shape != other.shape or not np.max(np.abs(one - other), initial=0.0) <= bound:
        raise NotRepresentable("the model is more than a stack of its recurrent layers", where=where, do=do)


def _features(interface: Interface) -> int:
    dims = interface.inputs[0].dims or ()
    if not interface.inputs[0].is_sequence or not isinstance(dims[-1], int):
        raise NotRepresentable("the model's input is no sequence [batch, time, features]", where="convert", got=dims)
    return dims[-1]
