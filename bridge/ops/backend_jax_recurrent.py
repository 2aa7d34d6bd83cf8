"""The time loop on JAX in the forms that XLA runs fastest on a CPU; the parameters and the numbers stay what they are.

Forward time over that of `flax.nnx.RNN`, interleaved warm medians (jax 0.10.2, two cores with AVX-512, calls on the
caller's thread):

| op, batch, time, in, hidden | hoisted | joined | by gate | halves | in the loop | transposed | onnxruntime |
|---|---|---|---|---|---|---|---|
| LSTM 1, 100, 32, 64     | 0.95 | 0.73 | 1.20 | 1.38 | 0.96 | 1.17 | 0.59 |
| LSTM 1, 100, 64, 128    | 1.02 | 0.82 | 0.94 | 1.26 | 1.00 | 1.26 | 0.96 |
| LSTM 8, 100, 64, 128    | 1.70 | 1.04 | 0.97 | 1.12 | 1.00 | 1.30 | 0.52 |
| LSTM 32, 100, 128, 256  | 1.06 | 0.85 | 0.83 | 0.52 | 1.03 | 0.82 | 0.30 |
| LSTM 32, 200, 512, 512  | 0.83 | 0.80 | 0.77 | 0.81 | 0.97 | 0.67 | 0.54 |
| GRU 1, 100, 64, 128     | 1.32 |      | 0.92 | 1.57 | 1.00 |      | 0.95 |
| GRU 8, 100, 64, 128     | 2.02 |      | 1.07 | 1.17 | 0.99 |      | 1.44 |
| GRU 32, 100, 128, 256   | 1.52 |      | 0.94 | 0.70 | 0.98 |      | 0.76 |
| GRU 2, 100, 400, 400    | 0.63 |      | 0.52 | 0.40 | 0.96 |      | 0.19 |

Why, as far as timings tell: XLA hands a product to YNNPACK, which computes up to about 65,000 weights on one thread and
splits more over its threads at the price of several microseconds; and a slice of a hoisted product is computed anew by
every gate that reads it, without vectors, unless each gate has an array of its own.

What is left is XLA's: at 8, 100, 64, 128 the recurrent product alone, 7 of 14 microseconds a step, runs at the peak of
one core, where onnxruntime splits it over two; at 32, 100, 128, 256 onnxruntime runs at the peak of both. A caller who
splits the batch over a CPU device for each core has both (README.md, Speed). What did not help: more than eight
operations in a step (XLA then schedules each step as a graph, 5 to 30 microseconds), four or eight pieces instead of
halves, one matrix-vector product per sequence, the halves as one batched product, the batch in two halves in two loops
(their counters share memory, so they run one after the other), unrolling, [x, h] in one product, one tanh over all
gates where the state is not small, R cut by a reshape instead of a concatenation (copied one number at a time), the
whole h as the carry of the halves, the pre-activations as the carry (1.0 to 1.4 times the time), a convolution instead
(0.9 at N = 8, 1.2 to 1.8 at N = 32), oneDNN's product by a custom call (1.1 to 14 times), products of bfloat16 parts on
processors that have tiles for them (each 0.3 to 0.7 of a float32 one, whose precision takes six), XLA's flags for its
libraries and its number of threads, and barriers inside a step, which XLA takes away before it fuses. A step marked as
a call to compile whole (`xla_cpu_small_call`) takes 0.84 of the time at N = 1, and does not compile under vmap.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, Literal, TypeAlias

import numpy as np

from bridge.ops.backend import Array
from bridge.ops.backend_jax import JaxBackend, scan_parts
from bridge.ops.backend_jax_gradient import WEIGHTS, Weights, gathered_jvp, tapping
from bridge.ops.recurrent_loop import ended, scan_time
from bridge.ops.recurrent_steps import Gates, Side, State, StepFunction, hoisted_bias, lstm_state, lstm_update

Form: TypeAlias = Literal["hoisted", "joined", "by gate", "halves", "apart", "in the loop", "transposed"]
"""Where the products are taken: that of the input for many steps at once, for all gates, also with one activation for
all of them, or for each apart; for each apart and that of the state for one half of the units after the other, or for
each gate apart as well; both in every step; both in every step with the weights on the left."""

PART_BYTES: Final = 4 * 2**20
"""What one hoisted product may take, in as many parts of time as that needs: past the cache it costs more than it
saves (30 MB at once took up to 1.3 times the time of 5 MB parts), and memory stays bounded."""

TRAINING_BYTES: Final = 2 * 2**20
"""What a hoisted product may take where every number of it is kept for a gradient: below, the gradient takes 0.35 to
0.57 times what `flax.nnx.RNN`'s does; above, it took 0.95 to 1.47 times that, and 0.86 to 1.0 in the loop."""

