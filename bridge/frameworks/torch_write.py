"""Cells into torch: native modules made of them, and the layers of the user's own module filled with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from bridge.cell import Cell
from bridge.errors import NotRepresentable, UsageError
from bridge.frameworks.stack import SUFFIXES
from bridge.frameworks.torch_own import OwnStack, Whole
from bridge.frameworks.torch_read import STEPS, kind_of, layout_of, layout_options, recurrent_modules
from bridge.layout import fit

NATIVE: Final = {"LSTM": (nn.LSTM, "torch.LSTM"), "GRU": (nn.GRU, "torch.GRU"), "RNN": (nn.RNN, "torch.RNN")}
"""Operator to torch's class and the layout of one direction of one layer of it."""


def build_module(cells: Sequence[Cell], own_cells: bool) -> nn.Module:
    """`native_module(cells)`, or with `own_cells` an OwnStack where that is refused."""
    try:
        return native_module(cells)
    except NotRepresentable:
        _check_chain(cells)
        if not own_cells:
            raise
        return OwnStack(cells)


def native_module(cells: Sequence[Cell]) -> Any:
    """An `nn.LSTM`, `nn.GRU` or `nn.RNN` (time-major, in evaluation mode) with these cells as its layers.

    Raises:
        NotRepresentable: a cell that torch's layer cannot hold, or cells that are no stack of one.
    """
    _check_chain(cells)
    first = cells[0]
    kind, layout = NATIVE[first.op]
    bias = any(cell.B is not None for cell in cells)
    halves = [[fit(layout, half, bias=bias) for half in _directions(cell)] for cell in cells]
    options = [half.options for layer in halves for half in layer]
    if any(other != options[0] for other in options):
        raise NotRepresentable("the layers of one torch module share their options", where=layout,
                               got="; ".join(map(str, options)), do="build each cell on its own")  # fmt: skip
    module = kind(first.input_size, first.hidden_size, num_layers=len(cells), dtype=getattr(torch, first.dtype.name),
                  bidirectional=first.num_directions == 2, device="meta", **options[0])  # fmt: skip
    tensors = {
        f"{name}_l{at}{suffix}": torch.tensor(array)
        for at, layer in enumerate(halves)
        for suffix, half in zip(SUFFIXES, layer, strict=False)
        for name, array in half.params.items()
    }
    return _filled(module, tensors)


def projected_module(arrays: Mapping[str, np.ndarray], hidden_size: int, proj_size: int) -> Any:
    """A one-direction `nn.LSTM(proj_size=...)` with the blocks of a Scan that `write_projected` wrote."""
    R = np.pad(arrays["R"], ((0, 0), (0, hidden_size - proj_size)))
    B = np.concatenate([arrays["Wb"], arrays["Rb"]])[None] if "Wb" in arrays else None
    cell = Cell("LSTM", W=arrays["W"][None], R=R[None], B=B)
    params = fit("torch.LSTM", cell, bias=B is not None).params
    params["weight_hh"] = params["weight_hh"][:, :proj_size]
    params["weight_hr"] = arrays["weight_hr"]
    module = nn.LSTM(cell.input_size, hidden_size, proj_size=proj_size, bias=B is not None, device="meta",
                     dtype=getattr(torch, cell.dtype.name))  # fmt: skip
    return _filled(module, {f"{name}_l0": torch.tensor(array) for name, array in params.items()})


def _filled(module: nn.Module, tensors: dict[str, torch.Tensor]) -> nn.Module:
    """`module`, made without storage, with these tensors as its parameters."""
    module.load_state_dict(tensors, assign=True)
    return module.requires_grad_().eval()


def _directions(cell: Cell) -> tuple[Cell, ...]:
    if cell.direction == "reverse":
        raise NotRepresentable("torch has no layer that runs in reverse only", where="torch." + cell.op,
                               do="build(cell, 'torch', own_cells=True), or join it with a forward cell")  # fmt: skip
    return cell.split()


def _check_chain(cells: Sequence[Cell]) -> None:
    first = cells[0]
    for below, above in pairwise(cells):
        width = below.hidden_size * below.num_directions
        if above.input_size != width:
            raise NotRepresentable("the cells are no stack: sizes do not follow from one another", where="torch",
                                   got=f"input size {above.input_size} on {width} features")  # fmt: skip
        for name in ("op", "hidden_size", "num_directions", "dtype"):
            if getattr(above, name) != getattr(first, name):
                raise NotRepresentable(f"the layers of one torch module share their {name}", where="torch",
                                       got=f"{getattr(first, name)} and {getattr(above, name)}",
                                       do="build each cell on its own")  # fmt: skip


