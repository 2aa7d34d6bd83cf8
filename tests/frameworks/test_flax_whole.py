"""Whole Flax models to ONNX: right at sizes the export has not seen, one error where not, the module untouched."""

from __future__ import annotations

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from flax import linen as nn
from flax import nnx

import bridge
from bridge.errors import BadInput, Unsupported, UsageError
from tests.whole_models.flax_cases import (
    EXAMPLE,
    HIDDEN,
    INPUTS,
    OTHERS,
    NnxTagger,
    all_cases,
    frames,
    lstm,
    nnx_both,
    nnx_rnn,
    ragged,
    tokens,
)
from tests.whole_models.flax_runs import built, export, outputs, run, runs, split
from tests.whole_models.verdict import judge

CASES = {case.name: case for case in all_cases()}
CHOSEN = (
    "nnx tagger Bidirectional LSTMCell, seq_lengths", "linen tagger Bidirectional OptimizedLSTMCell, seq_lengths",
    "nnx cell and layers under lax.scan", "nnx Conv 1D, strides, BatchNorm",
    "nnx attention, causal mask", "linen nn.scan of two cells and layers", "linen nn.scan over layers",
    "linen output fed back", "nnx ensemble",
)  # fmt: skip
"""One of each kind; scripts/whole-models runs them all."""


@pytest.mark.parametrize("name", CHOSEN)
def test_a_model_is_right_at_sizes_the_export_has_not_seen(name: str) -> None:
    case = CASES[name]
    verdict = run(case, OTHERS if "tagger" in name else OTHERS[:1])
    assert (verdict.outcome, verdict.detail) == ("right", "")
    assert (verdict.fused, verdict.scans) == (case.fused, case.scans)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.refused])
def test_what_cannot_be_carried_is_refused_by_name(name: str) -> None:
    case = CASES[name]
    with pytest.raises(Unsupported) as caught:
        export(case, built(case))
    assert case.refused in str(caught.value)


def test_the_names_of_the_cases_are_unique() -> None:
    assert len(CASES) == len(all_cases()) >= 45


def test_a_wrong_weight_is_noticed() -> None:
    case = CASES["linen tagger SimpleCell"]
    module, variables = built(case)
    model = export(case, (module, variables))
    other = jax.tree.map(lambda leaf: leaf, variables)
    other["params"]["head"]["bias"] = other["params"]["head"]["bias"].at[1].add(0.01)
    assert judge(case.name, model, runs(case, (module, other))).outcome == "wrong"


def example(make: Any = tokens, size: tuple[int, int] = EXAMPLE, seed: int = 0) -> Any:
    return make(*size, np.random.default_rng(seed))


def session(model: onnx.ModelProto) -> ort.InferenceSession:
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


class Nested(nnx.Module):
    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.encoder = nnx.Sequential(nnx_both(nnx.LSTMCell, jnp.float32), nnx.Linear(2 * HIDDEN, INPUTS, rngs=rngs))
        self.decoder = nnx_rnn(nnx.GRUCell, jnp.float32, reverse=True)
        self.head = nnx.Linear(HIDDEN, 2, rngs=rngs)

    def __call__(self, frames: Any, scale: float = 1.0) -> dict[str, Any]:
        return {"logits": self.head(self.decoder(self.encoder(frames) * scale))}


@pytest.fixture(scope="module")
def nested() -> tuple[Nested, onnx.ModelProto]:
    module = Nested()
    return module, bridge.to_onnx(module, example=example(frames))


def test_nodes_are_named_by_module_path_and_found_as_the_module_names_them(nested: Any) -> None:
    module, model = nested
    names = [node.name for node in model.graph.node if node.op_type in ("LSTM", "GRU")]
    assert names == ["encoder.layers.0", "decoder"]
    assert {node.name for node in model.graph.node} >= {"head.MatMul", "encoder.layers.1.MatMul"}
    assert {entry.name for entry in model.graph.initializer} >= {"head.kernel", "head.bias", "decoder.W"}
    found, own = bridge.cells(model), bridge.cells(module)
    assert set(found) == set(own) == set(names)
    assert all(found[name] == own[name] for name in names)


def test_metadata_and_interface(nested: Any) -> None:
    _, model = nested
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert metadata["bridge.source"].endswith("nnx.Nested")
    (entry,), (result,) = model.graph.input, model.graph.output
    assert (entry.name, result.name) == ("frames", "logits")
    assert [dim.dim_param or dim.dim_value for dim in entry.type.tensor_type.shape.dim] == ["batch", "time", INPUTS]
    assert [dim.dim_param or dim.dim_value for dim in result.type.tensor_type.shape.dim] == ["batch", "time", 2]
    assert model.ir_version <= 10
    assert b"site-packages" not in model.SerializeToString()


