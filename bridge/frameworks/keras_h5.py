"""Recurrent weights out of h5 files of any Keras: whole models, legacy ones too, and weights alone.

Only arrays and plain JSON are read: no Keras class is made, no code is run. What old files leave unsaid is decided
here, in one place, and said in a note:

- A GRU's bias tells reset_after: (3H,) False, (2, 3H) True, (6H,) CuDNNGRU. Without a bias, a configuration that does
  not name reset_after means False.
- hard_sigmoid of Keras 1 and 2 is clip(0.2 x + 0.5, 0, 1); Keras 3's is clip(x / 6 + 0.5, 0, 1).
- Files with weights only record no activations. Keras before 2.3 had recurrent_activation hard_sigmoid, later ones
  sigmoid; "2.2.4-tf" was written by TensorFlow 1 and 2 alike, which differ, so it is refused.

Source: keras 2.2.0 keras/layers/recurrent.py; keras 2.3.0 release notes (recurrent_activation is sigmoid);
tf-keras 2.16.0 tf_keras/saving/legacy/hdf5_format.py _convert_rnn_weights; keras 3.15.1 keras/src/legacy/saving.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from bridge.cell import Activation, Cell
from bridge.errors import BadInput, NotRepresentable, Unsupported
from bridge.frameworks.keras_h5_files import (
    RESET_AFTER_NOTE,
    FileVersion,
    attribute_names,
    file_version,
    hard_sigmoid_note,
    model_document,
    refuse_links,
    stored_array,
)
from bridge.frameworks.keras_h5_layers import entries, find, with_safe_names

LEAVES: Final = ("kernel", "recurrent_kernel", "bias")
CELL_GROUPS: Final = re.compile(r"((lstm|gru|simple_rnn)_cell|stacked_rnn_cells)(_\d+)?|cell|vars|layers")
"""Groups that are no layer of the caller's: the cell inside a layer, and what Keras 3 puts around it."""

KINDS: Final = MappingProxyType({
    ("LSTM", 4): "keras.LSTM", ("LSTM", 8): "keras.CuDNNLSTM",
    ("GRU", 3): "keras.GRU", ("GRU", 6): "keras.CuDNNGRU", ("RNN", 1): "keras.SimpleRNN",
})  # fmt: skip
"""Layout by operator and by the bias's size in units."""


@dataclass(frozen=True, slots=True)
class FileCells:
    """What an h5 file holds: cells by layer name, and what had to be decided to read them."""

    cells: Mapping[str, Cell]
    notes: tuple[str, ...]
    others: tuple[str, ...] = ()
    """The arrays that are no cell's."""


def read_h5(path: str) -> FileCells:
    """The recurrent cells of an h5 file; a Bidirectional layer is one cell with two directions.

    Raises:
        BadInput: not an h5 file, links out of it, sizes that cannot be, weights of no known layer.
        Unsupported: a file that does not tell what its layers compute.
        MissingExtra: h5py is not installed.
    """
    import h5py

    try:
        with h5py.File(path, "r") as file:
            return _read(file, path)
    except (OSError, RuntimeError, KeyError) as error:
        raise BadInput(
            "not a readable h5 file", where=path, got=str(error), do="check the path, or save it again"
        ) from error


def _read(file: Any, path: str) -> FileCells:
    version, document = file_version(file), model_document(file, path)
    known, model = entries(document), _model_name(document)
    halves: dict[str, dict[str, Cell]] = {}
    notes: list[str] = []
    datasets = _datasets(file, path)
    slashed = [
        name for name in (*_layer_names(file), *(str(entry.config.get("name")) for entry in known)) if "/" in name
    ]
    seen: Counter[tuple[str, ...]] = Counter()
    sets = list(_weight_sets(datasets, path))
    for above, arrays in sets:
        groups = [group for group in with_safe_names("/".join(above), slashed).split("/")
                  if group not in ("model_weights", model)]  # fmt: skip
        layer, half = _layer_name(groups)
        side = half.partition("_")[0] if half.startswith(("forward", "backward")) and half != layer else ""
        entry, config = find(known, groups), None
        if entry is not None:
            layer, config = entry.resolved(side, seen[entry.path])
            seen[entry.path] += 1
        cell, said = _cell(arrays, config, version, f"{path}: {layer}")
        notes += [f"{layer}: {note}" for note in said]
        sides = halves.setdefault(layer, {})
        sides[side if side not in sides else f"{side}{len(sides)}"] = cell
    order = [".".join(entry.path) for entry in known] or _layer_names(file)
    if not order and len({name.rstrip("0123456789_") for name in halves}) > 1:
        notes.append("the file does not record the order of its layers; they stand here by name")
    ordered = sorted(halves, key=lambda layer: _rank(layer, order))
    cells = {name: cell for layer in ordered for name, cell in _joined(layer, halves[layer]).items()}
    used = {above for above, _ in sets}
    others = tuple(name for name in datasets if tuple(name.split("/")[:-1]) not in used)
    return FileCells(cells, tuple(dict.fromkeys(notes)), others)


