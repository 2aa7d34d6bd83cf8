"""verify: the judge (onnxruntime), the referee (float64) and the candidates on the same inputs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

import numpy as np

from bridge import graph, runtime
from bridge.cell import Cell
from bridge.errors import UsageError, check_mapping
from bridge.frameworks import conversion
from bridge.frameworks.door import ExportOptions
from bridge.frameworks.metadata import notes_of, takes_right_padding
from bridge.graph.interface import Interface
from bridge.ops.program import evaluate
from bridge.verification import sides
from bridge.verification.bound import CONCLUSIVE, FACTOR, UNITS, Error, bound, error_against, growth
from bridge.verification.margin import Margin
from bridge.verification.report import OutputRow, PairRow, Report
from bridge.verification.sides import Side
from bridge.verification.trials import PAIRS, Trial, make_trial

if TYPE_CHECKING:
    import onnx_ir as ir

Feeds = Mapping[str, np.ndarray]
VERSIONED = ("rnn-bridge", "numpy", "onnx", "onnxruntime", "onnxruntime-gpu", "torch", "keras", "jax", "flax")


@dataclass(frozen=True, slots=True)
class Case:
    """What does not change from pair to pair."""

    model: ir.Model
    judge: runtime.Session
    interface: Interface
    candidates: tuple[Side, ...]
    right_padded: bool
    """Whether a side is right only for masks that are right-padded."""

    def trial(self, batch: int, time: int) -> Trial:
        """Random inputs that every side takes."""
        return make_trial(self.interface, batch, time, right_padded=self.right_padded)


def verify(
    a: object,
    b: object,
    *,
    inputs: Feeds | Sequence[Feeds] | None = None,
    device: runtime.Device = "auto",
) -> Report:
    """Prove that `b` computes what `a` does, or show where it does not.

    `a` is exported to ONNX (or is ONNX); onnxruntime runs it, a float64 evaluation of the same graph is the referee,
    and the candidates are `b` and, where `a` is a live model, `a` in its own framework. Each output of each candidate
    passes when its error against the referee is at most 4 times onnxruntime's own, or 8 * eps * max(1, max|referee|).
    Integers and truth values must be equal wherever an error of that size in what they come from does not change them.
    A pair on which onnxruntime's own relative error exceeds 1e-3 is inconclusive and its time is halved.

    Args:
        a: any source.
        b: any source, or a target name ("flax", "flax.linen", "torch", "keras"): the import of `a` into it.
        inputs: arrays by ONNX input name in `a`'s axis order, one dict or several, the first of which is the example
            that a whole model is exported from; None makes three (batch, time) pairs with ragged lengths and non-zero
            states.
        device: where onnxruntime runs.

    Raises:
        UsageError: an unknown target, or two sides without a common signature.
        Refused: a side that cannot be carried.
    """
    if not isinstance(inputs, Mapping | list | tuple | None):
        raise UsageError("no mapping", where="verify, inputs", got=type(inputs).__qualname__,
                         expected="a dict from input names to arrays, or a list of dicts")  # fmt: skip
    if isinstance(inputs, list | tuple) and not inputs:
        raise UsageError("a list without inputs proves nothing", where="verify, inputs",
                         do="give one dict or more, or None for inputs of bridge's own")  # fmt: skip
    for feeds in inputs if isinstance(inputs, list | tuple) else ():
        check_mapping(feeds, "verify, inputs", "input names to arrays")
    example = None if inputs is None else inputs if isinstance(inputs, Mapping) else next(iter(inputs), None)
    case, notes = _prepare(a, b, device, example)
    if inputs is None:
        pairs = [row for batch, time in PAIRS for row in _shortened(case, batch, time)]
    else:
        given = [inputs] if isinstance(inputs, Mapping) else list(inputs)
        pairs = [_compare(case, Trial(None, None, dict(feeds))) for feeds in given]
    conclusive = [pair for pair in pairs if pair.conclusive]
    return Report(
        a=sides.label(a),
        b=sides.label(b),
        passed=bool(conclusive) and all(row.passed for pair in conclusive for row in pair.rows),
        pairs=tuple(pairs),
        providers=dict(case.judge.providers),
        notes=tuple(notes),
        versions=_versions(),
    )


def _prepare(a: object, b: object, device: runtime.Device, example: Feeds | None = None) -> tuple[Case, list[str]]:
    if isinstance(a, Cell):
        a = conversion.to_ir(a, ExportOptions(lengths=True, states="inputs"))
    a_is_live = conversion.door_of(a) is not None
    b_is_target = sides.is_target(b)
    b_is_live = not b_is_target and conversion.door_of(b) is not None
    b_graph = None if b_is_target or b_is_live else graph.as_model(b)
    a_graph = None if a_is_live else graph.as_model(a)
    live = [source for source, alive in ((a, a_is_live), (b, b_is_live)) if alive]
    given = b_graph if a_graph is None else a_graph
    options = sides.common_options(live, None if given is None else _input_names(given), example)
    model = conversion.to_ir(a, options) if a_graph is None else a_graph
    candidates = [sides.native(a, options, model)] if a_is_live else []
    if b_graph is not None:
        candidates.append(sides.onnx_side(b, b_graph, model, device))
    elif b_is_live:
        candidates.append(sides.native(b, options, model))
    else:
        candidates.append(sides.imported(str(b), model))
    judged = a if isinstance(a, (str, os.PathLike)) and not a_is_live else graph.to_proto(model)
    graphs = [model, *([] if b_graph is None else [b_graph])]
    notes = list(dict.fromkeys(note for each in graphs for note in notes_of(each)))
    if not all(side.same_padding for side in candidates):
        notes.append("outputs beyond a sequence's length are not compared: the two frameworks fill them differently")
    judge = runtime.Session(judged, device=device)
    return Case(model, judge, Interface.of(model), tuple(candidates), any(map(takes_right_padding, graphs))), notes


def _input_names(model: ir.Model) -> frozenset[str]:
    return frozenset(port.name for port in Interface.of(model).inputs)


def _shortened(case: Case, batch: int, time: int) -> list[PairRow]:
    """The pair, and where it proves nothing the same with its time halved, down to one step."""
    rows = [_compare(case, case.trial(batch, time))]
    while not rows[-1].conclusive and time > 1:
        time //= 2
        rows.append(_compare(case, case.trial(batch, time)))
    return rows


def _compare(case: Case, trial: Trial) -> PairRow:
    judged = case.judge.run(trial.feeds).outputs
    truth = evaluate(case.model, trial.feeds)
    own = {name: error_against(array, np.asarray(truth[name], np.float64)) for name, array in judged.items()
           if np.issubdtype(array.dtype, np.floating)}  # fmt: skip
    margin = Margin(case.model, trial.feeds, truth, _operand_error(trial.feeds, judged, own))
    rows = [_row(case, "onnxruntime", name, (judged[name], judged[name], truth[name]), own, margin) for name in judged]
    for side in case.candidates:
        results = side.execute(trial.feeds)
        for name in (name for name in judged if name in results):
            arrays = (results[name], judged[name], truth[name])
            if not side.same_padding:
                first, second, third = (_valid(case.interface, name, array, trial) for array in arrays)
                arrays = (first, second, third)
            rows.append(_row(case, side.name, name, arrays, own, margin))
        if not any(name in results for name in judged):
            raise UsageError("no output in common", where="verify", got=", ".join(results), expected=", ".join(judged))
    conclusive = all(error.relative <= CONCLUSIVE for error in own.values()) and all(row.decides for row in rows)
    return PairRow(batch=trial.batch, time=trial.time, lengths=trial.lengths, states=trial.states,
                   conclusive=conclusive, rows=tuple(rows))  # fmt: skip


def _valid(interface: Interface, name: str, array: np.ndarray, trial: Trial) -> np.ndarray:
    """`array` with zeros past each sequence's length; unchanged where it has no time axis or the trial no lengths."""
    port = next(port for port in interface.outputs if port.name == name)
    time_axis, batch_axis = port.axis("time"), port.axis("batch")
    if (
        time_axis is None
        or batch_axis is None
        or trial.lengths is None
        or len(trial.lengths) != array.shape[batch_axis]
    ):
        return array
    valid = np.arange(array.shape[time_axis])[:, None] < np.asarray(trial.lengths)
    shape = [1] * array.ndim
    shape[time_axis], shape[batch_axis] = valid.shape
    return np.where((valid if time_axis < batch_axis else valid.T).reshape(shape), array, array.dtype.type(0))


