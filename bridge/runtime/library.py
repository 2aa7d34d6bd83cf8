"""The onnxruntime library: imported here, its devices found out honestly, its exceptions turned into bridge's own.

`get_available_providers()` and `get_device()` say what a wheel was compiled with, on machines without a GPU too, and
a session that asks for CUDA alone runs on the CPU without a word. So CUDA counts as present only after a session has
really been made on it with the fall back to the CPU forbidden.

Source: onnxruntime 1.31.1, session option keys in onnxruntime_session_options_config_keys.h.
"""

from __future__ import annotations

import ctypes
import sys
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, Final, Literal

from bridge.errors import BadInput, MissingExtra, Unsupported

if TYPE_CHECKING:
    from collections.abc import Iterator

Device = Literal["auto", "cpu", "cuda"]

CPU: Final = "CPUExecutionProvider"
CUDA: Final = "CUDAExecutionProvider"

CUDA_OPTIONS: Final = (("use_tf32", "0"),)
"""TF32 rounds the operands of products to 10 bits; it is on by default."""

AS_WRITTEN: Final = ("session.disable_quant_qdq", "1")
"""Quantised graphs node by node. onnxruntime moves QuantizeLinear up through Transpose and Reshape past values that are
outputs themselves, which then come quantised (an error of 0.85 in Y of an RNN); and where the weights of a MatMul are
dequantised it rounds the other operand to 8 bits too, which no node of the graph says (7e-3 against 2e-7)."""

BYTE_SUMS: Final = ("session.x64quantprecision", "1")
"""Products of uint8 and int8 without the 16-bit sums that saturate on x86-64 without VNNI (onnxruntime pull request
12088). Not for graphs in which two nodes read the same int8 weights: onnxruntime makes a uint8 copy for each under one
name, and refuses the second."""

INSTALL: Final = 'pip install "rnn-bridge[cpu]" or pip install "rnn-bridge[gpu]", never both: they overwrite each other'

WRONG_SHAPE: Final = ("must have shape", "must have 3 dimensions", "Got invalid dimensions")
"""Parts of onnxruntime's messages about an input, which it gives no exception class of their own."""

_PROBE: Final = (
    b'\x08\x08:8\n\x11\n\x01x\n\x01x\x12\x01y\x1a\x01a"\x03Add\x12\x01pZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02'
    b"\x08\x01b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\x11"
)
"""The ONNX model y = x + x, x float32 [1], opset 17, IR 8: CUDA has the kernel, so a session proves the provider."""


def load_library() -> Any:
    """The onnxruntime module.

    Raises:
        MissingExtra: it cannot be imported, with the line that installs it.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtra("onnxruntime cannot be imported", where="runtime", got=str(error), do=INSTALL) from error
    if not hasattr(onnxruntime, "InferenceSession"):
        raise MissingExtra("onnxruntime is an empty folder: both of its wheels were installed and one was removed",
                           where="runtime", do=f"uninstall both, then {INSTALL}")  # fmt: skip
    return onnxruntime


def providers() -> tuple[str, ...]:
    """The execution providers whose devices are really there, best first.

    Raises:
        MissingExtra: onnxruntime cannot be imported.
    """
    found = [device.ep_name for device in load_library().get_ep_devices()]
    if why_no_cuda() is None:
        found.insert(0, CUDA)
    return tuple(dict.fromkeys(found))


@cache
def why_no_cuda() -> str | None:
    """The reason why no session can run on CUDA in this process, or None where one can.

    Raises:
        MissingExtra: onnxruntime cannot be imported.
    """
    library = load_library()
    if CUDA not in library.get_available_providers():
        return "this onnxruntime wheel was built without CUDA (rnn-bridge[gpu] has it)"
    problem = _why_no_driver()
    if problem is not None:
        return problem
    if hasattr(library, "preload_dlls"):
        library.preload_dlls()  # CUDA and cuDNN from the nvidia wheels, which are on no library path
    try:
        with translated("the CUDA provider", library):
            session = library.InferenceSession(
                _PROBE, session_options(library, strict=True), providers=[(CUDA, dict(CUDA_OPTIONS))], enable_fallback=0
            )
    except (BadInput, Unsupported) as error:
        return f"there is an NVIDIA driver, but onnxruntime's CUDA provider does not load: {error.got}"
    return None if CUDA in session.get_providers() else "onnxruntime replaced CUDA by the CPU"


def _why_no_driver() -> str | None:
    """Ask the driver itself: onnxruntime would print errors on every machine without a GPU."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return "there is no NVIDIA driver on this machine"
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value == 0:
        return "the NVIDIA driver finds no GPU"
    return None


def session_options(library: Any, *, strict: bool = False, byte_sums: bool = False) -> Any:
    """Options of a session that computes what the graph says and records which provider has each node.

    `strict` forbids the CPU altogether. It is for models of kernels alone: shape arithmetic belongs on the CPU, in
    every CUDA session. The CPU provider must not be listed beside it. `byte_sums` says that BYTE_SUMS may be asked for.
    """
    options = library.SessionOptions()
    options.add_session_config_entry(*AS_WRITTEN)
    if byte_sums:
        options.add_session_config_entry(*BYTE_SUMS)
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if strict:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    return options


@contextmanager
def translated(where: str, library: Any, *, do: str = "") -> Iterator[None]:
    """Turn onnxruntime's exceptions into bridge's, with its own message as `got`.

    Raises:
        BadInput: the model or an input is wrong.
        Unsupported: onnxruntime has no kernel for it, or its kernel gave up.
    """
    state = library.capi.onnxruntime_pybind11_state
    wrong = (state.InvalidArgument, state.InvalidGraph, state.InvalidProtobuf, state.NoSuchFile, state.NoModel)
    try:
        yield
    except wrong as error:
        raise BadInput("onnxruntime calls this wrong", where=where, got=str(error).strip(), do=do) from error
    except UnicodeDecodeError as error:  # its message quotes the file, which need not be text
        raise BadInput("onnxruntime calls this wrong, and names it in bytes that are no text", where=where,
                       got=error.object[-200:].decode(errors="replace"),
                       do=do or "write the model again: the ONNX text wants UTF-8") from error  # fmt: skip
    except state.Fail as error:
        kind = BadInput if any(text in str(error) for text in WRONG_SHAPE) else Unsupported
        raise kind("onnxruntime refuses this", where=where, got=str(error).strip(), do=do) from error
    except (state.NotImplemented, state.RuntimeException, state.EPFail, RuntimeError) as error:
        raise Unsupported(f"onnxruntime {library.__version__} cannot run this", where=where, got=str(error).strip(),
                          do=do) from error  # fmt: skip
