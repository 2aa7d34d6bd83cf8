"""The demo: two real models converted every way, each conversion proven, words turned into phonemes three times.

Resemblyzer 0.1.4 (a speaker encoder, a torch checkpoint) and g2p-en 2.1.0 (spelling to phonemes, plain arrays in
torch's layout) are fetched from the package registry and never installed.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

import bridge
from bridge import reference
from bridge.cell import Cell
from bridge.fetch import fetch

if TYPE_CHECKING:
    from bridge.verification.report import Report

WORDS: Final = ("flaxen", "bridgework", "recurrent", "lattice", "onyx", "verification")

VOWELS: Final = "AA AE AH AO AW AY EH ER EY IH IY OW OY UH UW".split()
CONSONANTS: Final = "B CH D DH F G HH JH K L M N NG P R S SH T TH V W Y Z ZH".split()
PHONEMES: Final = (
    "<pad>", "<unk>", "<s>", "</s>",
    *sorted([vowel + stress for vowel in VOWELS for stress in "012"] + CONSONANTS + ["UW"]),
)  # fmt: skip
"""g2p-en's inventory: ARPAbet, vowels with three stresses (and UW without), in alphabetical order."""
START, STOP = PHONEMES.index("<s>"), PHONEMES.index("</s>")
GRAPHEMES: Final = ("<pad>", "<unk>", "</s>", *"abcdefghijklmnopqrstuvwxyz")

LONGEST: Final = 20
"""g2p-en stops after this many phonemes."""

Step = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(input [1, 1, I], hidden [1, 1, H]) -> hidden."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One conversion and its proof."""

    model: str
    target: str
    seconds: float
    """Time of the conversion alone, imports of the framework excluded."""
    kilobytes: int | None
    """Size of the file, where one was written."""
    error: float
    """Largest error of the target against the float64 referee."""
    onnxruntime_error: float
    """The same of onnxruntime."""
    passed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoResult:
    """What the demo prints."""

    phonemes: dict[str, dict[str, str]]
    """By word and then by who computed: "reference", "onnxruntime", "flax"."""
    rows: tuple[Row, ...]

    @property
    def passed(self) -> bool:
        """Every conversion within its bound, and the same phonemes from all three."""
        return all(row.passed for row in self.rows) and all(len(set(by.values())) == 1 for by in self.phonemes.values())

    def to_dict(self) -> dict[str, Any]:
        """The document of schemas/demo.schema.json."""
        return {"schema": "rnn-bridge/demo/1", "passed": self.passed, **asdict(self)}

    def __str__(self) -> str:
        lines = []
        for word, by in self.phonemes.items():
            agreed = "same from " + ", ".join(by) if len(set(by.values())) == 1 else f"DIFFER: {by}"
            lines.append(f"{word:14} {by['reference']:40} {agreed}")
        lines += ["", f"{'model':22} {'target':12} {'seconds':>8} {'kB':>7} {'error':>9} {'ort error':>9}"]
        for row in self.rows:
            size = "" if row.kilobytes is None else str(row.kilobytes)
            lines.append(f"{row.model:22} {row.target:12} {row.seconds:8.3f} {size:>7} {row.error:9.1e} "
                         f"{row.onnxruntime_error:9.1e} {'ok' if row.passed else 'FAIL'}")  # fmt: skip
        return "\n".join(lines)


def run_demo(cache: Path | None, say: Callable[[str], None]) -> DemoResult:
    """Fetch, convert, prove.

    Args:
        cache: where fetched models are kept; None is bridge's own cache.
        say: told one line before each step that takes time.

    Raises:
        MissingExtra: torch, flax or onnxruntime is missing, or the registry cannot be reached.
    """
    checkpoint = fetch("Resemblyzer", "pretrained.pt", cache, say)
    arrays = dict(np.load(fetch("g2p-en", "checkpoint20.npz", cache, say), allow_pickle=False))
    encoder = bridge.read_params("torch.GRU", _part(arrays, "enc"))
    decoder = bridge.read_params("torch.GRUCell", _part(arrays, "dec"))
    rows = [*_convert("Resemblyzer LSTM x3", str(checkpoint), say)]
    rows += _convert("g2p-en encoder GRU", encoder, say)
    rows += _convert("g2p-en decoder GRU", decoder, say)
    say("turning words into phonemes")
    return DemoResult(phonemes=_phonemes(arrays, encoder, decoder), rows=tuple(rows))


