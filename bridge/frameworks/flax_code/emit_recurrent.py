"""LSTM, GRU and RNN as nnx.RNN or nnx.Bidirectional over the cell that holds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from bridge.cell import Activation, Cell
from bridge.frameworks.flax_activations import spelled
from bridge.frameworks.flax_code.code import Code, literal
from bridge.frameworks.flax_code.emit_layers import layer_call
from bridge.frameworks.flax_code.emit_shape import size
from bridge.frameworks.flax_code.layers import Layer, layer_name
from bridge.frameworks.flax_code.operands import Operand, Tensor
from bridge.frameworks.flax_code.registry import emits
from bridge.frameworks.flax_code.site import Site, is_zero
from bridge.frameworks.flax_fit import NativeCell, fit_cell

NATIVE_DEFAULTS: Final = MappingProxyType(
    {"gate_fn": "sigmoid", "activation_fn": "tanh", "residual": False, "hn_bias": False}
)
"""Options of the native cells that need no mention."""

OWN_DEFAULTS: Final = MappingProxyType(
    {"activations": None, "clip": None, "input_forget": False, "linear_before_reset": False, "use_bias": True,
     "use_peepholes": False}
)  # fmt: skip
"""Options of bridge's own cells that need no mention."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One recurrent node about to be written."""

    site: Site
    cell: Cell
    x: Tensor
    """As nnx takes it: [time, batch, features], or with the axes swapped."""
    time_major: bool
    lengths: Operand
    states: tuple[Operand, ...]
    """Initial h, and c of an LSTM, [directions, batch, units]; None for zeros."""
    layer: Layer


@emits("LSTM")
def lstm(
    site: Site,
    X: Operand,
    W: Operand,
    R: Operand,
    B: Operand = None,
    sequence_lens: Operand = None,
    initial_h: Operand = None,
    initial_c: Operand = None,
    P: Operand = None,
    **attributes: Any,
) -> Any:
    """One LSTM node. Source: onnx/defs/rnn/defs.cc, LSTM-22."""
    return _recurrent(site, X, {"W": W, "R": R, "B": B, "P": P}, sequence_lens, (initial_h, initial_c), attributes)


@emits("GRU")
@emits("RNN")
def gru_or_rnn(site: Site, X: Operand, W: Operand, R: Operand, B: Operand = None, sequence_lens: Operand = None,
               initial_h: Operand = None, **attributes: Any) -> Any:  # fmt: skip
    """One GRU or RNN node. Source: onnx/defs/rnn/defs.cc, GRU-22 and RNN-22."""
    return _recurrent(site, X, {"W": W, "R": R, "B": B}, sequence_lens, (initial_h,), attributes)


def _recurrent(site: Site, X: Operand, blocks: Mapping[str, Operand], lengths: Operand, states: Sequence[Operand],
               attributes: dict[str, Any]) -> tuple[Tensor, ...]:  # fmt: skip
    if not isinstance(X, Tensor) or not all(isinstance(block, np.ndarray | None) for block in blocks.values()):
        site.refuse("a recurrent node whose weights are not constant")
    if len(site.code.blocks) > 1:
        site.refuse("a recurrent node in a body: nnx.RNN does not run inside a transformation of jax.lax")
    if any(not isinstance(s, Tensor) and not _constant(s) for s in states):
        site.refuse("an initial state that is no array")
    if attributes.get("layout"):
        site.refuse("layout 1 in a graph that was not made runnable")
    cell = _cell(site, blocks, attributes)
    batch_major = X.view is not None and X.view[0].rank == 3 and X.view[1] == (1, 0, 2)
    x = X.view[0] if batch_major and X.view is not None else X
    named = site.metadata.get("bridge.path", "")
    key = ("recurrent", *site.inputs[1:4], site.inputs[7] if len(site.inputs) > 7 else None, batch_major,
           repr(sorted(attributes.items())))  # fmt: skip
    layer: Any = site.code.shared(key, lambda: _layer(site, cell, named, not batch_major))
    run = Run(site=site, cell=cell, x=x, time_major=not batch_major, lengths=lengths, layer=layer,
              states=tuple(_initial(state) for state in states))  # fmt: skip
    return _outputs(run)


def _initial(state: Operand) -> Operand:
    """An initial state as the layer takes it: None for zeros, an array for a learned one, else a tensor."""
    if isinstance(state, Tensor) and state.constant is not None:
        return state.constant
    return None if is_zero(state) else state


def _constant(state: Operand) -> bool:
    return state is None or is_zero(state) or isinstance(state, np.ndarray)


