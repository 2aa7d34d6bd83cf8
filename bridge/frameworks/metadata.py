"""What an exported model says of itself: where it comes from, and notes on what its export decided or left out."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import onnx_ir as ir

NOTES: Final = "bridge.notes"

RIGHT_PADDED: Final = "its mask is taken as right-padded (masks='right'); others give other numbers"
"""What a note says of a layer that is right for some inputs only."""


def metadata_of(source: str, version: object, notes: Iterable[str] = ()) -> dict[str, str]:
    """The metadata of a model: its source ("torch.nn.LSTM"), the version of that framework ("" where nothing tells)."""
    found = {"bridge.source": source, "bridge.source_version": str(version), NOTES: _text(notes)}
    return {key: text for key, text in found.items() if text}


def notes_of(model: ir.Model) -> tuple[str, ...]:
    """The notes in a model's metadata."""
    return tuple(str(note) for note in json.loads(model.metadata_props.get(NOTES, "[]")))


def takes_right_padding(model: ir.Model) -> bool:
    """Whether the model is right only for masks that are right-padded, as it says itself."""
    return any(note.endswith(RIGHT_PADDED) for note in notes_of(model))


def with_notes(model: ir.Model, notes: Iterable[str]) -> ir.Model:
    """`model` with `notes` on how its source was read before those of its export."""
    text = _text([*notes, *notes_of(model)])
    if text:
        model.metadata_props[NOTES] = text
    return model


def _text(notes: Iterable[str]) -> str:
    """Each note once, as JSON; "" for none."""
    once = list(dict.fromkeys(notes))
    return json.dumps(once) if once else ""
