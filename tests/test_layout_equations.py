"""The tricky layouts against their frameworks' published equations, each written out here in float64.

A round trip proves nothing: a wrong gate order survives writing and reading. So every case runs the framework's own
equations on its own parameters, and ONNX's equations on the Cell that read_params makes of them.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bridge.cell import GATES, Cell
from bridge.layout import Blocks, read_params, template, write_params
from bridge.layout.files import find
from bridge.layout.reading import read
from bridge.layout.records import Layout
from tests.onnx_equations import onnx, sigmoid

INPUTS, HIDDEN, TIME = 3, 4, 5


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def split(array, n, axis=-1):
    return np.split(array, n, axis=axis)


def haiku_lstm(p, x, h, c):
    i, g, f, o = split(np.concatenate([x, h]) @ p["linear.w"] + p["linear.b"], 4)
    c = sigmoid(f + 1) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def haiku_gru(p, x, h, c):
    (wz, wr, wa), (uz, ur, ua), (bz, br, ba) = (split(p[name], 3) for name in ("w_i", "w_h", "b"))
    z, r = sigmoid(x @ wz + h @ uz + bz), sigmoid(x @ wr + h @ ur + br)
    a = np.tanh(x @ wa + (r * h) @ ua + ba)
    return (1 - z) * h + z * a, c


def haiku_vanilla(p, x, h, c):
    return np.maximum(x @ p["linear.w"] + p["linear.b"] + h @ p["linear_1.w"] + p["linear_1.b"], 0), c


def mgu(p, x, h, c):
    f = sigmoid(x @ p["if.kernel"] + p["if.bias"] + h @ p["hf.kernel"])
    n = np.tanh(x @ p["in.kernel"] + p["in.bias"] + f * (h @ p["hn.kernel"] + p["hn.bias"]))
    return (1 - f) * n + f * h, c


def mgu_without_reset(p, x, h, c):
    f = sigmoid(x @ p["if.kernel"] + p["if.bias"] + h @ p["hf.kernel"])
    n = np.tanh(x @ p["in.kernel"] + p["in.bias"] + h @ p["hn.kernel"])
    return (1 - f) * n + f * h, c


def residual_linen(p, x, h, c):
    return np.tanh(x @ p["i.kernel"] + p["i.bias"] + h @ p["h.kernel"] + h), c


def residual_nnx(p, x, h, c):
    return np.tanh(x @ p["dense_i.kernel"] + p["dense_i.bias"] + h @ p["dense_h.kernel"] + h), c


def nnx_gru_hn(p, x, h, c):
    (xr, xz, xn), (hr, hz, hn) = (
        split(x @ p["dense_i.kernel"] + p["dense_i.bias"], 3),
        split(h @ p["dense_h.kernel"], 3),
    )
    r, z = sigmoid(xr + hr), sigmoid(xz + hz)
    n = np.tanh(xn + r * (hn + p["hn_bias"]))
    return (1 - z) * n + z * h, c


def linen_gru(p, x, h, c):
    r = sigmoid(x @ p["ir.kernel"] + p["ir.bias"] + h @ p["hr.kernel"])
    z = sigmoid(x @ p["iz.kernel"] + p["iz.bias"] + h @ p["hz.kernel"])
    n = np.tanh(x @ p["in.kernel"] + p["in.bias"] + r * (h @ p["hn.kernel"] + p["hn.bias"]))
    return (1 - z) * n + z * h, c


def equinox_gru(p, x, h, c):
    igates, hgates = split(p["weight_ih"] @ x + p["bias"], 3), split(p["weight_hh"] @ h, 3)
    reset, inp = sigmoid(igates[0] + hgates[0]), sigmoid(igates[1] + hgates[1])
    new = np.tanh(igates[2] + reset * (hgates[2] + p["bias_n"]))
    return new + inp * (h - new), c


def keras_lstm(p, x, h, c):
    i, f, g, o = split(x @ p["kernel"] + h @ p["recurrent_kernel"] + p["bias"], 4)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def keras_gru_after(p, x, h, c):
    xz, xr, xh = split(x @ p["kernel"] + p["bias"][0], 3)
    hz, hr, hh = split(h @ p["recurrent_kernel"] + p["bias"][1], 3)
    z, r = sigmoid(xz + hz), sigmoid(xr + hr)
    return z * h + (1 - z) * np.tanh(xh + r * hh), c


def keras_gru_before(p, x, h, c):
    xz, xr, xh = split(x @ p["kernel"] + p["bias"], 3)
    uz, ur, uh = split(p["recurrent_kernel"], 3)
    z, r = sigmoid(xz + h @ uz), sigmoid(xr + h @ ur)
    return z * h + (1 - z) * np.tanh(xh + (r * h) @ uh), c


def from_cudnn(p, n):
    """What Keras's own converter makes of CuDNN weights: tf_keras/saving/legacy/hdf5_format.py _convert_rnn_weights."""
    kernel = np.hstack([k.T.reshape(k.shape, order="F") for k in np.hsplit(p["kernel"], n)])
    recurrent = np.hstack([k.T for k in np.hsplit(p["recurrent_kernel"], n)])
    return kernel, recurrent, p["bias"].reshape(2, -1)


