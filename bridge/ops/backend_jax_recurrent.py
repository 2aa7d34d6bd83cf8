"""The time loop on JAX in the forms that XLA runs fastest on a CPU; the parameters and the numbers stay what they are.

Forward time of an LSTM over that of `flax.nnx.RNN`, the smallest of 15 interleaved rounds (jax 0.10.2, two busy cores
with AVX-512):

| batch, time, in, hidden | hoisted | in the loop | transposed |
|---|---|---|---|
| 1, 1, 40, 256     | 0.97 | 0.94 | 3.0  |
| 1, 100, 64, 128   | 0.73 | 1.0  | 1.5  |
| 8, 100, 64, 128   | 1.08 | 1.08 | 1.36 |
| 32, 100, 128, 256 | 0.95 | 0.93 | 0.82 |
| 32, 200, 512, 512 | 1.8  | 1.02 | 0.73 |

At 32, 50, 512, 512 the gradient takes about 1.3 times as long hoisted and 1.17 times as long transposed as in the loop.
A GRU, whose gates XLA computes anew for every reader of a hoisted product, takes 1.1 to 2.8 times as long hoisted as
`flax.nnx.RNN` does and 0.95 to 1.05 in the loop (2 to 32 sequences; 1.2 against 0.97 for one).

What is left is XLA's: at 8, 100, 64, 128 the recurrent product alone, 7 of 12 microseconds a step, runs at the peak of
one core, where onnxruntime splits it over two. What did not help: unrolling (2: level, 4 and 8: no gain forward, up to
four times slower under grad), the batch in two halves in two loops, one product per gate, [x, h] in one product
(level forward at 8, 100, 64, 128, 1.2 times slower at H = 256; its transposed form twice as slow under grad), gates
split before the tanh (level), weights turned to [4H, H], a barrier before a hoisted GRU's gates.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final, Literal, TypeAlias

import numpy as np

from bridge.ops.backend import Array
from bridge.ops.recurrent_steps import Side, State, StepFunction, hoisted_bias

Form: TypeAlias = Literal["hoisted", "in the loop", "transposed"]

HOISTED_BYTES: Final = 4 * 2**20
"""Beyond this the product of the whole input leaves the cache and costs more than it saves: 52 MB took 1.8 times
the time, 1.6 MB nothing."""

NARROW_HIDDEN: Final = 128
"""Up to this size, and for two sequences or more, the product of the input belongs in the loop: hoisted it took 1.0 to
1.3 times what `flax.nnx.RNN` takes, in the loop 0.96 to 1.04 (2 to 16 sequences, H 64 and 128)."""

WIDE_BATCH: Final = 16
WIDE_HIDDEN: Final = 256
"""From these sizes on, R.T [4H, H] times h.T [H, N] is the faster product: 52 against 92 microseconds at N = 32,
H = 256, 350 against 438 at H = 512; at N = 8, H = 128 it is 9.4 against 7.5."""


def faster(side: Side, step: StepFunction) -> tuple[Side, StepFunction]:
    """The same step with the default sigmoids as tanh: one loop over all gates, which XLA vectorises as a whole."""
    cell = side.cell
    if not cell.has_default_activations or cell.clip is not None:
        return side, step
    if cell.op == "LSTM" and side.P is None and not cell.input_forget:
        return side, _lstm_step
    if cell.op == "GRU":
        return replace(
            side, activations=(lambda x: 0.5 + 0.5 * side.backend.xp.tanh(0.5 * x), side.activations[1])
        ), step
    return side, step


def _lstm_step(side: Side, xW: Array, state: State) -> State:
    h, c = state
    return _lstm_state(side, xW + side.backend.matmul(h, side.R), c, axis=1)


def _lstm_state(side: Side, z: Array, c: Array, axis: int) -> State:
    """(h, c) from pre-activations z, the gates along `axis`: sigmoid(x) is 0.5 + 0.5 * tanh(x / 2)."""
    xp, shape = side.backend.xp, [1, 1]
    shape[axis] = -1
    half = np.repeat([1.0 if letter == "c" else 0.5 for letter in side.gates], side.hidden)
    t = xp.tanh(z * np.reshape(half.astype(side.backend.dtype(z)), shape))
    parts = dict(zip(side.gates, xp.split(t, len(side.gates), axis=axis), strict=True))
    i, o, forget = (0.5 + 0.5 * parts[letter] for letter in "iof")
    c = forget * c + i * parts["c"]
    return o * xp.tanh(c), c


def form_of(side: Side, step: StepFunction, X: Array, mask: Array | None) -> Form:
    """The fastest form for these sizes on a CPU; on other devices always the hoisted one."""
    import jax

    steps, batch, _ = X.shape
    small = steps * batch * side.W.shape[1] * X.dtype.itemsize <= HOISTED_BYTES
    narrow = side.cell.op == "GRU" or (batch > 1 and side.hidden <= NARROW_HIDDEN)
    if jax.default_backend() != "cpu" or (small and not narrow):
        return "hoisted"
    wide = batch >= WIDE_BATCH and side.hidden >= WIDE_HIDDEN
    return "transposed" if wide and has_transposed_form(step, mask) else "in the loop"


def has_transposed_form(step: StepFunction, mask: Array | None) -> bool:
    """Whether `transposed` takes this: a default LSTM whose sequences are all of full length."""
    return mask is None and step is _lstm_step


def transposed(side: Side, X: Array, start: State, reverse: bool) -> tuple[Array, State]:
    """Y [T, N, H] and the final (h, c) of a default LSTM whose loop works on columns [H, N]."""
    import jax

    xp, backend = side.backend.xp, side.backend
    # Without the barriers XLA folds the transpositions back into the products of every step.
    W, R = (jax.lax.optimization_barrier(value.T) for value in (side.W, side.R))
    bias = hoisted_bias(side)
    column = 0 if bias is None else bias[:, None]

    def step(state: State, x: tuple[Array, ...]) -> tuple[State, State]:
        h, c = state
        new = _lstm_state(side, backend.matmul(W, x[0].T) + backend.matmul(R, h) + column, c, axis=0)
        return new, (new[0],)

    final, ys = backend.scan(step, tuple(state.T for state in start), (X,), reverse)
    return xp.permute_dims(ys[0], (0, 2, 1)), tuple(state.T for state in final)
