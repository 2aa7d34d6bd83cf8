"""Put stubs in the place of recurrent modules and of packing, for the time of one export."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.fx.experimental.symbolic_shapes import guard_int
from torch.nn.utils import rnn as packing
from torch.nn.utils.rnn import PackedSequence

from bridge.errors import Unsupported
from bridge.frameworks.torch_read import SEQUENCES, STEPS
from bridge.frameworks.torch_whole import ops
from bridge.frameworks.torch_whole.loops import line_of, outside

Tensor: TypeAlias = torch.Tensor


@dataclass(frozen=True, slots=True)
class Packed:
    """What a PackedSequence was packed from, which its stub cannot say."""

    padded: Tensor
    lengths: Tensor
    batch_axis: int
    batch_sizes: Tensor


class Trace:
    """One export: the recurrent modules of the model by number, and the packed sequences met so far."""

    def __init__(self, modules: Iterable[tuple[str, nn.Module]]) -> None:
        self.modules = tuple(modules)
        """Every recurrent module with its path; a stub carries its number."""
        self.full = False
        """Whether the longest sequence of a packed batch is taken to fill the time axis."""
        self.packed: dict[int, Packed] = {}
        """By id of the batch_sizes, which are kept alive in the value."""
        self._numbers = {id(module): at for at, (_, module) in enumerate(self.modules)}

    def number(self, module: nn.Module) -> int:
        """The number of a module.

        Raises:
            Unsupported: the module is no submodule of the model.
        """
        if id(module) not in self._numbers:
            frame = outside(sys._getframe(1))  # noqa: SLF001 (the caller is the finding)
            raise Unsupported(
                "a recurrent module is called that is no submodule of the model", where=type(module).__name__,
                got="" if frame is None else line_of(frame),
                do="keep it in an attribute, an nn.ModuleList or an nn.ModuleDict",
            )  # fmt: skip
        return self._numbers[id(module)]


@contextmanager
def stubbed(trace: Trace) -> Iterator[None]:
    """Recurrent modules that are traced become stubs. Everything is put back, whatever happens inside.

    The classes' forward is replaced and not the modules': a subclass that calls `super().forward` is served too, and no
    module is touched. Calls outside of the trace (another thread's) run as ever.
    """
    kept = {kind: kind.forward for kind in (*SEQUENCES, *STEPS)}
    outer = packing._VF  # noqa: SLF001 (the one place where torch's packing can be met)
    try:
        for kind, forward in kept.items():
            kind.forward = _traced(trace, forward, _run_sequence if kind in SEQUENCES else _run_step)
        packing._VF = _Packing(trace, outer)  # noqa: SLF001
        yield
    finally:
        packing._VF = outer  # noqa: SLF001
        for kind, forward in kept.items():
            kind.forward = forward


def _traced(trace: Trace, forward: Any, stub: Any) -> Any:
    def call(self: nn.Module, input: Any, hx: Any = None) -> Any:  # noqa: A002 (torch's own name)
        # Branches of torch.cond are traced by dynamo, which shows no fake tensors.
        traced = torch.compiler.is_dynamo_compiling() or _is_fake(input)
        return stub(trace, self, input, hx) if traced else forward(self, input, hx)

    return call


def _is_fake(value: Any) -> bool:
    from torch._subclasses.fake_tensor import FakeTensor

    tensor = value.data if isinstance(value, PackedSequence) else value
    return isinstance(tensor, FakeTensor)


def _refuse_autocast(trace: Trace, call: int, device: str) -> None:
    """The stubs compute in the dtype of the weights, which torch.autocast has recurrent layers not do.

    Raises:
        Unsupported: the layer runs under autocast.
    """
    if torch.is_autocast_enabled(device):
        path, module = trace.modules[call]
        dtype = str(torch.get_autocast_dtype(device)).removeprefix("torch.")
        raise Unsupported(f"torch.autocast has the layer compute in {dtype}", where=f"{path} ({type(module).__name__})",
                          do="export outside torch.autocast; inside forward, switch it off: "
                          "torch.autocast(device, enabled=False)")  # fmt: skip


def _run_sequence(trace: Trace, module: Any, x: Any, hx: Any) -> Any:
    call = trace.number(module)
    packed = isinstance(x, PackedSequence)
    _refuse_autocast(trace, call, x.data.device.type)
    batched = packed or x.dim() == 3
    batch_axis = 0 if module.batch_first and not packed else 1
    data = x.data if packed else x if batched else x.unsqueeze(batch_axis)
    states = _states_of(module, hx, batched)
    _check(module, data, states, x.batch_sizes if packed else None, trace)
    directions = 2 if module.bidirectional else 1
    state = getattr(module, "proj_size", 0) or module.hidden_size
    cell = module.hidden_size if isinstance(module, nn.LSTM) else 0
    sizes = (call, module.num_layers * directions, directions * state, state, cell)
    if packed:
        known = trace.packed[id(x.batch_sizes)]
        y, *finals = torch.ops.rnn_bridge.packed_sequence(
            data, x.batch_sizes, known.padded, known.lengths, *states, x.sorted_indices, x.unsorted_indices, *sizes,
            known.batch_axis,
        )  # fmt: skip
        result = PackedSequence(y, x.batch_sizes, x.sorted_indices, x.unsorted_indices)
    else:
        result, *finals = torch.ops.rnn_bridge.sequence(data, *states, *sizes, batch_axis)
        if not batched:
            result, finals = result.squeeze(batch_axis), [final.squeeze(1) for final in finals]
    return result, tuple(finals) if cell else finals[0]


def _states_of(module: nn.Module, hx: Any, batched: bool) -> list[Any]:
    """Give h and c as tensors [rows, N, size] or None, with the ranks that torch asks for."""
    if hx is None:
        return [None, None]
    states = list(hx) if isinstance(module, nn.LSTM) else [hx]
    if any(state.dim() != (3 if batched else 2) for state in states):
        raise RuntimeError(f"{type(module).__name__}: the initial states have {states[0].dim()} axes")
    states = [state if batched else state.unsqueeze(1) for state in states]
    return states if len(states) == 2 else [*states, None]


def _check(module: Any, data: Tensor, states: list[Any], batch_sizes: Any, trace: Trace) -> None:
    """What torch's forward checks: features, dtype, and the sizes of the states."""
    module.check_input(data, batch_sizes)
    weight = module.weight_ih_l0
    if data.dtype != weight.dtype:
        raise ValueError(f"{type(module).__name__}: the input is {data.dtype}, the weights are {weight.dtype}")
    if states[0] is None:
        return
    if batch_sizes is None:
        module.check_forward_args(data, tuple(states) if isinstance(module, nn.LSTM) else states[0], None)
    elif states[0].shape[1] != trace.packed[id(batch_sizes)].padded.shape[trace.packed[id(batch_sizes)].batch_axis]:
        raise RuntimeError(f"{type(module).__name__}: the initial states are of another batch")


def _run_step(trace: Trace, module: Any, x: Tensor, hx: Any) -> Any:
    call = trace.number(module)
    _refuse_autocast(trace, call, x.device.type)
    batched = x.dim() == 2
    if x.dim() not in (1, 2) or x.shape[-1] != module.input_size:
        raise ValueError(f"{type(module).__name__}: expected [..., {module.input_size}], got {list(x.shape)}")
    if x.dtype != module.weight_ih.dtype:
        raise ValueError(f"{type(module).__name__}: the input is {x.dtype}, the weights are {module.weight_ih.dtype}")
    lstm = isinstance(module, nn.LSTMCell)
    given = [] if hx is None else list(hx) if lstm else [hx]
    states: list[Any] = [state if state.dim() == 2 else state.unsqueeze(0) for state in given]
    states += [None] * (2 - len(states))
    size, rows = module.hidden_size, x.shape[0] if batched else 1
    if any(state.shape[0] != rows or guard_int(state.shape[1]) != size for state in states if state is not None):
        raise RuntimeError(f"{type(module).__name__}: expected a state of [{rows}, {size}]")
    finals = torch.ops.rnn_bridge.step(x if batched else x.unsqueeze(0), *states, call, size, size if lstm else 0)
    finals = [final if batched else final.squeeze(0) for final in finals]
    return tuple(finals) if lstm else finals[0]


class _Packing:
    """`torch.nn.utils.rnn._VF` with stubs for packing and padding."""

    def __init__(self, trace: Trace, outer: Any) -> None:
        self._trace, self._outer = trace, outer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._outer, name)

    def _pack_padded_sequence(self, padded: Tensor, lengths: Tensor, batch_first: bool) -> Any:
        if not _is_fake(padded):
            return self._outer._pack_padded_sequence(padded, lengths, batch_first)  # noqa: SLF001
        batch_axis = 0 if batch_first else 1
        if lengths.dim() != 1 or lengths.shape[0] != padded.shape[batch_axis]:
            raise RuntimeError("pack_padded_sequence: expected one length for each sequence")
        data, batch_sizes = torch.ops.rnn_bridge.pack(padded, lengths, batch_axis, int(self._trace.full))
        torch._check(batch_sizes.shape[0] <= padded.shape[1 - batch_axis])  # noqa: SLF001 (public in all but name)
        self._trace.packed[id(batch_sizes)] = Packed(padded, lengths, batch_axis, batch_sizes)
        return data, batch_sizes

    def _pad_packed_sequence(self, data: Tensor, batch_sizes: Tensor, batch_first: bool, value: float, total: Any
                             ) -> Any:  # fmt: skip
        known = self._trace.packed.get(id(batch_sizes))
        if known is None:
            return self._outer._pad_packed_sequence(data, batch_sizes, batch_first, value, total)  # noqa: SLF001
        time = known.padded.shape[1 - known.batch_axis]
        mode = ops.GENERAL
        if _same(total, batch_sizes.shape[0]):
            mode = ops.LONGEST
        elif _same(total, time):
            mode = ops.FULL
        y = torch.ops.rnn_bridge.pad(data, batch_sizes, known.padded, known.lengths, total, value,
                                     0 if batch_first else 1, known.batch_axis, mode)  # fmt: skip
        return y, known.lengths.to(torch.int64)


def _same(first: Any, second: Any) -> bool:
    """Whether two sizes are the same expression, without asking for their values."""
    if isinstance(first, int) or isinstance(second, int):
        return isinstance(first, int) and isinstance(second, int) and first == second
    return bool(first.node.expr == second.node.expr)