def test_zero_states_leave_no_chain_of_shapes(nested: Any) -> None:
    _, model = nested
    assert not {node.op_type for node in model.graph.node} & {"Expand", "ConstantOfShape", "Shape"}


def test_a_static_argument_of_the_example_is_kept() -> None:
    module = Nested()
    x = example(frames)[0]
    model = bridge.to_onnx(module, example={"frames": x, "scale": 2.0})
    assert [entry.name for entry in model.graph.input] == ["frames"]
    (got,) = session(model).run(None, {"frames": x})
    np.testing.assert_allclose(got, module(x, 2.0)["logits"], atol=1e-6)  # 8 eps of values below 1


def test_a_layer_norm_is_one_operator_and_more_exact_than_its_trace() -> None:
    module = nnx.LayerNorm(64, rngs=nnx.Rngs(0))
    x = (np.random.default_rng(0).standard_normal((3, 4, 64)) + 10).astype(np.float32)
    model = bridge.to_onnx(module, example=(x[:2],))
    assert [node.op_type for node in model.graph.node] == ["LayerNormalization"]
    exact = x.astype(np.float64)
    exact = (exact - exact.mean(-1, keepdims=True)) / np.sqrt(exact.var(-1, keepdims=True) + 1e-6)
    (got,) = session(model).run(None, {"x": x})
    assert np.abs(got - exact).max() <= np.abs(module(x) - exact).max()


@pytest.mark.parametrize("opset", [17, 22])
def test_every_opset_is_written(opset: int) -> None:
    case = CASES["linen tagger GRUCell"]
    source = built(case)
    model = bridge.to_onnx(source, example=example(), opset=opset)
    assert [entry.version for entry in model.opset_import if entry.domain == ""] == [opset]
    x = example(size=(3, 4))
    np.testing.assert_allclose(session(model).run(None, {"tokens": x[0]})[0], outputs(split(source), x)[0], atol=3e-6)


def test_the_module_is_left_as_it_was_also_when_the_export_fails() -> None:
    calls = {kind: kind.__call__ for kind in (nnx.RNN, nnx.Bidirectional, nnx.LSTMCell, nnx.Linear, NnxTagger)}
    module = NnxTagger(nnx_both(nnx.LSTMCell, jnp.float32), 2 * HIDDEN)
    before = jax.tree.leaves(nnx.state(module, nnx.Not(nnx.RngKey)))
    pad = jnp.pad
    bridge.to_onnx(module, example=example())
    with pytest.raises(Unsupported, match="JAX cannot trace"):
        bridge.to_onnx(module, example=example(frames))  # floats for an Embed
    assert {kind: kind.__call__ for kind in calls} == calls
    assert jnp.pad is pad
    assert all(a is b for a, b in zip(jax.tree.leaves(nnx.state(module, nnx.Not(nnx.RngKey))), before, strict=True))
    assert not hasattr(module.rnn, "bridge_path")


class Pair(nnx.Module):
    """Two sequences of their own lengths."""

    def __init__(self) -> None:
        self.encoder, self.decoder = lstm(jnp.float32, nnx.Rngs(0)), lstm(jnp.float32, nnx.Rngs(0))

    def __call__(self, source: Any, target: Any) -> Any:
        carry, _ = self.encoder(source, return_carry=True)
        return self.decoder(target, initial_carry=carry)


def test_sizes_that_only_the_example_makes_equal_stay_free() -> None:
    module = Pair()
    x = example(frames)[0]
    model = bridge.to_onnx(module, example=(x, x))
    a, b = example(frames, (3, 4), 1)[0], example(frames, (3, 7), 2)[0]
    (got,) = session(model).run(None, {"source": a, "target": b})
    np.testing.assert_allclose(got, module(a, b), atol=1e-6)


class Started(nnx.Module):
    """A layer in the order of time, with the state that it is given."""

    def __init__(self) -> None:
        self.rnn = nnx.RNN(nnx.GRUCell(INPUTS, HIDDEN, rngs=nnx.Rngs(0)), time_major=True, rngs=nnx.Rngs(0))

    def __call__(self, x: Any, carry: Any) -> Any:
        return self.rnn(x, initial_carry=carry)


@pytest.mark.parametrize("sizes", [(HIDDEN, HIDDEN + 1), (HIDDEN + 1, HIDDEN)], ids=["time", "batch"])
def test_a_size_that_is_the_number_of_units_in_the_example_stays_free(sizes: tuple[int, int]) -> None:
    module, rng = Started(), np.random.default_rng(0)

    def inputs(time: int, batch: int) -> dict[str, np.ndarray]:
        return {"x": rng.standard_normal((time, batch, INPUTS)).astype(np.float32),
                "carry": rng.standard_normal((batch, HIDDEN)).astype(np.float32)}  # fmt: skip

    model = bridge.to_onnx(module, example=inputs(*sizes))
    others = inputs(HIDDEN + 3, 2)
    np.testing.assert_allclose(session(model).run(None, others)[0], module(**others), atol=2e-6)


