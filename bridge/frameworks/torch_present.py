"""An imported torch graph as ONNX again: the graph it was made of, with the present weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from bridge.errors import Unsupported
from bridge.frameworks.torch_own import as_numpy
from bridge.frameworks.torch_taken import inputs_of, projected_arrays

if TYPE_CHECKING:
    import onnx_ir as ir

    from bridge.frameworks.torch_graph.writing import Places

KEEP = "make the change in the ONNX model and import that, or export with torch.onnx"


def present_model(module: nn.Module, model: ir.Model, places: Places, *, changed: bool) -> ir.Model:
    """`model` with what `module` holds now.

    Raises:
        Unsupported: the code (`changed`) or a layer is another than at the import; a statistic that two layers shared
            and that differs now.
    """
    from bridge.graph.updating import with_weights

    if changed:
        raise Unsupported("the code of an imported graph was changed", where="to_onnx", do=KEEP)
    _check_layers(module, places)
    weights = {name: as_numpy(module.get_parameter(path)) for name, path in places.plain.items()}
    for name, path, weight in places.natives:
        array = weight.back(as_numpy(_tensor(module, path)))
        _check_shape(path, array.shape, weight.array.shape)
        if name in weights and not np.array_equal(weights[name], array):
            raise Unsupported("two layers shared this array and hold different ones now", where=path,
                              do="give both the same values")  # fmt: skip
        weights[name] = array
    for path, stored in places.projected.items():
        arrays = projected_arrays(module.get_submodule(path))
        weights |= {own: arrays[block] for block, own in stored.items()}
    nodes = {name: inputs_of(module.get_submodule(path)) for name, path in places.recurrent.items()}
    return with_weights(model, weights, nodes)


def _check_layers(module: nn.Module, places: Places) -> None:
    present = dict(module.named_modules(remove_duplicate=False))
    for path, kind in places.kinds.items():
        if type(present.get(path)) is not kind:
            raise Unsupported("a layer of an imported graph was replaced", where=path,
                              got=type(present.get(path)).__name__, expected=kind.__name__, do=KEEP)  # fmt: skip


def _tensor(module: nn.Module, path: str) -> Any:
    owner, _, name = path.rpartition(".")
    return getattr(module.get_submodule(owner), name)


def _check_shape(path: str, got: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if got != expected:
        raise Unsupported("a weight of an imported graph has another shape", where=path, got=list(got),
                          expected=list(expected), do=KEEP)  # fmt: skip
