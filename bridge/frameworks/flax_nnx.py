"""The flax.nnx door: recurrent nnx modules to ONNX and back, cells in and out of the user's own module.

flax is imported inside functions only; `owns` does not even do that.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bridge.errors import MissingExtra, Unsupported
from bridge.frameworks.door import ExportOptions

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from bridge.cell import Cell


def owns(source: object) -> bool:
    """Whether `source` is an `nnx.Module`; flax is looked up and never imported."""
    nnx = sys.modules.get("flax.nnx")
    return nnx is not None and isinstance(source, nnx.Module)


def export(source: Any, options: ExportOptions) -> ir.Model:
    """The ONNX model of any nnx module: one fused node a recurrent layer.

    An nnx.RNN, nnx.Bidirectional, cell, or nnx.Sequential of them needs no example and no trace; a module that was
    imported is its graph again, with the present parameters.

    Raises:
        Unsupported: something in it, or an option of a layer, that could not be carried exactly.
        UsageError: options that the module does not have; a whole model without an example.
    """
    from bridge.frameworks.flax_export import export_layers
    from bridge.frameworks.flax_nnx_import import OnnxModule
    from bridge.frameworks.flax_nnx_read import is_recurrent, read_layers, source_name

    if isinstance(source, OnnxModule):
        return source.present_model(options)
    if is_recurrent(source):
        try:
            layers = read_layers(source)
        except Unsupported:  # a cell of the caller's own, say: traced like any other module
            if options.example is None:
                raise
        else:
            return export_layers(layers, source_name(source), options)
    from bridge.frameworks.flax_whole.export import export_whole
    from bridge.frameworks.flax_whole.models import of_nnx

    return export_whole(of_nnx(source), options)


def cells(source: Any) -> dict[str, Cell]:
    """Every recurrent cell by module path: "rnn" of a bare layer, "encoder.rnn" of a nested one.

    Raises:
        Unsupported: a cell or a dtype that is not carried.
    """
    from bridge.frameworks.flax_layers import all_cells
    from bridge.frameworks.flax_nnx_read import read_layer, recurrent_modules

    return all_cells([read_layer(module, path) for path, module in recurrent_modules(source)])


def assign(model: Any, mapping: Mapping[str, Cell | Sequence[Cell]]) -> Any:
    """Write cells into recurrent modules of `model` by path, and return `model`.

    A path names an RNN, a Bidirectional (a bidirectional Cell, or one of each direction) or a cell; "" is a bare one.

    Raises:
        UsageError: a path that is no recurrent module.
        NotRepresentable: a cell that the module has no place for. Nothing has been written then.
    """
    from bridge.frameworks.flax_nnx_write import assign_cells

    return assign_cells(model, mapping)


def build(cells: Sequence[Cell], own_cells: bool) -> Any:
    """nnx.RNN over the native cell, nnx.Bidirectional, or nnx.Sequential of them for several cells.

    Raises:
        NotRepresentable: no native cell holds a Cell, and `own_cells` is False.
    """
    from bridge.frameworks.flax_nnx_write import build_layers

    return build_layers(cells, own_cells)


def import_model(model: ir.Model, static: Mapping[str, object] | None, remat: int | None = None) -> Any:
    """`model` as an nnx module called positionally in the order of the graph's inputs, or by name.

    With `remat` a gradient keeps the states of every `remat`-th time step only, and computes the others again.

    Raises:
        Unsupported: operators that bridge does not carry, all of them named; 64-bit numbers while x64 is off.
    """
    require_flax()
    from bridge.frameworks.flax_nnx_import import OnnxModule

    return OnnxModule(model, static, remat)


def execute(source: Any, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The module's own forward pass, inputs and outputs named as `export` names them.

    Raises:
        BadInput: unknown or missing inputs.
    """
    from bridge.frameworks.flax_execute import run_graph, run_layers
    from bridge.frameworks.flax_nnx_import import OnnxModule
    from bridge.frameworks.flax_nnx_read import forward, is_recurrent, read_layers

    if isinstance(source, OnnxModule):
        return run_graph(source.output_names, source, feeds)
    if is_recurrent(source) and "input" in feeds:
        return run_layers(read_layers(source), feeds, forward)
    from bridge.frameworks.flax_whole.execute import run_whole
    from bridge.frameworks.flax_whole.models import of_nnx

    return run_whole(of_nnx(source), feeds)


def require_flax() -> None:
    """Raise MissingExtra with the line that installs Flax, where it is missing."""
    try:
        import flax  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name not in ("flax", "jax"):
            raise
        raise MissingExtra("flax is not installed", where="to_flax",
                           do="pip install 'rnn-bridge[flax]'") from None  # fmt: skip
