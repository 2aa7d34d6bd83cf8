"""Read recurrent linen modules, bound to their variables: which there are, and the layers that they compute."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import jax
import numpy as np
from flax import linen as nn
from flax.core import meta
from flax.linen.recurrent import _concatenate
from flax.traverse_util import flatten_dict

from bridge.errors import BadInput, Unsupported
from bridge.frameworks.flax_cells import computed, constant_states, read_cell
from bridge.frameworks.flax_layers import Direction, Layer, Reader
from bridge.frameworks.flax_linen_cells import GRUCell, LSTMCell, OwnCell, RNNCell
from bridge.frameworks.flax_scan_cells import CONV_LSTM, ConvLSTM

LAYOUTS: Final = MappingProxyType(
    {nn.LSTMCell: "flax.linen.LSTMCell", nn.OptimizedLSTMCell: "flax.linen.OptimizedLSTMCell",
     nn.GRUCell: "flax.linen.GRUCell", nn.MGUCell: "flax.linen.MGUCell", nn.SimpleCell: "flax.linen.SimpleCell",
     LSTMCell: "bridge.LSTMCell", GRUCell: "bridge.GRUCell", RNNCell: "bridge.RNNCell"}
)  # fmt: skip
"""The layout of each cell class."""

LAYERS: Final = (nn.RNN, nn.Bidirectional, nn.RNNCellBase)

LIFTING: Final = MappingProxyType({"variable_axes": {}, "variable_broadcast": "params", "variable_carry": False})
"""The fields of nn.RNN that say how variables go through the loop, at their defaults."""


def bind(source: tuple[nn.Module, Mapping[str, Any]]) -> nn.Module:
    """The module with its variables.

    Raises:
        BadInput: variables without "params".
    """
    module, variables = source
    if not isinstance(variables, Mapping) or "params" not in variables:
        got = ", ".join(map(str, variables)) if isinstance(variables, Mapping) else type(variables).__name__
        raise BadInput('the variables have no "params"', where=type(module).__name__, got=got,
                       do="pass (module, variables) with variables as module.init returns them")  # fmt: skip
    return module.bind(variables)


def source_name(module: nn.Module) -> str:
    """What the model's metadata call the source."""
    name = type(module).__name__
    return f"flax.linen.{name}" if type(module).__module__.startswith("flax.") else f"bridge.linen.{name}"


def is_recurrent(module: nn.Module) -> bool:
    """Whether it is an RNN, a Bidirectional, a cell, or a Sequential of nothing else."""
    if type(module) is nn.Sequential and len(module.layers):
        return all(isinstance(each, LAYERS) for each in module.layers)
    return isinstance(module, LAYERS)


def read_layers(source: tuple[nn.Module, Mapping[str, Any]]) -> list[Layer]:
    """The layers of a module that `is_recurrent`. Raises as `bind` and `Reader.layer`."""
    module = bind(source)
    if type(module) is nn.Sequential:
        return [read_layer(each, f"layers_{at}") for at, each in enumerate(module.layers)]
    return [read_layer(module, "cell" if isinstance(module, nn.RNNCellBase) else "rnn")]