def cudnn_lstm(p, x, h, c):
    kernel, recurrent, bias = from_cudnn(p, 4)
    return keras_lstm({"kernel": kernel, "recurrent_kernel": recurrent, "bias": bias.sum(axis=0)}, x, h, c)


def cudnn_gru(p, x, h, c):
    kernel, recurrent, bias = from_cudnn(p, 3)
    return keras_gru_after({"kernel": kernel, "recurrent_kernel": recurrent, "bias": bias}, x, h, c)


def tf1_lstm(p, x, h, c, forget_bias=1.0):
    i, j, f, o = split(np.concatenate([x, h]) @ p["kernel"] + p["bias"], 4)
    i, f = i + p.get("w_i_diag", 0) * c, f + p.get("w_f_diag", 0) * c
    c = sigmoid(f + forget_bias) * c + sigmoid(i) * np.tanh(j)
    return sigmoid(o + p.get("w_o_diag", 0) * c) * np.tanh(c), c


def tf1_gru(p, x, h, c):
    r, u = split(sigmoid(np.concatenate([x, h]) @ p["gates.kernel"] + p["gates.bias"]), 2)
    candidate = np.tanh(np.concatenate([x, r * h]) @ p["candidate.kernel"] + p["candidate.bias"])
    return u * h + (1 - u) * candidate, c


def block_lstm(p, x, h, c):
    i, g, f, o = split(np.concatenate([x, h]) @ p["w"] + p["b"], 4)
    i, f = i + p.get("wci", 0) * c, f + p.get("wcf", 0) * c
    c = sigmoid(i) * np.tanh(g) + sigmoid(f + 1) * c
    return sigmoid(o + p.get("wco", 0) * c) * np.tanh(c), c


CASES = [
    ("haiku.LSTM", {}, haiku_lstm),
    ("haiku.GRU", {}, haiku_gru),
    ("haiku.VanillaRNN", {}, haiku_vanilla),
    ("flax.linen.MGUCell", {}, mgu),
    ("flax.linen.MGUCell", {"reset_gate": False}, mgu_without_reset),
    ("flax.linen.SimpleCell", {"residual": True}, residual_linen),
    ("flax.nnx.SimpleCell", {"residual": True}, residual_nnx),
    ("flax.linen.GRUCell", {}, linen_gru),
    ("flax.nnx.GRUCell", {"hn_bias": True}, nnx_gru_hn),
    ("equinox.GRUCell", {}, equinox_gru),
    ("keras.LSTM", {}, keras_lstm),
    ("keras.GRU", {}, keras_gru_after),
    ("keras.GRU", {"reset_after": False}, keras_gru_before),
    ("keras.CuDNNLSTM", {}, cudnn_lstm),
    ("keras.CuDNNGRU", {}, cudnn_gru),
    ("tf1.LSTMCell", {}, tf1_lstm),
    ("tf1.LSTMCell", {"use_peepholes": True}, tf1_lstm),
    ("tf1.LSTMCell", {"forget_bias": 0.25}, lambda *a: tf1_lstm(*a, forget_bias=0.25)),
    ("tf1.BasicLSTMCell", {}, tf1_lstm),
    ("tf1.GRUCell", {}, tf1_gru),
    ("tf1.BlockLSTM", {}, block_lstm),
    ("tf1.BlockLSTM", {"use_peephole": True}, block_lstm),
]


def random_params(layout, options, rng, inputs=INPUTS):
    made = template(layout, inputs, HIDDEN, dtype="float64", **options)
    return {name: binary(rng, 0.8, zeros.shape) for name, zeros in made.params.items()}, made.options


def binary(rng, bound, shape):
    """Multiples of 2**-20, whose sums float64 holds exactly: gates that are tied stay equal."""
    return np.round(rng.uniform(-bound, bound, shape) * 2**20) / 2**20


def run(step, params, x):
    h, c, out = np.zeros(HIDDEN), np.zeros(HIDDEN), []
    for x_t in x:
        h, c = step(params, x_t, h, c)
        out.append(h)
    return np.array(out)


@pytest.mark.parametrize(("layout", "options", "step"), CASES, ids=[f"{name}-{options}" for name, options, _ in CASES])
def test_the_cell_that_is_read_computes_the_frameworks_equations(layout, options, step, rng):
    params, values = random_params(layout, options, rng)
    x = rng.standard_normal((TIME, INPUTS))
    cell = read_params(layout, params, **values)
    np.testing.assert_allclose(onnx(cell, x), run(step, params, x), rtol=0, atol=1e-14)


