"""onnxruntime, the judge: which devices are there, what runs where, a guarded run. Nothing else imports it."""

from __future__ import annotations

from bridge.runtime.library import CPU, CUDA, Device, providers, why_no_cuda
from bridge.runtime.placement import cuda_obstacles
from bridge.runtime.session import RunResult, Session, run_model

__all__ = [
    "CPU",
    "CUDA",
    "Device",
    "RunResult",
    "Session",
    "cuda_obstacles",
    "providers",
    "run_model",
    "why_no_cuda",
]
