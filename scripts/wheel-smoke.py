"""What the installed wheel does with nothing but its base dependencies: run by scripts/wheel away from the checkout."""

import subprocess
import sys
from pathlib import Path

import numpy as np

import bridge

here = Path.cwd()
if here in Path(bridge.__file__).parents and "site-packages" not in bridge.__file__:
    sys.exit(f"imported the checkout and not the wheel: {bridge.__file__}")

rng = np.random.default_rng(0)
shapes = {"weight_ih": (20, 3), "weight_hh": (20, 5), "bias_ih": (20,), "bias_hh": (20,)}
params = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
cell = bridge.read_params("torch.LSTM", params)
back = bridge.write_params("torch.LSTM", cell)
if any(not np.array_equal(params[name], back[name]) for name in params):
    sys.exit("read and write differ")
bridge.to_onnx(cell, "lstm.onnx")
if bridge.cells("lstm.onnx")["l0"] != cell:
    sys.exit("the cell changed on its way through a file")
print(bridge.inspect("lstm.onnx"))

# Without onnxruntime the refusal names the line that installs it, and exit code 5 says so to a script.
done = subprocess.run(
    [sys.executable, "-m", "bridge", "verify", "lstm.onnx", "lstm.onnx"], capture_output=True, text=True, check=False
)
if done.returncode != 5 or "rnn-bridge[cpu]" not in done.stderr:
    sys.exit(f"expected exit 5 and the install line, got {done.returncode}: {done.stderr}")
