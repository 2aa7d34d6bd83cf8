"""Flax nnx's cells against onnxruntime, row by row."""

from tests.conformance.executors_flax_nnx import EXECUTORS
from tests.conformance.matrix import (  # noqa: F401
    test_a_broken_layout_is_noticed,
    test_the_framework_computes_what_onnxruntime_computes_after_writing,
    test_the_framework_computes_what_onnxruntime_computes_from_the_parameters_read,
)

FRAMEWORK = "flax.nnx"
__all__ = ["EXECUTORS"]
