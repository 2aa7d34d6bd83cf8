"""Every document that bridge prints has a schema, and every schema an example that it accepts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator, ValidationError

SCHEMAS = Path(__file__).parents[1] / "schemas"
PRINTED = sorted(path.name.removesuffix(".schema.json") for path in SCHEMAS.glob("*.schema.json")
                 if path.name not in ("layout.schema.json", "gpu-report.schema.json"))  # fmt: skip


def load(path: Path) -> dict[str, object]:
    document: dict[str, object] = json.loads(path.read_text())
    return document


@pytest.mark.parametrize("path", sorted(SCHEMAS.glob("*.schema.json")), ids=lambda path: path.name)
def test_every_schema_is_one(path: Path) -> None:
    Draft202012Validator.check_schema(load(path))


@pytest.mark.parametrize("name", PRINTED)
def test_every_example_is_accepted_by_its_schema(name: str) -> None:
    Draft202012Validator(load(SCHEMAS / f"{name}.schema.json")).validate(load(SCHEMAS / "examples" / f"{name}.json"))


@pytest.mark.parametrize("name", PRINTED)
def test_a_schema_refuses_what_is_missing_and_what_is_unknown(name: str) -> None:
    validator = Draft202012Validator(load(SCHEMAS / f"{name}.schema.json"))
    example = load(SCHEMAS / "examples" / f"{name}.json")
    for key in example:
        with pytest.raises(ValidationError):
            validator.validate({other: value for other, value in example.items() if other != key})
    with pytest.raises(ValidationError):
        validator.validate({**example, "unknown": 1})


def test_every_schema_is_listed() -> None:
    text = (SCHEMAS / "README.md").read_text()
    assert [path.name for path in SCHEMAS.glob("*.schema.json") if path.name not in text] == []