# ---------------------------------------------------------------------- into the user's own module

Write = tuple[nn.Parameter, torch.Tensor]


def assign_cells(model: nn.Module, mapping: Mapping[str, Cell | Sequence[Cell]]) -> nn.Module:
    """Check every cell first, then write all of them."""
    writes: dict[int, Write] = {}
    for path, value in mapping.items():
        cells = [value] if isinstance(value, Cell) else list(value)
        for parameter, tensor in _writes(model, path, cells):
            before = writes.setdefault(id(parameter), (parameter, tensor))[1]
            if not torch.equal(before, tensor):
                raise NotRepresentable("two cells go to one shared parameter and differ", where=path or "model")
    with torch.no_grad():
        for parameter, tensor in writes.values():
            parameter.copy_(tensor)
    return model


def _writes(model: nn.Module, path: str, cells: list[Cell]) -> Iterator[Write]:
    module, layer = _find(model, path)
    where = path or type(module).__name__
    if isinstance(module, Whole):
        raise UsageError("bridge's own module is built from cells and not assigned to", where=where,
                         do="build it again")  # fmt: skip
    count = 1 if isinstance(module, tuple(STEPS)) else module.num_layers
    expected = count if layer is None else 1
    if len(cells) != expected:
        raise UsageError("wrong number of cells", where=where, got=len(cells), expected=f"{expected}, one a layer")
    for at, cell in enumerate(cells, start=layer or 0):
        yield from _layer_writes(module, at, cell, where)


def _find(model: nn.Module, path: str) -> tuple[Any, int | None]:
    """The recurrent module at `path`, and the layer of it where the path ends in `l{k}`."""
    modules = dict(recurrent_modules(model))
    if path in modules:
        return modules[path], None
    parent, _, last = path.rpartition(".")
    if parent in modules and last[:1] == "l" and last[1:].isdecimal():
        module: Any = modules[parent]
        if int(last[1:]) < getattr(module, "num_layers", 0):
            return module, int(last[1:])
    if path == "cell" and "" in modules and isinstance(modules[""], tuple(STEPS)):
        return modules[""], None
    raise UsageError("no recurrent module or layer at this path", where="assign", got=repr(path),
                     expected=", ".join(repr(name) for name in modules) or "a model that has one")  # fmt: skip


def _layer_writes(module: Any, at: int, cell: Cell, where: str) -> Iterator[Write]:
    if getattr(module, "proj_size", 0):
        raise NotRepresentable("a projected LSTM holds no Cell", where=where)
    halves = cell.split()
    directions = 2 if getattr(module, "bidirectional", False) else 1
    if len(halves) != directions or cell.direction == "reverse":
        raise NotRepresentable("the cell runs another way than the layer", where=where, got=cell.direction,
                               expected="bidirectional" if directions == 2 else "forward")  # fmt: skip
    for half, suffix in zip(halves, SUFFIXES, strict=False):
        fitted = fit(layout_of(module), half, bias=bool(module.bias), **layout_options(module))
        ending = "" if kind_of(module) in STEPS else f"_l{at}{suffix}"
        yield from _parameter_writes(module, fitted.params, ending, where)


def _parameter_writes(module: Any, params: Mapping[str, np.ndarray], ending: str, where: str) -> Iterator[Write]:
    stored = dict(module.named_parameters(recurse=False, remove_duplicate=False))
    for name, array in params.items():
        parameter = stored.get(name + ending)
        if parameter is None:
            raise NotRepresentable(f"{name}{ending} is computed and not stored (weight norm, a parametrisation)",
                                   where=where, do="remove the parametrisation first")  # fmt: skip
        if tuple(parameter.shape) != array.shape or parameter.dtype != getattr(torch, array.dtype.name):
            raise NotRepresentable(f"{name}{ending} has another shape or dtype than the cell's", where=where,
                                   got=f"{list(array.shape)} {array.dtype}",
                                   expected=f"{list(parameter.shape)} {parameter.dtype}")  # fmt: skip
        yield parameter, torch.tensor(array).to(parameter.device)
