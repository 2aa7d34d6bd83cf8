"""The trace of a model whose Keras runs on jax or torch: in a process of its own, on TensorFlow.

The backend of Keras is fixed for a process. The model goes there as a .keras file in a temporary folder, with the names
of the modules that its classes come from; an ONNX graph with stubs comes back. What stands for the stubs is written
here, so that the numbers at masked steps are those of the model's own backend.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import numpy as np

from bridge.errors import BridgeError, Unsupported
from bridge.frameworks import keras_graph
from bridge.frameworks.keras_read import no_copy_warning
from bridge.frameworks.keras_whole.inputs import Signature

MOST_SECONDS: Final = 1800
"""What a trace may take before it is given up."""


INSTEAD: Final = "start Python with KERAS_BACKEND=tensorflow"


def trace_elsewhere(model: Any, signature: Signature, plain: Sequence[int]) -> Any:
    """What `trace.trace` gives, by a process on TensorFlow.

    Raises:
        MissingExtra: TensorFlow or tf2onnx is not installed.
        Unsupported: the model cannot be saved, loaded there, or traced.
    """
    classes = _classes(model)
    with tempfile.TemporaryDirectory(prefix="rnn-bridge-") as name:
        folder = Path(name)
        try:
            with no_copy_warning():
                model.save(folder / "model.keras")
        except (ValueError, TypeError, NotImplementedError, OSError) as error:
            raise Unsupported("the model cannot be saved, which its export from this backend needs",
                              where=model.name, got=str(error)[:400], do=INSTEAD) from error  # fmt: skip
        request = {"signature": signature.document(), "plain": list(plain), "classes": classes, "path": sys.path}
        (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
        done = _run(folder)
        answer = folder / "answer.json"
        if not answer.exists():
            raise Unsupported("the process that traces the model on TensorFlow failed", where=model.name,
                              got=done.stderr.strip()[-800:], do=INSTEAD)  # fmt: skip
        found = json.loads(answer.read_text(encoding="utf-8"))
        if "error" in found:
            raise Unsupported(**found["error"])
        found["calls"] = [SimpleNamespace(**call) for call in found["calls"]]
        with np.load(folder / "constants.npz", allow_pickle=False) as archive:
            constants = dict(zip(found.pop("names"), archive.values(), strict=True))
        return SimpleNamespace(proto=(folder / "model.onnx").read_bytes(), constants=constants, **found)


def _run(folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"}
    root = str(Path(__file__).parents[3])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    try:
        return subprocess.run(
            [sys.executable, "-m", "bridge.frameworks.keras_whole.process", str(folder)],
            env=environment, capture_output=True, text=True, timeout=MOST_SECONDS, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unsupported("the process that traces the model on TensorFlow failed", where="to_onnx",
                          got=str(error)[:400], do=INSTEAD) from error  # fmt: skip


def _classes(model: Any) -> list[tuple[str, str]]:
    """Module and name of every class of the caller's own.

    Raises:
        Unsupported: a class that no other process can import.
    """
    found: dict[tuple[str, str], None] = {}
    for path, layer in [("", model), *keras_graph.all_layers(model)]:
        kind = type(layer)
        if kind.__module__.partition(".")[0] in ("keras", "bridge"):
            continue
        if kind.__module__ == "__main__" or "<locals>" in kind.__qualname__:
            raise Unsupported(f"the class {kind.__qualname__} cannot be imported by another process", where=path or
                              model.name, do="put it into a module, or start Python with KERAS_BACKEND=tensorflow"
                              )  # fmt: skip
        found[kind.__module__, kind.__qualname__] = None
    return list(found)


def answer(folder: Path) -> None:
    """Trace the model in `folder`; runs in the other process."""
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    sys.path[:] = [*sys.path, *(entry for entry in request["path"] if entry not in sys.path)]
    try:
        import keras

        from bridge.frameworks import keras_registered  # noqa: F401 (registered with Keras by importing)
        from bridge.frameworks.keras_whole.trace import FAILURES, trace

        classes: dict[str, Any] = {}
        for module, name in request["classes"]:
            value: Any = importlib.import_module(module)
            for part in name.split("."):
                value = getattr(value, part)
            classes[name.rpartition(".")[2]] = value
        try:
            # Our own file of a live object of the caller's: its code is the caller's too.
            model = keras.saving.load_model(folder / "model.keras", custom_objects=classes, compile=False,
                                            safe_mode=False)  # fmt: skip
        except FAILURES as error:
            raise Unsupported("the model cannot be built again on TensorFlow", where="to_onnx", got=str(error)[:800],
                              do="give its classes get_config and build, or start Python with "
                              "KERAS_BACKEND=tensorflow") from error  # fmt: skip
        traced = trace(model, Signature(**request["signature"]), request["plain"])
    except BridgeError as error:
        document: dict[str, Any] = {"error": {name: getattr(error, name) for name in
                                              ("what", "where", "got", "expected", "do")}}  # fmt: skip
    else:
        (folder / "model.onnx").write_bytes(traced.proto)
        np.savez(folder / "constants.npz", *traced.constants.values())
        document = {**traced.document(), "names": list(traced.constants)}
    (folder / "answer.json").write_text(json.dumps(document, default=str), encoding="utf-8")


if __name__ == "__main__":
    answer(Path(sys.argv[1]))
