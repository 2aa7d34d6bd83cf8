"""Whole torch models: recurrent layers times options times surroundings, each with inputs for any (batch, time)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from tests.whole_models import torch_more as more

INPUTS, HIDDEN, PROJECTED, CLASSES = 3, 5, 2, 4
EXAMPLE = (2, 5)
"""(batch, time) of the export."""
OTHERS = ((1, 7), (3, 2), (4, 9), (5, 6))
"""(batch, time) of the runs: none is the example's, and no axis keeps its size."""

Arrays = tuple[np.ndarray, ...]
Make = Callable[[int, int, np.random.Generator], Arrays]


@dataclass(frozen=True)
class Case:
    """One model."""

    name: str
    build: Callable[[], nn.Module]
    inputs: Make
    fused: int
    """Fused nodes expected: one for each call of each layer that the operator can express."""
    scans: int = 0
    """Scans expected, one for each direction of a layer that the operator cannot express."""
    refused: str = ""
    """What the refusal says, where the case is refused."""
    options: tuple[tuple[str, Any], ...] = ()
    """Further options of the export."""
    meaning: Callable[[nn.Module], nn.Module] = lambda module: module
    """What the outputs are judged by: the model itself, or what a copy of it stands for."""


def batch_first(batch: int, time: int, rng: np.random.Generator) -> Arrays:
    return (rng.standard_normal((batch, time, INPUTS)).astype(np.float32),)


def time_first(batch: int, time: int, rng: np.random.Generator) -> Arrays:
    return (rng.standard_normal((time, batch, INPUTS)).astype(np.float32),)


def unbatched(batch: int, time: int, rng: np.random.Generator) -> Arrays:
    return (rng.standard_normal((time + batch, INPUTS)).astype(np.float32),)


def tokens(batch: int, time: int, rng: np.random.Generator) -> Arrays:
    return (rng.integers(0, 7, (batch, time)),)


def _lengths(batch: int, time: int, rng: np.random.Generator) -> np.ndarray:
    lengths = rng.integers(1, time + 1, batch)
    lengths[rng.integers(batch)] = time
    return lengths


def ragged(batch: int, time: int, rng: np.random.Generator) -> Arrays:
    return (*batch_first(batch, time, rng), _lengths(batch, time, rng))


def short(batch: int, time: int, rng: np.random.Generator) -> Arrays:
    """No sequence fills the time axis."""
    return (*batch_first(batch, time, rng), rng.integers(1, time, batch))


def sorted_lengths(batch: int, time: int, rng: np.random.Generator) -> Arrays:
    return (*time_first(batch, time, rng), np.sort(_lengths(batch, time, rng))[::-1].copy())


def with_states(rows: int, count: int = 2) -> Make:
    def make(batch: int, time: int, rng: np.random.Generator) -> Arrays:
        states = [rng.uniform(-1, 1, (rows, batch, HIDDEN)).astype(np.float32) for _ in range(count)]
        return (*batch_first(batch, time, rng), *states)

    return make


def image(batch: int, time: int, rng: np.random.Generator) -> Arrays:
    return (rng.standard_normal((batch, 1, 4, time)).astype(np.float32),)


class Tagger(nn.Module):
    """A layer under a linear head; `take` says what of the result goes out."""

    def __init__(self, rnn: nn.Module, take: str = "all") -> None:
        super().__init__()
        self.rnn, self.take = rnn, take
        directions = 2 if rnn.bidirectional else 1
        self.head = nn.Linear(directions * (getattr(rnn, "proj_size", 0) or rnn.hidden_size), CLASSES)

    def forward(self, x, *states):
        hx = None if not states else states[0] if len(states) == 1 else states
        y, final = self.rnn(x, hx)
        if self.take == "all":
            return torch.log_softmax(self.head(y), -1), final
        if self.take == "last":
            return self.head(y[:, -1])
        if self.take == "state":
            h = final[0] if isinstance(final, tuple) else final
            return self.head(h[-1]) if not self.rnn.bidirectional else self.head(torch.cat([h[-2], h[-1]], -1))
        return {"logits": self.head(y.mean(1)), "hidden": final[0] if isinstance(final, tuple) else final}


class StateTagger(nn.Module):
    """States as inputs and outputs by name, for streaming."""

    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.rnn = rnn

    def forward(self, x, h, c):
        y, (h, c) = self.rnn(x, (h, c))
        return y, h, c


