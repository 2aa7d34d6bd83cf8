"""Devices are found out honestly, a missing library says how to install it, exceptions become bridge's."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import onnxruntime
import pytest

from bridge.errors import BadInput, MissingExtra, Unsupported
from bridge.runtime import CPU, CUDA, library, providers, why_no_cuda


@pytest.fixture(autouse=True)
def _forget_the_answer():
    why_no_cuda.cache_clear()
    yield
    why_no_cuda.cache_clear()


def test_cpu_is_always_there_and_cuda_only_with_no_reason_against_it():
    found = providers()
    assert CPU in found
    assert (CUDA in found) == (why_no_cuda() is None)


def test_compiled_in_is_not_present(monkeypatch):
    monkeypatch.setattr(library, "_why_no_driver", lambda: "there is no NVIDIA driver on this machine")
    assert why_no_cuda() == "there is no NVIDIA driver on this machine"
    assert CUDA not in providers()


def test_wheel_without_cuda_says_so(monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CPU])
    assert "built without CUDA" in why_no_cuda()


def test_probe_model_is_sound():
    """The bytes that decide whether CUDA is there must be a model that onnxruntime loads and runs."""
    import numpy as np

    session = onnxruntime.InferenceSession(library._PROBE, providers=[CPU])
    (result,) = session.run(None, {"x": np.array([1.5], np.float32)})
    assert result.tolist() == [3.0]


@pytest.mark.skipif(why_no_cuda() is None, reason="a GPU is present: the probe succeeds")
def test_driver_without_the_cuda_libraries_gives_onnxruntimes_own_reason(monkeypatch):
    monkeypatch.setattr(library, "_why_no_driver", lambda: None)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    if CUDA not in onnxruntime.get_available_providers():
        pytest.skip("this wheel has no CUDA provider to fail")
    reason = why_no_cuda()
    assert reason.startswith("there is an NVIDIA driver, but onnxruntime's CUDA provider does not load")
    assert "fallback to CPU EP has been explicitly disabled" in reason


def test_missing_library_names_both_wheels_and_never_both(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtra) as caught:
        library.load_library()
    for part in ('pip install "rnn-bridge[cpu]"', 'pip install "rnn-bridge[gpu]"', "never both"):
        assert part in str(caught.value)


def test_folder_left_by_an_uninstalled_wheel_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", SimpleNamespace())
    with pytest.raises(MissingExtra, match="uninstall both"):
        library.load_library()


@pytest.mark.parametrize(("name", "expected"), [("InvalidGraph", BadInput), ("InvalidArgument", BadInput),
                                                ("InvalidProtobuf", BadInput), ("NoSuchFile", BadInput),
                                                ("NotImplemented", Unsupported), ("Fail", Unsupported),
                                                ("RuntimeException", Unsupported)])  # fmt: skip
def test_exceptions_of_onnxruntime_become_bridges_with_the_message(name, expected):
    kind = getattr(onnxruntime.capi.onnxruntime_pybind11_state, name)
    with pytest.raises(expected, match="the message itself") as caught, library.translated("here", onnxruntime):
        raise kind("the message itself")
    assert isinstance(caught.value.__cause__, kind)
