"""The layers and constants that the generated module owns, with their weights by dotted nnx name."""

from __future__ import annotations

import keyword
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

RESERVED: Final = frozenset({"train", "eval", "sow", "perturb", "set_attributes"})
"""Methods of nnx.Module."""

NO_NAME: Final = re.compile(r"^(|\d+|onnx|const|constant(_\d+)?|weight|bias|kernel|anon|n\d+)$")
"""Parts of a name that say nothing."""

INLINED: Final = re.compile(r"F\d+::|(If_\d+_)*(If_\d+_)?(then|else)_branch__Inline_\d+__(/)?")
"""What inlining puts before names."""


@dataclass(slots=True, eq=False)
class Layer:
    """One attribute of the module: what makes it, and its weights by name below the attribute."""

    name: str
    kind: str
    """The constructor: "nnx.Linear"."""
    arguments: list[str]
    weights: dict[str, np.ndarray]

    @property
    def text(self) -> str:
        """The expression that makes it."""
        return f"{self.kind}({', '.join(self.arguments)})"


def layer_name(candidates: Sequence[str], fallback: str) -> str:
    """A Python name from the first candidate (names of weights, then of the node) that says something.

    >>> layer_name(["172", "fc_in.0.bias", "Add_1"], "linear")
    'fc_in_0'
    >>> layer_name(["onnx::LSTM_209", "/recurrent/LSTM"], "lstm")
    'recurrent'
    >>> layer_name(["192", "GRU_14"], "gru")
    'gru'
    """
    spoken = [name for name in candidates if re.search(r"[./](weight|bias|kernel|W|R|B)$", name)]
    for candidate in [*spoken, candidates[-1], *candidates]:
        parts = [part for part in re.split(r"[./:]+", INLINED.sub("", candidate)) if part]
        if len(parts) > 1 and re.fullmatch(r"(weight|bias|kernel|W|R|B)", parts[-1]):
            parts = parts[:-1]
        if parts and _says_operator(parts[-1], fallback):
            parts = parts[:-1]
        name = clean("_".join(part for part in parts if part.isdigit() or not NO_NAME.match(part)))
        if name and not re.match(r"^(onnx|val|n\d)", name) and name not in RESERVED:
            return name
    return fallback


def clean(name: str) -> str:
    """`name` with what Python identifiers cannot hold taken out.

    >>> clean("state.h-0"), clean("387")
    ('state_h_0', 'n387')
    """
    cleaned = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_")
    cleaned = f"{cleaned}_" if keyword.iskeyword(cleaned) else cleaned
    return f"n{cleaned}" if cleaned[:1].isdigit() else cleaned


def quiet(text: str) -> str:
    """Text of a model file as it may stand in a comment or a docstring: on one line, and no way out of it.

    >>> quiet("a' + 'b; import os #")
    'a_ + _b_ import os _'
    """
    return re.sub(r"[^\w .,:+*/()\[\]<>-]+", "_", text, flags=re.ASCII)[:200]


def _says_operator(part: str, fallback: str) -> bool:
    operators = "MatMul|Gemm|Add|Conv|LSTM|GRU|RNN|Gather|BatchNormalization|LayerNormalization|onnx"
    return bool(re.fullmatch(rf"(?i)({operators}|{fallback})(_\d+)?", part))
