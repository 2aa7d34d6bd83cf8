"""The time loop on JAX in the forms that XLA runs fastest on a CPU; the parameters and the numbers stay what they are.

Forward time over that of `flax.nnx.RNN`, interleaved warm medians (jax 0.10.2, two cores with AVX-512):

| op, batch, time, in, hidden | hoisted | by gate | halves | in the loop | transposed | onnxruntime |
|---|---|---|---|---|---|---|
| LSTM 1, 100, 64, 128    | 1.09 | 0.89 | 1.25 | 0.99 | 1.40 | 0.84 |
| LSTM 8, 100, 64, 128    | 1.69 | 0.93 | 1.23 | 0.92 | 1.20 | 0.47 |
| LSTM 32, 100, 128, 256  | 0.97 | 0.74 | 0.42 | 0.97 | 0.80 | 0.31 |
| LSTM 32, 200, 512, 512  | 0.86 | 0.84 | 0.81 | 1.02 | 0.70 | 0.61 |
| GRU 1, 100, 64, 128     | 1.43 | 1.07 | 1.58 | 1.07 |      | 0.82 |
| GRU 8, 100, 64, 128     | 2.28 | 1.07 | 1.16 | 1.01 |      | 1.43 |
| GRU 32, 100, 128, 256   | 1.42 | 0.89 | 0.65 | 0.99 |      | 0.72 |
| nsnet2, two GRU 2, 100, 400, 400, over onnxruntime | | 2.0 | 1.6 | 3.5 | | 1 |

Why, as far as timings tell: XLA hands a product to YNNPACK, which computes up to about 65,000 weights on one thread and
splits more over its threads at the price of several microseconds; and a slice of a hoisted product is computed anew by
every gate that reads it, without vectors, unless each gate has an array of its own.

What is left is XLA's: at 8, 100, 64, 128 the recurrent product alone, 7 of 14 microseconds a step, runs at the peak of
one core, where onnxruntime splits it over two; at 32, 100, 128, 256 onnxruntime runs at the peak of both. What did not
help: more than eight operations in a step (XLA then schedules each step as a graph, 5 to 30 microseconds), four or
eight pieces instead of halves, one matrix-vector product per sequence, the halves as one batched product, the batch in
two halves in two loops (their counters share memory, so they run one after the other), unrolling, [x, h] in one
product, one tanh over all gates, R cut by a reshape instead of a concatenation (copied one number at a time), the whole
h as the carry of the halves, the pre-activations as the carry (1.0 to 1.4 times the time), a convolution instead
(0.9 at N = 8, 1.2 to 1.8 at N = 32), oneDNN's product by a custom call (1.1 to 14 times), XLA's flags for its
libraries and its number of threads, and barriers inside a step, which XLA takes away before it fuses. A step marked as
a call to compile whole (`xla_cpu_small_call`) takes 0.84 of the time at N = 1, and does not compile under vmap.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, Literal, TypeAlias

from bridge.ops.backend import Array
from bridge.ops.backend_jax import JaxBackend, scan_parts
from bridge.ops.backend_jax_gradient import WEIGHTS, Weights, gathered_jvp, tapping
from bridge.ops.recurrent_loop import ended, scan_time
from bridge.ops.recurrent_steps import Gates, Side, State, StepFunction, hoisted_bias, lstm_state

Form: TypeAlias = Literal["hoisted", "by gate", "halves", "in the loop", "transposed"]
"""Where the products are taken: that of the input for many steps at once, for all gates or for each apart; for each
apart and that of the state for one half of the units after the other; both in every step; both in every step with the
weights on the left."""

PART_BYTES: Final = 4 * 2**20
"""What one hoisted product may take, in as many parts of time as that needs: past the cache it costs more than it
saves (30 MB at once took up to 1.3 times the time of 5 MB parts), and memory stays bounded."""

TRAINING_BYTES: Final = 2 * 2**20
"""What a hoisted product may take where every number of it is kept for a gradient: below, the gradient takes 0.35 to
0.57 times what `flax.nnx.RNN`'s does; above, it took 0.95 to 1.47 times that, and 0.86 to 1.0 in the loop."""

FEW: Final = 2
"""Up to this batch a light layer is mostly faster with its input products hoisted, 0.85 to 1.07 times what
`flax.nnx.RNN` takes; with more sequences in the loop, 0.92 to 1.03 times where hoisted took 0.86 to 1.12."""

HEAVY: Final = 100_000
"""Numbers in R from which on two products with half of it are faster than one: XLA's library splits one product of
this size over its threads, at a loss. 65536 (LSTM 128) took 1.1 times as long in halves, 110592 (GRU 192) 0.7 to 0.9
times."""

COPYING_STEPS: Final = 16
"""From this many steps on what a form gains is more than its copies of the weights cost."""

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


def form_of(side: Side, X: Array, mask: Array | None, under_grad: bool) -> Form:
    """The fastest form for these sizes on a CPU; on other devices always the hoisted one."""
    import jax

    steps, batch, _ = X.shape
    if jax.default_backend() != "cpu":
        return "hoisted"
    if under_grad:
        kept = steps * batch * side.W.shape[1] * X.dtype.itemsize
        sparing = isinstance(side.backend, JaxBackend) and side.backend.remat is not None
        return "in the loop" if sparing or kept > TRAINING_BYTES else "hoisted"
    if side.R.size < HEAVY:
        return "by gate" if batch <= FEW else "in the loop"
    if batch == 1 or steps < COPYING_STEPS:
        return "by gate"
    wide = batch >= WIDE_BATCH and side.hidden >= WIDE_HIDDEN
    best: Form = "transposed" if wide and has_form("transposed", side, mask) else "halves"
    return best if has_form(best, side, mask) else "by gate"


def has_form(form: Form, side: Side, mask: Array | None) -> bool:
    """Whether the loop of `side` can take `form`."""
    if form == "transposed":
        return mask is None and side.cell.op == "LSTM" and side.P is None
    coupled = side.cell.op == "GRU" and not side.cell.linear_before_reset
    return form != "halves" or not (coupled or side.hidden == 1)


def can_gather(side: Side, training: Form) -> bool:
    """Whether a gradient may take the products of all steps with W and R at once: not where memory was asked for."""
    sparing = isinstance(side.backend, JaxBackend) and side.backend.remat is not None
    return not sparing and training in ("hoisted", "in the loop")


def _with_tanh(side: Side) -> Side:
    """The default sigmoids as tanh: 0.5 + 0.5 * tanh(x / 2) is faster than XLA's, and its gradient slower."""
    import jax

    cell, tanh = side.cell, side.backend.xp.tanh
    plain = cell.op != "RNN" and cell.has_default_activations and cell.clip is None
    if not plain or jax.default_backend() != "cpu":
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
    backend, inside, by_gate = side.backend, form == "in the loop", form in ("by gate", "halves")
    pieces = _halves(side) if form == "halves" else (Piece.of(side, slice(None), by_gate),)
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

    begin, size = tuple(value[:, piece.units] for value in start for piece in pieces), part_steps(side, X)
    if inside or len(X) <= size:
        final, ys = over(begin, (X, mask, taps))
    else:
        final, ys = scan_parts(over, begin, (X, mask, taps), size, reverse)
    return ys, ended(backend, mask, tuple(whole(final[at : at + count]) for at in range(0, len(final), count)))


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
    if steps * batch <= inputs:
        return lambda x: split(matmul(x, side.W), gates)
    columns = jax.lax.optimization_barrier(split(side.W, gates))  # cut once, outside of every loop
    return lambda x: tuple(matmul(x, column) for column in columns)


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
