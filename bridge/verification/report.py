"""What a verification found: plain records, as text and as the document of schemas/report.schema.json."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from bridge.errors import Mismatch


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputRow:
    """One output of one side on one pair, against the float64 referee."""

    side: str
    """Who computed it: "onnxruntime", or the name of a candidate."""
    output: str
    """The name of the ONNX output."""
    shape: tuple[int, ...]
    absolute: float
    """max |side - referee|."""
    relative: float
    """The same over max |referee|."""
    against_onnxruntime: float
    """max |side - onnxruntime|."""
    bound: float
    """The largest absolute error that passes: 4 times onnxruntime's own, or 8 * eps * max(1, max|referee|)."""
    growth: tuple[float, ...]
    """The largest error in each quarter of time; empty where the output has no time axis."""
    passed: bool
    undecided: int = 0
    """Integers that differ where rounding decides them, which counts as no error."""

    @property
    def decides(self) -> bool:
        """Whether there is an element to compare; one without a margin proves nothing."""
        return self.undecided == 0 or self.undecided < math.prod(self.shape)

    @property
    def share(self) -> float:
        """The error over its bound; integers and truth values have a bound of 0."""
        if self.bound > 0:
            return self.absolute / self.bound
        return 0.0 if self.absolute == 0 else float("inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class PairRow:
    """One (batch, time) pair with its inputs."""

    batch: int | None
    time: int | None
    lengths: tuple[int, ...] | None
    """Valid steps of each sequence where the model takes lengths."""
    states: bool
    """Whether non-zero initial states were given."""
    conclusive: bool
    """False where onnxruntime's own relative error exceeds 1e-3: such weights prove nothing at this length; or where
    rounding decides an output of integers as a whole."""
    rows: tuple[OutputRow, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The verdict on a pair of sides with every number it rests on."""

    a: str
    b: str
    passed: bool
    """Every output of every candidate is within its bound on every conclusive pair, and one pair is conclusive."""
    pairs: tuple[PairRow, ...]
    providers: dict[str, str]
    """The onnxruntime provider of each node that it placed, by node name."""
    notes: tuple[str, ...]
    """Rules that hold without being visible in the numbers: padding, dropout, folded biases, outputs not compared."""
    versions: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """The document that schemas/report.schema.json describes; an infinite error is the string "inf"."""
        return {"schema": "rnn-bridge/report/1", **_finite(asdict(self))}

    def raise_for_mismatch(self) -> None:
        """Raise where the verdict is no.

        Raises:
            Mismatch: with the worst row.
        """
        if not self.passed:
            raise Mismatch(self.summary(), where=f"verify({self.a}, {self.b})", do="print the report for every output")

    def summary(self) -> str:
        """One line: the verdict and the worst row of a conclusive pair."""
        rows = [row for pair in self.pairs if pair.conclusive for row in pair.rows if row.side != "onnxruntime"]
        if not rows:
            return "inconclusive: on every pair onnxruntime's own error against float64 exceeds 1e-3"
        worst = max(rows, key=lambda row: (not row.passed, row.share))
        verdict = "agrees" if self.passed else "DISAGREES"
        return (
            f"{verdict}: worst {worst.side} {worst.output}: error {worst.absolute:.2g}, "
            f"bound {worst.bound:.2g}, onnxruntime's own {self._own(worst):.2g}"
        )

    def _own(self, row: OutputRow) -> float:
        for pair in self.pairs:
            if row in pair.rows:
                return next(r.absolute for r in pair.rows if (r.side, r.output) == ("onnxruntime", row.output))
        return float("nan")

    def __str__(self) -> str:
        lines = [f"{self.a} against {self.b}: {'passed' if self.passed else 'FAILED'}", self.summary(), ""]
        head = ("pair", "side", "output", "error", "relative", "to ort", "bound", "over time", "")
        table = [head, *(_text_row(pair, row) for pair in self.pairs for row in pair.rows)]
        widths = [max(len(row[column]) for row in table) for column in range(len(head))]
        lines += ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
                  for row in table]  # fmt: skip
        placed = sorted(set(self.providers.values()))
        lines += ["", f"onnxruntime ran on {', '.join(placed) or 'nothing'}"]
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)


def _text_row(pair: PairRow, row: OutputRow) -> tuple[str, ...]:
    label = f"N{pair.batch if pair.batch is not None else '?'} T{pair.time if pair.time is not None else '?'}"
    label += " ragged" if pair.lengths is not None and len(set(pair.lengths)) > 1 else ""
    verdict = "ok" if row.passed else "FAIL"
    verdict += f", {row.undecided} undecided" if row.undecided else ""
    return (
        label,
        row.side,
        row.output,
        f"{row.absolute:.2e}",
        f"{row.relative:.2e}",
        f"{row.against_onnxruntime:.2e}",
        f"{row.bound:.2e}",
        " ".join(f"{value:.0e}" for value in row.growth),
        verdict if pair.conclusive else "inconclusive",
    )


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return str(value)
    return value
