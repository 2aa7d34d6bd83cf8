"""Recurrent stacks in a weight file, found by the names and shapes of its arrays.

A stack is torch's spelling `prefix.weight_ih_l0[_reverse]`, or the arrays of one layer under one prefix that some
layout lists, exactly: `weight_ih`, `weight_hh` (torch's Cell modules, equinox), `kernel`, `recurrent_kernel` (Keras),
`hf.kernel` (flax) and so on. Which operator it is follows from the shape of the recurrent weights: rows are gates times
columns.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from bridge.errors import BadInput, Unsupported
from bridge.frameworks.checkpoint_files import Entry
from bridge.frameworks.stack import SUFFIXES
from bridge.layout.files import catalogue
from bridge.layout.reading import Sizes
from bridge.layout.records import Slot, Variant

LAYOUTS: Final = (
    "torch.LSTMCell", "torch.GRUCell", "torch.RNNCell", "equinox.LSTMCell", "equinox.GRUCell",
    "keras.LSTM", "keras.GRU", "keras.SimpleRNN", "keras.CuDNNLSTM", "keras.CuDNNGRU",
    "flax.linen.LSTMCell", "flax.linen.GRUCell", "flax.linen.MGUCell", "flax.linen.SimpleCell",
    "flax.nnx.LSTMCell", "flax.nnx.OptimizedLSTMCell", "flax.nnx.GRUCell", "flax.nnx.SimpleCell",
    "bridge.LSTMCell", "bridge.GRUCell", "bridge.RNNCell",
)  # fmt: skip
"""Layouts that names and shapes tell apart, the first that fits; haiku's and TF1's `w`, `b`, `kernel` are anybody's."""

SHORT: Final = {"w_ih": "weight_ih", "w_hh": "weight_hh", "b_ih": "bias_ih", "b_hh": "bias_hh"}
"""Another spelling of torch's names, as in g2p-en's checkpoint20.npz (`enc_w_ih`)."""

