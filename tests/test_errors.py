from __future__ import annotations

import pytest

from bridge import errors
from bridge.errors import BridgeError


def subclasses(base: type[BridgeError]) -> set[type[BridgeError]]:
    return {base, *(deeper for direct in base.__subclasses__() for deeper in subclasses(direct))}


def test_a_message_says_where_what_got_expected_and_what_to_do() -> None:
    error = errors.BadInput("W has the wrong shape", where="Cell(LSTM)", got=[1, 2], expected="[1, 8, 3]", do="fix it")
    assert str(error).splitlines() == [
        "Cell(LSTM): W has the wrong shape",
        "  got: [1, 2]",
        "  expected: [1, 8, 3]",
        "  do: fix it",
    ]


def test_a_falsy_value_is_still_shown() -> None:
    assert "got: 0" in str(errors.BadInput("clip is above 0", got=0))


@pytest.mark.parametrize(
    ("name", "code"),
    [("Mismatch", 1), ("UsageError", 2), ("Unsupported", 3), ("NotRepresentable", 3), ("DeviceUnavailable", 3),
     ("BadInput", 4), ("MissingExtra", 5)],
)  # fmt: skip
def test_each_decision_a_caller_can_take_has_its_exit_code(name: str, code: int) -> None:
    assert getattr(errors, name).exit_code == code


def test_the_docstring_draws_every_class_of_the_module() -> None:
    own = {cls.__name__ for cls in subclasses(BridgeError) if cls.__module__ == "bridge.errors"}
    assert all(name in (errors.__doc__ or "") for name in own)