def _cell(site: Site, blocks: Mapping[str, Operand], attributes: Mapping[str, Any]) -> Cell:
    used: dict[str, Any] = {name: value for name, value in attributes.items() if name not in ("layout", "hidden_size")}
    if site.op_type == "RNN" and used.get("activations") is not None:
        used["activations"] = used["activations"][: 2 if used.get("direction") == "bidirectional" else 1]
    return Cell(op=site.op_type, **blocks, **used)  # type: ignore[arg-type]


def _layer(site: Site, cell: Cell, named: str, time_major: bool) -> Layer:
    """nnx.RNN(cell), or nnx.Bidirectional of two."""
    halves = [fit_cell(half, "nnx", preferred=site.metadata.get("bridge.layout", "")) for half in cell.split()]
    texts = [cell_text(site.code, half) for half in halves]
    name = layer_name([named, site.name], site.op_type.lower())
    major = ["time_major=True"] if time_major else []
    if len(halves) == 2:
        arguments = [f"nnx.RNN({text})" for text in texts] + major
        weights = {f"{rnn}.cell.{key}": array for rnn, half in zip(("forward_rnn", "backward_rnn"), halves, strict=True)
                   for key, array in half.params.items()}  # fmt: skip
        return site.code.layer(name, "nnx.Bidirectional", arguments, weights)
    backwards = ["reverse=True", "keep_order=True"] if cell.direction == "reverse" else []
    weights = {f"cell.{key}": array for key, array in halves[0].params.items()}
    return site.code.layer(name, "nnx.RNN", [texts[0], *major, *backwards], weights)


def cell_text(code: Code, native: NativeCell) -> str:
    """The expression that makes a cell."""
    kind = native.layout.rpartition(".")[2]
    if native.layout.startswith("bridge."):
        code.imports.add(f"from bridge.nnx import {kind}")
        plain = {"activations"} if native.cell.has_default_activations else set()
        options = [f"{name}={_option(code, value)}" for name, value in native.options.items()
                   if value != OWN_DEFAULTS[name] and name not in plain]  # fmt: skip
    else:
        kind = f"nnx.{kind}"
        options = [f"{name}={_function(code, value) if isinstance(value, str | Activation) else value}"
                   for name, value in native.options.items() if NATIVE_DEFAULTS.get(name) != value]  # fmt: skip
    sizes = [str(native.cell.input_size), str(native.cell.hidden_size)]
    return f"{kind}({', '.join([*sizes, *options, 'rngs=rngs'])})"


def _option(code: Code, value: object) -> str:
    """An attribute of bridge's own cell."""
    if isinstance(value, Activation):
        numbers = [number for number in (value.alpha, value.beta) if number is not None]
        if not numbers:
            return f'"{value.name}"'
        code.imports.add("from bridge.cell import Activation")
        beta = "" if value.beta is None else f", beta={literal(np.float32(value.beta))}"
        return f'Activation("{value.name}", alpha={literal(np.float32(value.alpha))}{beta})'
    if isinstance(value, tuple | list):
        texts = [_option(code, each) for each in value]
        return f"({', '.join(texts)}{',' if len(texts) == 1 else ''})"
    if isinstance(value, float):
        return literal(np.float32(value))
    return f'"{value}"' if isinstance(value, str) else repr(value)


def _function(code: Code, value: str | Activation) -> str:
    """An activation of a native cell, as a function of jax.nn."""
    name, keywords = spelled(value, "flax-code")
    if not keywords:
        return "jnp.tanh" if name == "tanh" else f"jax.nn.{name}"
    code.imports.add("import functools")
    ((keyword, number),) = keywords.items()
    return f"functools.partial(jax.nn.{name}, {keyword}={literal(np.float32(number))})"


def _outputs(run: Run) -> tuple[Tensor, ...]:
    """Write the call; Y [time, directions, batch, units] and the final states as views of what nnx returns."""
    site, directions, hidden = run.site, run.cell.num_directions, run.cell.hidden_size
    batch = size_name(run.x, 1 if run.time_major else 0)
    time = size_name(run.x, 0 if run.time_major else 1)
    dims = (time, batch, directions * hidden) if run.time_major else (batch, time, directions * hidden)
    count = 2 if run.cell.op == "LSTM" else 1
    wanted = any(site.used(at) for at in range(1, 1 + count))
    arguments = [site.ref(run.x), *_carry_argument(run), *_lengths_argument(run)]
    if not wanted:
        y = site.code.assign(f"{layer_call(run.layer)}({', '.join(arguments)})", dims, site.dtype())
        finals: list[list[Tensor]] = []
    else:
        call = f"{layer_call(run.layer)}({', '.join([*arguments, 'return_carry=True'])})"
        y = site.code.tensor(dims, site.dtype())
        finals = [[site.code.tensor((batch, hidden), site.dtype(), hint) for hint in ("h", "c")[:count]]
                  for _ in range(directions)]  # fmt: skip
        carries = [f"({c.token}, {h.token})" if c else h.token for h, c in (pair(final) for final in finals)]
        target = f"({', '.join(carries)})" if directions == 2 else carries[0]
        makes = (y, *(tensor for final in finals for tensor in final))
        site.code.assign_many(f"{target}, {y.token}", call, makes)
    y, finals = _masked(run, y, finals)
    return (_as_onnx(run, y), *(_stacked(run, [final[at] for final in finals]) for at in range(count if wanted else 0)))