SMALL_STATE: Final = 192
"""Numbers in h [N, H] up to which a step of an LSTM costs what its operations cost to start, so that one activation
for all gates is the fastest: 0.45 to 0.85 times the time of the other forms at 1 x 32 to 1 x 128 and 2 x 64, level at
1 x 192 and 2 x 96, and 1.2 times at 2 x 128."""

TINY_STATE: Final = 48
"""Numbers in h up to which a GRU or RNN gains nothing by hoisting: 1.1 times what `flax.nnx.RNN` takes at 1 x 32, and
0.9 in the loop; level at 1 x 64."""

FEW: Final = 2
"""Up to this batch a light layer is mostly faster with its input products hoisted, 0.85 to 1.07 times what
`flax.nnx.RNN` takes; with more sequences in the loop, 0.92 to 1.03 times where hoisted took 0.86 to 1.12."""

HEAVY: Final = 100_000
"""Numbers in R from which on two products with half of it are faster than one: XLA's library splits one product of
this size over its threads, at a loss. 65536 (LSTM 128) took 1.1 times as long in halves, 110592 (GRU 192) 0.7 to 0.9
times."""

COPYING_STEPS: Final = 16
"""From this many steps on what a form gains is more than its copies of the weights cost."""

APART: Final = 20_000
"""Numbers in R from which on a layer that keeps its weights gate by gate is faster with a product for each, for fewer
steps than those: 0.21 to 0.76 times the time of the joined weights for one step, 0.40 to 0.95 for four (96 to 512
units, LSTM and GRU, batch 1 to 32); level at 64 units, and up to 1.4 times at 32."""

UNIT_ALIGNMENT: Final = 16
"""float32 numbers in the widest vector: halves of 129 units took 1.3 times as long as 128."""

WIDE_BATCH: Final = 32
WIDE_HIDDEN: Final = 448
"""From these sizes on, R.T [4H, H] times h.T [H, N] is the fastest product of an LSTM: 260 against 400 microseconds at
N = 32, H = 512."""


def run_side(
    side: Side, step: StepFunction, X: Array, mask: Array | None, start: State, reverse: bool
) -> tuple[Array, State]:
    """Y [T, N, H] and the final state of one direction, in the form that suits the sizes.

    What is best for one pass forward is not best for a gradient, which keeps what every step computed: a call that is
    differentiated runs in a form of its own, with a rule of its own.
    """
    import jax

    start = _typed(side, X, start)
    weights = {name: getattr(side, name) for name in WEIGHTS}
    forward, training = (form_of(side, X, mask, under_grad) for under_grad in (False, True))

    def loop(
        own: Side, form: Form, weights: Weights, X: Array, mask: Array | None, start: State, taps: State = ()
    ) -> tuple[State, State]:
        return _run(replace(own, **weights), step, form, X, mask, start, reverse, taps)

    def run(own: Side, form: Form, *given: Any) -> tuple[Array, State]:
        (Y,), final = loop(own, form, *given)
        return Y, final

    swift = _with_tanh(side)
    if jax.default_backend() != "cpu":
        return run(side, forward, weights, X, mask, start)
    chosen = jax.custom_jvp(partial(run, swift, forward))
    if can_gather(side, training):
        rule = partial(gathered_jvp, side, partial(loop, side, training))
        chosen.defjvp(rule, symbolic_zeros=True)
    else:
        chosen.defjvp(lambda primals, tangents: jax.jvp(partial(run, side, training), primals, tangents))
    result: tuple[Array, State] = chosen(weights, X, mask, start)
    return result


def _typed(side: Side, X: Array, start: State) -> State:
    """`start` of the type that a step makes of it, as a scan wants it: in dtype, and in how it lies on devices.

    Zeros of that type are added; under jit XLA drops them, and what they came from.
    """
    matmul, xp = side.backend.matmul, side.backend.xp
    new = matmul(X[:1].sum(axis=0), side.W) + matmul(start[0], side.R)
    return tuple(value + xp.zeros_like(new[:, : side.hidden]) for value in start)


def form_of(side: Side, X: Array, mask: Array | None, under_grad: bool) -> Form:
    """The fastest form for these sizes on a CPU; on other devices always the hoisted one."""
    import jax

    steps, batch, _ = X.shape
    if jax.default_backend() != "cpu":
        return "hoisted"
    if not all(isinstance(size, int) for size in X.shape):  # jax.export traces symbols, of which no size is known
        return "in the loop"
    if under_grad:
        kept = steps * batch * side.W.shape[1] * X.dtype.itemsize
        sparing = isinstance(side.backend, JaxBackend) and side.backend.remat is not None
        return "in the loop" if sparing or kept > TRAINING_BYTES else "hoisted"
    if steps < COPYING_STEPS and side.R.size >= APART and has_form("apart", side, mask):
        return "apart"
    if batch * side.hidden <= SMALL_STATE and has_form("joined", side, mask):
        return "joined"
    if side.R.size < HEAVY:
        return "by gate" if batch <= FEW and batch * side.hidden > TINY_STATE else "in the loop"
    if batch == 1 or steps < COPYING_STEPS:
        return "by gate"
    wide = batch >= WIDE_BATCH and side.hidden >= WIDE_HIDDEN
    best: Form = "transposed" if wide and has_form("transposed", side, mask) else "halves"
    return best if has_form(best, side, mask) else "by gate"


