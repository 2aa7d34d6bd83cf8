"""The gradient of the time loop on JAX with its weights' products taken over all steps at once.

The transpose of a scan adds to the gradients of W and R in every step: an outer product of N rows, and a pass over both
matrices. What it needs for that, the gradient of every pre-activation, can be kept instead, and one product over T * N
rows gives the same sums. So the tangents of the weights and of X enter the loop as one array over time, the tangent of
the pre-activations, and the loop itself is differentiated with its weights held constant.

The gradient of one layer under jit, time over that of `flax.nnx.RNN`, interleaved warm medians (jax 0.10.2, two cores):

| op, batch, time, in, hidden | in the loop | with all steps at once |
|---|---|---|
| LSTM 1, 100, 64, 128   | 1.02 | 0.47 |
| LSTM 8, 100, 64, 128   | 1.05 | 0.58 |
| LSTM 32, 100, 64, 128  | 1.28 | 0.86 |
| LSTM 32, 50, 128, 256  | 1.05 | 0.99 |
| LSTM 32, 50, 512, 512  | 0.96 | 0.88 |
| GRU 2, 100, 400, 400   | 1.07 | 0.35 |

It keeps two arrays more than the loop alone: at 32, 200, 512, 512 a gradient holds 238 MB instead of 175.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final, TypeAlias

from bridge.ops.backend import Array
from bridge.ops.recurrent_steps import Gates, Side, State, StepFunction, hoisted_bias

WEIGHTS: Final = ("W", "R", "Wb", "Rb", "P")
Weights: TypeAlias = "dict[str, Array]"
Loop: TypeAlias = Callable[[Weights, Array, "Array | None", State, State], tuple[State, State]]
"""(weights, X [T, N, I], mask, start, taps) to (Y, lefts ...) and the final state."""


def tapping(step: StepFunction, taps: State, lefts: list[Array]) -> StepFunction:
    """`step` with an array of zeros added to its product with R, and where there are two to that with W first.

    Their tangents stand for those of the products. Puts what multiplies R from the left into `lefts`.
    """

    def tapped(side: Side, xW: Gates, state: State, h: Array | None = None) -> State:
        *outer, inner = taps

        def product(left: Array, columns: slice) -> Array:
            lefts.append(left)
            return side.recurrent(left, columns) + inner[:, columns]

        if outer:
            xW = {letter: x + side.apart(outer[0])[letter] for letter, x in side.apart(xW).items()}
        return step(replace(side, product=product), xW, state, h)

    return tapped


def gathered_jvp(side: Side, loop: Loop, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
    """The rule of `jax.custom_jvp`, with symbolic zeros, for the function (weights, X, mask, start) to (Y, final)."""
    import jax
    from jax.custom_derivatives import SymbolicZero

    weights, X, mask, start = primals
    xp, hidden, reset_after = side.backend.xp, side.hidden, side.cell.linear_before_reset
    whole, parts = (slice(None),), (slice(0, 2 * hidden), slice(2 * hidden, None))
    spans = parts if side.cell.op == "GRU" and not reset_after else whole

    def sums(moving: dict[str, Array], lefts: State) -> State:
        """Over all steps what the taps stand for, as a function of the weights and X."""
        given = {**weights, "X": X, **moving}
        own, matmul = replace(side, **{name: given[name] for name in WEIGHTS}), side.backend.matmul
        outer, bias = matmul(given["X"], own.W), hoisted_bias(own)
        outer = outer if bias is None else outer + bias
        hR = xp.concat([matmul(left, own.R[:, span]) for left, span in zip(lefts, spans, strict=True)], axis=-1)
        if not reset_after:
            return (outer + hR,)
        if own.Rb is not None:
            hR = hR + xp.concat([xp.zeros_like(own.Rb[: 2 * hidden]), own.Rb[2 * hidden :]], axis=0)
        return outer, hR

    def run(P: Array | None, start: State, taps: State) -> tuple[tuple[Array, State], State]:
        (Y, *lefts), final = loop({**weights, "P": P}, X, mask, start, taps)
        return (Y, final), tuple(lefts)

    # Only its type is of interest: the dtype that everything comes to, and on which devices its parts are.
    zeros = xp.zeros_like(sum(sums({}, tuple(start[0][None] for _ in spans))))
    taps = tuple(zeros for _ in range(2 if reset_after else 1))
    result, linear, lefts = jax.linearize(run, weights["P"], start, taps, has_aux=True)

    def moves(tangent: Any) -> bool:
        return tangent is not None and not isinstance(tangent, SymbolicZero)

    moving = {name: value for name, value in {**tangents[0], "X": tangents[1]}.items() if moves(value) and name != "P"}
    at = {name: X if name == "X" else weights[name] for name in moving}
    if moving:
        taps = tuple(zeros + tangent for tangent in jax.jvp(lambda moved: sums(moved, lefts), (at,), (moving,))[1])
    dP, *dstart = (t if moves(t) else None if p is None else xp.zeros_like(p)
                   for p, t in zip((weights["P"], *start), (tangents[0]["P"], *tangents[3]), strict=True))  # fmt: skip
    return result, linear(dP, tuple(dstart), taps)
