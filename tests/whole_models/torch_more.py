"""Further whole torch models: what surrounds recurrent layers in published code."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence, pad_sequence

HIDDEN, INPUTS, CLASSES = 5, 3, 4
Arrays = tuple[np.ndarray, ...]


def frames(batch: int, time: int, rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal((batch, time, INPUTS)).astype(np.float32)


def two_sequences(batch: int, time: int, rng: np.random.Generator) -> Arrays:
    """Two sequences of lengths of their own, unbatched."""
    return frames(batch, time, rng)[0], frames(batch, time + batch, rng)[0]


class PackedList(nn.Module):
    """Sequences of several lengths packed as a list."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(INPUTS, HIDDEN, bidirectional=True)

    def forward(self, first, second):
        y, h = self.rnn(pack_sequence([first, second], enforce_sorted=False))
        return pad_packed_sequence(y)[0], h


class PaddedList(nn.Module):
    """Sequences of several lengths padded as a list, the lengths unused."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(INPUTS, HIDDEN, batch_first=True)

    def forward(self, first, second):
        return self.rnn(pad_sequence([first, second], batch_first=True))[0]


class LastValid(nn.Module):
    """The last valid step, picked by length."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(INPUTS, HIDDEN, batch_first=True), nn.Linear(HIDDEN, CLASSES)

    def forward(self, x, lengths):
        y, _ = self.rnn(x)
        return self.head(y[torch.arange(x.size(0)), lengths - 1])


class AttentionPooling(nn.Module):
    """Weights over time, padding masked with the lowest number."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(INPUTS, HIDDEN, batch_first=True, bidirectional=True)
        self.score = nn.Sequential(nn.Linear(2 * HIDDEN, 6), nn.Tanh(), nn.Linear(6, 1, bias=False))

    def forward(self, x, lengths):
        y, _ = self.rnn(x)
        scores = self.score(y).squeeze(-1)
        padding = torch.arange(x.size(1))[None, :] >= lengths[:, None]
        weights = torch.softmax(scores.masked_fill(padding, torch.finfo(scores.dtype).min), 1)
        return torch.einsum("nt,nth->nh", weights, y), weights


class Downsampled(nn.Module):
    """A strided convolution with batch norm before, a transposed one after."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv1d(INPUTS, 6, 4, stride=2, padding=1), nn.BatchNorm1d(6), nn.ELU())
        self.rnn = nn.LSTM(6, HIDDEN, batch_first=True)
        self.up = nn.ConvTranspose1d(HIDDEN, INPUTS, 4, stride=2, padding=1)

    def forward(self, x):
        y, _ = self.rnn(self.down(x.transpose(1, 2)).transpose(1, 2))
        return self.up(y.transpose(1, 2)).transpose(1, 2)


class Gated(nn.Module):
    """A convolution with GLU, a depthwise one, group norm, a residual sum."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.depthwise = nn.Conv1d(INPUTS, 8, 3, padding=1), nn.Conv1d(4, 4, 5, padding=2, groups=4)
        self.norm, self.rnn = nn.GroupNorm(2, 4), nn.GRU(4, 4, batch_first=True)

    def forward(self, x):
        y = functional.glu(self.conv(x.transpose(1, 2)), 1)
        y = functional.silu(self.norm(self.depthwise(y)) + y).transpose(1, 2)
        return y + self.rnn(y)[0]


class Positions(nn.Module):
    """Learned positions and tied embeddings: the output layer is the input table."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.positions = nn.Embedding(7, HIDDEN), nn.Embedding(16, HIDDEN)
        self.rnn = nn.GRU(HIDDEN, HIDDEN, batch_first=True)
        self.head = nn.Linear(HIDDEN, 7, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, text):
        x = self.embedding(text) + self.positions(torch.arange(text.size(1)))
        return self.head(self.rnn(x)[0])


class Bridged(nn.Module):
    """The final states of a bidirectional encoder, joined and mapped, start the decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.LSTM(INPUTS, HIDDEN, batch_first=True, bidirectional=True)
        self.to_h, self.to_c = nn.Linear(2 * HIDDEN, HIDDEN), nn.Linear(2 * HIDDEN, HIDDEN)
        self.decoder = nn.LSTM(INPUTS, HIDDEN, batch_first=True)

    def forward(self, source, target):
        _, (h, c) = self.encoder(source)
        h, c = (value.transpose(0, 1).flatten(1) for value in (h, c))
        state = torch.tanh(self.to_h(h))[None], self.to_c(c)[None]
        return self.decoder(target, state)[0]


class Branched(nn.Module):
    """Three kinds side by side over the same input."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({"lstm": nn.LSTM(INPUTS, HIDDEN, batch_first=True),
                                     "gru": nn.GRU(INPUTS, HIDDEN, batch_first=True),
                                     "rnn": nn.RNN(INPUTS, HIDDEN, batch_first=True)})  # fmt: skip
        self.mix = nn.Parameter(torch.tensor([0.2, 0.3, 0.5]))

    def forward(self, x):
        outputs = torch.stack([layer(x)[0] for layer in self.layers.values()], -1)
        return (outputs * self.mix).sum(-1), outputs.amax(1)


