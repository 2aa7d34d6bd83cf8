"""check.py: the generated model against stored outputs of onnxruntime, under the derived bound."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from bridge.errors import BadInput

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

SIZES: Final = ((1, 7), (3, 5))
"""(batch, time) of the stored cases; any further symbolic size is OTHER."""

OTHER: Final = 48

CHECK: Final = '''\
"""Compare model.py with onnxruntime on stored inputs; exit 1 where they disagree.

An output passes when its shape and dtype are onnxruntime's (64 bits are JAX's 32) and its error against a float64
evaluation of the graph is at most 4 times onnxruntime's own error, or 8 * eps * max(1, max|output|), whichever is
larger. Integers must be equal.
"""

import sys
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from safetensors.numpy import load_file

FOLDER = Path(__file__).parent


def bound(expected, truth):
    """The largest error that passes."""
    if expected.dtype.kind != "f":
        return 0.0
    own = np.max(np.abs(expected - truth), initial=0.0)
    return max(4.0 * own, 8.0 * np.finfo(expected.dtype).eps * max(1.0, np.max(np.abs(truth), initial=0.0)))


def main():
    """Run every stored case; whether all outputs pass."""
    from model import load  # beside this file

    model = load(FOLDER / "weights.safetensors")
    variables = nnx.to_flat_state(nnx.state(model, nnx.Not(nnx.RngState)))
    passed = {".".join(map(str, path)) for path, _ in variables} == set(load_file(FOLDER / "weights.safetensors"))
    print(f"weights: {'all there' if passed else 'NOT those of the model'}")
    stored = np.load(FOLDER / "check.npz", allow_pickle=False)
    run = nnx.jit(lambda model, arrays: model(*arrays))
    for case in range(int(stored["cases"])):
        results = run(model, [stored[f"{case}.input.{at}"] for at in range(int(stored["inputs"]))])
        results = results if isinstance(results, tuple) else (results,)
        for at, (name, actual) in enumerate(zip(stored["names"], jax.device_get(results), strict=True)):
            expected, truth = stored[f"{case}.output.{at}"], stored[f"{case}.truth.{at}"]
            allowed = bound(expected, truth)
            same = (actual.shape, actual.dtype) == (expected.shape, jax.dtypes.canonicalize_dtype(expected.dtype))
            error = np.max(np.abs(actual.astype(np.float64) - truth), initial=0.0) if same else np.inf
            passed = passed and bool(error <= allowed)
            verdict = "ok" if error <= allowed else "DISAGREES"
            print(f"case {case}  {name} {list(actual.shape)}  error {error:.2e}  bound {allowed:.2e}  {verdict}")
    return passed


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
'''


def stored_cases(
    model: ir.Model, proto: onnx.ModelProto, given: Sequence[Mapping[str, np.ndarray]] | None
) -> dict[str, np.ndarray]:
    """What check.npz holds: inputs, onnxruntime's outputs and a float64 evaluation of them, for each case.

    Raises:
        BadInput: inputs that onnxruntime refuses.
    """
    from bridge import runtime
    from bridge.ops.program import evaluate

    feeds = list(given) if given is not None else [made_feeds(model, *sizes) for sizes in SIZES]
    session = runtime.Session(proto, device="cpu")
    arrays: dict[str, Any] = {"cases": np.asarray(len(feeds))}
    for case, inputs in enumerate(feeds):
        try:
            judged = dict(session.run(inputs).outputs)
        except BadInput as refusal:
            if given is not None:
                raise
            sizes = ", ".join(f"{name} {list(array.shape)}" for name, array in inputs.items())
            raise BadInput(f"onnxruntime refuses the inputs that were drawn for the check: {sizes}", where="flax-code",
                           got=refusal.got, do="say sizes with shapes= (--shape), or give inputs=[{name: array}]",
                           ) from refusal  # fmt: skip
        truth = evaluate(model, inputs)
        if not all(np.isfinite(np.asarray(array, np.float64)).all() for array in truth.values()):
            raise BadInput("an output is not finite: the case proves nothing", where="flax-code",
                           do="give inputs=[{name: array}] that the model was made for")  # fmt: skip
        arrays |= {"inputs": np.asarray(len(inputs)), "names": np.asarray(list(judged))}
        names = [str(value.name) for value in model.graph.inputs if str(value.name) in inputs]
        arrays |= {f"{case}.input.{at}": inputs[name] for at, name in enumerate(names)}
        arrays |= {f"{case}.output.{at}": array for at, array in enumerate(judged.values())}
        arrays |= {f"{case}.truth.{at}": np.asarray(truth[name], np.float64) for at, name in enumerate(judged)}
    return arrays


def made_feeds(model: ir.Model, batch: int, time: int) -> dict[str, np.ndarray]:
    """Random inputs: floats standard normal, lengths ragged from 1 to `time`, other integers 0 or 1.

    Raises:
        BadInput: an input whose rank is not declared.
    """
    rng = np.random.default_rng([batch, time])
    symbols: dict[str, int] = {"batch": batch, "time": time}
    feeds = {}
    for value in model.graph.inputs:
        if value.name in model.graph.initializers:
            continue
        if value.shape is None or value.dtype is None:
            raise BadInput(f"input {value.name!r} declares no rank", where="flax-code", do="give inputs={name: array}")
        shape = [dim if isinstance(dim, int) else symbols.setdefault(dim.value or f"{value.name}.{axis}",
                                                                     (batch, time, OTHER)[min(axis, 2)])
                 for axis, dim in enumerate(value.shape)]  # fmt: skip
        dtype = value.dtype.numpy()
        if value.name == "lengths":
            feeds[value.name] = np.linspace(1, _shortest(model, time), shape[0]).astype(dtype)
        elif dtype.kind == "f":
            feeds[str(value.name)] = rng.standard_normal(shape).astype(dtype)
        else:
            feeds[str(value.name)] = rng.integers(0, 2, shape).astype(dtype)
    return feeds


def _shortest(model: ir.Model, time: int) -> int:
    """How long a sequence may be: `time`, and where no axis is called so, what either axis of a sequence holds."""
    dims = [list(value.shape) for value in model.graph.inputs if value.shape is not None and len(value.shape) > 1]
    if any(getattr(dim, "value", None) == "time" for each in dims for dim in each):
        return time
    return min([time, *(dim for each in dims for dim in each[:2] if isinstance(dim, int))])
