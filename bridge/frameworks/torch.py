"""The torch door: recurrent modules to ONNX and back, cells in and out of the user's own module.

torch is imported inside functions only; `owns` does not even do that.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from bridge.errors import MissingExtra
from bridge.frameworks.door import ExportOptions

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir
    import torch

    from bridge.cell import Cell


def owns(source: object) -> bool:
    """Whether `source` is a `torch.nn.Module`; torch is looked up and never imported.

    On Keras' torch backend its layers are modules too, and still Keras'.
    """
    nn, keras = sys.modules.get("torch.nn"), sys.modules.get("keras")
    if nn is None or not isinstance(source, nn.Module):
        return False
    return keras is None or not hasattr(keras, "layers") or not isinstance(source, keras.layers.Layer)


def export(source: torch.nn.Module, options: ExportOptions) -> ir.Model:
    """The ONNX model of a module, one fused node a recurrent layer; the module stays as it is.

    Modules that `quantize_dynamic` made are written as their float equivalents, and a note says so.
    A recurrent module itself is written without tracing; any other goes through torch's exporter, by its `example`.

    Raises:
        Unsupported: something that cannot be exported (the path is named); hooks on a bare layer; a dtype.
        UsageError: options that the module does not have.
        BadInput: weights that hold NaN or inf, or an `example` that does not fit.
    """
    from bridge.frameworks.metadata import with_notes
    from bridge.frameworks.stack_export import export_stack
    from bridge.frameworks.torch_import import OnnxModule
    from bridge.frameworks.torch_own import OwnStack, Whole
    from bridge.frameworks.torch_quantised import as_float
    from bridge.frameworks.torch_read import kind_of, read_stack

    if isinstance(source, OnnxModule):
        return source.present_model(options)
    module, notes = as_float(source)
    if isinstance(module, OwnStack) or (kind_of(module) is not None and not isinstance(module, Whole)):
        return with_notes(export_stack(read_stack(module), options), notes)
    from bridge.frameworks.torch_whole.export import export_whole

    return with_notes(export_whole(module, options), notes)


def cells(source: torch.nn.Module) -> dict[str, Cell]:
    """Every recurrent cell by module path: `l0`, `l1` of a bare stack, `encoder.rnn.l0` of a nested one.

    Raises:
        NotRepresentable: an LSTM with proj_size, which is no Cell.
        Unsupported: a dtype that is not carried.
    """
    from bridge.frameworks.torch_quantised import as_float
    from bridge.frameworks.torch_read import read_cells

    return read_cells(as_float(source)[0])


def assign(model: torch.nn.Module, mapping: Mapping[str, Cell | Sequence[Cell]]) -> torch.nn.Module:
    """Write cells into recurrent modules of `model` by path, and return `model`.

    A path is a module's (`encoder.rnn`; "" for a bare one) with all its layers, or one layer's (`encoder.rnn.l1`).

    Raises:
        UsageError: a path that is no recurrent module, or the wrong number of cells.
        NotRepresentable: a cell that the layer has no place for. Nothing has been written then.
    """
    from bridge.frameworks.torch_write import assign_cells

    return assign_cells(model, mapping)


def build(cells: Sequence[Cell], own_cells: bool) -> torch.nn.Module:
    """`nn.LSTM`, `nn.GRU` or `nn.RNN` (time-major) with a layer for each cell.

    With `own_cells` it is bridge's own module where torch has no place for them.

    Raises:
        NotRepresentable: a cell that torch's layer cannot hold, or cells that are no stack.
    """
    _require_torch("build")
    from bridge.frameworks.torch_write import build_module

    return build_module(cells, own_cells)


def import_model(model: ir.Model, static: Mapping[str, object] | None) -> torch.nn.Module:
    """`model` as a module called positionally in the order of the graph's inputs, or by name.

    Raises:
        Unsupported: operators that bridge does not carry, all of them named.
    """
    _require_torch("to_torch")
    from bridge.frameworks.torch_import import OnnxModule

    return OnnxModule(model, static)


def execute(source: torch.nn.Module, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Torch's own forward pass in inference mode, inputs and outputs named as `export` names them.

    Raises:
        BadInput: unknown or missing inputs, or a length below 1, which torch cannot pack.
    """
    from bridge.frameworks.torch_execute import run_module

    return run_module(source, feeds)


def _require_torch(where: str) -> None:
    try:
        import torch  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise MissingExtra("torch is not installed", where=where,
                           do="pip install 'rnn-bridge[torch]'") from None  # fmt: skip