class Unbatched(nn.Module):
    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.rnn = rnn

    def forward(self, x):
        y, final = self.rnn(x)
        return torch.tanh(y), final


class Zeros(nn.Module):
    """Zero states built by hand from the batch, as many models do."""

    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.rnn = rnn

    def forward(self, x):
        zeros = torch.zeros(self.rnn.num_layers, x.size(0), self.rnn.hidden_size, device=x.device)
        return self.rnn(x, (zeros, zeros.clone()))[0]


class Learned(nn.Module):
    """An initial state that is a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(INPUTS, HIDDEN, batch_first=True)
        self.start = nn.Parameter(torch.linspace(-1, 1, HIDDEN).reshape(1, 1, HIDDEN))

    def forward(self, x):
        return self.rnn(x, self.start.expand(-1, x.size(0), -1).contiguous())


class Shared(nn.Module):
    """One layer called twice, one of them from the other's state."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(INPUTS, HIDDEN, batch_first=True)

    def forward(self, x):
        first, state = self.rnn(x)
        second, _ = self.rnn(x.flip(1), state)
        return first + second


class Residual(nn.Module):
    """Layers in a ModuleList with norms and residual sums."""

    def __init__(self, count: int, kind: type[nn.Module]) -> None:
        super().__init__()
        self.into = nn.Linear(INPUTS, HIDDEN)
        self.layers = nn.ModuleList(kind(HIDDEN, HIDDEN, batch_first=True) for _ in range(count))
        self.norms = nn.ModuleList(nn.LayerNorm(HIDDEN) for _ in range(count))

    def forward(self, x):
        x = self.into(x)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = norm(x + layer(x)[0])
        return x


class EncoderDecoder(nn.Module):
    """The decoder starts from the encoder's state; attention over the encoder's outputs."""

    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.encoder = kind(INPUTS, HIDDEN, batch_first=True)
        self.decoder = kind(INPUTS, HIDDEN, batch_first=True)
        self.head = nn.Linear(2 * HIDDEN, CLASSES)

    def forward(self, source, target):
        memory, state = self.encoder(source)
        y, _ = self.decoder(target, state)
        weights = torch.softmax(y @ memory.transpose(1, 2) / HIDDEN**0.5, -1)
        return self.head(torch.cat([y, weights @ memory], -1))


def pair(batch: int, time: int, rng: np.random.Generator) -> Arrays:
    return (*batch_first(batch, time, rng), *batch_first(batch, time + 3, rng))


class TextTagger(nn.Module):
    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.embedding, self.rnn = nn.Embedding(7, INPUTS), rnn
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(HIDDEN * (2 if rnn.bidirectional else 1), CLASSES)

    def forward(self, text):
        return self.head(self.drop(self.rnn(self.embedding(text))[0])).argmax(-1)


class Convolutional(nn.Module):
    """Images to sequences: convolution, batch norm, pooling, then a bidirectional layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU(), nn.MaxPool2d((2, 1)))
        self.rnn = nn.GRU(4, HIDDEN, bidirectional=True, batch_first=True)
        self.head = nn.Linear(2 * HIDDEN, CLASSES)

    def forward(self, image):
        y = self.conv(image)
        y = y.permute(0, 3, 1, 2).flatten(2)
        return self.head(self.rnn(y)[0])


class Conv1d(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(INPUTS, 4, 3, padding=1)
        self.rnn = nn.LSTM(4, HIDDEN, bidirectional=True)

    def forward(self, x):
        y = functional.gelu(self.conv(x.transpose(1, 2))).permute(2, 0, 1)
        return self.rnn(y)[0].transpose(0, 1)


class Transformer(nn.Module):
    """Attention over a layer's outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(INPUTS, 4, batch_first=True)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x):
        y, _ = self.rnn(x)
        return self.attention(y, y, y, need_weights=False)[0]


class Packed(nn.Module):
    """pack, layer, pad."""

    def __init__(self, rnn: nn.Module, *, total: bool = False, enforce_sorted: bool = False, value: float = 0.0
                 ) -> None:  # fmt: skip
        super().__init__()
        self.rnn, self.total, self.enforce_sorted, self.value = rnn, total, enforce_sorted, value

    def forward(self, x, lengths):
        first = self.rnn.batch_first
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=first, enforce_sorted=self.enforce_sorted)
        y, final = self.rnn(packed)
        total = x.size(1 if first else 0) if self.total else None
        y, back = pad_packed_sequence(y, batch_first=first, total_length=total, padding_value=self.value)
        return y, final, back


