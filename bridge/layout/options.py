"""The options of a layout: what the caller said, what the layout's defaults say, and activations by name."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from bridge.cell import ACTIVATIONS, Activation, canonical_activation
from bridge.errors import NotRepresentable, UsageError
from bridge.layout.files import catalogue
from bridge.layout.records import ROLES, Constant, Layout, Option, Variant

Options = Mapping[str, object]

_NO_WORDS: Mapping[str, Activation] = MappingProxyType({})


def vocabulary(framework: str) -> Mapping[str, Activation]:
    """The activation names of a framework; "flax.nnx" is "flax"."""
    known = catalogue().vocabularies
    return known.get(framework) or known.get(framework.partition(".")[0], _NO_WORDS)


def activation(framework: str, name: str | Activation) -> Activation | str | None:
    """What a framework's activation name computes in ONNX, or what an ONNX Activation is called there.

    None where the other side has no such thing.

    >>> str(activation("keras", "hard_sigmoid")), str(activation("keras2", "hard_sigmoid"))
    ('HardSigmoid(0.166667, 0.5)', 'HardSigmoid(0.2, 0.5)')
    >>> activation("flax", Activation("Affine", 1.0, 0.0))
    'identity'
    """
    words = vocabulary(framework)
    if isinstance(name, Activation):
        return next((word for word, meaning in words.items() if same(meaning, name)), None)
    return words.get(name)


def same(first: Activation, second: Activation) -> bool:
    """Whether two activations compute the same: alpha and beta are float32 in ONNX."""
    return _single(first) == _single(second)


def _single(one: Activation) -> tuple[object, ...]:
    return (one.name, *(None if value is None else np.float32(value) for value in (one.alpha, one.beta)))


def check_options(layout: Layout, given: Options) -> None:
    """Raise UsageError for an option that the layout lacks or a value that the option does not have."""
    for name, value in given.items():
        if name not in layout.options:
            near = difflib.get_close_matches(name, layout.options, n=1)
            raise UsageError(f"unknown option {name!r}", where=layout.name,
                             expected=", ".join(layout.options) or "no options",
                             do=f"did you mean {near[0]!r}?" if near else "")  # fmt: skip
        _check_value(layout, name, layout.options[name], value)


def _check_value(layout: Layout, name: str, option: Option, value: object) -> None:
    kind = option.kind
    if kind == "activation":
        _named_activation(layout, name, value)
    elif kind == "activations":
        _whole_activations(layout, value)
    elif kind == "fixed":
        carried = option.carried or (None,)
        if value not in carried:
            raise NotRepresentable(f"{name}={value!r}: {option.why}", where=layout.name,
                                   expected=" or ".join(map(repr, carried)))  # fmt: skip
    elif kind == "number" or name == "clip":
        number = isinstance(value, (int, float, np.floating)) and not isinstance(value, bool) and np.isfinite(value)
        if not number and not (name == "clip" and value is None):
            raise UsageError(f"{name} is a finite number", where=layout.name, got=repr(value))
    elif not isinstance(value, (bool, np.bool_)):
        raise UsageError(f"{name} is True or False", where=layout.name, got=repr(value))


def _named_activation(layout: Layout, option: str, value: object) -> Activation:
    if isinstance(value, Activation):
        return value
    words = vocabulary(layout.framework)
    if not isinstance(value, str) or value not in words:
        raise UsageError(f"unknown value {value!r} for {option}", where=layout.name,
                         expected=", ".join(words) + ", or a bridge.cell.Activation")  # fmt: skip
    return words[value]


def _whole_activations(layout: Layout, value: object) -> tuple[Activation, ...]:
    needed = len(ROLES[layout.op])
    if value is None:
        return layout.activations
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != needed:
        raise UsageError(f"activations are {needed} names or Activations", where=layout.name, got=repr(value))
    return tuple(_with_defaults(layout, one) for one in value)


def _with_defaults(layout: Layout, one: object) -> Activation:
    if isinstance(one, Activation):
        return one
    name = canonical_activation(str(one), layout.name)
    return Activation(name, *ACTIVATIONS[name].runtime)


def resolve(layout: Layout, given: Options) -> dict[str, object]:
    """Every option that has a value: the caller's, else the default. Raises as check_options, and for defaults too."""
    values = {name: option.default for name, option in layout.options.items() if option.default is not None}
    values.update(given)
    check_options(layout, values)
    return values


