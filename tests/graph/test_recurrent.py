from __future__ import annotations

import numpy as np
import pytest

from bridge import reference
from bridge.cell import ACTIVATIONS, DEFAULT_ACTIVATIONS
from bridge.errors import BadInput, UsageError
from bridge.graph import Writer, to_proto
from tests.cells import random_cell
from tests.graph.models import cell_model, feeds_of, run
from tests.tolerances import assert_within_referee_bound

DIRECTIONS = ("forward", "reverse", "bidirectional")
EXTRAS = {
    "LSTM": {"peepholes": True, "input_forget": True, "clip": 0.7, "initial_h": 1, "initial_c": 1},
    "GRU": {"linear_before_reset": True, "clip": 0.7, "initial_h": 1},
    "RNN": {"clip": 0.7, "initial_h": 1},
}
RELU_CLIP = 20.0
"""Keeps unbounded activations small: error grows with the values, and large ones would prove less."""


def referee(cell, feeds):
    values = reference.evaluate(cell, feeds["x"], lengths=feeds.get("lengths"), initial_h=feeds.get("h0"),
                                initial_c=feeds.get("c0"))  # fmt: skip
    return {name: value for name, value in zip(("Y", "Y_h", "Y_c"), values, strict=True) if value is not None}


def agree(cell, feeds, **options):
    """Every output of the form against the referee, under the bound that the fused node earns in float32."""
    actual = run(cell_model(cell, lengths="lengths" in feeds, states="h0" in feeds, **options), feeds)
    expected = actual
    if cell.dtype == np.float32:
        expected = run(cell_model(cell, lengths="lengths" in feeds, states="h0" in feeds), feeds)
    truth = referee(cell, feeds)
    assert actual.keys() == truth.keys()
    for name, value in truth.items():
        assert_within_referee_bound(actual[name], expected[name], value)


@pytest.mark.parametrize("extra", [False, True], ids=["plain", "extra"])
@pytest.mark.parametrize("lengths", [False, True], ids=["full", "ragged"])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("op", EXTRAS)
@pytest.mark.parametrize(("form", "dtype"), [("fused", "float32"), ("scan", "float32"), ("fused", "float64")])
def test_every_form_agrees_with_the_referee(form, dtype, op, direction, lengths, extra, rng):
    cell = random_cell(op, 3, 5, rng, dtype=dtype, direction=direction, **(EXTRAS[op] if extra else {}))
    agree(cell, feeds_of(cell, rng, lengths=lengths, states=not extra), form=form)


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("op", EXTRAS)
def test_scan_writes_every_activation(op, name, direction, rng):
    count = len(DEFAULT_ACTIVATIONS[op]) * (2 if direction == "bidirectional" else 1)
    uses = ACTIVATIONS[name].runtime
    cell = random_cell(
        op, 3, 5, rng, direction=direction, activations=(name,) * count, clip=RELU_CLIP,
        activation_alpha=tuple(0.3 + 0.1 * at for at in range(count)) if len(uses) > 0 else None,
        activation_beta=tuple(0.5 - 0.1 * at for at in range(count)) if len(uses) > 1 else None,
    )  # fmt: skip
    agree(cell, feeds_of(cell, rng, lengths=True), form="scan")


def test_float64_is_exact_to_float64(rng):
    cell = random_cell("LSTM", 3, 5, rng, dtype="float64", direction="bidirectional", peepholes=True)
    feeds = feeds_of(cell, rng, lengths=True, states=True)
    actual = run(cell_model(cell, lengths=True, states=True), feeds)
    for name, value in referee(cell, feeds).items():
        assert np.max(np.abs(actual[name] - value)) < 1e-14, name


@pytest.mark.parametrize("form", ["fused", "scan"])
def test_float16_computes_in_float32_and_rounds_once(form, rng):
    cell = random_cell("LSTM", 3, 5, rng, dtype="float16")
    feeds = feeds_of(cell, rng, states=True)
    actual = run(cell_model(cell, states=True, form=form), feeds)
    for name, value in referee(cell, feeds).items():
        assert actual[name].dtype == np.float16
        assert np.max(np.abs(actual[name] - value)) <= np.finfo(np.float16).eps / 2 * 1.01  # half a unit near 1