class PackedStack(nn.Module):
    """Two layers over one packed sequence, and arithmetic on the packed data between them."""

    def __init__(self, touch: bool) -> None:
        super().__init__()
        self.first = nn.LSTM(INPUTS, HIDDEN, batch_first=True, bidirectional=True)
        self.second = nn.GRU(2 * HIDDEN, HIDDEN, batch_first=True)
        self.between, self.touch = nn.Linear(2 * HIDDEN, 2 * HIDDEN), touch

    def forward(self, x, lengths):
        y, _ = self.first(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))
        if self.touch:
            y = PackedSequence(torch.tanh(self.between(y.data)), y.batch_sizes, y.sorted_indices, y.unsorted_indices)
        y, h = self.second(y)
        return pad_packed_sequence(y, batch_first=True, total_length=x.size(1))[0], h[-1], y.data.mean(0)


class PackedMean(nn.Module):
    """The mean over the longest sequence, whose length the model asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(INPUTS, HIDDEN, batch_first=True)

    def forward(self, x, lengths):
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        y, _ = pad_packed_sequence(self.rnn(packed)[0], batch_first=True)
        mask = torch.arange(y.size(1))[None, :] < lengths[:, None]
        return (y * mask[:, :, None]).sum(1) / lengths[:, None], y.sum(1) / y.size(1)


class Masked(nn.Module):
    """Lengths as a mask after the layer, without packing."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(INPUTS, HIDDEN, nonlinearity="relu", batch_first=True)

    def forward(self, x, lengths):
        y, _ = self.rnn(x)
        mask = torch.arange(x.size(1))[None, :] < lengths[:, None]
        return torch.where(mask[:, :, None], y, torch.zeros_like(y)).amax(1)


class OneStep(nn.Module):
    """A cell called once, with its state given and without."""

    def __init__(self, cell: nn.Module, given: bool) -> None:
        super().__init__()
        self.cell, self.given = cell, given

    def forward(self, x):
        x = x[:, -1]
        if not self.given:
            return self.cell(x)
        h = torch.tanh(x[:, :1].expand(-1, HIDDEN))
        return self.cell(x, (h, -h) if isinstance(self.cell, nn.LSTMCell) else h)


class FixedSteps(nn.Module):
    """A cell called three times on the same input: a loop that is not over time."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(INPUTS, HIDDEN)

    def forward(self, x):
        h = None
        for _ in range(3):
            h = self.cell(x[:, 0], h)
        return h


class Loop(nn.Module):
    """A cell in a Python loop over time, the outputs stacked."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x):
        h = torch.zeros(x.size(0), HIDDEN)
        state = (h, h) if isinstance(self.cell, nn.LSTMCell) else h
        outputs = []
        for at in range(x.size(1)):
            state = self.cell(x[:, at], state)
            outputs.append(state[0] if isinstance(state, tuple) else state)
        return torch.stack(outputs, 1)


class LoopStack(nn.Module):
    """Two cells in a loop over the steps, a head on each step, the last state out as well."""

    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Linear(INPUTS, 4)
        self.first, self.second = nn.LSTMCell(4, HIDDEN), nn.GRUCell(HIDDEN, HIDDEN)
        self.drop, self.head = nn.Dropout(0.2), nn.Linear(HIDDEN, CLASSES)

    def forward(self, x):
        first, second, outputs = None, None, []
        for step in x.unbind(1):
            first = self.first(torch.relu(self.into(step)), first)
            second = self.second(self.drop(torch.tanh(first[0])), second)
            outputs.append(torch.log_softmax(self.head(second), -1).unsqueeze(1))
        y = torch.cat(outputs, 1)
        return y / x.size(1), second, first[1], y.mean(1)


class LoopSum(nn.Module):
    """A loop that adds up what it computes: more than stepping a cell."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(INPUTS, HIDDEN)

    def forward(self, x):
        h, total = torch.zeros(x.size(0), HIDDEN), torch.zeros(x.size(0), HIDDEN)
        for at in range(x.size(1)):
            h = self.cell(x[:, at], h)
            total = total + h
        return total


class LoopSometimes(nn.Module):
    """A loop that does something else at some steps, none of which a short trace meets."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(INPUTS, HIDDEN)

    def forward(self, x):
        h, outputs = torch.zeros(x.size(0), HIDDEN), []
        for at, step in enumerate(x.transpose(0, 1)):
            h = self.cell(step, h)
            if at > 4:
                h = h * 0.5
            outputs.append(h)
        return torch.stack(outputs)