def _layer_names(file: Any) -> list[str]:
    """The model's layers in its own order, which Keras 1 to 2 and legacy files of Keras 3 write beside the weights."""
    for group in (file.get("model_weights"), file):
        if group is not None and (names := attribute_names(group, "layer_names")):
            return names
    return []


def _rank(layer: str, order: Sequence[str]) -> tuple[int, list[tuple[int, str]]]:
    """The place of a layer: its own in `order`, else by name with numbers as numbers (lstm_2 before lstm_10).

    h5 itself lists groups by the bytes of their names, which is no order of a model.
    """
    parts = layer.split(".")
    whole = [".".join(parts[:count]) for count in range(len(parts), 0, -1)]
    known = [order.index(part) for part in (*whole, *parts) if part in order]
    pieces = [(int(text), "") if text.isdigit() else (-1, text) for text in re.split(r"(\d+)", layer)]
    return (known[0] if known else len(order)), pieces


def _joined(layer: str, found: Mapping[str, Cell]) -> dict[str, Cell]:
    if set(found) != {"forward", "backward"}:
        return {layer if not side else f"{layer}.{side}": cell for side, cell in found.items()}
    forward, backward = found["forward"], replace(found["backward"], direction="reverse")
    try:
        return {layer: Cell.join(replace(forward, direction="forward"), backward)}
    except NotRepresentable:
        return {f"{layer}.forward": forward, f"{layer}.backward": backward}


# ---------------------------------------------------------------------- what the file says


def _model_name(document: Any) -> str:
    # Keras 1 and 2.0 wrote a Sequential's configuration as a list, without its name.
    config = document.get("config") if isinstance(document, dict) else None
    return str(config.get("name", "")) if isinstance(config, dict) else ""


def _datasets(file: Any, path: str) -> dict[str, Any]:
    """Every dataset by name, but those of an optimizer."""
    import h5py

    refuse_links(file, path)
    found: dict[str, Any] = {}
    ranks: dict[str, int] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            found[name] = item
        else:
            ranks.update({f"{name}/{key}": at for at, key in enumerate(attribute_names(item, "weight_names"))})

    file.visititems(visit)
    # h5 lists by the bytes of names; the order of a layer's weights is the one that Keras wrote down.
    return {name: found[name] for name in sorted(found, key=lambda name: ranks.get(name, 0))
            if name.split("/")[0] not in ("optimizer_weights", "optimizer")}  # fmt: skip


def _weight_sets(datasets: Mapping[str, Any], path: str) -> Iterator[tuple[tuple[str, ...], dict[str, np.ndarray]]]:
    """The groups above each recurrent layer's weights, and the weights by name."""
    sets: dict[tuple[str, ...], dict[str, Any]] = {}
    for name, dataset in datasets.items():
        *groups, leaf = name.split("/")
        leaf = leaf.partition(":")[0]
        if groups[-2:] == ["cell", "vars"] and leaf in ("0", "1", "2"):
            leaf = LEAVES[int(leaf)]
        if leaf in LEAVES:
            sets.setdefault(tuple(groups), {})[leaf] = dataset
    for above, found in sets.items():
        # A ConvLSTM has these names too, with kernels of more axes: it is no cell.
        if "recurrent_kernel" in found and found["recurrent_kernel"].ndim == 2 and "kernel" in found:
            yield above, {key: stored_array(found[key], f"{path}: {'/'.join(above)}/{key}") for key in found}


def _layer_name(groups: Sequence[str]) -> tuple[str, str]:
    """The layer's name and that of the half of a Bidirectional, "" where it is none."""
    names = [group for group in groups if not CELL_GROUPS.fullmatch(group)]
    halves = [name for name in names if name.startswith(("forward_", "backward_"))]
    # Groups repeat: layer/layer/kernel, bidirectional/bidirectional/forward_lstm/lstm_cell/kernel.
    kept = [name for at, name in enumerate(names) if name not in names[:at] and name not in halves]
    half = halves[-1] if halves else ""
    return (".".join(kept) if kept else half or "/".join(groups)), half


# ---------------------------------------------------------------------- one layer