def has_form(form: Form, side: Side, mask: Array | None) -> bool:
    """Whether the loop of `side` can take `form`."""
    if form == "transposed":
        return mask is None and side.cell.op == "LSTM" and side.P is None
    if form == "joined":
        return side.cell.op == "LSTM" and side.P is None and _is_plain(side)
    coupled = side.cell.op == "GRU" and not side.cell.linear_before_reset
    if form == "apart":
        return side.by_gate and not coupled
    return form != "halves" or not (coupled or side.hidden == 1)


def can_gather(side: Side, training: Form) -> bool:
    """Whether a gradient may take the products of all steps with W and R at once: not where memory was asked for."""
    sparing = isinstance(side.backend, JaxBackend) and side.backend.remat is not None
    return not sparing and training in ("hoisted", "in the loop")


def _is_plain(side: Side) -> bool:
    """Whether its gates are sigmoids and nothing is clipped."""
    return side.cell.op != "RNN" and side.cell.has_default_activations and side.cell.clip is None


def _with_tanh(side: Side) -> Side:
    """The default sigmoids as tanh: 0.5 + 0.5 * tanh(x / 2) is faster than XLA's, and its gradient slower."""
    import jax

    tanh = side.backend.xp.tanh
    if not _is_plain(side) or jax.default_backend() != "cpu":
        return side
    return replace(side, activations=(lambda x: 0.5 + 0.5 * tanh(0.5 * x), *side.activations[1:]))


@dataclass(frozen=True, slots=True)
class Piece:
    """Some of the units with all their gates: a Side of its own, whose products start from the whole h."""

    side: Side
    units: slice
    bias: Gates | None
    """What the loop adds to the input product, for less than a pass over all steps would cost; one array or gate by
    gate, as the product is."""

    @classmethod
    def of(cls, side: Side, units: slice, by_gate: bool) -> Piece:
        """The piece of `side`, which holds these units only; its biases are joined here, once for all steps."""
        bias = hoisted_bias(side)
        return cls(side, units, side.apart(bias) if by_gate and bias is not None else bias)

    def inputs(self, xW: tuple[Array, ...], by_gate: bool) -> Gates:
        """Its pre-activations of the input, biases in."""
        if not by_gate:
            return xW[0] if self.bias is None else xW[0] + self.bias
        parts = {letter: gate[:, self.units] for letter, gate in zip(self.side.gates, xW, strict=True)}
        return parts if self.bias is None else {letter: part + self.bias[letter] for letter, part in parts.items()}


def _run(
    side: Side,
    step: StepFunction,
    form: Form,
    X: Array,
    mask: Array | None,
    start: State,
    reverse: bool,
    taps: State = (),
) -> tuple[State, State]:
    """(Y,) and the final state in one form; with `taps` also what each step multiplied with R, from the left."""
    if form == "transposed":
        return _transposed(side, X, start, reverse)
    backend, inside, by_gate = side.backend, form == "in the loop", form in ("by gate", "halves", "apart")
    side = _apart(side) if form == "apart" else side
    pieces = _halves(side) if form == "halves" else (Piece.of(side, slice(None), by_gate),)
    step = _joined_step if form == "joined" else step
    count, product = len(pieces), _input_product(side, by_gate, X)

    def whole(parts: State) -> Array:
        return parts[0] if count == 1 else backend.xp.concat(parts, axis=-1)

    def advance(state: State, given: State) -> tuple[State, State]:
        x, tapped = given[: len(given) - len(taps)], given[len(given) - len(taps) :]
        xW, h = product(x[0]) if inside else x, whole(state[:count])
        lefts: list[Array] = []
        take = tapping(step, tapped, lefts) if taps else step
        new = [take(piece.side, piece.inputs(xW, by_gate), state[at::count], h) for at, piece in enumerate(pieces)]
        flat = tuple(value for values in zip(*new, strict=True) for value in values)
        return flat, (whole(flat[:count]), *lefts)

    def over(state: State, given: tuple[Array, Array | None, State]) -> tuple[State, State]:
        x, valid, tapped = given
        xs = (*((x,) if inside else product(x)), *tapped)
        ys, state = scan_time(backend, advance, xs, valid, state, reverse)
        return state, ys

    begin, steps = tuple(value[:, piece.units] for value in start for piece in pieces), X.shape[0]
    size = steps if inside else part_steps(side, X)
    if size == steps:
        final, ys = over(begin, (X, mask, taps))
    else:
        final, ys = scan_parts(over, begin, (X, mask, taps), size, reverse)
    return ys, ended(backend, mask, tuple(whole(final[at : at + count]) for at in range(0, len(final), count)))