@pytest.mark.parametrize(("time", "batch"), [(1, 1), (2, 7), (9, 1)])
@pytest.mark.parametrize("form", ["fused", "scan"])
def test_one_model_serves_every_batch_and_time(form, time, batch, rng):
    cell = random_cell("GRU", 3, 5, rng, direction="bidirectional", initial_h=1)
    agree(cell, feeds_of(cell, rng, lengths=True, time=time, batch=batch) | {"lengths": np.full(batch, time, np.int32)},
          form=form)  # fmt: skip


@pytest.mark.parametrize("opset", range(17, 23))
@pytest.mark.parametrize("form", ["fused", "scan"])
def test_every_opset_runs(form, opset, rng):
    cell = random_cell("LSTM", 3, 5, rng, peepholes=True, clip=0.7, activations=("HardSigmoid", "Elu", "Softsign"))
    proto = to_proto(cell_model(cell, form=form, opset=opset, lengths=True))
    assert proto.ir_version == 10
    assert [entry.version for entry in proto.opset_import] == [opset]
    agree(cell, feeds_of(cell, rng, lengths=True), form=form, opset=opset)


def fused_attributes(cell):
    (node,) = [node for node in to_proto(cell_model(cell)).graph.node if node.op_type == cell.op]
    return {attribute.name for attribute in node.attribute}


@pytest.mark.parametrize("op", EXTRAS)
def test_defaults_are_left_out(op, rng):
    # CUDA gives a node up for a mere activations, activation_alpha or clip attribute (facts of onnxruntime 1.31.1).
    assert fused_attributes(random_cell(op, 3, 5, rng)) == {"hidden_size"}


def test_unused_alphas_are_left_out(rng):
    assert fused_attributes(random_cell("LSTM", 3, 5, rng, activation_alpha=(0.5,))) == {"hidden_size"}


def test_alpha_and_beta_hold_one_value_per_user(rng):
    names = ("HardSigmoid", "Tanh", "Affine", "LeakyRelu", "ScaledTanh", "Relu")
    cell = random_cell("LSTM", 3, 5, rng, direction="bidirectional", activations=names, activation_alpha=(0.3, 0.9))
    (node,) = to_proto(cell_model(cell)).graph.node
    values = {attribute.name: list(attribute.floats) for attribute in node.attribute}
    np.testing.assert_array_equal(np.float32(values["activation_alpha"]), np.float32([0.3, 0.9, 0.01, 0.0]))
    np.testing.assert_array_equal(np.float32(values["activation_beta"]), np.float32([0.5, 0.0, 0.0]))


def test_a_state_made_for_one_batch_is_used_as_it_is(rng):
    cell = random_cell("GRU", 3, 5, rng, initial_h=4)
    model = cell_model(cell)
    assert [node.op_type for node in model.graph] == ["GRU"]
    agree(cell, feeds_of(cell, rng, batch=4), form="fused")
    w = Writer()
    with pytest.raises(BadInput, match="made for another batch"):
        w.recurrent(cell, w.input("x", "float32", ["time", 3, 3]), name="rnn")


def test_a_cell_written_twice_stores_its_weights_once(rng):
    cell = random_cell("GRU", 3, 5, rng)
    w = Writer()
    x = w.input("x", "float32", ["time", "batch", 3])
    w.recurrent(cell, x, name="a")
    w.recurrent(cell, x, name="b", form="scan")
    assert sum(value.const_value.size > 16 for value in w.graph.initializers.values()) == 3


@pytest.mark.parametrize(
    ("shape", "dtype", "text"),
    [(["time", "batch", 4], "float32", "wrong shape"), (["time", 3], "float32", "wrong shape"),
     (["time", "batch", 3], "float64", "wrong dtype")],
)  # fmt: skip
def test_an_input_that_does_not_fit_is_refused(shape, dtype, text, rng):
    w = Writer()
    with pytest.raises(UsageError, match=text):
        w.recurrent(random_cell("GRU", 3, 5, rng), w.input("x", dtype, shape), name="rnn")