class LoopBackwards(nn.Module):
    """A loop from the last step to the first."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.RNNCell(INPUTS, HIDDEN)

    def forward(self, x):
        h = torch.zeros(x.size(0), HIDDEN)
        for at in range(x.size(1) - 1, -1, -1):
            h = self.cell(x[:, at], h)
        return h


class LoopReversed(nn.Module):
    """The steps taken in reversed order, the outputs left in the order of the loop or put back."""

    def __init__(self, cell: nn.Module, back: bool) -> None:
        super().__init__()
        self.cell, self.back = cell, back

    def forward(self, x):
        state, outputs = None, []
        for step in reversed(x.unbind(1)):
            state = self.cell(step, state)
            outputs.append(state[0] if isinstance(state, tuple) else state)
        return torch.stack(outputs[::-1] if self.back else outputs, 1), state


class LoopBothWays(nn.Module):
    """A bidirectional layer by hand: two loops over the steps, joined step by step under a head."""

    def __init__(self) -> None:
        super().__init__()
        self.forward_cell, self.backward_cell = nn.GRUCell(INPUTS, HIDDEN), nn.GRUCell(INPUTS, HIDDEN)
        self.head = nn.Linear(2 * HIDDEN, CLASSES)

    def forward(self, x):
        h, g, ahead, behind = None, None, [], []
        for at in range(0, x.size(1)):  # noqa: PIE808 (as people write it)
            h = self.forward_cell(x[:, at], h)
            ahead.append(h)
        for at in reversed(range(x.size(1))):
            g = self.backward_cell(x[:, at], g)
            behind.insert(0, g)
        return torch.stack([self.head(torch.cat(pair, -1)) for pair in zip(ahead, behind, strict=True)], 1)


class Branches(nn.Module):
    """A layer in both branches of torch.cond."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.GRU(INPUTS, HIDDEN, batch_first=True), nn.GRU(INPUTS, HIDDEN, batch_first=True)

    def forward(self, x):
        if not torch.compiler.is_exporting():  # torch.cond itself runs no recurrent layer
            return (self.one if x.sum() > 0 else self.other)(x)[0]
        return torch.cond(x.sum() > 0, lambda x: self.one(x)[0], lambda x: self.other(x)[0], (x,))


class Keywords(nn.Module):
    """Inputs by keyword and a nested output."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(INPUTS, HIDDEN, 2, batch_first=True)

    def forward(self, frames, scale):
        y, state = self.rnn(frames * scale[:, :, None])
        return y, {"state": state}


def keywords(batch: int, time: int, rng: np.random.Generator) -> Arrays:
    return (*batch_first(batch, time, rng), rng.uniform(0.5, 1, (batch, time)).astype(np.float32))


class Sub(nn.LSTM):
    """A subclass with a forward of its own that calls torch's."""

    def forward(self, x, hx=None):
        y, state = super().forward(x * 0.5, hx)
        return y + 1, state


def hooked() -> nn.Module:
    model = Tagger(nn.LSTM(INPUTS, HIDDEN, batch_first=True))
    model.rnn.register_forward_hook(lambda _module, _args, result: (result[0] * 2, result[1]))
    return model


def weight_normed() -> nn.Module:
    model = Tagger(nn.LSTM(INPUTS, HIDDEN, batch_first=True))
    nn.utils.parametrizations.weight_norm(model.rnn, "weight_hh_l0")
    return model


def frozen_half() -> nn.Module:
    return Tagger(nn.LSTM(INPUTS, HIDDEN, batch_first=True)).double()


def doubles(batch: int, time: int, rng: np.random.Generator) -> Arrays:
    return (rng.standard_normal((batch, time, INPUTS)),)


def _taggers() -> list[Case]:
    cases = []
    kinds: dict[str, Callable[..., nn.Module]] = {
        "LSTM": nn.LSTM, "GRU": nn.GRU, "RNN tanh": nn.RNN,
        "RNN relu": lambda *a, **k: nn.RNN(*a, nonlinearity="relu", **k),
    }  # fmt: skip
    for kind, make in kinds.items():
        for layers, both in ((1, False), (2, True)):
            for take in ("all", "last", "state", "named"):
                if take in ("last", "named") and (layers == 2) == (kind in ("LSTM", "RNN relu")):
                    continue  # half of the grid: these say nothing new about the layer

                def build(make: Any = make, layers: int = layers, both: bool = both, take: str = take) -> nn.Module:
                    rnn = make(INPUTS, HIDDEN, layers, batch_first=True, bidirectional=both)
                    return Tagger(rnn, take)

                cases.append(Case(f"{kind} x{layers}{' bidirectional' if both else ''}, {take}", build, batch_first,
                                  fused=layers))  # fmt: skip
    return cases


