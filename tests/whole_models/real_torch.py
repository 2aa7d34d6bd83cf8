"""Published torch models that ship weights and no importable code: modules written from their parameters."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class Resemblyzer(nn.Module):
    """Speaker embedding: mel frames [N,T,40] to unit vectors [N,256]."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(40, 256, 3, batch_first=True)
        self.linear = nn.Linear(256, 256)

    def forward(self, mels):
        _, (hidden, _) = self.lstm(mels)
        raw = torch.relu(self.linear(hidden[-1]))
        return raw / torch.norm(raw, dim=1, keepdim=True)


class Separable(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: tuple[int, int]) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(outputs)
        self.pointwise = nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, x):
        return torch.relu(self.bn2(self.pointwise(torch.relu(self.bn1(self.depthwise(x))))))


class Legere(nn.Module):
    """Line recognition: images [N,1,32,W] to [N,W/4,122]."""

    def __init__(self) -> None:
        super().__init__()
        widths = (24, 48, 64, 96, 128, 160, 192)
        strides = ((2, 2), (1, 1), (2, 1), (1, 1), (2, 1), (2, 1))
        self.stem = nn.Sequential(nn.Conv2d(1, 24, 3, 2, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU())
        self.blocks = nn.Sequential(*map(Separable, widths, widths[1:], strides))
        self.rnn = nn.GRU(192, 128, batch_first=True, bidirectional=True)
        self.head = nn.Linear(256, 122)

    def forward(self, images):
        features = self.blocks(self.stem(images)).squeeze(2).transpose(1, 2)
        return self.head(self.rnn(features)[0])


class Silero(nn.Module):
    """Voice activity: one window [N,576] with the state of the cell to a probability and the next state."""

    def __init__(self) -> None:
        super().__init__()
        self.stft_conv = nn.Conv1d(1, 258, 256, 128, bias=False)
        sizes = ((129, 128, 1), (128, 64, 2), (64, 64, 2), (64, 128, 1))
        for at, (inputs, outputs, stride) in enumerate(sizes, 1):
            self.add_module(f"conv{at}", nn.Conv1d(inputs, outputs, 3, stride, 1))
        self.lstm_cell = nn.LSTMCell(128, 128)
        self.final_conv = nn.Conv1d(128, 1, 1)

    def forward(self, window, h, c):
        spectrum = self.stft_conv(functional.pad(window, (0, 64), "reflect")[:, None])
        x = torch.sqrt(spectrum[:, :129] ** 2 + spectrum[:, 129:] ** 2)
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = torch.relu(conv(x))
        h, c = self.lstm_cell(x[:, :, 0], (h, c))
        return torch.sigmoid(self.final_conv(torch.relu(h)[:, :, None]))[:, :, 0], h, c