class Learned(nnx.Module):
    """Positions that are parameters: at most 16."""

    def __init__(self) -> None:
        self.positions = nnx.Param(jnp.arange(16.0 * INPUTS).reshape(16, INPUTS) / 50)
        self.rnn = nnx_rnn(nnx.GRUCell, jnp.float32)

    def __call__(self, x: Any) -> Any:
        return self.rnn(x + self.positions[: x.shape[1]])


def test_a_bound_on_a_symbol_may_be_stated() -> None:
    module = Learned()
    model = bridge.to_onnx(module, example=example(frames), dynamic={"x": {0: "batch", 1: "time <= 16"}})
    x = example(frames, (3, 11), 1)[0]
    np.testing.assert_allclose(session(model).run(None, {"x": x})[0], module(x), atol=2e-6)


class Mixing(nnx.Module):
    """A layer over the time axis itself, which fixes it."""

    def __init__(self) -> None:
        self.mix = nnx.Linear(EXAMPLE[1], EXAMPLE[1], rngs=nnx.Rngs(0))
        self.rnn = nnx_rnn(nnx.GRUCell, jnp.float32)

    def __call__(self, x: Any) -> Any:
        return self.rnn(self.mix(x.swapaxes(1, 2)).swapaxes(1, 2))


def test_an_axis_that_the_model_fixes_is_noted_and_refused_where_it_was_asked_for() -> None:
    model = bridge.to_onnx(Mixing(), example=example(frames))
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(metadata["bridge.notes"]) == [f"x: axis 1 is fixed at {EXAMPLE[1]} by the model"]
    shape = model.graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in shape] == ["batch", EXAMPLE[1], INPUTS]
    with pytest.raises(Unsupported, match="JAX cannot trace the model"):
        bridge.to_onnx(Mixing(), example=example(frames), dynamic={"x": {1: "time"}})


class Counting(nnx.Module):
    def __init__(self) -> None:
        self.rnn = nnx_rnn(nnx.GRUCell, jnp.float32)
        self.seen = nnx.Variable(jnp.zeros(()))

    def __call__(self, x: Any) -> Any:
        self.seen[...] += 1
        return self.rnn(x)


class Random(nnx.Module):
    def __init__(self) -> None:
        self.rnn = nnx_rnn(nnx.GRUCell, jnp.float32)
        self.rngs = nnx.Rngs(0)

    def __call__(self, x: Any) -> Any:
        return self.rnn(x) + jax.random.normal(self.rngs.noise(), (HIDDEN,))


class Branching(nnx.Module):
    def __call__(self, x: Any) -> Any:
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize(
    ("module", "error", "text"),
    [
        (Counting, Unsupported, "seen: the call changes a variable"),
        (Random, Unsupported, "draws random numbers"),
        (Branching, Unsupported, "control flow must not depend on the data"),
    ],
    ids=["state", "random", "branch"],
)
def test_a_model_that_no_graph_is(module: Any, error: Any, text: str) -> None:
    with pytest.raises(error, match=text):
        bridge.to_onnx(module(), example=example(frames))


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({}, UsageError, "needs an example"),
        ({"example": (np.zeros((2, 5, INPUTS), np.float32), 1, 2, 3)}, UsageError, "does not take the example"),
        ({"example": (np.zeros((2, 0, INPUTS), np.float32),)}, BadInput, "empty"),
        ({"example": example(frames), "lengths": True}, UsageError, "an input of its own"),
        ({"example": example(frames), "dynamic": {"y": {0: "batch"}}}, UsageError, "'y' is no array"),
        ({"example": example(frames), "dynamic": {"frames": {7: "batch"}}}, UsageError, "no such axis"),
        ({"example": (np.zeros((2, 5, INPUTS), jnp.bfloat16),)}, Unsupported, "bfloat16"),
    ],
    ids=["no example", "too many", "empty", "lengths", "input", "axis", "dtype"],
)
def test_bad_calls(options: Any, error: Any, text: str) -> None:
    with pytest.raises(error, match=text):
        bridge.to_onnx(Nested(), **options)