def activations_of(layout: Layout, values: Options) -> tuple[Activation, ...]:
    """The activations of the operator's f, g, h under the given options."""
    table = list(layout.activations)
    for name, option in layout.options.items():
        if option.kind == "activation":
            for role in option.roles:
                table[ROLES[layout.op].index(role)] = _named_activation(layout, name, values[name])
        elif option.kind == "activations":
            table = list(_whole_activations(layout, values.get(name)))
    return tuple(table)


def fit_activations(layout: Layout, wanted: Sequence[Activation], given: Options) -> dict[str, object]:
    """The options under which the layout computes with `wanted` (f, g, h). Raises NotRepresentable."""
    chosen: dict[str, object] = {}
    for name, option in layout.options.items():
        if option.kind == "activations":
            chosen[name] = tuple(wanted)
        elif option.kind == "activation" and name not in given:
            first = wanted[ROLES[layout.op].index(option.roles[0])]
            chosen[name] = _expressed(layout, first) or option.default
    actual = activations_of(layout, {**chosen, **given})
    for role, has, needs in zip(ROLES[layout.op], actual, wanted, strict=True):
        if not same(has, needs):
            raise NotRepresentable(
                f"activation {role!r} is {needs} and this layout computes {has}", where=layout.name,
                got=", ".join(map(str, wanted)),
            )  # fmt: skip
    return chosen


def _expressed(layout: Layout, wanted: Activation) -> Activation | str | None:
    """The option's value for an activation: its name, or itself where the framework's function takes any alpha."""
    takes_alpha = catalogue().keywords.get(layout.framework, {})
    return activation(layout.framework, wanted) or (wanted if wanted.name in takes_alpha else None)


def variants_for(layout: Layout, given: Options) -> Iterator[Variant]:
    """The variants that the given options allow, those of the layout's defaults first."""
    allowed = [
        one for one in layout.variants if all(given.get(name, value) == value for name, value in one.when.items())
    ]

    def departures(variant: Variant) -> int:
        return sum(layout.options[name].default != value for name, value in variant.when.items())

    return iter(sorted(allowed, key=departures))


def choose(layout: Layout, given: Options) -> tuple[Variant, dict[str, object]]:
    """The variant that options alone choose, and every option's value: fixed ones as bridge carries them."""
    fixed = {name: option.carried[0] for name, option in layout.options.items() if option.carried}
    values = resolve(layout, {**fixed, **given})
    variant = next(variants_for(layout, given), None)
    if variant is None:
        raise UsageError("no variant of this layout has these options", where=layout.name, got=dict(given))
    return variant, {**values, **variant.when}


def constant_value(constant: Constant, values: Options) -> float:
    """The number that the framework adds."""
    value = values[constant.value] if isinstance(constant.value, str) else constant.value
    return float(value)  # type: ignore[arg-type]


def check_saturation(layout: Layout, variant: Variant, activations: Sequence[Activation]) -> None:
    """Raise NotRepresentable where a constant cannot stand for a gate of 1: gates use the first activation."""
    gate = activations[0]
    for constant in variant.constants:
        if not constant.saturates:
            continue
        value = constant_value(constant, {})
        exact = {"Sigmoid": value >= 40.0, "HardSigmoid": (gate.alpha or 0.0) * value + (gate.beta or 0.0) >= 1.0}
        if not exact.get(gate.name, False):
            raise NotRepresentable(
                f"this layout has no gate {constant.gate!r}, and {gate} never is exactly 1", where=layout.name,
                expected="Sigmoid or HardSigmoid",
            )  # fmt: skip