def pair(final: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    """(h, c), c None where there is none."""
    return final[0], final[1] if len(final) > 1 else None


def size_name(x: Tensor, axis: int) -> int | str:
    """What is known of a size."""
    return "?" if x.dims is None else x.dims[axis]


def _as_onnx(run: Run, y: Tensor) -> Tensor:
    """Y [time, directions, batch, units] as a view of nnx's output."""
    code = run.site.code
    if run.cell.num_directions == 1:
        return code.view(y, (0, None, 1, 2) if run.time_major else (1, None, 0, 2))
    hidden = run.cell.hidden_size
    dims = None if y.dims is None else (*y.dims[:-1], 2, hidden)
    split = code.tensor(dims, y.dtype)
    split.late = lambda: f"{y.token}.reshape(*{y.token}.shape[:-1], 2, {hidden})"
    split.split_of = y
    return code.view(split, (0, 2, 1, 3) if run.time_major else (1, 2, 0, 3))


def _stacked(run: Run, parts: Sequence[Tensor]) -> Tensor:
    """A final state [directions, batch, units]."""
    code = run.site.code
    if len(parts) == 1:
        return code.view(parts[0], (None, 0, 1))
    dims = None if parts[0].dims is None else (2, *parts[0].dims)
    made = code.tensor(dims, parts[0].dtype, parts[0].hint)
    made.late = lambda: f"jnp.stack([{', '.join(part.token for part in parts)}])"
    made.parts = tuple(parts)
    return made


def _carry_argument(run: Run) -> list[str]:
    """initial_carry, where it is not zeros."""
    if all(state is None for state in run.states):
        return []
    per_direction = []
    for at in range(run.cell.num_directions):
        texts = [_state_text(run, state, at, name) for state, name in zip(run.states, "hc", strict=False)]
        per_direction.append(f"({texts[1]}, {texts[0]})" if len(texts) == 2 else texts[0])
    both = f"({', '.join(per_direction)})" if len(per_direction) == 2 else per_direction[0]
    return [f"initial_carry={both}"]


def _state_text(run: Run, state: Operand, at: int, name: str) -> str:
    """The initial state of one direction [batch, units]."""
    site, hidden = run.site, run.cell.hidden_size
    batch = size(site, run.x, 1 if run.time_major else 0)
    if state is None:
        return f"jnp.zeros(({batch}, {hidden}))"
    if isinstance(state, Tensor):
        if state.view is not None and state.view[1][0] is None:
            return site.ref(site.code.view(state.view[0], state.view[1][1:]))
        return site.ref(state.parts[at]) if state.parts else f"{site.ref(state)}[{at}]"
    array = np.asarray(state)[at]
    parameter = site.code.parameter(f"{run.layer.name}_{name}", array[0] if array.shape[0] == 1 else array)
    return f"jnp.broadcast_to({parameter}, ({batch}, {hidden}))"


def _lengths_argument(run: Run) -> list[str]:
    return [] if run.lengths is None else [f"seq_lengths={run.site.ref(run.lengths)}"]


def _masked(run: Run, y: Tensor, finals: list[list[Tensor]]) -> tuple[Tensor, list[list[Tensor]]]:
    """Zeros past each sequence's length and for sequences of none, which nnx.RNN leaves to its caller."""
    if run.lengths is None:
        return y, finals
    code, lengths = run.site.code, run.site.ref(run.lengths)
    code.helpers.add("zero_padding")
    y = code.assign(f"zero_padding({y.token}, {lengths}, {0 if run.time_major else 1})", y.dims, y.dtype)
    finals = [[code.assign(f"jnp.where({lengths}[:, None] > 0, {each.token}, 0.0)", each.dims, each.dtype, each.hint)
               for each in final] for final in finals]  # fmt: skip
    return y, finals
