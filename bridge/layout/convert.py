"""Reading and writing by layout name: the doors of this package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from bridge.cell import Cell
from bridge.errors import BadInput, NotRepresentable, Unsupported, UsageError, check_mapping
from bridge.layout import reading, writing
from bridge.layout.columns import Columns, columns
from bridge.layout.files import catalogue, find
from bridge.layout.options import choose
from bridge.layout.records import Layout


def layouts() -> tuple[str, ...]:
    """The names of all layouts, sorted by framework file and place in it.

    >>> "torch.LSTM" in layouts()
    True
    """
    return tuple(catalogue().layouts)


def read_blocks(layout: str, params: Mapping[str, reading.Array], **options: object) -> reading.Blocks:
    """ONNX blocks of one direction of one layer, in the array namespace of `params`.

    Works on numpy arrays, on jax arrays while they are traced, and on torch tensors under autograd.

    Raises:
        UsageError: an unknown layout, option or value.
        BadInput: names missing or unexpected, shapes or dtypes that disagree, a dimension of 0.
        NotRepresentable: the layer is not the ONNX operator under these options.
    """
    return reading.read(find(layout), [params], options)


def read_columns(layout: str, params: Mapping[str, reading.Array], **options: object) -> Columns:
    """Matrices [in, out] of one direction of one layer, moved as little as the layout allows. As `read_blocks`."""
    return columns(find(layout), params, options)


def read_params(layout: str, params: Mapping[str, object], **options: object) -> Cell:
    """The Cell that one direction of one layer is; direction "forward", no initial states.

    `params` are flat dotted names of array-likes: numpy, jax, torch. Nothing changes a bit of an array unless the
    layout adds a constant to it.

    Raises:
        UsageError: an unknown layout, option or value.
        BadInput: names missing or unexpected, shapes or dtypes that disagree, a dimension of 0, NaN or inf.
        Unsupported: a dtype that is not carried (bfloat16, complex, integers).
        NotRepresentable: the layer is not the ONNX operator under these options.

    >>> params = {"weight_ih": np.ones((3, 2), np.float32), "weight_hh": np.ones((3, 3), np.float32)}
    >>> read_params("torch.RNN", params, nonlinearity="relu").activations
    ('Relu',)
    """
    check_mapping(params, f"read_params, {layout}", "names to arrays")
    return read_directions(layout, [params], **options)


def read_directions(layout: str, directions: Sequence[Mapping[str, object]], **options: object) -> Cell:
    """The Cell that one layer is, from the parameters of its only direction, or of forward and backward.

    The same as `read_params` of each and `Cell.join`, with one copy of the weights less. Raises as `read_params`.
    """
    row = find(layout)
    arrays = [{name: _as_numpy(row, name, value) for name, value in params.items()} for params in directions]
    blocks = reading.read(row, arrays, options)
    return Cell(
        direction="bidirectional" if len(directions) == 2 else "forward",
        op=blocks.op,
        W=blocks.W,
        R=blocks.R,
        B=blocks.B,
        P=blocks.P,
        activations=blocks.activations,
        activation_alpha=blocks.alpha,
        activation_beta=blocks.beta,
        linear_before_reset=blocks.linear_before_reset,
        clip=blocks.clip,
        input_forget=blocks.input_forget,
    )


def fit(layout: str, cell: Cell, **options: object) -> writing.Fit:
    """The parameters and options with which a layout holds a cell; `options` that are given stand as they are.

    `read_params(layout, fit.params, **fit.options)` computes what the cell computes (its direction is not stored).

    Raises:
        UsageError: an unknown layout, option or value.
        NotRepresentable: the layout has no place for something in the cell; `do` names layouts that have.
    """
    row = find(layout)
    if not isinstance(cell, Cell):
        raise UsageError("takes a Cell", where=f"write_params, {layout}", got=type(cell).__qualname__,
                         do="read it with cells(source)")  # fmt: skip
    try:
        planned = writing.plan(row, cell, options)
    except NotRepresentable as refusal:
        raise _with_alternatives(refusal, row, cell) from None
    return writing.write(planned)


def write_params(layout: str, cell: Cell, **options: object) -> dict[str, np.ndarray]:
    """The parameters of one direction of one layer that computes what `cell` computes. Raises as `fit`.

    >>> cell = Cell("RNN", W=np.ones((1, 3, 2), np.float32), R=np.ones((1, 3, 3), np.float32))
    >>> {name: array.shape for name, array in write_params("keras.SimpleRNN", cell).items()}
    {'kernel': (2, 3), 'recurrent_kernel': (3, 3)}
    """
    return fit(layout, cell, **options).params


def template(layout: str, inputs: int, hidden: int, *, dtype: str = "float32", **options: object) -> writing.Fit:
    """Zeros of the names and shapes that a layer of the framework has, and the options to read them with.

    Biases are there, peepholes are not, unless the options or the framework's defaults say otherwise.

    Raises:
        UsageError: an unknown layout, option or value.

    >>> template("keras.GRU", 3, 4, reset_after=False).params["bias"].shape
    (12,)
    """
    row = find(layout)
    variant, values = choose(row, options)
    for slot in variant.slots:
        if slot.optional and slot.optional not in values:
            values[slot.optional] = "P" not in slot.blocks
    sizes = reading.Sizes(hidden=hidden, inputs=inputs)
    slots = [slot for slot in variant.slots if slot.optional is None or values[slot.optional]]
    return writing.Fit(params={slot.key: np.zeros(sizes.shape(slot), dtype) for slot in slots}, options=values)


def _as_numpy(layout: Layout, name: str, value: object) -> np.ndarray:
    if "bfloat16" in str(getattr(value, "dtype", "")):
        raise Unsupported(f"{name} is bfloat16: no kernel of onnxruntime computes it", where=layout.name,
                          expected="float16, float32 or float64", do="cast it to float32: exact")  # fmt: skip
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    try:
        array = np.asarray(value)
    except (TypeError, ValueError) as error:
        raise BadInput(f"{name} is no array: {error}", where=layout.name) from error
    if array.dtype.kind not in "fciub":
        raise BadInput(f"{name} is no array of numbers", where=layout.name, got=array.dtype)
    return array


def _with_alternatives(refusal: NotRepresentable, layout: Layout, cell: Cell) -> NotRepresentable:
    """The same refusal, with the layouts that could hold this cell, found by trying them all."""
    if refusal.do:
        return refusal
    able = [name for name in _neighbours_first(layout) if name != layout.name and _holds(name, cell)]
    ways = [name for name in able if not name.startswith("bridge.")]
    if len(ways) < len(able):
        ways.append('build(cell, "flax.nnx", own_cells=True)')
    do = (
        f"use {', '.join(ways[:-1])}{' or ' if len(ways) > 1 else ''}{ways[-1]}"
        if ways
        else "no layout holds this cell"
    )
    return NotRepresentable(refusal.what, where=refusal.where, got=refusal.got, expected=refusal.expected, do=do)


def _neighbours_first(layout: Layout) -> list[str]:
    rows = catalogue().layouts
    return sorted(rows, key=lambda name: rows[name].framework != layout.framework)


def _holds(name: str, cell: Cell) -> bool:
    try:
        writing.plan(find(name), cell, {})
    except NotRepresentable:
        return False
    return True
