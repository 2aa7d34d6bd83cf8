"""One row on one backend against onnxruntime, with the float64 evaluation as the referee."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnxruntime

from bridge.ops.backend import Backend
from bridge.ops.program import Program, evaluate
from tests.ops.rows import Row
from tests.tolerances import assert_within_referee_bound


def onnxruntime_outputs(row: Row) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(row.model().SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, dict(row.inputs))


def assert_agrees(
    row: Row, backend: Backend, wrap: Callable[[Program], Callable[..., object]] = lambda program: program
) -> None:
    """Floats within the referee's bound, everything else equal; shapes and dtypes as onnxruntime has them."""
    model, expected = row.model(), onnxruntime_outputs(row)
    program = Program(model, backend)
    actual = wrap(program)({name: backend.asarray(value) for name, value in row.inputs.items()})
    referee = evaluate(model, row.inputs)
    for name, wanted in zip(program.output_names, expected, strict=True):
        got = np.asarray(backend.concrete(actual[name]))
        if got.dtype.itemsize != wanted.dtype.itemsize and wanted.dtype != np.int64:  # JAX counts in 32 bits
            raise AssertionError(f"{row.name} {name}: {got.dtype}, onnxruntime {wanted.dtype}")
        if wanted.dtype.kind == "f":
            assert_within_referee_bound(got, wanted, referee[name])
        else:
            np.testing.assert_array_equal(got, wanted, err_msg=f"{row.name} {name}")
            np.testing.assert_array_equal(referee[name], wanted, err_msg=f"{row.name} {name}: referee")
