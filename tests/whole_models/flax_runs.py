"""Export a case once and judge it at other sizes: Flax in float64 is the referee, Flax in float32 sets the bound.

The referee runs the same module under jax.enable_x64 with the same parameters in float64: nothing of bridge is in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import bridge
from bridge.errors import BridgeError
from tests.whole_models.flax_cases import EXAMPLE, OTHERS, Case, all_cases
from tests.whole_models.verdict import Run, Verdict, judge

PEER = "jax2onnx"

QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
"""Compiled in half the time; each program runs once."""

__all__ = ["PEER", "QUICK", "all_cases", "built", "export", "outputs", "peer", "run", "runs", "split"]


def _drawn(values: Any, draw: np.random.Generator) -> Any:
    """Arrays for shapes: random floats, variances positive; the state of random streams as it begins."""

    def one(path: Any, leaf: Any) -> Any:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jnp.broadcast_to(jax.random.key(0), leaf.shape)
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return jnp.zeros(leaf.shape, leaf.dtype)
        low = 0.5 if "var" in jax.tree_util.keystr(path) else -0.6
        return jnp.asarray(draw.uniform(low, low + 1.1, leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(one, values)


def built(case: Case) -> Any:
    """The source: every parameter and statistic random; nothing is initialised, which takes seconds."""
    module, values = _outline(case, jnp.float32)
    values = _drawn(values, np.random.default_rng(1))
    return nnx.merge(module, values) if isinstance(module, nnx.GraphDef) else (module, values)


def _outline(case: Case, dtype: Any) -> tuple[Any, Any]:
    """A graph definition and the shapes of its state, or a linen module and the shapes of its variables."""
    if case.name.startswith("nnx"):
        module, values = nnx.split(nnx.eval_shape(lambda: case.build(dtype)))
        return module, values
    arrays = [jnp.asarray(array, dtype) if array.dtype.kind == "f" else array
              for array in case.inputs(*EXAMPLE, np.random.default_rng(0))]  # fmt: skip
    module = case.build(dtype)
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    return module, jax.eval_shape(lambda: module.init(keys, *arrays))


def split(source: Any) -> tuple[Any, Any]:
    """What `_outline` gives, of a model with values."""
    return nnx.split(source) if isinstance(source, nnx.Module) else source


def exact_twin(case: Case, source: Any) -> tuple[Any, Any]:
    """The same model in float64, to be called under jax.enable_x64."""
    with jax.enable_x64(True):
        module, _ = _outline(case, jnp.float64)
        return module, jax.tree.map(_exact, split(source)[1])


def outputs(model: tuple[Any, Any], arrays: Any) -> list[np.ndarray]:
    """The flat outputs of Flax itself, compiled as a whole: op by op takes ten times as long."""
    module, values = model
    if isinstance(module, nnx.GraphDef):
        result = jax.jit(lambda state, *arrays: nnx.merge(module, state)(*arrays), compiler_options=QUICK)(
            values, *arrays)  # fmt: skip
    else:
        result = jax.jit(module.apply, compiler_options=QUICK)(values, *arrays)
    return [np.asarray(leaf) for leaf in jax.tree.leaves(result)]


def _exact(leaf: Any) -> Any:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) or not jnp.issubdtype(leaf.dtype, jnp.floating):
        return leaf
    return jnp.asarray(np.asarray(leaf), jnp.float64)


def export(case: Case, source: Any) -> Any:
    """Ours."""
    return bridge.to_onnx(source, example=case.inputs(*EXAMPLE, np.random.default_rng(0)), **dict(case.options))


def runs(case: Case, source: Any, sizes: Sequence[tuple[int, int]] = OTHERS) -> Iterator[Run]:
    """Inputs at other sizes, and what Flax makes of them in float32 and float64."""
    twin = exact_twin(case, source)
    for at, (batch, time) in enumerate(sizes):
        arrays = case.inputs(batch, time, np.random.default_rng(at + 1))
        expected = outputs(split(source), arrays)
        with jax.enable_x64(True):
            referee = outputs(twin, [_exact(array) for array in arrays])
        yield Run(f"{(batch, time)}", arrays, expected, referee)


def run(case: Case, sizes: Sequence[tuple[int, int]] = OTHERS) -> Verdict:
    """Build, export, judge."""
    source = built(case)
    try:
        model = export(case, source)
    except BridgeError as error:
        return Verdict(case.name, "refused", detail=str(error))
    return judge(case.name, model, runs(case, source, sizes))


def peer(case: Case) -> Verdict:
    """The same by jax2onnx, batch and time symbolic by its own means."""
    try:
        from jax2onnx import to_onnx
    except ImportError as error:
        return Verdict(case.name, "absent", detail=str(error))
    source = built(case)
    module, values = split(source)
    if isinstance(source, nnx.Module):  # a copy in the trace, since it refuses to touch the random streams of an RNN
        function: Any = lambda *arrays: nnx.merge(module, jax.tree.map(lambda leaf: leaf, values))(*arrays)  # noqa: E731
    else:
        function = lambda *arrays: module.apply(values, *arrays)  # noqa: E731
    names = dict(zip(EXAMPLE, ("B", "T"), strict=True)) | {sum(EXAMPLE): "L", EXAMPLE[1] + 1: "S"}
    specs = [jax.ShapeDtypeStruct((*(names.get(size, size) for size in array.shape[:2]), *array.shape[2:]), array.dtype)
             for array in case.inputs(*EXAMPLE, np.random.default_rng(0))]  # fmt: skip
    try:
        model = to_onnx(function, inputs=specs)
    except Exception as error:  # noqa: BLE001 (whatever it says is the verdict)
        return Verdict(case.name, "failed", detail=f"{type(error).__name__}: {str(error)[:200]}")
    return judge(case.name, model, runs(case, source))
