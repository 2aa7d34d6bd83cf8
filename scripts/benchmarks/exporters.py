"""Our exported graphs against those of the frameworks' own exporters: run time in onnxruntime, and time to export."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scripts.benchmarks.exporting import torch_export
from scripts.benchmarks.running import session
from scripts.benchmarks.timing import PYTHON, ROOT, interleaved, silence

BATCHES = (1, 16)
STEPS, INPUTS, HIDDEN = 100, 64, 128


def exporters() -> dict[str, object]:
    """GRU, RNN and masked LSTM: our graph's run time over the framework's own exporter's, and the export's."""
    command = [PYTHON, "-c", "from scripts.benchmarks.exporters import keras_part; keras_part()"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT,
                          env={**os.environ, "KERAS_BACKEND": "tensorflow"})  # fmt: skip
    return _torch_part() | json.loads(done.stdout.splitlines()[-1])


def _once(function: Callable[[], Any]) -> tuple[Any, float]:
    """The second of two calls, and its seconds."""
    function()
    began = time.perf_counter()
    made = function()
    return made, time.perf_counter() - began


def _compared(graphs: dict[str, Any], x: Any) -> dict[str, float]:
    """Every graph's run time over that of "theirs"."""
    sessions = {name: session(model) for name, model in graphs.items()}
    feeds = {name: {each.get_inputs()[0].name: x} for name, each in sessions.items()}
    times = interleaved({name: (lambda name=name: sessions[name].run(None, feeds[name])) for name in graphs})
    return {f"{name}_over_theirs": value / times["theirs"] for name, value in times.items() if name != "theirs"}


def _torch_part() -> dict[str, object]:
    import numpy as np
    import torch

    import bridge

    result: dict[str, object] = {}
    for kind in ("GRU", "RNN", "LSTM"):
        module = getattr(torch.nn, kind)(INPUTS, HIDDEN, batch_first=True).eval()
        for batch in BATCHES:
            x = np.random.default_rng(0).standard_normal((batch, STEPS, INPUTS)).astype(np.float32)
            theirs, their_seconds = _once(lambda module=module, x=x: torch_export(module, torch.from_numpy(x)))
            fused, seconds = _once(lambda module=module: bridge.to_onnx(module))
            graphs = {"fused": fused, "scan": bridge.to_onnx(module, form="scan"), "theirs": theirs}
            result[f"torch {kind}, batch {batch}"] = {
                **_compared(graphs, x), "export_times_faster": their_seconds / seconds,
                "nodes": len(fused.graph.node), "their_nodes": len(theirs.graph.node),
            }  # fmt: skip
    return result


def keras_part() -> None:
    """Print the figures of Keras on TensorFlow as one line of JSON; a process of its own."""
    sys.path.insert(0, str(ROOT))
    result = {}
    for name in ("GRU", "masked LSTM"):
        for batch in BATCHES:
            with silence():
                result[f"keras {name}, batch {batch}"] = _keras_figures(name, batch)
    print(json.dumps(result))


def _keras_figures(name: str, batch: int) -> dict[str, float]:
    import keras
    import numpy as np
    import onnx

    import bridge

    layers = [keras.layers.Masking(-9.0)] if name.startswith("masked") else []
    layers.append(getattr(keras.layers, name.split()[-1])(HIDDEN, return_sequences=True))
    model = keras.Sequential([keras.layers.Input((None, INPUTS)), *layers])
    x = np.random.default_rng(0).standard_normal((batch, STEPS, INPUTS)).astype(np.float32)
    if layers[1:]:
        x[:, STEPS * 3 // 4 :] = -9.0
    model(x)  # Keras exports no model that it has not run
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "theirs.onnx"))
        _, their_seconds = _once(lambda: model.export(path, format="onnx", verbose=False))
        theirs = onnx.load(path)
    fused, seconds = _once(lambda: bridge.to_onnx(model))
    graphs = {"fused": fused, "scan": bridge.to_onnx(model, form="scan"), "theirs": theirs}
    return {**_compared(graphs, x), "export_times_faster": their_seconds / seconds}