def _joined_step(side: Side, xW: Array, state: State, h: Array | None = None) -> State:
    """`lstm_step` with one tanh for all gates, which makes the sigmoids of three of them: 0.5 + 0.5 * tanh(x / 2)."""
    z = xW + side.recurrent(state[0] if h is None else h)
    sigmoid = np.repeat([letter != "c" for letter in side.gates], side.hidden)
    scale, shift = (np.asarray(np.where(sigmoid, 0.5, other), z.dtype) for other in (1, 0))
    gates = side.backend.xp.tanh(z * scale) * scale + shift
    return lstm_update(side, side.apart(gates), state[1])


def part_steps(side: Side, X: Array) -> int:
    """How many steps of X [T, N, I] one hoisted product takes, T where all fit or where memory is not the CPU's."""
    import jax

    steps, batch, _ = X.shape
    most = PART_BYTES // (batch * side.W.shape[1] * X.dtype.itemsize)
    if jax.default_backend() != "cpu" or steps <= most:
        return int(steps)
    parts = -(-steps // max(1, most))
    return int(-(-steps // parts))  # parts of about one length: what is left over is not much shorter


def _input_product(side: Side, by_gate: bool, X: Array) -> Callable[[Array], tuple[Array, ...]]:
    """The product with W, in one array or in one for each gate: cut afterwards where that moves less than cutting W."""
    import jax

    matmul, split, gates = side.backend.matmul, side.backend.split, len(side.gates)
    steps, batch, inputs = X.shape
    if not by_gate:
        return lambda x: (matmul(x, side.W),)
    columns = split(side.W, gates)
    if not side.by_gate:
        if steps * batch <= inputs:
            return lambda x: split(matmul(x, side.W), gates)
        columns = jax.lax.optimization_barrier(columns)  # cut once, outside of every loop
    return lambda x: tuple(matmul(x, column) for column in columns)


def _apart(side: Side) -> Side:
    """With a product for each gate of R; cut outside of the loop, where XLA takes the layer's arrays for the cuts."""
    columns, matmul = side.apart(side.R), side.backend.matmul

    def product(left: Array, _columns: slice) -> Mapping[str, Array]:
        return {letter: matmul(left, column) for letter, column in columns.items()}

    return replace(side, product=product)


def _halves(side: Side) -> tuple[Piece, ...]:
    """Two pieces, the first a whole number of vectors wide where there are enough units."""
    import jax

    hidden, xp = side.hidden, side.backend.xp
    middle = -(-hidden // (2 * UNIT_ALIGNMENT)) * UNIT_ALIGNMENT
    middle = middle if middle < hidden else hidden // 2

    def cut(value: Array | None, units: slice) -> Array | None:
        if value is None:
            return None
        return xp.concat([gate[..., units] for gate in side.apart(value).values()], axis=-1)

    spans = slice(0, middle), slice(middle, hidden)
    # Without the barrier XLA cuts weights that are constants anew in every step: 1.5 times the time.
    products = jax.lax.optimization_barrier([cut(side.R, units) for units in spans])
    pieces = []
    for units, R in zip(spans, products, strict=True):
        P = None if side.P is None else xp.reshape(xp.reshape(side.P, (3, hidden))[:, units], (-1,))
        own = replace(side, R=R, Wb=cut(side.Wb, units), Rb=cut(side.Rb, units), P=P, hidden=units.stop - units.start)
        pieces.append(Piece.of(own, units, by_gate=True))
    return tuple(pieces)


def _transposed(side: Side, X: Array, start: State, reverse: bool) -> tuple[State, State]:
    """(Y [T, N, H],) and the final (h, c) of an LSTM whose loop works on columns [H, N]."""
    import jax

    xp, backend = side.backend.xp, side.backend
    # Without the barriers XLA folds the transpositions back into the products of every step.
    W, R = (jax.lax.optimization_barrier(value.T) for value in (side.W, side.R))
    bias = hoisted_bias(side)
    column = 0 if bias is None else bias[:, None]

    def advance(state: State, x: State) -> tuple[State, State]:
        h, c = state
        z = backend.matmul(W, x[0].T) + backend.matmul(R, h) + column
        new = lstm_state(side, dict(zip(side.gates, xp.split(z, len(side.gates), axis=0), strict=True)), c)
        return new, new[:1]

    (Y,), final = scan_time(backend, advance, (X,), None, tuple(value.T for value in start), reverse)
    return (xp.permute_dims(Y, (0, 2, 1)),), tuple(value.T for value in final)
