"""Options of Keras 1 and 2 layers in terms of Keras 3's constructors: what is dropped, renamed, pinned and refused."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from bridge.errors import BadInput, Unsupported
from bridge.frameworks.keras_h5_files import RESET_AFTER_NOTE, FileVersion, hard_sigmoid_note

SAME_ACTIVATIONS: Final = (
    "linear", "relu", "sigmoid", "tanh", "softmax", "softplus", "softsign", "elu", "selu", "exponential", "silu",
    "gelu", "mish", "relu6",
)  # fmt: skip
"""Activations that mean the same in Keras 2 and 3."""

INERT: Final = (
    "batch_input_shape", "batch_shape", "input_shape", "input_dtype", "input_length", "implementation",
    "unit_forget_bias", "noise_shape", "seed", "activity_regularizer", "fused", "renorm_clipping", "renorm_momentum",
    "build_config", "query_shape", "key_shape", "value_shape",
)  # fmt: skip
"""Options that change no number in inference, or that Keras 3 reads off the data."""

INERT_SUFFIXES: Final = ("_initializer", "_regularizer", "_constraint")

INERT_WHERE_FALSE: Final = (
    "sparse", "ragged", "renorm", "virtual_batch_size", "adjustment", "num_constants", "causal", "reverse_state_order",
    "time_major", "softmax_robust_masking",
)  # fmt: skip
"""Options that Keras 3 has no place for, and that do nothing when they are not set."""

NEUTRAL: Final[Mapping[str, Any]] = MappingProxyType({"groups": 1, "unroll": False})
"""Options of all convolutions, or of all recurrent layers, in Keras 2, with the value that does nothing in those that
have them no more."""

RENAMED: Final = MappingProxyType({("LeakyReLU", "alpha"): "negative_slope"})

LARGEST: Final = 2**24
"""No integer option of a real layer is larger; a hostile one would fill the memory."""

PINNED: Final = MappingProxyType({"data_format": "channels_last"})
"""What an absent option meant in Keras 2, where Keras 3 asks the caller's own settings."""


@dataclass(frozen=True, slots=True)
class Scope:
    """What the reading of one file needs everywhere."""

    path: str
    version: FileVersion
    custom_objects: Mapping[str, Any]
    sizes: frozenset[int]
    """Every axis of every stored array: a layer is not wider than its weights."""
    notes: list[str] = field(default_factory=list)

    def where(self, name: str) -> str:
        """Where an error is."""
        return f"{self.path}: {name}"


def options_of(cls: type, config: Mapping[str, Any], scope: Scope) -> dict[str, Any]:
    """The arguments of `cls` that mean what `config` meant to the Keras that wrote it.

    Raises:
        Unsupported: an option that Keras 3 has no place for, or an activation that is not carried.
        BadInput: a value that no layer has.
    """
    kind, name = cls.__name__, str(config.get("name", cls.__name__))
    where = scope.where(name)
    known = _parameters(cls)
    found: dict[str, Any] = {key: value for key, value in PINNED.items() if key in known}
    for key, value in config.items():
        if key in INERT or key.endswith(INERT_SUFFIXES) or (key in INERT_WHERE_FALSE and not value):
            continue
        key = RENAMED.get((kind, key), key)
        if key == "dtype":
            found[key] = dtype_of(value, where)
        elif key in ("activation", "recurrent_activation"):
            found[key] = _activation(value, key, name, scope)
        elif key not in known and (key == "trainable" or (key in NEUTRAL and value == NEUTRAL[key])):
            continue
        elif key not in known:
            raise Unsupported(f"{kind} has no option {key!r} in Keras 3", where=where, got=repr(value)[:80])
        elif value is not None or key != "data_format":
            found[key] = _plain(value, key, kind, scope, where)
    return found | _missing(kind, config, known, name, scope)


def safe_name(name: str) -> str:
    """A layer's name as Keras 3 allows it."""
    return name.replace("/", "_")