@pytest.mark.parametrize(("layout", "options", "step"), CASES, ids=[f"{name}-{options}" for name, options, _ in CASES])
def test_the_parameters_that_are_written_compute_the_cell(layout, options, step, rng):
    """From other biases than the layout has: Wb and Rb both non-zero wherever they may fold."""
    params, values = random_params(layout, options, rng)
    cell = with_both_biases(read_params(layout, params, **values), rng)
    x = rng.standard_normal((TIME, INPUTS))
    written = write_params(layout, cell, **values)
    np.testing.assert_allclose(run(step, written, x), onnx(cell, x), rtol=0, atol=1e-14)


def with_both_biases(cell: Cell, rng) -> Cell:
    """The same sums Wb + Rb, divided otherwise; GRU's h under linear_before_reset stays as it is."""
    shift = binary(rng, 0.5, (len(cell.gates), cell.hidden_size))
    if cell.op == "GRU" and cell.linear_before_reset:
        shift[cell.gates.index("h")] = 0
    shift = shift.reshape(1, -1)
    return Cell(
        cell.op,
        cell.W,
        cell.R,
        np.concatenate([cell.Wb + shift, cell.Rb - shift], axis=1),
        cell.P,
        activations=cell.activations,
        linear_before_reset=cell.linear_before_reset,
    )


# Every such proof must be able to fail: break the layout on purpose.


def swap_gates(layout: Layout, block: str, first: str, second: str) -> Layout:
    """The layout with two gates of one block in each other's place."""
    table = str.maketrans(first + second, second + first)
    return with_slots(
        layout, lambda slot: replace(slot, gates=tuple(gate.translate(table) for gate in slot.gates),
                                     negate=slot.negate.translate(table)) if block in slot.blocks else slot
    )  # fmt: skip


def transpose(layout: Layout, block: str) -> Layout:
    """The layout with a block's matrix the other way round; a buffer is read as if it were none."""
    flipped = {("in", "out"): ("out", "in"), ("out", "in"): ("in", "out")}

    def change(slot):
        if block not in slot.blocks:
            return slot
        return replace(slot, buffers=False) if slot.buffers else replace(slot, axes=flipped[slot.axes])

    return with_slots(layout, change)


def with_slots(layout: Layout, change) -> Layout:
    variants = (replace(one, slots=tuple(map(change, one.slots))) for one in layout.variants)
    return replace(layout, variants=tuple(variants))


def without_extras(layout: Layout) -> Layout:
    """The layout without negation and without the constants of a run-time bias."""
    plain = with_slots(layout, lambda slot: replace(slot, negate=""))
    silent = (tuple(replace(constant, value=0.0) for constant in one.constants) for one in plain.variants)
    return replace(plain, variants=tuple(map(lambda one, none: replace(one, constants=none), plain.variants, silent)))


def broken_layouts():
    for name, options, step in CASES:
        layout = find(name)
        # one gate, or gates that the layout ties, cannot be swapped; P's gates are told apart by their names
        pairs = zip(GATES[layout.op], GATES[layout.op][1:], strict=False) if "MGU" not in name else ()
        for first, second in pairs:
            for block in ("W", "R"):
                yield f"{name} {options} {block}: {first} for {second}", layout, options, step, \
                    swap_gates(layout, block, first, second)  # fmt: skip
        shapes = {array.shape for array in template(name, 4, 4, **options).params.values()}
        square = any(shape == (4, 4) for shape in shapes) or layout.variants[0].slots[0].buffers
        for block in ("W", "R") if square else ():
            if not any(len(slot.blocks) > 1 and block in slot.blocks for slot in layout.variants[0].slots):
                yield f"{name} {options} {block} transposed", layout, options, step, transpose(layout, block)
        if "MGU" not in name and without_extras(layout) != layout:
            yield f"{name} {options} without its signs and constants", layout, options, step, without_extras(layout)


BROKEN = list(broken_layouts())


@pytest.mark.parametrize(
    ("layout", "options", "step", "broken"), [case[1:] for case in BROKEN], ids=[c[0] for c in BROKEN]
)
def test_a_broken_layout_is_found_out(layout, options, step, broken, rng):
    params, values = random_params(layout.name, options, rng, inputs=HIDDEN)
    x = rng.standard_normal((TIME, HIDDEN))
    right, wrong = (as_cell(read(row, [params], values)) for row in (layout, broken))
    expected = run(step, params, x)
    np.testing.assert_allclose(onnx(right, x), expected, rtol=0, atol=1e-14)
    assert np.abs(onnx(wrong, x) - expected).max() > 1e-2


def as_cell(blocks: Blocks) -> Cell:
    return Cell(blocks.op, blocks.W, blocks.R, blocks.B, blocks.P, activations=blocks.activations,
                linear_before_reset=blocks.linear_before_reset)  # fmt: skip
