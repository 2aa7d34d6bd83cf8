"""What an export costs: time and memory, against torch's own exporter; and how fast the command line starts."""

from __future__ import annotations

import subprocess
import tempfile
from typing import Any

from scripts.benchmarks.timing import PYTHON, ROOT, median, silence


def big_lstm() -> Any:
    """3 x bidirectional LSTM 512: 67 MB of weights."""
    import torch

    torch.manual_seed(0)
    return torch.nn.LSTM(512, 512, 3, bidirectional=True).eval()


def torch_export(module: Any, example: Any, path: str | None = None) -> Any:
    """torch.onnx.export(dynamo=True) to a message, or to a file with external data."""
    import torch

    with silence():
        program = torch.onnx.export(module, (example,), dynamo=True, opset_version=20)
        if path is not None:
            program.save(path, external_data=True)
        return program.model_proto if path is None else program


def export() -> dict[str, object]:
    """3 x bidirectional LSTM 512 (67 MB): export in memory and to a file with external data, against torch's own."""
    import torch

    import bridge

    module, example = big_lstm(), torch.zeros(7, 2, 512)
    with tempfile.TemporaryDirectory() as folder:
        ours = median(lambda: bridge.to_onnx(module), 15)
        theirs = median(lambda: torch_export(module, example), 3)
        ours_file = median(lambda: bridge.to_onnx(module, f"{folder}/a.onnx", external_data=True, overwrite=True), 9)
        theirs_file = median(lambda: torch_export(module, example, f"{folder}/b.onnx"), 3)
    return {
        "bridge_in_memory_s": ours, "torch_in_memory_s": theirs, "times_faster_in_memory": theirs / ours,
        "bridge_external_s": ours_file, "torch_external_s": theirs_file,
        "times_faster_external": theirs_file / ours_file,
    }  # fmt: skip


MEMORY_CHILD = """
import resource, sys, threading, time, os
import psutil, torch, bridge
torch.manual_seed(0)
module = torch.nn.LSTM(512, 512, 3, bidirectional=True).eval()
bridge.to_onnx(torch.nn.LSTM(3, 2), sys.argv[2] + ".warm.onnx", external_data=sys.argv[1] == "external", overwrite=True)
weights = sum(p.numel() * 4 for p in module.parameters())
process = psutil.Process()
base, peak, stop = process.memory_info().rss, 0, False
def watch():
    global peak
    while not stop:
        peak = max(peak, process.memory_info().rss)
        time.sleep(0.0005)
thread = threading.Thread(target=watch); thread.start()
bridge.to_onnx(module, sys.argv[2], external_data=sys.argv[1] == "external", overwrite=True)
stop = True; thread.join()
print((peak - base) / weights)
"""


def memory() -> dict[str, object]:
    """Peak extra memory of an export over the size of the weights, each in a fresh process."""
    result: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("external", "inline"):
            done = subprocess.run([PYTHON, "-c", MEMORY_CHILD, kind, f"{folder}/{kind}.onnx"], check=True,
                                  capture_output=True, text=True, cwd=ROOT)  # fmt: skip
            result[f"{kind}_over_weights"] = float(done.stdout.split()[-1])
    return result


def call(*words: str) -> None:
    """Run rnn-bridge."""
    subprocess.run([PYTHON, "-m", "bridge", *words], check=True, capture_output=True, cwd=ROOT)


def start() -> dict[str, object]:
    """Seconds of the command line as a user meets them: --help, and inspect on a 50 MB file."""
    import numpy as np

    import bridge

    rng = np.random.default_rng(0)
    hidden = 1254  # 4 * 1254 * (1254 + 1254) * 4 bytes = 50 MB
    cell = bridge.Cell("LSTM", W=rng.standard_normal((1, 4 * hidden, hidden)).astype(np.float32),
                       R=rng.standard_normal((1, 4 * hidden, hidden)).astype(np.float32))  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        bridge.to_onnx(cell, f"{folder}/big.onnx")
        return {
            "help_s": median(lambda: call("--help"), 9),
            "python_alone_s": median(lambda: subprocess.run([PYTHON, "-c", ""], check=True), 9),
            "inspect_50mb_s": median(lambda: call("inspect", f"{folder}/big.onnx"), 5),
        }