def _parameters(cls: type) -> frozenset[str]:
    """The named arguments of a layer's constructor, and those that it hands on."""
    parameters = inspect.signature(cls).parameters.values()
    named = {one.name for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)}
    if any(one.kind is one.VAR_KEYWORD for one in parameters):
        named |= {"name", "trainable", "dtype"}
        named |= {"zero_output_for_mask"} if hasattr(cls, "inner_loop") else set()  # what all recurrent layers take
    return frozenset(named)


def dtype_of(value: Any, where: str) -> str | None:
    """A dtype by name, also where the file has a policy. Raises BadInput for anything else."""
    while isinstance(value, dict):  # {"class_name": "Policy", "config": {"name": "float32"}}
        value = value.get("config", value.get("name"))
    if value is None or isinstance(value, str):
        return value
    raise BadInput("a dtype that is no name", where=where, got=repr(value)[:80])


def _activation(value: Any, key: str, name: str, scope: Scope) -> Any:
    where = scope.where(name)
    if isinstance(value, dict):  # {"class_name": "function", "config": "tanh"}, written by some versions
        value = value.get("config") if value.get("class_name") in ("function", None) else value
    if value is None or value in SAME_ACTIVATIONS:
        return value
    if not isinstance(value, str):
        raise Unsupported(f"{key} is no function of Keras", where=where, got=repr(value)[:80])
    if value in scope.custom_objects:
        return scope.custom_objects[value]
    if value == "swish":
        return "silu"
    if value == "hard_sigmoid":
        return _hard_sigmoid(name, scope)
    raise Unsupported(f"{key} {value!r} is not carried from files of Keras 2", where=where,
                      expected=", ".join((*SAME_ACTIVATIONS, "swish", "hard_sigmoid")))  # fmt: skip


def _hard_sigmoid(name: str, scope: Scope) -> Any:
    from bridge.frameworks.keras_legacy.functions import keras2_hard_sigmoid

    scope.notes.append(f"{name}: {hard_sigmoid_note(scope.version)}")
    return keras2_hard_sigmoid


def _missing(kind: str, config: Mapping[str, Any], known: frozenset[str], name: str, scope: Scope) -> dict[str, Any]:
    """Options that the file does not record and whose default has changed since."""
    found: dict[str, Any] = {}
    if "reset_after" in known and "reset_after" not in config:
        found["reset_after"] = False
        scope.notes.append(f"{name}: {RESET_AFTER_NOTE}")
    if "recurrent_activation" in known and "recurrent_activation" not in config:
        value = "hard_sigmoid" if kind.startswith("ConvLSTM") else scope.version.recurrent_activation
        if value is None:
            raise Unsupported("the file does not record recurrent_activation, and its Keras version does not tell the "
                              "default", where=scope.where(name), got=scope.version.text or "no version")  # fmt: skip
        found["recurrent_activation"] = _activation(value, "recurrent_activation", name, scope)
    return found


def _plain(value: Any, key: str, kind: str, scope: Scope, where: str) -> Any:
    """A value without objects in it, which Keras would make from dictionaries."""
    if key == "name":
        return safe_name(str(value))
    if kind in ("BatchNormalization", "LayerNormalization") and key == "axis" and isinstance(value, list):
        value = value[0] if len(value) == 1 else value
    for item in _scalars(value, where):
        if isinstance(item, int) and not isinstance(item, bool) and abs(item) > LARGEST:
            raise BadInput(f"{key} is larger than any layer's", where=where, got=item)
    sized = key in ("units", "filters", "output_dim", "input_dim")
    if sized and not (isinstance(value, int) and value in scope.sizes):
        raise BadInput(f"{key}={value!r}, and no stored array has such an axis", where=where)
    return value


def _scalars(value: Any, where: str) -> list[Any]:
    if isinstance(value, list):
        return [scalar for item in value for scalar in _scalars(item, where)]
    if value is None or isinstance(value, (bool, int, float, str)):
        return [value]
    raise Unsupported("an option that is an object, and bridge makes none out of a file", where=where,
                      got=repr(value)[:80])  # fmt: skip
