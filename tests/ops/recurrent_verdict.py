"""A case of the grid imported into Flax and run: right, refused or wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np

import bridge
from bridge.errors import BridgeError
from tests.ops.recurrent_grid import Case
from tests.tolerances import referee_bound

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

CONDITION = 8.0
"""Times the change that one unit of rounding in every operand makes (as in tests/test_reference_grid.py): unbounded
activations grow with time, and sums in another order differ by what the operands' own rounding differs."""
OVERFLOW = 40.0
"""onnxruntime's Softplus overflows above 88 (schemas/deviations.toml): beyond this the referee alone decides."""
CONCLUSIVE = 64.0
"""Units in the last place of the largest value: a wider bound proves nothing."""


def always(form: str) -> Callable[..., str]:
    """A `form_of` for bridge.ops.backend_jax_recurrent that gives `form` wherever the loop has it."""
    from bridge.ops.backend_jax_recurrent import has_form

    def form_of(side: Any, X: Any, mask: Any, under_grad: bool) -> str:
        return form if has_form(form, side, mask) else "in the loop"

    return form_of


@dataclass(frozen=True)
class Verdict:
    """What came of one case; `ratio` is its worst error over its bound, `text` what is wrong with it."""

    case: Case
    word: str
    ratio: float = 0.0
    text: str = ""
    conclusive: bool = True
    judge: str = "onnxruntime"


def judged(case: Case) -> Verdict:
    """Import the case, run it, compare every output."""
    import jax

    from bridge.ops import backend_jax_recurrent

    wide = jax.enable_x64(case.row["dtype"] in ("float64", "float32 x64"))
    with wide, patch.object(backend_jax_recurrent, "form_of", always(case.row["loop"])):
        try:
            actual = imported_outputs(case)
        except BridgeError as error:
            return Verdict(case, "refused", text=str(error))
        except Exception as error:  # noqa: BLE001 - whatever else it raises is a defect to be counted, not to end the run
            return Verdict(case, "wrong", text=f"{type(error).__name__}: {error}"[:300])
    return compared(case, actual)


def imported_outputs(case: Case) -> dict[str, np.ndarray]:
    """The outputs of the imported module by name, run as the row says."""
    import jax
    from flax import nnx

    api, way = case.row["run"].split()
    if api == "nnx":
        net = bridge.to_flax(case.model())
        if way == "jit":
            result = nnx.jit(lambda net, feeds: net(**feeds))(net, case.feeds())
        else:
            with jax.disable_jit():
                result = net(**case.feeds())
    else:
        net, variables = bridge.to_flax(case.model(), api="linen")
        result = jax.jit(lambda variables, feeds: net.apply(variables, **feeds))(variables, case.feeds())
    values = result if isinstance(result, tuple) else (result,)
    return {name: np.asarray(value) for name, value in zip(net.output_names, values, strict=True)}


def compared(case: Case, actual: Mapping[str, np.ndarray]) -> Verdict:
    """Right where every output has its dtype and shape and is within its bound."""
    referee, expected = case.referee(), case.onnxruntime()
    judge = "referee" if expected is None else "onnxruntime"
    bounds = derived_bounds(case, referee)
    ratio, conclusive = 0.0, True
    if set(actual) != set(referee):
        return Verdict(case, "wrong", text=f"outputs {sorted(actual)}")
    for name, wanted in referee.items():
        got, size = actual[name], max(1.0, float(np.abs(wanted).max()))
        if got.dtype != case.dtype or got.shape != wanted.shape:
            return Verdict(case, "wrong", text=f"{name} is {got.dtype}{got.shape}, expected {case.dtype}{wanted.shape}")
        bound, overflows = bounds[name], size > OVERFLOW and "Softplus" in case.attributes.get("activations", ())
        if expected is not None and not overflows:
            bound = max(bound, referee_bound(expected[name], wanted))
        error = float(np.abs(got.astype(np.float64) - wanted).max())
        if not error <= bound:
            return Verdict(case, "wrong", error / bound, f"{name}: error {error:.3g}, bound {bound:.3g}", judge=judge)
        ratio = max(ratio, error / bound)
        conclusive &= bound <= CONCLUSIVE * float(np.finfo(case.dtype).eps) * size
    return Verdict(case, "right", ratio, conclusive=conclusive, judge=judge)


def derived_bounds(case: Case, referee: Mapping[str, np.ndarray]) -> dict[str, float]:
    """CONDITION times what the outputs change when every operand moves by one unit of rounding, and 8 units."""
    eps, rng = float(np.finfo(case.dtype).eps), np.random.default_rng(0)
    computing = min(eps, float(np.finfo(np.float32).eps))  # float16 is computed in float32 and rounded once
    moved = {
        name: value * (1 + computing * rng.choice([-1.0, 1.0], value.shape))
        for name, value in case.inputs.items()
        if value.dtype.kind == "f"
    }
    nudged = case.referee(**{name: value.astype(np.float64) for name, value in moved.items()})
    return {
        name: 8 * eps * max(1.0, float(np.abs(wanted).max())) + CONDITION * float(np.abs(nudged[name] - wanted).max())
        for name, wanted in referee.items()
    }


def figures(verdicts: list[Verdict]) -> dict[str, Any]:
    """Counts, the worst error over its bound, and what was not right."""
    words = [each.word for each in verdicts]
    return {
        **{word: words.count(word) for word in ("right", "refused", "wrong")},
        "inconclusive": sum(not each.conclusive for each in verdicts),
        "by onnxruntime": sum(each.judge == "onnxruntime" for each in verdicts if each.word == "right"),
        "worst": max((each.ratio for each in verdicts), default=0.0),
    }
