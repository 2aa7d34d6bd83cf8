"""read_params, write_params and fit: bits, folding, options, refusals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from bridge.cell import GATES, Activation, Cell
from bridge.errors import BadInput, NotRepresentable, Unsupported, UsageError
from bridge.layout import explain, fit, layouts, op_of, read_params, template, write_params

INPUTS, HIDDEN = 3, 4

VARIANTS = [
    *((name, {}) for name in layouts()),
    ("torch.GRU", {"bias": False}),
    ("torch.RNN", {"nonlinearity": "relu"}),
    ("keras.LSTM", {"use_bias": False, "activation": "softsign", "recurrent_activation": "hard_sigmoid"}),
    ("keras.GRU", {"reset_after": False}),
    ("keras.GRU", {"reset_after": False, "use_bias": False}),
    ("keras.SimpleRNN", {"activation": "leaky_relu"}),
    ("flax.linen.MGUCell", {"reset_gate": False}),
    ("flax.linen.LSTMCell", {"gate_fn": "hard_sigmoid", "activation_fn": "identity"}),
    ("flax.linen.SimpleCell", {"activation_fn": Activation("LeakyRelu", 0.25)}),
    ("flax.nnx.GRUCell", {"hn_bias": True}),
    ("equinox.GRUCell", {"use_bias": False}),
    ("haiku.VanillaRNN", {"double_bias": False}),
    ("tf1.LSTMCell", {"use_peepholes": True, "forget_bias": 0.3}),
    ("tf1.BlockLSTM", {"use_peephole": True, "forget_bias": 0.0}),
    ("bridge.LSTMCell", {"use_peepholes": True, "clip": 2.0, "activations": ("HardSigmoid", "Elu", "Softplus")}),
    ("bridge.LSTMCell", {"input_forget": True, "use_bias": False}),
    ("bridge.GRUCell", {"linear_before_reset": True}),
]
IDS = [f"{name} {' '.join(f'{key}={value}' for key, value in options.items())}".strip() for name, options in VARIANTS]


@pytest.fixture
def rng():
    return np.random.default_rng(11)


def random_params(layout, rng, inputs=INPUTS, hidden=HIDDEN, dtype="float32", **options):
    made = template(layout, inputs, hidden, dtype=dtype, **options)
    params = {name: rng.uniform(-1, 1, zeros.shape).astype(dtype) for name, zeros in made.params.items()}
    for array in params.values():
        array.flat[0] = -0.0
        array.flat[-1] = 0.0
    return params, made.options


def random_cell(op, rng, dtype="float32", inputs=INPUTS, hidden=HIDDEN, **attributes):
    rows = len(GATES[op]) * hidden
    shapes = {"W": (1, rows, inputs), "R": (1, rows, hidden), "B": (1, 2 * rows)}
    return Cell(op, **{name: rng.uniform(-1, 1, shape).astype(dtype) for name, shape in shapes.items()}, **attributes)


def assert_same_bits(actual, expected):
    assert list(actual) == list(expected)
    for name, array in expected.items():
        assert (actual[name].dtype, actual[name].shape) == (array.dtype, array.shape), name
        assert actual[name].tobytes() == array.tobytes(), name


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize(("layout", "options"), VARIANTS, ids=IDS)
def test_reading_and_writing_gives_the_same_bits(layout, options, dtype, rng):
    params, values = random_params(layout, rng, dtype=dtype, **options)
    cell = read_params(layout, params, **values)
    fitted = fit(layout, cell, **options)
    assert_same_bits(fitted.params, params)
    assert fitted.options.items() >= options.items()
    assert read_params(layout, fitted.params, **fitted.options) == cell
    assert_same_bits(write_params(layout, cell, **values), params)


@pytest.mark.parametrize("sizes", [(1, 1), (5, 2), (2, 5)], ids=str)
@pytest.mark.parametrize("layout", layouts())
def test_every_size_is_read_from_the_shapes(layout, sizes, rng):
    params, values = random_params(layout, rng, *sizes)
    cell = read_params(layout, params, **values)
    assert (cell.input_size, cell.hidden_size, cell.op) == (*sizes, op_of(layout))
    assert_same_bits(write_params(layout, cell, **values), params)


def test_residual_changes_only_the_diagonal(rng):
    params, _ = random_params("flax.linen.SimpleCell", rng)
    params["h.kernel"][1, 0] = -0.0
    plain = read_params("flax.linen.SimpleCell", params)
    residual = read_params("flax.linen.SimpleCell", params, residual=True)
    added = residual.R[0] - plain.R[0]
    np.testing.assert_array_equal(added != 0, np.eye(HIDDEN, dtype=bool))
    assert np.signbit(residual.R[0, 0, 1])
    written = write_params("flax.linen.SimpleCell", residual, residual=True)
    np.testing.assert_allclose(written["h.kernel"], params["h.kernel"], atol=2**-23)


def test_what_is_written_is_writable_and_shares_nothing(rng):
    cell = random_cell("LSTM", rng)
    for layout in ("torch.LSTM", "flax.linen.LSTMCell"):
        for array in write_params(layout, cell).values():
            assert array.flags.writeable
            assert array.flags.c_contiguous
            assert not np.shares_memory(array, cell.W)


def test_absent_biases_stay_absent(rng):
    cell = replace(random_cell("LSTM", rng), B=None)
    assert set(write_params("torch.LSTM", cell)) == {"weight_ih", "weight_hh"}
    assert write_params("torch.LSTM", cell, bias=True)["bias_ih"].tolist() == [0.0] * 4 * HIDDEN
    assert read_params("torch.LSTM", write_params("torch.LSTM", cell)).B is None
    assert not write_params("flax.nnx.OptimizedLSTMCell", cell)["dense_h.bias"].any()


def test_the_direction_does_not_matter(rng):
    cell = random_cell("GRU", rng, direction="reverse", linear_before_reset=True)
    assert read_params("torch.GRU", write_params("torch.GRU", cell)) == replace(cell, direction="forward")


# Options


def test_a_variant_is_chosen_by_rank_or_by_the_option(rng):
    before, _ = random_params("keras.GRU", rng, reset_after=False)
    after, _ = random_params("keras.GRU", rng)
    assert not read_params("keras.GRU", before).linear_before_reset
    assert read_params("keras.GRU", after).linear_before_reset
    bare = {name: array for name, array in after.items() if name != "bias"}
    assert read_params("keras.GRU", bare).linear_before_reset
    assert not read_params("keras.GRU", bare, reset_after=False).linear_before_reset
    with pytest.raises(BadInput, match="bias has the wrong number of axes"):
        read_params("keras.GRU", after, reset_after=False)


def test_fit_finds_the_options(rng):
    before = random_cell(
        "GRU", rng, activations=("HardSigmoid", "Relu"), activation_alpha=(1 / 6,), activation_beta=(0.5,)
    )
    before = replace(before, B=np.concatenate([before.Wb, np.zeros_like(before.Rb)], axis=1))
    found = fit("keras.GRU", before)
    assert found.options == {
        "activation": "relu", "recurrent_activation": "hard_sigmoid", "reset_after": False, "use_bias": True,
    }  # fmt: skip
    assert read_params("keras.GRU", found.params, **found.options) == before


def test_an_activation_may_be_given_as_it_is_in_onnx(rng):
    params, _ = random_params("keras.LSTM", rng)
    legacy = read_params("keras.LSTM", params, recurrent_activation=Activation("HardSigmoid", 0.2, 0.5))
    assert legacy.activation_table()[0][0] == Activation("HardSigmoid", float(np.float32(0.2)), 0.5)
    with pytest.raises(NotRepresentable, match=r"activation 'f' is HardSigmoid\(0.2, 0.5\)"):
        write_params("keras.LSTM", legacy)


def test_an_alpha_that_is_a_keyword_in_flax_is_fitted(rng):
    cell = random_cell("RNN", rng, activations=("LeakyRelu",), activation_alpha=(0.25,))
    found = fit("flax.nnx.SimpleCell", cell)
    assert found.options["activation_fn"] == Activation("LeakyRelu", 0.25)
    assert read_params("flax.nnx.SimpleCell", found.params, **found.options).activation_alpha == (0.25,)
    with pytest.raises(NotRepresentable, match=r"activation 'f' is LeakyRelu\(0.25\)"):
        fit("keras.SimpleRNN", cell)


def test_the_forget_bias_is_read_into_the_bias_that_has_no_slot(rng):
    params, values = random_params("tf1.LSTMCell", rng)
    cell = read_params(
        "tf1.LSTMCell",
        params,
        **values,
    )
    forget = slice(2 * HIDDEN, 3 * HIDDEN)
    np.testing.assert_array_equal(cell.Rb[0, forget], 1.0)
    assert not np.delete(cell.Rb[0], forget).any()


@pytest.mark.parametrize(
    ("layout", "options", "what"),
    [
        ("torch.RNN", {"nonlinearity": "sigmoid"}, "unknown value 'sigmoid' for nonlinearity"),
        ("torch.RNN", {"nonlinearity": None}, "unknown value None for nonlinearity"),
        ("torch.RNN", {"nonlinarity": "relu"}, "did you mean 'nonlinearity'"),
        ("haiku.LSTM", {"forget_bias": 1.0}, "unknown option 'forget_bias'"),
        ("keras.GRU", {"reset_after": "yes"}, "reset_after is True or False"),
        ("tf1.LSTMCell", {"forget_bias": True}, "forget_bias is a finite number"),
        ("tf1.LSTMCell", {"forget_bias": float("nan")}, "forget_bias is a finite number"),
        ("bridge.LSTMCell", {"activations": ("Tanh",)}, "activations are 3"),
        ("bridge.LSTMCell", {"clip": "1"}, "clip is a finite number"),
    ],
)
def test_an_unknown_option_or_value_is_a_usage_error(layout, options, what, rng):
    params, values = random_params(layout, rng)
    with pytest.raises(UsageError, match=what):
        read_params(layout, params, **{**values, **options})
    with pytest.raises(UsageError, match=what):
        fit(layout, read_params(layout, params, **values), **options)


def test_an_unknown_layout_is_a_usage_error():
    with pytest.raises(UsageError, match=r"nearest: keras\.LSTM"):
        read_params("keras.lstm", {})


@pytest.mark.parametrize(
    ("layout", "options", "what"),
    [
        ("tf1.BlockLSTM", {"cell_clip": 3.0}, "it clips the cell state"),
        ("tf1.LSTMCell", {"cell_clip": 1.0}, "it clips the cell state"),
        ("tf1.LSTMCell", {"num_proj": 2}, "no projection"),
        ("flax.linen.MGUCell", {"reset_gate": False, "gate_fn": "relu"}, "never is exactly 1"),
    ],
)
def test_an_option_that_the_operator_lacks_is_refused(layout, options, what, rng):
    params, values = random_params(layout, rng, **{k: v for k, v in options.items() if k == "reset_gate"})
    with pytest.raises(NotRepresentable, match=what):
        read_params(layout, params, **{**values, **options})


def test_the_default_cell_clip_of_block_lstm_is_refused_unless_it_is_switched_off(rng):
    params, values = random_params("tf1.BlockLSTM", rng)
    with pytest.raises(NotRepresentable, match=r"cell_clip=3\.0: it clips the cell state"):
        read_params("tf1.BlockLSTM", params)
    assert read_params("tf1.BlockLSTM", params, cell_clip=0.0) == read_params("tf1.BlockLSTM", params, **values)


# Bad parameters


def test_missing_and_unexpected_names_are_both_listed(rng):
    params, _ = random_params("torch.LSTM", rng)
    params["weight_hr"] = params.pop("weight_hh")
    del params["bias_hh"]
    with pytest.raises(BadInput, match="missing parameters: weight_hh, bias_hh; unexpected: weight_hr"):
        read_params("torch.LSTM", params)


@pytest.mark.parametrize("layout", layouts())
def test_every_parameter_is_needed_and_no_other_is_taken(layout, rng):
    params, values = random_params(layout, rng)
    for name in params:
        with pytest.raises(BadInput, match=name):
            read_params(layout, {key: value for key, value in params.items() if key != name}, **values)
    with pytest.raises(BadInput, match="unexpected: surplus"):
        read_params(layout, {**params, "surplus": np.zeros(3, np.float32)}, **values)


def test_a_presence_option_is_held_to_the_parameters(rng):
    params, _ = random_params("torch.LSTM", rng)
    with pytest.raises(BadInput, match="unexpected: bias_hh, bias_ih"):
        read_params("torch.LSTM", params, bias=False)


@pytest.mark.parametrize("layout", layouts())
def test_shapes_that_disagree_are_refused(layout, rng):
    params, values = random_params(layout, rng)
    for name, array in params.items():
        for axis in range(array.ndim):
            grown = np.concatenate([array, np.take(array, [0], axis=axis)], axis=axis)
            try:
                cell = read_params(layout, {**params, name: grown}, **values)
            except BadInput:
                continue
            assert cell.input_size == INPUTS + 1, (name, axis)


@pytest.mark.parametrize("layout", layouts())
def test_a_dimension_of_zero_is_refused(layout, rng):
    for sizes in ((0, HIDDEN), (INPUTS, 0)):
        made = template(layout, *sizes)
        with pytest.raises(BadInput):
            read_params(layout, made.params, **made.options)


def test_dtypes_that_differ_or_are_not_carried_are_refused(rng):
    import ml_dtypes

    params, _ = random_params("flax.linen.GRUCell", rng)
    with pytest.raises(BadInput, match=r"ir\.bias is float64"):
        read_params("flax.linen.GRUCell", {**params, "ir.bias": params["ir.bias"].astype(np.float64)})
    for dtype in (ml_dtypes.bfloat16, np.complex64, np.int32):
        with pytest.raises(Unsupported):
            read_params("flax.linen.GRUCell", {name: array.astype(dtype) for name, array in params.items()})
    with pytest.raises(BadInput, match=r"ir\.bias is no array of numbers"):
        read_params("flax.linen.GRUCell", {**params, "ir.bias": "zeros"})
    with pytest.raises(BadInput, match=r"ir\.bias is no array"):
        read_params("flax.linen.GRUCell", {**params, "ir.bias": [[1.0], [2.0, 3.0]]})
    with pytest.raises(BadInput, match="NaN"):
        read_params("flax.linen.GRUCell", {**params, "ir.bias": np.full(HIDDEN, np.nan, np.float32)})


# Cells that a layout cannot hold


def test_the_refusal_names_gate_block_and_size_and_who_can(rng):
    cell = random_cell("GRU", rng, linear_before_reset=True)
    bias = cell.B.copy()
    bias[0, -1] = 1.9
    with pytest.raises(NotRepresentable) as refusal:
        write_params("flax.nnx.GRUCell", replace(cell, B=bias))
    text = str(refusal.value)
    assert text.startswith("flax.nnx.GRUCell: gate 'h' has a non-zero Rb (max |Rb| = 1.9) and this layout has no slot")
    assert "do: use flax.linen.GRUCell, " in text
    assert 'build(cell, "flax.nnx", own_cells=True)' in text
    assert "haiku.GRU" not in text


def test_every_layout_that_a_refusal_names_holds_the_cell(rng):
    cell = random_cell("GRU", rng, linear_before_reset=True)
    with pytest.raises(NotRepresentable) as refusal:
        write_params("haiku.GRU", cell)
    named = [word.strip(",") for word in refusal.value.do.split() if word.strip(",") in layouts()]
    assert len(named) > 4
    for name in named:
        assert write_params(name, cell)


@pytest.mark.parametrize(
    ("layout", "change", "what"),
    [
        ("torch.LSTM", {"P": np.ones((1, 12), np.float32)}, r"gate 'i' has a non-zero P \(max \|P\| = 1\)"),
        ("torch.LSTM", {"clip": 1.5}, "this layout has no clip"),
        ("torch.LSTM", {"input_forget": True}, "this layout has no input_forget"),
        (
            "torch.LSTM",
            {"initial_h": np.full((1, 1, 4), 2, np.float32)},
            r"constant initial_h \(max \|initial_h\| = 2\)",
        ),
        ("bridge.LSTMCell", {"initial_c": np.ones((1, 2, 4), np.float32)}, "constant initial_c"),
        (
            "torch.LSTM",
            {"activations": ("Sigmoid", "Relu", "Tanh")},
            "activation 'g' is Relu and this layout computes Tanh",
        ),
        (
            "keras.LSTM",
            {"activations": ("Sigmoid", "Relu", "Tanh")},
            "activation 'h' is Tanh and this layout computes Relu",
        ),
        ("keras.LSTM", {"activations": ("Sigmoid", "ThresholdedRelu", "ThresholdedRelu")}, "activation 'g' is Thresh"),
        ("torch.GRU", {}, "this layout is a GRU"),
    ],
)
def test_a_cell_without_a_place_is_refused(layout, change, what, rng):
    with pytest.raises(NotRepresentable, match=what):
        write_params(layout, replace(random_cell("LSTM", rng), **change))


def test_zeros_need_no_place(rng):
    cell = random_cell("LSTM", rng)
    zeros = {"P": np.zeros((1, 12), np.float32), "initial_h": np.zeros((1, 1, 4), np.float32)}
    assert_same_bits(write_params("torch.LSTM", replace(cell, **zeros)), write_params("torch.LSTM", cell))


def test_a_bidirectional_cell_is_refused(rng):
    cell = random_cell("LSTM", rng)
    with pytest.raises(NotRepresentable, match=r"do: write each of cell\.split\(\)"):
        write_params("torch.LSTM", Cell.join(cell, replace(cell, direction="reverse")))


def test_the_place_of_the_reset_gate_is_not_negotiable(rng):
    for layout, reset in (("torch.GRU", False), ("haiku.GRU", True), ("tf1.GRUCell", True), ("keras.CuDNNGRU", False)):
        with pytest.raises(NotRepresentable, match="applies the reset gate"):
            write_params(layout, random_cell("GRU", rng, linear_before_reset=reset))


def test_an_option_that_is_asked_for_is_not_overridden(rng):
    cell = random_cell("GRU", rng, linear_before_reset=True)
    with pytest.raises(NotRepresentable, match="applies the reset gate before"):
        write_params("keras.GRU", cell, reset_after=False)
    with pytest.raises(NotRepresentable, match=r"clip=1\.0 was asked for"):
        write_params("bridge.GRUCell", cell, clip=1.0)
    with pytest.raises(NotRepresentable, match="gate 'z' has a non-zero"):
        write_params("torch.GRU", cell, bias=False)


def test_gates_that_share_a_slot_must_agree(rng):
    cell = random_cell("GRU", rng, linear_before_reset=True)
    with pytest.raises(NotRepresentable, match="gates 'z' and 'r' differ in W"):
        write_params("flax.linen.MGUCell", cell)


def test_a_gate_that_a_layout_lacks_must_be_its_constant(rng):
    params, values = random_params("flax.linen.MGUCell", rng, reset_gate=False)
    cell = read_params("flax.linen.MGUCell", params, **values)
    bias = cell.B.copy()
    bias[0, HIDDEN] = 39.0
    with pytest.raises(NotRepresentable, match=r"gate 'r' has a non-zero Wb|gates 'z' and 'r' differ"):
        write_params("flax.linen.MGUCell", replace(cell, B=bias))


def test_biases_that_overflow_when_folded_are_refused(rng):
    cell = random_cell("LSTM", rng, dtype="float16")
    cell = replace(cell, B=np.full_like(cell.B, 4e4))
    with pytest.raises(NotRepresentable, match="overflow float16"):
        write_params("keras.LSTM", cell)


# The algebra


BIASES = st.floats(-4, 4, width=32)


@settings(max_examples=40, deadline=None)
@given(
    arrays.arrays(np.float32, (1, 2 * 3 * 2), elements=BIASES),
    st.sampled_from([name for name in layouts() if op_of(name) == "GRU" and "MGU" not in name]),
)
def test_a_gru_folds_to_the_rounded_sum_or_is_refused(bias, layout):
    weights = np.ones((1, 6, 2), np.float32)
    reset = template(layout, 2, 2).options.get("linear_before_reset")
    cell = Cell("GRU", weights, weights, bias, linear_before_reset=layout not in ("haiku.GRU", "tf1.GRUCell"))
    options = {} if reset is None else {"linear_before_reset": True}
    if layout == "flax.nnx.GRUCell" and cell.Rb[0, 4:].any():
        with pytest.raises(NotRepresentable, match="gate 'h' has a non-zero Rb"):
            write_params(layout, cell)
        return
    back = read_params(layout, write_params(layout, cell, **options), **fit(layout, cell).options)
    np.testing.assert_array_equal(back.Wb + back.Rb, cell.Wb + cell.Rb)
    if cell.linear_before_reset:
        np.testing.assert_array_equal(back.Rb[0, 4:], cell.Rb[0, 4:])


@settings(max_examples=40, deadline=None)
@given(
    arrays.arrays(np.float32, (1, 2 * 4 * 2), elements=BIASES),
    st.sampled_from([name for name in layouts() if op_of(name) == "LSTM"]),
    st.sampled_from([name for name in layouts() if op_of(name) == "LSTM"]),
)
def test_an_lstm_means_the_same_after_two_layouts(bias, first, second):
    """Weights are carried bit by bit through any two layouts; the sums of biases to rounding, twice."""
    rng = np.random.default_rng(3)
    shapes = {"W": (1, 8, 3), "R": (1, 8, 2)}
    cell = Cell(
        "LSTM", **{name: rng.uniform(-1, 1, shape).astype(np.float32) for name, shape in shapes.items()}, B=bias
    )
    once = fit(first, cell)
    twice = fit(second, read_params(first, once.params, **once.options))
    back = read_params(second, twice.params, **twice.options)
    assert (back.W.tobytes(), back.R.tobytes()) == (cell.W.tobytes(), cell.R.tobytes())
    exact = cell.Wb.astype(np.float64) + cell.Rb
    np.testing.assert_allclose(back.Wb.astype(np.float64) + back.Rb, exact, rtol=0, atol=3 * 9 * 2**-24)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5), st.integers(1, 5), st.sampled_from(layouts()))
def test_every_element_of_every_parameter_has_one_place_in_the_cell(inputs, hidden, layout):
    """Distinct values go in; each comes out, up to sign, as often as its gate is shared."""
    made = template(layout, inputs, hidden, dtype="float64")
    total = sum(array.size for array in made.params.values())
    numbers = iter(
        np.split(np.arange(2, total + 2, dtype=np.float64), np.cumsum([a.size for a in made.params.values()]))
    )
    params = {name: next(numbers).reshape(array.shape) for name, array in made.params.items()}
    cell = read_params(layout, params, **made.options)
    blocks = [block for block in (cell.W, cell.R, cell.B, cell.P) if block is not None]
    found = np.abs(np.concatenate([block.ravel() for block in blocks]))
    found = found[found > 1]
    shared = 2 * hidden * (inputs + hidden + 1) if layout == "flax.linen.MGUCell" else 0
    assert set(found) == set(range(2, total + 2))
    assert len(found) == total + shared // 2


# explain


def test_explain_says_where_every_gate_goes():
    steps = {(step.block, step.gate): step for step in explain("torch.GRU", "flax.nnx.GRUCell")}
    assert len(steps) == 12
    assert str(steps["W", "z"].source) == "weight_ih[H:2H, :]"
    assert steps["W", "z"].onnx == "W[0, 0:H]"
    assert str(steps["W", "z"].target) == "dense_i.kernel[:, H:2H] (transposed)"
    assert str(steps["Rb", "r"].target) == "(folded into dense_i.bias[0:H])"
    assert str(steps["Rb", "h"].target) == "(no slot: must be zero)"
    assert steps["Rb", "h"].onnx == "B[0, 5H:6H]"


def test_explain_follows_options_and_marks_what_is_done():
    residual = explain("flax.linen.SimpleCell", "keras.SimpleRNN", options={"residual": True})
    assert "+ identity" in str(next(step.source for step in residual if step.block == "R"))
    negated = explain("haiku.GRU", "keras.GRU", target_options={"reset_after": False})
    assert [step.source.note for step in negated if step.gate == "z" and step.block == "W"] == ["transposed, negated"]
    forget = {step.gate: step for step in explain("haiku.LSTM", "torch.LSTM") if step.block == "Rb"}
    assert str(forget["f"].source) == "(constant 1 added at run time)"
    assert str(forget["i"].source) == "(zeros)"


def test_explain_refuses_two_operators():
    with pytest.raises(UsageError, match=r"torch\.GRU is a GRU, torch\.LSTM is a LSTM"):
        explain("torch.GRU", "torch.LSTM")


@pytest.mark.parametrize("layout", layouts())
def test_every_layout_explains_itself(layout):
    steps = explain(layout, layout)
    assert {step.gate for step in steps if step.block == "W"} == set(GATES[op_of(layout)])