def test_all_missing_primitives_are_named_at_once() -> None:
    class Spectral(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            y = nn.RNN(nn.GRUCell(HIDDEN), name="rnn")(x)
            return jax.lax.lgamma(y) + jnp.abs(jnp.fft.fft(y))

    module = Spectral()
    with pytest.raises(Unsupported) as caught:
        bridge.to_onnx((module, module.init(jax.random.key(0), example(frames)[0])), example=example(frames))
    assert "fft (1x" in str(caught.value)
    assert "lgamma (1x" in str(caught.value)


def test_lengths_of_another_batch_are_refused() -> None:
    x, lengths = example(ragged)
    module = NnxTagger(nnx_both(nnx.GRUCell, jnp.float32), 2 * HIDDEN)
    with pytest.raises(Unsupported, match="of another batch"):
        bridge.to_onnx(module, example=(example()[0], np.append(lengths, 1).astype(np.int32)))
    assert x.shape[0] == len(lengths)


@pytest.mark.parametrize("api", ["nnx", "linen"])
def test_states_as_inputs_are_those_of_the_layer_by_its_path(api: str) -> None:
    source = built(CASES[f"{api} tagger Bidirectional GRUCell"])
    x = example(size=(3, 6))[0]
    model = bridge.to_onnx(source, example=(x,), states="inputs")
    names = [entry.name for entry in model.graph.input]
    assert names == ["tokens", "rnn.forward_rnn.initial_h", "rnn.backward_rnn.initial_h"]
    assert [entry.name for entry in model.graph.output][1:] == ["rnn.forward_rnn.h_n", "rnn.backward_rnn.h_n"]
    rng = np.random.default_rng(3)
    states = {name: rng.standard_normal((3, HIDDEN)).astype(np.float32) for name in names[1:]}
    assert bridge.verify(source, model, inputs={"tokens": x, **states}).passed


class Twice(nnx.Module):
    def __init__(self) -> None:
        self.rnn = nnx_rnn(nnx.GRUCell, jnp.float32)

    def __call__(self, x: Any) -> Any:
        return self.rnn(x) + self.rnn(2 * x)


@pytest.mark.parametrize("both", [False, True], ids=["one direction", "both"])
def test_the_calls_of_a_shared_layer_share_its_weights(both: bool) -> None:
    module = Twice()
    if both:
        module.rnn = nnx_both(nnx.LSTMCell, jnp.float32)
    model = bridge.to_onnx(module, example=example(frames))
    nodes = [node for node in model.graph.node if node.op_type in ("GRU", "LSTM")]
    assert len(nodes) == 2
    assert nodes[0].input[1:4] == nodes[1].input[1:4]
    x = example(frames, (3, 4), 1)[0]
    np.testing.assert_allclose(session(model).run(None, {"x": x})[0], module(x), atol=2e-6)


def test_a_layer_that_is_called_twice_has_no_one_initial_state() -> None:
    with pytest.raises(Unsupported, match="called twice"):
        bridge.to_onnx(Twice(), example=example(frames), states="inputs")


class Quadratic(nn.Module):
    """No recurrence at all."""

    @nn.compact
    def __call__(self, x: Any, *, power: int = 2) -> Any:
        return nn.Dense(2)(x) ** power


def test_a_model_without_recurrence_and_its_keywords() -> None:
    module = Quadratic()
    variables = module.init(jax.random.key(0), example(frames)[0])
    model = bridge.to_onnx((module, variables), example={"x": example(frames)[0], "power": 3})
    x = example(frames, (3, 4), 1)[0]
    (got,) = session(model).run(None, {"x": x})
    np.testing.assert_allclose(got, module.apply(variables, x, power=3), rtol=1e-5, atol=1e-6)


class Starting(nnx.Module):
    def __init__(self) -> None:
        self.rnn = nnx.RNN(nnx.GRUCell(3, 4, rngs=nnx.Rngs(0)))

    def __call__(self, x: jax.Array, h: jax.Array) -> Any:
        return self.rnn(x, initial_carry=h, return_carry=True)


def test_the_features_of_a_carry_are_no_symbol() -> None:
    x, h = np.zeros((2, 5, 3), np.float32), np.zeros((2, 4), np.float32)
    model = bridge.to_onnx(Starting(), example=(x, h))
    shapes = [[dim.dim_param or dim.dim_value for dim in each.type.tensor_type.shape.dim] for each in model.graph.input]
    assert shapes == [["batch", "time", 3], ["batch", 4]]
    with pytest.raises(Unsupported, match=r"the carry has \[3\] features and needs \[4\]"):
        bridge.to_onnx(Starting(), example=(x, h[:, :3]))


class OneNameTwice(nnx.Module):
    def __call__(self, x: Any) -> Any:
        return {"a": {"b": x + 1}, "a_b": 2 * x}


def test_two_outputs_of_one_name_are_kept_apart() -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    found = bridge.run(bridge.to_onnx(OneNameTwice(), example=x), {"x": x})
    assert list(found) == ["a_b", "a_b_"]
    np.testing.assert_array_equal(found["a_b"], x + 1)
    np.testing.assert_array_equal(found["a_b_"], 2 * x)
