"""Imported layers with their batch over two CPU devices; a process of its own, since JAX counts devices only once."""

from __future__ import annotations

import json
import sys
from typing import Any

import jax
import numpy as np
import onnx
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from onnx import TensorProto, helper, numpy_helper

import bridge
from tests.cells import random_cell

T, N, INPUTS, H = 20, 4, 3, 5
"""More steps than one part of time, an even batch."""
ROWS = {"LSTM": {"direction": "bidirectional"}, "GRU": {"linear_before_reset": 1}, "RNN": {"direction": "reverse"}}


def layer(op: str) -> onnx.ModelProto:
    """Y, Y_h = op(X, lengths), batch and time symbolic, float64."""
    cell = random_cell(op, INPUTS, H, np.random.default_rng(0), dtype="float64", **ROWS[op])
    sides = cell.num_directions
    weights = [numpy_helper.from_array(getattr(cell, name), name) for name in "WRB"]
    node = helper.make_node(op, ["X", "W", "R", "B", "lengths"], ["Y", "Y_h"], name="layer", hidden_size=H, **ROWS[op])
    inputs = [helper.make_tensor_value_info("X", TensorProto.DOUBLE, ["time", "batch", INPUTS]),
              helper.make_tensor_value_info("lengths", TensorProto.INT32, ["batch"])]  # fmt: skip
    outputs = [helper.make_tensor_value_info("Y", TensorProto.DOUBLE, ["time", sides, "batch", H]),
               helper.make_tensor_value_info("Y_h", TensorProto.DOUBLE, [sides, "batch", H])]  # fmt: skip
    graph = helper.make_graph([node], "layer", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def differences(op: str) -> dict[str, Any]:
    """How far each way to split is from one device, relative to the largest number of each output and gradient."""
    net = bridge.to_flax(layer(op))
    graph, params, rest = nnx.split(net, nnx.Param, ...)
    rng = np.random.default_rng(1)
    x, lengths = rng.uniform(-1, 1, (T, N, INPUTS)), np.array([T, 0, 3, T - 1], np.int32)
    mesh = Mesh(jax.devices(), ("batch",))
    explicit = jax.make_mesh((2,), ("batch",), axis_types=(AxisType.Explicit,))
    over_batch = PartitionSpec(None, "batch"), PartitionSpec("batch"), PartitionSpec(None, None, "batch")

    def run(params: Any, x: Any, lengths: Any) -> tuple[Any, ...]:
        return tuple(nnx.merge(graph, params, rest)(X=x, lengths=lengths))

    def slope(params: Any, x: Any, lengths: Any) -> Any:
        return jax.grad(lambda params: sum((np.pi * y).sum() for y in run(params, x, lengths)))(params)

    def summed(params: Any, x: Any, lengths: Any) -> Any:
        return jax.lax.psum(slope(params, x, lengths), "batch")

    def split(function: Any, out: Any, **how: Any) -> Any:
        specs = PartitionSpec(), *over_batch[:2]
        return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=out, **how))

    def placed(mesh: Mesh) -> list[Any]:
        specs = PartitionSpec(), *over_batch[:2]
        return [jax.device_put(value, NamedSharding(mesh, spec))
                for value, spec in zip((params, x, lengths), specs, strict=True)]  # fmt: skip

    whole, outputs_of = (jax.jit(run), jax.jit(slope)), (over_batch[2], over_batch[0])
    checked = split(run, outputs_of), split(slope, PartitionSpec())  # it sums the gradients of what all devices share
    unchecked = split(run, outputs_of, check_vma=False), split(summed, PartitionSpec(), check_vma=False)
    ways = {"placed": (mesh, *whole), "explicit": (explicit, *whole), "shard_map": (mesh, *checked),
            "shard_map, unchecked": (mesh, *unchecked)}  # fmt: skip
    wanted = jax.tree.leaves((jax.jit(run)(params, x, lengths), jax.jit(slope)(params, x, lengths)))
    found: dict[str, Any] = {}
    for way, (devices, outputs, gradient) in ways.items():
        with jax.set_mesh(devices):
            got = outputs(*placed(devices)), gradient(*placed(devices))
        found[way] = max(float(abs(np.asarray(a) - np.asarray(b)).max() / abs(np.asarray(b)).max())
                         for a, b in zip(jax.tree.leaves(got), wanted, strict=True))  # fmt: skip
        found[f"{way}, devices"] = len(got[0][0].sharding.device_set)
    return found


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 2)
    jax.config.update("jax_enable_x64", True)
    json.dump({op: differences(op) for op in ROWS}, sys.stdout)