def all_cases() -> list[Case]:
    """Every case; names are unique."""
    layer = {"batch_first": True}
    packed: list[Case] = []
    for kind in (nn.LSTM, nn.GRU, nn.RNN):
        name = kind.__name__
        packed += [
            Case(f"packed {name}, unsorted", lambda k=kind: Packed(k(INPUTS, HIDDEN, **layer)), ragged, 1),
            Case(f"packed {name} bidirectional x2, total_length",
                 lambda k=kind: Packed(k(INPUTS, HIDDEN, 2, bidirectional=True, **layer), total=True), short, 2),
        ]  # fmt: skip
    return [
        *_taggers(),
        Case("time-major LSTM, no bias", lambda: Tagger(nn.LSTM(INPUTS, HIDDEN, bias=False)), time_first, 1),
        Case("time-major GRU x3 bidirectional",
             lambda: Tagger(nn.GRU(INPUTS, HIDDEN, 3, bidirectional=True)), time_first, 3),
        Case("LSTM with dropout between layers, eval", lambda: Tagger(nn.LSTM(INPUTS, HIDDEN, 2, dropout=0.5, **layer)),
             batch_first, 2),
        Case("states given, LSTM x2", lambda: StateTagger(nn.LSTM(INPUTS, HIDDEN, 2, **layer)), with_states(2), 2),
        Case("state given, GRU", lambda: Tagger(nn.GRU(INPUTS, HIDDEN, **layer)), with_states(1, 1), 1),
        Case("unbatched LSTM", lambda: Unbatched(nn.LSTM(INPUTS, HIDDEN)), unbatched, 1),
        Case("unbatched GRU batch_first bidirectional",
             lambda: Unbatched(nn.GRU(INPUTS, HIDDEN, bidirectional=True, **layer)), unbatched, 1),
        Case("zero states by hand", lambda: Zeros(nn.LSTM(INPUTS, HIDDEN, 2, **layer)), batch_first, 2),
        Case("learned initial state", Learned, batch_first, 1),
        Case("shared layer, two calls", Shared, batch_first, 2),
        Case("ModuleList of three GRU", lambda: Residual(3, nn.GRU), batch_first, 3),
        Case("ModuleList of two RNN", lambda: Residual(2, nn.RNN), batch_first, 2),
        Case("encoder-decoder LSTM with attention", lambda: EncoderDecoder(nn.LSTM), pair, 2),
        Case("encoder-decoder GRU with attention", lambda: EncoderDecoder(nn.GRU), pair, 2),
        Case("embedding, LSTM, argmax", lambda: TextTagger(nn.LSTM(INPUTS, HIDDEN, **layer)), tokens, 1),
        Case("embedding, bidirectional RNN, argmax",
             lambda: TextTagger(nn.RNN(INPUTS, HIDDEN, bidirectional=True, **layer)), tokens, 1),
        Case("Conv2d, BatchNorm, pooling, GRU", Convolutional, image, 1,
             options=(("dynamic", {"image": {0: "batch", 3: "time"}}),)),
        Case("Conv1d, GELU, bidirectional LSTM", Conv1d, batch_first, 1),
        Case("GRU, MultiheadAttention", Transformer, batch_first, 1),
        Case("Sequential of LSTM alone", lambda: nn.Sequential(nn.LSTM(INPUTS, HIDDEN)), time_first, 1),
        Case("keywords, nested output", Keywords, keywords, 2),
        Case("subclass that calls super", lambda: Tagger(Sub(INPUTS, HIDDEN, **layer)), batch_first, 1),
        Case("forward hook on the layer", hooked, batch_first, 1),
        Case("weight norm on the layer", weight_normed, batch_first, 1),
        Case("proj_size", lambda: Tagger(nn.LSTM(INPUTS, HIDDEN, proj_size=PROJECTED, **layer)), batch_first, 0, 1),
        Case("proj_size x2 bidirectional",
             lambda: Tagger(nn.LSTM(INPUTS, HIDDEN, 2, proj_size=PROJECTED, bidirectional=True, **layer)),
             batch_first, 0, 4),
        Case("float64", frozen_half, doubles, 0, 1),
        Case("form=scan", lambda: Tagger(nn.GRU(INPUTS, HIDDEN, bidirectional=True, **layer)), batch_first, 0, 2,
             options=(("form", "scan"),)),
        *packed,
        Case("packed GRU time-major, sorted", lambda: Packed(nn.GRU(INPUTS, HIDDEN), enforce_sorted=True),
             sorted_lengths, 1),
        Case("packed LSTM, short", lambda: Packed(nn.LSTM(INPUTS, HIDDEN, **layer)), short, 1),
        Case("packed LSTM, padding_value", lambda: Packed(nn.LSTM(INPUTS, HIDDEN, **layer), value=-1.0), short, 1),
        Case("packed proj_size",
             lambda: Packed(nn.LSTM(INPUTS, HIDDEN, proj_size=PROJECTED, **layer)), ragged, 0, 1),
        Case("packed, two layers", lambda: PackedStack(False), ragged, 2),
        Case("packed, arithmetic on the data", lambda: PackedStack(True), ragged, 2),
        Case("packed, the longest length used", PackedMean, short, 1),
        Case("mask after the layer", Masked, ragged, 1),
        *[
            Case(f"{kind.__name__} once, {'given' if given else 'zero'} state",
                 lambda k=kind, g=given: OneStep(k(INPUTS, HIDDEN), g), batch_first, 1)
            for kind in (nn.LSTMCell, nn.GRUCell, nn.RNNCell) for given in (False, True)
        ],
        Case("GRUCell three times", FixedSteps, batch_first, 3),
        *[
            Case(f"{kind.__name__} in a loop over time", lambda k=kind: Loop(k(INPUTS, HIDDEN)), batch_first, 1)
            for kind in (nn.LSTMCell, nn.GRUCell, nn.RNNCell)
        ],
        Case("two cells in a loop over the steps", LoopStack, batch_first, 2),
        Case("a loop that sums", LoopSum, batch_first, 0, refused="does more than step a cell"),
        Case("a loop with an exception", LoopSometimes, batch_first, 0, refused="if at > 4:"),
        Case("a loop backwards", LoopBackwards, batch_first, 1),
        Case("a reversed loop, outputs in its order", lambda: LoopReversed(nn.LSTMCell(INPUTS, HIDDEN), False),
             batch_first, 1),
        Case("a reversed loop, outputs put back", lambda: LoopReversed(nn.GRUCell(INPUTS, HIDDEN), True),
             batch_first, 1),
        Case("loops both ways under a head", LoopBothWays, batch_first, 2),
        Case("torch.cond", Branches, batch_first, 2),
        *_surroundings(),
    ]  # fmt: skip


