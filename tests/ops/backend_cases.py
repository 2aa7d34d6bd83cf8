"""ONNX's own node cases for the operators that are carried; `python -m tests.ops.backend_cases jax` counts them all."""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.backend.test.loader import load_model_tests

from bridge.errors import BridgeError
from bridge.ops.backend import Backend
from bridge.ops.program import Program
from bridge.ops.registry import NEWEST_OPSET
from bridge.ops.table import HANDLERS

DEFINED = frozenset({
    "AffineGrid", "Attention", "CenterCropPad", "NegativeLogLikelihoodLoss", "RotaryEmbedding",
    "SoftmaxCrossEntropyLoss",
})  # fmt: skip
"""Operators that ONNX defines by others, which `bridge.graph.expand` puts in their place."""

OPERATORS = DEFINED | {op for domain, op, _ in HANDLERS if domain == ""}
HALF = (1e-2, 1e-3)
SINGLE = (1e-3, 1e-6)
"""Relative and absolute tolerance; 1e-3 is what ONNX's own runner asks for, the cases hold float32 results."""

UNITS = 8.0
"""Absolute tolerance in eps of the largest result, as in tests/tolerances.py: a transform sums it into what is 0."""

ROUNDING = frozenset({"DynamicQuantizeLinear", "QuantizeLinear", "QLinearMatMul", "QLinearConv", "Round"})
"""Operators after which a float64 referee may choose the other neighbour of a float32 tie."""


@dataclass(frozen=True)
class Case:
    name: str
    model: onnx.ModelProto
    feeds: dict[str, np.ndarray]
    expected: dict[str, np.ndarray]


def carried() -> Iterator[Case]:
    """Every case whose main graph holds carried operators only, in opset 26 where it is written in a newer one."""
    for case in load_model_tests(kind="node"):
        graph = case.model.graph
        if not graph.node or any(n.domain not in ("", "ai.onnx") or n.op_type not in OPERATORS for n in graph.node):
            continue
        for opset in case.model.opset_import:
            opset.version = min(opset.version, NEWEST_OPSET) if opset.domain == "" else opset.version
        inputs, outputs = case.data_sets[0]
        yield Case(
            case.name,
            case.model,
            {value.name: _array(data) for value, data in zip(graph.input, inputs, strict=False)},
            {value.name: _array(data) for value, data in zip(graph.output, outputs, strict=False)},
        )


def _array(data: object) -> np.ndarray:
    if isinstance(data, onnx.TensorProto):
        return numpy_helper.to_array(data)
    return np.asarray(data) if not isinstance(data, list) else np.empty(0, object)


def outcome(case: Case, backend: Backend, *, double: bool = False) -> str:
    """The word passed, refused, or what is wrong."""
    try:
        actual = Program(case.model, backend)(case.feeds)
    except BridgeError:
        return "refused"
    for name, wanted in case.expected.items():
        got = np.asarray(backend.concrete(actual[name]))
        if got.shape != wanted.shape or (got.dtype != wanted.dtype and not (double and wanted.dtype.kind == "f")):
            return f"wrong: {name} is {got.dtype}{got.shape}, expected {wanted.dtype}{wanted.shape}"
        relative, absolute = HALF if wanted.dtype == np.float16 else SINGLE if wanted.dtype.kind == "f" else (0, 0)
        if wanted.dtype.kind == "f":
            absolute = max(absolute, UNITS * _unit(wanted))
        elif double and ROUNDING & {node.op_type for node in case.model.graph.node}:
            absolute = 1
        if not np.allclose(got.astype(wanted.dtype), wanted, relative, absolute, equal_nan=True):
            return f"wrong: {name} differs"
    return "passed"


def _unit(wanted: np.ndarray) -> float:
    """Eps times the largest finite result."""
    return float(np.finfo(wanted.dtype).eps) * float(np.abs(wanted[np.isfinite(wanted)]).max(initial=0.0))


def count(backend: Backend, *, double: bool = False) -> tuple[Counter[str], list[str]]:
    """How many cases passed, were refused and were wrong, and the wrong ones with what is wrong."""
    counts: Counter[str] = Counter(passed=0, refused=0, wrong=0)
    wrong = []
    for case in carried():
        found = outcome(case, backend, double=double)
        counts[found.split(":")[0]] += 1
        if found.startswith("wrong"):
            wrong.append(f"{case.name}: {found}")
    return counts, wrong


def _backend(name: str) -> Backend:
    if name == "jax":
        import jax

        from bridge.ops.backend_jax import JaxBackend

        jax.config.update("jax_enable_x64", True)
        return JaxBackend()
    if name == "torch":
        from bridge.ops.backend_torch import TorchBackend

        return TorchBackend()
    if name == "keras":
        from bridge.ops.backend_keras import KerasBackend

        return KerasBackend()
    from bridge.ops.backend_numpy import NumpyBackend

    return NumpyBackend()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    counts, wrong = count(_backend(sys.argv[1]))
    print(sys.argv[1], dict(counts), *wrong, sep="\n")
    sys.exit(bool(wrong))