def _cell(
    arrays: dict[str, np.ndarray], config: Mapping[str, Any] | None, version: FileVersion, where: str
) -> tuple[Cell, list[str]]:
    from bridge import layout

    units, columns = arrays["recurrent_kernel"].shape
    op = {4: "LSTM", 3: "GRU", 1: "RNN"}.get(columns // units if units and columns % units == 0 else 0)
    if op is None:
        raise BadInput("a recurrent kernel of no Keras layer", where=where, got=[units, columns],
                       expected="[H, 4H], [H, 3H] or [H, H]")  # fmt: skip
    row, options, notes = _row(op, arrays, config, where)
    activations: dict[str, str] = {}
    if not row.startswith("keras.CuDNN"):
        activations, said = _activations(op, config, version, where)
        notes += said
    cell = layout.read_params(row, arrays, **options)
    direction = "reverse" if config and config.get("go_backwards") else "forward"
    if config and config.get("time_major"):
        notes.append("time_major: its input has time first; the cell does not record that")
    return replace(_with_activations(cell, activations, version, where), direction=direction), notes  # type: ignore[arg-type]


def _row(
    op: str, arrays: Mapping[str, np.ndarray], config: Mapping[str, Any] | None, where: str
) -> tuple[str, dict[str, Any], list[str]]:
    units = arrays["recurrent_kernel"].shape[0]
    bias = arrays.get("bias")
    size = {"LSTM": 4, "GRU": 3, "RNN": 1}[op] if bias is None or bias.ndim == 2 else bias.shape[0] / units
    row = KINDS.get((op, int(size)))
    if row is None or size != int(size):
        raise BadInput("a bias of no Keras layer", where=where, got=None if bias is None else list(bias.shape))
    if row != "keras.GRU":
        return row, {}, []
    if bias is not None:
        unsaid = config is not None and "reset_after" not in config and bias.ndim == 1
        return row, {"reset_after": bias.ndim == 2}, [RESET_AFTER_NOTE] if unsaid else []
    if config is None:
        raise Unsupported("a GRU without bias, in a file that does not say whether reset_after", where=where,
                          do='read_params("keras.GRU", {…}, reset_after=…) with the arrays of the file')  # fmt: skip
    said = [] if "reset_after" in config else [RESET_AFTER_NOTE]
    return row, {"reset_after": bool(config.get("reset_after", False))}, said


def _activations(
    op: str, config: Mapping[str, Any] | None, version: FileVersion, where: str
) -> tuple[dict[str, str], list[str]]:
    """Keras names by role, from the configuration, else from the version's defaults with a note."""
    names = ("activation",) if op == "RNN" else ("recurrent_activation", "activation")
    if config is not None and all(name in config for name in names):
        recorded = {name: _activation_name(config[name], where) for name in names}
        changed = version.vocabulary == "keras2" and "hard_sigmoid" in recorded.values()
        return recorded, [hard_sigmoid_note(version)] if changed else []
    defaults = {"recurrent_activation": version.recurrent_activation, "activation": "tanh"}
    found: dict[str, str] = {}
    for name in names:
        value = defaults[name]
        if value is None:
            raise Unsupported(
                f"the file does not record {name}, and its Keras version ({version.text or 'not recorded'}) does not "
                "tell the default", where=where,
                do='read_params("keras.LSTM", {…}, recurrent_activation=…) with the arrays of the file')  # fmt: skip
        found[name] = value
    said = ", ".join(f"{name} {value}" for name, value in found.items())
    return found, [f"activations and direction are not recorded; the defaults of Keras {version.text}: {said}"]


def _activation_name(value: Any, where: str) -> str:
    if isinstance(value, dict):  # Keras 3 and custom objects: {"class_name": "function", "config": "tanh"}
        value = value.get("config")
    if value is None:
        return "linear"
    if not isinstance(value, str):
        raise Unsupported("an activation that is no Keras function", where=where, got=repr(value)[:80])
    return value


def _with_activations(cell: Cell, names: Mapping[str, str], version: FileVersion, where: str) -> Cell:
    from bridge import layout

    if not names:
        return cell
    table: dict[str, Activation] = {}
    for role, name in names.items():
        found = layout.activation(version.vocabulary, name)
        if not isinstance(found, Activation):
            raise NotRepresentable(f"the ONNX operator has no activation {name!r}", where=where)
        table[role] = found
    recurrent = [table["recurrent_activation"]] if cell.op != "RNN" else []
    chosen = recurrent + [table["activation"]] * (2 if cell.op == "LSTM" else 1)
    return replace(
        cell,
        activations=tuple(one.name for one in chosen),
        activation_alpha=tuple(one.alpha for one in chosen if one.alpha is not None) or None,
        activation_beta=tuple(one.beta for one in chosen if one.beta is not None) or None,
    )