class Shifted(nn.Module):
    """Teacher forcing: each step sees the one before."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(INPUTS, HIDDEN, batch_first=True), nn.Linear(HIDDEN, INPUTS)

    def forward(self, x):
        before = functional.pad(x, (0, 0, 1, 0))[:, :-1]
        return self.head(self.rnn(before)[0]) - x


class TransformerBlock(nn.Module):
    """A transformer layer over a recurrent one, as in speech models."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(INPUTS, 2, batch_first=True, bidirectional=True)
        self.block = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, norm_first=True)

    def forward(self, x):
        return self.block(self.rnn(x)[0])


class Difference(nn.Module):
    """Running statistics of the input and its differences over time."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(3 * INPUTS, HIDDEN, batch_first=True)

    def forward(self, x):
        steps = torch.arange(1, x.size(1) + 1)[None, :, None]
        mean = torch.cumsum(x, 1) / steps
        change = torch.cat([torch.zeros_like(x[:, :1]), x[:, 1:] - x[:, :-1]], 1)
        y, h = self.rnn(torch.cat([x, mean, change], -1))
        return torch.topk(y, 2).values, functional.normalize(h[-1], dim=-1)


class Highway(nn.Module):
    """Stacked by hand with a carry gate, every second layer backwards."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.LSTM(HIDDEN, HIDDEN) for _ in range(3))
        self.gates = nn.ModuleList(nn.Linear(HIDDEN, HIDDEN) for _ in range(3))
        self.into = nn.Linear(INPUTS, HIDDEN)

    def forward(self, x):
        x = self.into(x).transpose(0, 1)
        for at, (layer, gate) in enumerate(zip(self.layers, self.gates, strict=True)):
            y = layer(x.flip(0) if at % 2 else x)[0]
            carry = torch.sigmoid(gate(x))
            x = carry * x + (1 - carry) * (y.flip(0) if at % 2 else y)
        return x.transpose(0, 1)


class Decoder(nn.Module):
    """Any number of steps from the states that are given, the states out."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.rnn = nn.Embedding(7, INPUTS), nn.LSTM(INPUTS, HIDDEN, 2, batch_first=True)
        self.head = nn.Linear(HIDDEN, 7)

    def forward(self, tokens, h, c):
        y, (h, c) = self.rnn(self.embedding(tokens), (h, c))
        return torch.log_softmax(self.head(y), -1), h, c


def decoder_inputs(batch: int, time: int, rng: np.random.Generator) -> Arrays:
    states = [rng.uniform(-1, 1, (2, batch, HIDDEN)).astype(np.float32) for _ in "hc"]
    return (rng.integers(0, 7, (batch, time)), *states)


def quantised(module: nn.Module) -> nn.Module:
    """`module` as quantize_dynamic makes it."""
    kinds = {nn.LSTM, nn.GRU, nn.Linear}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made: nn.Module = torch.ao.quantization.quantize_dynamic(module.eval(), kinds, dtype=torch.qint8)
    return made


def float_equivalent(module: nn.Module) -> nn.Module:
    """What a quantised model's weights stand for, read apart from bridge: the case is judged by it."""
    from torch.ao.nn.quantized import dynamic

    for name, child in list(module.named_children()):
        if isinstance(child, dynamic.Linear):
            made: nn.Module = nn.Linear(child.in_features, child.out_features)
            arrays = {"weight": child.weight(), "bias": child.bias()}
        elif isinstance(child, dynamic.LSTM | dynamic.GRU):
            made = {dynamic.LSTM: nn.LSTM, dynamic.GRU: nn.GRU}[type(child)](
                child.input_size, child.hidden_size, batch_first=child.batch_first)  # fmt: skip
            arrays = {**child.get_weight(), **child.get_bias()}
        else:
            continue
        made.load_state_dict(
            {key: value.dequantize() if value.is_quantized else value for key, value in arrays.items()}
        )
        setattr(module, name, made)
    return module