_TORCH = re.compile(
    r"(?:(?P<prefix>.*)[._])?(?P<key>(?:weight|bias)_(?:ih|hh)|weight_hr)_l(?P<layer>\d{1,4})(?P<side>_reverse)?"
)
_COMPUTED = re.compile(r"(?:.*\.)?(?:parametrizations\.)?weight_(?:ih|hh|hr)_l\d+(?:_reverse)?(?:_[gv]|\.original\d*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One stack: the names of its arrays in the file."""

    prefix: str
    """What comes before the parameters' own names; "" where nothing does."""
    layout: str
    """The layout of one direction of one layer."""
    layers: tuple[tuple[Mapping[str, str], ...], ...]
    """For each layer and direction: the layout's parameter names to the file's."""
    is_cell: bool
    """Whether it is spelled without `_l{k}`: one layer, its cell named by the prefix alone."""
    told: frozenset[str] = frozenset()
    """Options of the layout that the shapes decide (Keras' reset_after, by the rank of the bias)."""


def find_stacks(entries: Mapping[str, Entry]) -> dict[str, Found]:
    """Every recurrent stack by prefix, in the order of the file.

    Raises:
        BadInput: a stack with a layer, a direction or an array missing, or with shapes of no operator.
        Unsupported: weights stored as what they are computed from (weight norm).
    """
    for name in entries:
        if _COMPUTED.fullmatch(name):
            raise Unsupported("the weights are stored as what they are computed from (weight norm, a parametrisation)",
                              where=name, do="load them into the torch module and export that")  # fmt: skip
    found = {stack.prefix: stack for stack in _torch_stacks(entries)}
    for stack in _single_layers(entries):
        if stack.prefix in found:
            raise BadInput("two spellings of recurrent weights under one prefix", where=stack.prefix or "checkpoint",
                           got=", ".join(stack.layers[0][0].values()))  # fmt: skip
        found[stack.prefix] = stack
    place = {name: at for at, name in enumerate(entries)}
    return dict(sorted(found.items(), key=lambda one: min(place[name] for name in one[1].layers[0][0].values())))


def _torch_stacks(entries: Mapping[str, Entry]) -> Iterator[Found]:
    stacks: dict[str, dict[tuple[int, str], dict[str, str]]] = defaultdict(lambda: defaultdict(dict))
    for name in entries:
        match = _TORCH.fullmatch(_normal(name))
        if match:
            at = int(match["layer"]), match["side"] or ""
            stacks[match["prefix"] or ""][at][match["key"]] = name
    for prefix, parts in stacks.items():
        layers = 1 + max(layer for layer, _ in parts)
        suffixes = SUFFIXES if any(side for _, side in parts) else SUFFIXES[:1]
        missing = [f"l{layer}{side}" for layer in range(layers) for side in suffixes if (layer, side) not in parts]
        if missing:
            raise BadInput("layers or directions are missing", where=prefix or "checkpoint", got=", ".join(missing))
        own = tuple(tuple(parts[layer, side] for side in suffixes) for layer in range(layers))
        yield Found(prefix=prefix, layout=_torch_layout(prefix, own[0][0], entries), layers=own, is_cell=False)


def _torch_layout(prefix: str, names: Mapping[str, str], entries: Mapping[str, Entry]) -> str:
    """Which of torch's three operators the first direction is."""
    where = prefix or "checkpoint"
    if "weight_hh" not in names:
        raise BadInput("weight_hh is missing", where=where, got=", ".join(names.values()))
    if "weight_hr" in names:
        return "torch.LSTM"
    shape = entries[names["weight_hh"]].shape
    for layout in ("torch.LSTM", "torch.GRU", "torch.RNN"):
        if any(_is_recurrent(slot, shape) for slot in catalogue().layouts[layout].variants[0].slots):
            return layout
    raise BadInput("weight_hh has the shape of no recurrent layer", where=where, got=list(shape),
                   expected="[4H, H] of an LSTM, [3H, H] of a GRU or [H, H] of an RNN")  # fmt: skip


def _is_recurrent(slot: Slot, shape: tuple[int, ...]) -> bool:
    """Whether an array of this shape holds the slot's gates of R."""
    if slot.blocks != ("R",) or len(shape) != len(slot.axes):
        return False
    hidden = _columns(slot, shape)
    return hidden > 0 and shape == Sizes(hidden=hidden, inputs=0).shape(slot)


def _single_layers(entries: Mapping[str, Entry]) -> Iterator[Found]:
    """Groups of arrays under one prefix that are exactly the parameters of a layout.

    Where two readings share an array the shorter prefix wins: `dense_i.kernel` is no `i.kernel` of a `dense`.
    """
    used: set[str] = set()
    groups = _groups(entries)
    for prefix in sorted(groups, key=len):
        names = groups[prefix]
        found = None if used & set(names.values()) else _layer_of(prefix, names, entries)
        if found is not None:
            used.update(names.values())
            yield found


def _layer_of(prefix: str, names: Mapping[str, str], entries: Mapping[str, Entry]) -> Found | None:
    for layout in LAYOUTS:
        fitting = [variant for variant in catalogue().layouts[layout].variants if _fits(variant, names, entries)]
        if fitting:
            told = frozenset(fitting[0].when) if len(fitting) == 1 else frozenset()
            return Found(prefix=prefix, layout=layout, layers=((names,),), is_cell=True, told=told)
    return None


def _groups(entries: Mapping[str, Entry]) -> dict[str, dict[str, str]]:
    """For each prefix, those arrays whose rest of the name is some layout's parameter."""
    keys = {slot.key for name in LAYOUTS for variant in catalogue().layouts[name].variants for slot in variant.slots}
    groups: dict[str, dict[str, str]] = defaultdict(dict)
    for name in entries:
        normal = _normal(name)
        for at in _cuts(normal):
            if normal[at:] in keys:
                groups[normal[: max(at - 1, 0)]][normal[at:]] = name
    return groups


def _cuts(name: str) -> Iterator[int]:
    """Where a parameter's own name may begin."""
    yield 0
    yield from (at + 1 for at, letter in enumerate(name) if letter in "._")


def _fits(variant: Variant, names: Mapping[str, str], entries: Mapping[str, Entry]) -> bool:
    """Whether the arrays are all that the variant needs, none left over, in shapes of its recurrence."""
    slots = {slot.key: slot for slot in variant.slots}
    needed = {key for key, slot in slots.items() if slot.optional is None}
    if not needed <= names.keys() <= slots.keys():
        return False
    shapes = {key: entries[name].shape for key, name in names.items()}
    if any(len(shape) != len(slots[key].axes) for key, shape in shapes.items()):
        return False
    inputs = next(_columns(slots[key], shapes[key]) for key in needed if slots[key].blocks == ("W",))
    hidden = next(_columns(slots[key], shapes[key]) for key in needed if slots[key].blocks == ("R",))
    sizes = Sizes(hidden=hidden, inputs=inputs)
    return hidden > 0 and all(shape == sizes.shape(slots[key]) for key, shape in shapes.items())


def _columns(slot: Slot, shape: tuple[int, ...]) -> int:
    return shape[slot.axes.index("in")]


def _normal(name: str) -> str:
    """The name with dots between its parts, without TensorFlow's `:0`, short spellings written out."""
    name = re.sub(r":\d+$", "", name.replace("/", "."))
    for short, full in SHORT.items():
        if name == short or name.endswith((f".{short}", f"_{short}")):
            return name.removesuffix(short) + full
    return name
