"""Run a model in onnxruntime: on the device asked for or not at all, guarded, every node's provider named."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from bridge.cell import GATES
from bridge.errors import BadInput, DeviceUnavailable, UsageError
from bridge.graph.saving import LARGEST_PROTO
from bridge.runtime.feeds import checked_feeds
from bridge.runtime.guards import Guards
from bridge.runtime.library import (
    CPU,
    CUDA,
    CUDA_OPTIONS,
    Device,
    load_library,
    session_options,
    translated,
    why_no_cuda,
)
from bridge.runtime.placement import cuda_obstacles

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    import onnx_ir as ir

RECURRENT: Final = frozenset({*GATES, "Scan", "DynamicQuantizeLSTM"})
"""Operators that device="cuda" holds to the GPU and reports name; shape arithmetic around them belongs on the CPU."""


@dataclass(frozen=True, slots=True)
class RunResult:
    """What one run gave."""

    outputs: dict[str, np.ndarray]
    """Arrays by output name."""
    providers: dict[str, str]
    """The execution provider of each node that RECURRENT names, or of every node where the model has none of them."""


class Session:
    """A model loaded by onnxruntime, guarded.

    Args:
        source: a path, an `onnx.ModelProto`, bytes, or an `onnx_ir.Model`. External data needs the path.
        device: "cpu"; "cuda", which fails where a recurrent node would not run there; "auto", which is CUDA where it
            is present and takes every recurrent node exactly, and otherwise the CPU.

    Raises:
        BadInput: no ONNX model, external data out of its folder, a weight that holds NaN or inf.
        Unsupported: onnxruntime has no kernel for a node, or does not know the opset or IR version.
        DeviceUnavailable: device="cuda", with the reason.
        MissingExtra: onnxruntime is not installed.
    """

    def __init__(self, source: Any, *, device: Device = "auto") -> None:
        from bridge.graph import as_model
        from bridge.graph.int8 import shares_int8
        from bridge.graph.runnable import runnable

        if device not in ("auto", "cpu", "cuda"):
            raise UsageError("unknown device", where="runtime", got=repr(device), expected="'auto', 'cpu' or 'cuda'")
        self._library = load_library()
        given = as_model(source)
        model = runnable(given)
        self._guards = Guards.of(model)
        on_cuda = _on_cuda(device, self._guards.recurrent)
        with translated("onnxruntime", self._library, do=_advice(model)):
            self._session = self._library.InferenceSession(
                _payload(source if model is given else model, model),
                session_options(self._library, byte_sums=not shares_int8(model)),
                providers=[(CUDA, dict(CUDA_OPTIONS)), CPU] if on_cuda else [CPU],
                enable_fallback=0,
                disabled_optimizers=_fatal_optimizers(model),
            )
        self.input_names = tuple(value.name for value in self._session.get_inputs())
        self.output_names = tuple(value.name for value in self._session.get_outputs())
        self.providers = _assignment(self._session)
        if device == "cuda":
            _check_on_cuda(self._session)

    def run(self, inputs: Mapping[str, Any], outputs: Sequence[str] | None = None) -> RunResult:
        """Run once; `outputs` names those wanted, all where None.

        Raises:
            BadInput: inputs that are missing, unexpected, empty, not finite, or of another dtype or shape.
            UsageError: an output that the model does not have.
            Unsupported: onnxruntime gave up during the run (float64 LSTM and GRU on the CPU).
        """
        names = list(self.output_names if outputs is None else outputs)
        unknown = [name for name in names if name not in self.output_names]
        if unknown:
            raise UsageError("the model has no such output", where="run", got=unknown, expected=list(self.output_names))
        feeds, dims = checked_feeds(self._session.get_inputs(), inputs)
        self._guards.check(feeds, dims)
        with translated("onnxruntime", self._library):
            results = self._session.run(names, feeds)
        return RunResult(dict(zip(names, results, strict=True)), dict(self.providers))


def _fatal_optimizers(model: ir.Model) -> list[str]:
    """What to switch off, lest it end the process."""
    from bridge.graph.half import FATAL_OPTIMIZER, fatal_products

    return [FATAL_OPTIMIZER] if any(fatal_products(model)) else []


def run_model(
    source: Any, inputs: Mapping[str, Any], *, device: Device = "auto", outputs: Sequence[str] | None = None
) -> RunResult:
    """Load `source` and run it once. Raises as `Session` and `Session.run` do."""
    return Session(source, device=device).run(inputs, outputs)


def _payload(source: Any, model: ir.Model) -> str | bytes:
    """What onnxruntime loads: a path as it is, so that external data is mapped and found."""
    from bridge.graph import to_proto

    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    if isinstance(source, bytes):
        return source
    proto = to_proto(model) if source is model else source
    if proto.ByteSize() > LARGEST_PROTO:
        raise BadInput("a model of more than 2 GB in memory", where="runtime", do="save it with external data first, "
                       "and give the path")  # fmt: skip
    return bytes(proto.SerializeToString())


def _advice(model: ir.Model) -> str:
    opset, ir_version = model.opset_imports.get("", 0), model.ir_version
    return (
        f"the model has opset {opset} and IR version {ir_version}: opset 17 to 22 and IR 10 or less run everywhere"
        if opset not in range(7, 24) or ir_version > 10
        else ""
    )


def _on_cuda(device: Device, recurrent: Sequence[ir.Node]) -> bool:
    if device == "cpu":
        return False
    obstacles = [f"{node.op_type} {node.name!r}: {why}" for node in recurrent for why in cuda_obstacles(node)]
    absent = why_no_cuda()
    if device == "cuda" and obstacles:
        raise DeviceUnavailable("recurrent nodes would not run on CUDA", where='device="cuda"',
                                got="".join(f"\n    {line}" for line in obstacles), do='use device="cpu"')  # fmt: skip
    if device == "cuda" and absent is not None:
        raise DeviceUnavailable("CUDA is not available", where='device="cuda"', got=absent,
                                do='use device="cpu", or run `rnn-bridge doctor`')  # fmt: skip
    return absent is None and not obstacles


def _assigned(session: Any) -> list[tuple[str, str, str]]:
    """(name, operator, provider) of every node; a node without a name gets its operator and number."""
    nodes = [(node, part.ep_name) for part in session.get_provider_graph_assignment_info() for node in part.get_nodes()]
    return [(node.name or f"{node.op_type}#{at}", node.op_type, provider) for at, (node, provider) in enumerate(nodes)]


def _assignment(session: Any) -> dict[str, str]:
    nodes = _assigned(session)
    recurrent = [node for node in nodes if node[1] in RECURRENT]
    return {name: provider for name, _, provider in recurrent or nodes}


def _check_on_cuda(session: Any) -> None:
    """The rules above are only a forecast: this is what onnxruntime did."""
    elsewhere = [f"{op} {name!r} is on {provider}" for name, op, provider in _assigned(session)
                 if op in RECURRENT and provider != CUDA]  # fmt: skip
    if elsewhere or CUDA not in session.get_providers():
        raise DeviceUnavailable("onnxruntime did not place every recurrent node on CUDA", where='device="cuda"',
                                got="; ".join(elsewhere) or session.get_providers(), do='use device="cpu"')  # fmt: skip
