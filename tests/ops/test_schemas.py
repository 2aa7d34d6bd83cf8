"""The table of handlers against onnx.defs: names, defaults, versions."""

from __future__ import annotations

import inspect
import types

import onnx
import pytest

from bridge.errors import UsageError
from bridge.ops.registry import NEWEST_OPSET, build_table, handles, resolve
from bridge.ops.table import HANDLERS

Variadic = onnx.defs.OpSchema.FormalParameterOption.Variadic
SCHEMAS = {
    (schema.domain, schema.name, schema.since_version): schema for schema in onnx.defs.get_all_schemas_with_history()
}
ONNX = sorted(key for key in HANDLERS if key[0] == "")
"""onnx.defs knows no com.microsoft; test_quantised_lstm.py judges that by onnxruntime."""

OPERATORS = sorted({(domain, op) for domain, op, _ in ONNX})


HANDLED = [pytest.param(key, id=f"{key[1]}-{key[2]}") for key in ONNX]


@pytest.mark.parametrize("key", HANDLED)
def test_inputs_are_named_as_in_the_schema(key: tuple[str, str, int]) -> None:
    handler, schema = HANDLERS[key], SCHEMAS[key]
    fixed = [i.name for i in schema.inputs if i.option != Variadic]
    assert list(handler.inputs[: len(fixed)]) == fixed
    assert (handler.variadic is not None) == any(i.option == Variadic for i in schema.inputs)
    assert list(handler.inputs) == [i.name for i in SCHEMAS[key[0], key[1], max(handler.label.versions)].inputs
                                    if i.option != Variadic]  # fmt: skip


@pytest.mark.parametrize("key", HANDLED)
def test_attributes_and_defaults_are_those_of_the_schema(key: tuple[str, str, int]) -> None:
    handler, schema = HANDLERS[key], SCHEMAS[key]
    assert set(schema.attributes) - IGNORED_SINCE_OPSET_7 <= set(handler.attributes)
    last = SCHEMAS[key[0], key[1], max(handler.label.versions)]
    assert set(handler.attributes) == set(last.attributes) - IGNORED_SINCE_OPSET_7
    for name, attribute in last.attributes.items():
        if name in IGNORED_SINCE_OPSET_7:
            continue
        default = handler.attributes[name]
        if attribute.required:
            assert default is inspect.Parameter.empty
        elif attribute.default_value.name:
            wanted = onnx.helper.get_attribute_value(attribute.default_value)
            wanted = wanted.decode() if isinstance(wanted, bytes) else wanted
            wanted = (
                tuple(item.decode() if isinstance(item, bytes) else item for item in wanted)
                if isinstance(wanted, list)
                else wanted
            )
            assert default == wanted


IGNORED_SINCE_OPSET_7 = frozenset({"consumed_inputs"})
"""A hint for in-place execution that opset 6 took away; a node that carries it is refused."""


@pytest.mark.parametrize(("domain", "op"), OPERATORS, ids=[op for _, op in OPERATORS])
def test_no_version_is_skipped(domain: str, op: str) -> None:
    """Else a node of the skipped version would run as an older one."""
    since = sorted(version for of, name, version in SCHEMAS if (of, name) == (domain, op) and version <= NEWEST_OPSET)
    carried = sorted(version for of, name, version in HANDLERS if (of, name) == (domain, op))
    assert carried == [version for version in since if version >= carried[0]]


def test_opsets_that_onnxruntime_refuses_are_not_carried() -> None:
    assert resolve(HANDLERS, "", "Add", NEWEST_OPSET) is not None
    assert resolve(HANDLERS, "", "Add", NEWEST_OPSET + 1) is None
    assert resolve(HANDLERS, "", "Squeeze", 12) is not resolve(HANDLERS, "", "Squeeze", 13)


def test_two_handlers_of_one_version_are_an_error() -> None:
    module = types.ModuleType("both")

    def one(node: object) -> None: ...

    def other(node: object) -> None: ...

    for function in (one, other):
        function.__module__ = "both"
        setattr(module, function.__name__, handles("Add", versions={7})(function))
    with pytest.raises(UsageError, match="two handlers"):
        build_table([module])