def _operand_error(feeds: Feeds, judged: Feeds, own: Mapping[str, Error]) -> float:
    """How far from the truth a number inside the graph may be, relative to itself: what `bound` allows an output."""
    coarsest = max((float(np.finfo(array.dtype).eps) for array in (*feeds.values(), *judged.values())
                    if np.issubdtype(array.dtype, np.floating)), default=float(np.finfo(np.float32).eps))  # fmt: skip
    return max([UNITS * coarsest, *(FACTOR * error.relative for error in own.values())])


def _row(
    case: Case,
    side: str,
    name: str,
    arrays: tuple[np.ndarray, np.ndarray, np.ndarray],
    own: dict[str, Error],
    margin: Margin,
) -> OutputRow:
    actual, judged, truth = arrays
    referee = np.asarray(truth, np.float64)
    if actual.shape != judged.shape:
        raise UsageError(f"{side} gives {name} another shape", where="verify", got=actual.shape, expected=judged.shape)
    undecided = np.zeros(referee.shape, bool)
    if name not in own:  # an integer or a truth value has no rounding to forgive, where rounding does not decide it
        undecided = margin.undecided(name, actual != truth) & (actual != truth)
        actual = np.where(undecided, truth, actual)
    error = error_against(actual, referee)
    allowed = bound(own[name], referee, judged.dtype) if name in own else 0.0
    port = next(port for port in case.interface.outputs if port.name == name)
    time_axis = port.axis("time")
    return OutputRow(
        side=side, output=name, shape=tuple(actual.shape), absolute=error.absolute, relative=error.relative,
        against_onnxruntime=error_against(actual, judged.astype(np.float64)).absolute, bound=allowed,
        growth=() if time_axis is None else growth(actual, referee, time_axis), passed=error.absolute <= allowed,
        undecided=int(undecided.sum()),
    )  # fmt: skip


def _versions() -> dict[str, str]:
    found = {}
    for name in VERSIONED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
