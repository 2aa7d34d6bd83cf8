"""The flax.linen door: (module, variables) pairs of recurrent layers to ONNX and back.

flax is imported inside functions only; `owns` does not even do that.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bridge.errors import Unsupported
from bridge.frameworks.door import ExportOptions

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from bridge.cell import Cell

Pair = tuple[Any, Mapping[str, Any]]
"""A linen module and its variables."""


def owns(source: object) -> bool:
    """Whether `source` is a pair of a linen module and its variables; flax is looked up and never imported."""
    linen = sys.modules.get("flax.linen")
    return linen is not None and isinstance(source, tuple) and len(source) == 2 and isinstance(source[0], linen.Module)


def export(source: Pair, options: ExportOptions) -> ir.Model:
    """The ONNX model of any linen module: one fused node a recurrent layer; ConvLSTMCell becomes an exact Scan.

    An nn.RNN, nn.Bidirectional, cell, or nn.Sequential of them needs no example and no trace; a pair that was imported
    is its graph again, with the given variables.

    Raises:
        Unsupported: something in it, or an option of a layer, that could not be carried exactly.
        UsageError: options that the module does not have; a whole model without an example.
        BadInput: variables that do not fit the module.
    """
    from bridge.frameworks.flax_export import export_layers
    from bridge.frameworks.flax_linen_import import OnnxModule
    from bridge.frameworks.flax_linen_read import bind, is_recurrent, read_layers, source_name

    if isinstance(source[0], OnnxModule):
        present: ir.Model = bind(source).present_model(options)
        return present
    if is_recurrent(source[0]):
        try:
            layers = read_layers(source)
        except Unsupported:  # a cell of the caller's own, say: traced like any other module
            if options.example is None:
                raise
        else:
            return export_layers(layers, source_name(source[0]), options)
    from bridge.frameworks.flax_whole.export import export_whole
    from bridge.frameworks.flax_whole.models import of_linen

    return export_whole(of_linen(source), options)


def cells(source: Pair) -> dict[str, Cell]:
    """Every recurrent cell by module path: "rnn" of a bare layer, "encoder.rnn" of a nested one.

    Raises:
        Unsupported: a cell made inside a compact method, which only a call could find; a dtype that is not carried.
    """
    from bridge.frameworks.flax_layers import all_cells
    from bridge.frameworks.flax_linen_read import bind, read_layer, recurrent_modules

    return all_cells([read_layer(module, path) for path, module in recurrent_modules(bind(source))])


def assign(model: Pair, mapping: Mapping[str, Cell | Sequence[Cell]]) -> Pair:
    """A pair of the same module and new variables, with cells in the recurrent modules at the given paths.

    A path names an RNN, a Bidirectional (a bidirectional Cell, or one of each direction) or a cell; "" is a bare one.

    Raises:
        UsageError: a path that is no recurrent module.
        NotRepresentable: a cell that the module has no place for.
    """
    from bridge.frameworks.flax_linen_write import assign_cells

    return assign_cells(model, mapping)


def build(cells: Sequence[Cell], own_cells: bool) -> Pair:
    """nn.RNN over the native cell, nn.Bidirectional, or nn.Sequential of them for several cells; with variables.

    Raises:
        NotRepresentable: no native cell holds a Cell, and `own_cells` is False.
    """
    from bridge.frameworks.flax_linen_write import build_layers

    return build_layers(cells, own_cells)


def import_model(model: ir.Model, static: Mapping[str, object] | None, remat: int | None = None) -> Pair:
    """`model` as (linen module, variables); the module is applied to the graph's inputs in order, or by name.

    With `remat` a gradient keeps the states of every `remat`-th time step only, and computes the others again.

    Raises:
        Unsupported: operators that bridge does not carry, all of them named; 64-bit numbers while x64 is off.
    """
    from bridge.frameworks.flax_nnx import require_flax

    require_flax()
    from bridge.frameworks.flax_linen_import import import_pair

    return import_pair(model, static, remat)


def execute(source: Pair, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The module's own forward pass, inputs and outputs named as `export` names them.

    Raises:
        BadInput: unknown or missing inputs.
    """
    from bridge.frameworks.flax_execute import run_graph, run_layers
    from bridge.frameworks.flax_linen_import import OnnxModule
    from bridge.frameworks.flax_linen_read import bind, forward, is_recurrent, read_layers

    if isinstance(source[0], OnnxModule):
        return run_graph(source[0].output_names, bind(source), feeds)
    if is_recurrent(source[0]) and "input" in feeds:
        return run_layers(read_layers(source), feeds, forward)
    from bridge.frameworks.flax_whole.execute import run_whole
    from bridge.frameworks.flax_whole.models import of_linen

    return run_whole(of_linen(source), feeds)