def _surroundings() -> list[Case]:
    layer = {"batch_first": True}
    both = (("dynamic", {"first": {0: "one"}, "second": {0: "other"}}),)
    return [
        Case("pack_sequence", more.PackedList, more.two_sequences, 1, options=both),
        Case("pad_sequence", more.PaddedList, more.two_sequences, 1, options=both),
        Case("the last valid step by length", more.LastValid, ragged, 1),
        Case("attention pooling under a mask", more.AttentionPooling, ragged, 1),
        Case("strided and transposed convolution", more.Downsampled, batch_first, 1),
        Case("GLU, depthwise convolution, group norm", more.Gated, batch_first, 1),
        Case("positions and tied embeddings", more.Positions, tokens, 1),
        Case("bidirectional encoder, decoder from its states", more.Bridged, pair, 2),
        Case("three kinds side by side", more.Branched, batch_first, 3),
        Case("teacher forcing", more.Shifted, batch_first, 1),
        Case("transformer layer over LSTM", more.TransformerBlock, batch_first, 1),
        Case("running statistics and top-k", more.Difference, batch_first, 1),
        Case("highway layers, alternating directions", more.Highway, batch_first, 3),
        Case("decoder steps from given states", more.Decoder, more.decoder_inputs, 2),
        *[
            Case(f"quantised dynamic {kind.__name__}",
                 lambda k=kind: more.quantised(Tagger(k(INPUTS, HIDDEN, **layer), "last")), batch_first, 1,
                 meaning=more.float_equivalent)
            for kind in (nn.LSTM, nn.GRU)
        ],
    ]  # fmt: skip