def _convert(name: str, source: Any, say: Callable[[str], None]) -> list[Row]:
    say(f"converting {name} to onnx")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        seconds = _warm_seconds(lambda: bridge.to_onnx(source, path, states="inputs", lengths=True, overwrite=True))
        # What the file is judged by is torch's own layer with the same weights, which never saw ONNX.
        native = bridge.build(list(bridge.cells(source).values()), "torch")
        report = bridge.verify(native, path)
        rows = [_row(name, "onnx", seconds, report, str(path), path.stat().st_size // 1000)]
        importers: Mapping[str, Callable[[], object]] = {
            "torch": lambda: bridge.to_torch(path),
            "flax": lambda: bridge.to_flax(path),
            "flax.linen": lambda: bridge.to_flax(path, api="linen"),
        }
        for target, importer in importers.items():
            say(f"converting {name} to {target} and proving it")
            rows.append(_row(name, target, _warm_seconds(importer), bridge.verify(path, target), target, None))
    return rows


def _warm_seconds(convert: Callable[[], object]) -> float:
    """Seconds of a second call: the first one pays for importing the framework."""
    convert()
    started = time.perf_counter()
    convert()
    return time.perf_counter() - started


def _row(name: str, target: str, seconds: float, report: Report, side: str, kilobytes: int | None) -> Row:
    worst = {
        who: max(row.absolute for pair in report.pairs for row in pair.rows if row.side == who)
        for who in (side, "onnxruntime")
    }
    return Row(model=name, target=target, seconds=seconds, kilobytes=kilobytes, error=worst[side],
               onnxruntime_error=worst["onnxruntime"], passed=report.passed)  # fmt: skip


def _part(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    names = {"weight_ih": "w_ih", "weight_hh": "w_hh", "bias_ih": "b_ih", "bias_hh": "b_hh"}
    return {name: arrays[f"{prefix}_{short}"] for name, short in names.items()}


def _phonemes(arrays: Mapping[str, np.ndarray], encoder: Cell, decoder: Cell) -> dict[str, dict[str, str]]:
    ways = {
        "reference": (_reference_step(encoder), _reference_step(decoder)),
        "onnxruntime": (_onnxruntime_step(encoder), _onnxruntime_step(decoder)),
        "flax": (_flax_step(encoder), _flax_step(decoder)),
    }
    return {word: {way: " ".join(_spell(word, arrays, *steps)) for way, steps in ways.items()} for word in WORDS}


def _spell(word: str, arrays: Mapping[str, np.ndarray], encode: Step, decode: Step) -> Sequence[str]:
    letters = [GRAPHEMES.index(letter) for letter in (*word, "</s>")]
    size = arrays["enc_w_hh"].shape[1]
    hidden = encode(arrays["enc_emb"][letters][:, None], np.zeros((1, 1, size), np.float32))
    spelled: list[str] = []
    token = START
    while len(spelled) < LONGEST:
        hidden = decode(arrays["dec_emb"][[token]][:, None], hidden)
        token = int(np.argmax(hidden[0, 0] @ arrays["fc_w"].T + arrays["fc_b"]))
        if token == STOP:
            break
        spelled.append(PHONEMES[token])
    return spelled


def _reference_step(cell: Cell) -> Step:
    return lambda x, hidden: reference.evaluate(cell, x, initial_h=hidden)[1]


def _onnxruntime_step(cell: Cell) -> Step:
    model = bridge.to_onnx(cell, states="inputs")
    return lambda x, hidden: bridge.run(model, {"input": x, "initial_h": hidden})["h_n"]


def _flax_step(cell: Cell) -> Step:
    net = bridge.to_flax(bridge.to_onnx(cell, states="inputs"))
    return lambda x, hidden: np.asarray(net(input=x, initial_h=hidden)[1])