def recurrent_modules(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Every outermost RNN, Bidirectional and lone cell that `module` has as a field or from setup, with its path.

    Raises:
        Unsupported: parameters of a cell that a compact method makes, which nothing but a call could find.
    """
    found = list(_walk(module))
    seen = [tuple(part.path) for _, part in found]
    params = module.variables.get("params", {})
    for group in _cell_groups(params):
        if not any(group[: len(path)] == path for path in seen):
            raise Unsupported("a cell that a compact method makes: its activations are nowhere in the module",
                              where=".".join(group), do="make it a field or make it in setup, or pass the layer "
                              "itself with its part of the variables")  # fmt: skip
    yield from found


def _walk(module: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(module, LAYERS):
        yield ".".join(module.path) or ("cell" if isinstance(module, nn.RNNCellBase) else "rnn"), module
        return
    with contextlib.suppress(AttributeError):
        module.bridge_looks_for_what_setup_makes  # noqa: B018 (a name that is missing makes linen run setup)
    for name, value in vars(module).items():
        if name == "parent" or name.startswith("_"):
            continue
        for leaf in jax.tree.leaves(value, is_leaf=lambda each: isinstance(each, nn.Module)):
            if isinstance(leaf, nn.Module) and leaf.scope is not None:
                yield from _walk(leaf)


def _cell_groups(params: Mapping[str, Any]) -> set[tuple[str, ...]]:
    """Paths below which parameters are named like those of a native cell."""
    from bridge.layout import describe

    wanted = [frozenset(key.split(".")[0] for key in describe(layout)["parameters"]) for layout in LAYOUTS.values()
              if layout.startswith("flax.")]  # fmt: skip
    groups: dict[tuple[str, ...], set[str]] = {}
    for path in flatten_dict(meta.unbox(params)):
        if len(path) >= 2:
            groups.setdefault(path[:-2], set()).add(path[-2])
    return {path for path, names in groups.items() if frozenset(names) in wanted}


def read_layer(module: Any, path: str) -> Layer:
    """One RNN, Bidirectional or bare cell, bound. Raises as `Reader.layer`."""
    return Reader(api=nn, name="nn", concatenate=_concatenate, rnn=_rnn, cell=_direction).layer(module, path)


def _rnn(rnn: Any, path: str) -> Direction:
    for name, default in LIFTING.items():
        value = getattr(rnn, name)
        if (dict(value) if isinstance(value, Mapping) else value) != default:
            raise Unsupported(f"{name} is of the caller's own", where=path, got=value,
                              do=f"leave {name} at its default")  # fmt: skip
    return _direction(rnn.cell, path)


def _direction(cell: Any, path: str) -> Direction:
    if type(cell) is nn.ConvLSTMCell:
        return Direction(path=path, kind=CONV_LSTM, body=conv_lstm(cell, path, parameters(cell)))
    layout = LAYOUTS.get(type(cell))
    if layout is None:
        raise Unsupported("this cell may compute anything", where=path, got=type(cell).__name__,
                          expected=", ".join(kind.__name__ for kind in LAYOUTS))  # fmt: skip
    initial = _initial_states(cell, path)
    return Direction(path=path, kind=layout, body=read_cell(layout, cell, parameters(cell), initial, path))


def parameters(cell: Any) -> dict[str, Any]:
    """The parameters of a bound cell but its learned carry, by dotted name; boxes of partitioning opened."""
    params = flatten_dict(meta.unbox(cell.variables.get("params", {})), sep=".")
    return {name: value for name, value in params.items()
            if not (isinstance(cell, OwnCell) and name in ("initial_h", "initial_c"))}  # fmt: skip


def _initial_states(cell: Any, where: str) -> Sequence[np.ndarray] | None:
    """The constant initial h[, c] of a bound cell, None for zeros."""
    if isinstance(cell, OwnCell):
        held = meta.unbox(cell.variables.get("params", {}))
        learned = [held[name] for name in ("initial_h", "initial_c") if name in held] if cell.learned_carry else []
        return [np.atleast_2d(np.asarray(state)) for state in learned] or None
    if cell.carry_init is nn.initializers.zeros:
        return None

    def draw(seed: int, batch: int) -> Sequence[Any]:
        carry = cell.initialize_carry(jax.random.key(seed), (batch, 1))
        return carry[::-1] if isinstance(carry, tuple) else [carry]

    return constant_states(draw, where)


def conv_lstm(cell: nn.ConvLSTMCell, where: str, own: Mapping[str, Any]) -> ConvLSTM:
    """What a ConvLSTMCell with the parameters `own` computes.

    Raises:
        Unsupported: strides, a carry_init or a padding that is not carried.
        BadInput: missing or unexpected parameters.
    """
    kernel = tuple(cell.kernel_size)
    if cell.strides is not None and any(step != 1 for step in np.atleast_1d(cell.strides)):
        raise Unsupported("strides other than 1 shrink the state at every step", where=where, got=cell.strides)
    if cell.carry_init is not nn.initializers.zeros:
        raise Unsupported("carry_init of the caller's own", where=where, do='export with states="inputs"')
    params = computed(own, cell.dtype, where)
    names = {
        f"{part}.{leaf}" for part in ("ih", "hh") for leaf in (("kernel", "bias") if cell.use_bias else ("kernel",))
    }
    if set(params) != names:
        raise BadInput(f"missing parameters: {', '.join(sorted(names - set(params))) or 'none'}; "
                       f"unexpected: {', '.join(sorted(set(params) - names)) or 'none'}", where=where)  # fmt: skip
    options = {"features": cell.features, "kernel_size": list(kernel), "use_bias": cell.use_bias,
               "padding": cell.padding if isinstance(cell.padding, str) else [list(np.atleast_1d(pad).tolist()) for pad
                                                                              in cell.padding]}  # fmt: skip
    return ConvLSTM(params=params, pads=_pads(cell.padding, kernel, where), options=options)


def _pads(padding: Any, kernel: Sequence[int], where: str) -> tuple[tuple[int, int], ...]:
    """Zeros before and after each axis, as flax.linen.Conv places them with strides 1."""
    if padding == "SAME":
        return tuple(((size - 1) // 2, size // 2) for size in kernel)
    pads: list[tuple[int, int]] = []
    if padding == "VALID":
        pads = [(0, 0)] * len(kernel)
    elif not isinstance(padding, str) and isinstance(padding, Sequence) and len(padding) == len(kernel):
        pads = [(pad, pad) if isinstance(pad, int) else (int(pad[0]), int(pad[1])) for pad in padding]
    if not pads or any(sum(pad) != size - 1 for pad, size in zip(pads, kernel, strict=True)):
        raise Unsupported("a padding that does not keep the size of the state", where=where, got=padding,
                          expected='"SAME", or pairs that sum to the kernel\'s size - 1')  # fmt: skip
    return tuple(pads)


def forward(layer: Layer, x: Any, **options: Any) -> Any:
    """What the native module itself returns for x."""
    if not layer.is_step:
        return layer.module(x, **options)
    carry = options["carry"]
    return layer.module(layer.module.initialize_carry(jax.random.key(0), x.shape) if carry is None else carry, x)
