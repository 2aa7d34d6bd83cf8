"""Where schemas/ lies: beside bridge/ in a checkout, inside it in a wheel."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING

from bridge.errors import BadInput

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable


def schema_files() -> Traversable:
    """The folder of the layouts, JSON schemas and examples.

    Raises:
        BadInput: the installation lacks it.
    """
    package = files("bridge")
    candidates = (package / "schemas", package / ".." / "schemas")
    for folder in candidates:
        if (folder / "layouts").is_dir():
            return folder
    raise BadInput("the installation has no schemas folder", where="bridge", do="install rnn-bridge again")
