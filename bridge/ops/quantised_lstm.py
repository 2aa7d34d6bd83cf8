"""com.microsoft::DynamicQuantizeLSTM: weights in 8 bits, X and each hidden state quantised where they are used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from bridge.ops.backend import Array, Values
from bridge.ops.node import Node
from bridge.ops.quantisation import dynamic_quantize_linear, mat_mul_integer
from bridge.ops.registry import handles

DIRECTIONS: Final = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}
ACTIVATIONS: Final = ("sigmoid", "tanh", "tanh")


@handles("DynamicQuantizeLSTM", versions={1}, domain="com.microsoft", differentiable=False)
def dynamic_quantize_lstm(
    node: Node,
    X: Array,
    W: Array,
    R: Array,
    B: Array | None = None,
    sequence_lens: Array | None = None,
    initial_h: Array | None = None,
    initial_c: Array | None = None,
    P: Array | None = None,
    W_scale: Array | None = None,
    W_zero_point: Array | None = None,
    R_scale: Array | None = None,
    R_zero_point: Array | None = None,
    *,
    activation_alpha: Sequence[float] | None = None,
    activation_beta: Sequence[float] | None = None,
    activations: Sequence[str] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    input_forget: int = 0,
) -> tuple[Array, ...]:
    """X [T, N, I], W [D, I, 4H] and R [D, H, 4H] in 8 bits; Y [T, D, N, H], Y_h and Y_c [D, N, H].

    onnxruntime quantises the hidden states of those sequences together that one of its threads computes; here, as
    with one thread, of all.

    Raises:
        Unsupported: sequence_lens, P, clip, input_forget, other activations.

    Source: onnxruntime 1.31.1, docs/ContribOperators.md and core/providers/cpu/rnn/rnn_helpers.cc, ComputeGemm.
    """
    if direction not in DIRECTIONS:
        node.reject("unknown direction", got=direction, expected=" ".join(DIRECTIONS))
    backwards = DIRECTIONS[direction]
    given = {"sequence_lens": sequence_lens, "P": P, "clip": clip, "input_forget": input_forget or None,
             "activation_alpha": activation_alpha, "activation_beta": activation_beta}  # fmt: skip
    if named := [name for name, value in given.items() if value is not None]:
        node.refuse("is carried without these", got=", ".join(named))
    if activations is not None and tuple(map(str.lower, activations)) != ACTIVATIONS * len(backwards):
        node.refuse("is carried with its default activations only", got=activations)
    if W_scale is None or W_zero_point is None or R_scale is None or R_zero_point is None:
        node.reject("has no scale or zero point for W or R")
    size, count, batch = int(R.shape[1]), len(backwards), int(X.shape[1])
    if hidden_size not in (None, size) or int(W.shape[0]) != count:
        node.reject("hidden_size, direction, W and R disagree", got=(hidden_size, direction, W.shape, R.shape))
    zero = node.xp.zeros_like(node.xp.broadcast_to(X[:1, :, :1], (count, batch, size)))
    h, c = (zero if value is None else value for value in (initial_h, initial_c))
    results = []
    for at, reverse in enumerate(backwards):
        recur = partial(_product, node, weights=R[at], scale=R_scale[at], zero_point=R_zero_point[at])
        gates = _product(node, X, W[at], W_scale[at], W_zero_point[at])
        gates = gates if B is None else gates + (B[at, : 4 * size] + B[at, 4 * size :])
        results.append(_direction(node, gates, recur, (h[at], c[at]), reverse))
    return tuple(
        node.xp.stack(list(each), axis=axis) for each, axis in zip(zip(*results, strict=True), (1, 0, 0), strict=True)
    )


def _direction(node: Node, gates: Array, recur: Callable[[Array], Array], start: Values, reverse: bool) -> Values:
    """Y [T, N, H] and the final h and c [N, H] of one direction from the products of its input [T, N, 4H]."""
    size = int(start[0].shape[-1])

    def step(carry: Values, x: Values) -> tuple[Values, Values]:
        h, c = _cell(node, x[0] + recur(carry[0]), carry[1], size)
        return (h, c), (h,)

    (h, c), (Y,) = node.backend.scan(step, start, (gates,), reverse)
    return Y, h, c


def _product(node: Node, x: Array, weights: Array, scale: Array, zero_point: Array) -> Array:
    """The product of x, quantised by its own range, with 8-bit weights [in, out], in units of one."""
    quantised, x_scale, x_zero = dynamic_quantize_linear(node, x)
    product = mat_mul_integer(node, quantised, weights, x_zero, zero_point)
    return node.backend.astype(product, node.backend.dtype(x)) * (x_scale * scale)


def _cell(node: Node, gates: Array, c: Array, size: int) -> tuple[Array, Array]:
    """One step from the four pre-activations i, o, f, c."""
    sigmoid, tanh = node.backend.sigmoid, node.xp.tanh
    i, o, f, g = (gates[..., at * size : (at + 1) * size] for at in range(4))
    c = sigmoid(f) * c + sigmoid(i) * tanh(g)
    return sigmoid(o) * tanh(c), c
