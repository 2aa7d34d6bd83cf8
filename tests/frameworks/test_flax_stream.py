"""Streaming in Flax: chunks under lax.scan equal to onnxruntime stepped by hand, states included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import bridge
from bridge import graph
from bridge.errors import BadInput, UsageError
from bridge.graph import Writer
from bridge.ops.program import evaluate
from tests.cells import random_cell
from tests.models import model_file
from tests.tolerances import assert_within_referee_bound

APIS = ("nnx", "linen")
Arrays = dict[str, np.ndarray]


def stream_of(source: Any, states: dict[str, str], api: str) -> Any:
    """The stream as a function of chunks and initial states."""
    made = bridge.flax_stream(bridge.to_flax(source, api=api), states=states)
    if api == "nnx":
        return made
    module, variables = made
    return lambda *args, **named: module.apply(variables, *args, **named)


def stepped(run: Any, chunks: Arrays, initial: Arrays, states: dict[str, str]) -> Arrays:
    """`run` called once a chunk with the states fed back: outputs stacked, final states by input name."""
    carry, history = dict(initial), []
    for at in range(len(next(iter(chunks.values())))):
        results = run({name: value[at] for name, value in chunks.items()} | carry)
        carry = {name: results[output] for name, output in states.items()}
        history.append(results)
    outputs = [name for name in history[0] if name not in states.values()]
    return {name: np.stack([results[name] for results in history]) for name in outputs} | carry


def assert_streams(source: Any, states: dict[str, str], chunks: Arrays, initial: Arrays, api: str) -> None:
    """Streamed outputs and final states within the bound of onnxruntime's own steps."""
    model = graph.as_model(source)
    stream = stream_of(source, states, api)
    call = nnx.jit(lambda m, c, i: m(**c, **i)) if api == "nnx" else jax.jit(lambda _, c, i: stream(**c, **i))
    outputs, final = call(stream if api == "nnx" else 0, chunks, initial)
    expected = stepped(lambda feeds: bridge.run(source, feeds), chunks, initial, states)
    truth = stepped(lambda feeds: evaluate(model, feeds), chunks, initial, states)
    names = [name for name in expected if name not in states]
    actual = dict(zip(names, outputs if isinstance(outputs, tuple) else (outputs,), strict=True)) | final
    assert set(actual) == set(expected)
    for name, value in actual.items():
        assert_within_referee_bound(value, expected[name], truth[name])


@pytest.mark.models
@pytest.mark.parametrize("api", APIS)
def test_silero_with_two_states_streams_in_chunks_of_three_frames(api: str) -> None:
    path = model_file("silero-vad", "silero_vad_16k_sequence.onnx")
    rng = np.random.default_rng(0)
    chunks = {"input": 0.1 * rng.standard_normal((4, 3, 576)).astype(np.float32)}
    initial = {name: 0.5 * rng.standard_normal((1, 1, 128)).astype(np.float32) for name in "hc"}
    assert_streams(str(path), {"h": "hn", "c": "cn"}, chunks, initial, api)


@pytest.mark.models
@pytest.mark.parametrize("api", APIS)
def test_silero_with_one_packed_state_streams(api: str) -> None:
    path = model_file("silero-vad", "silero_vad_openvino_16k.onnx")
    rng = np.random.default_rng(0)
    chunks = {"input": 0.1 * rng.standard_normal((6, 1, 576)).astype(np.float32)}
    initial = {"state": 0.5 * rng.standard_normal((2, 1, 128)).astype(np.float32)}
    assert_streams(str(path), {"state": "stateN"}, chunks, initial, api)


@pytest.fixture
def gru() -> Any:
    """x [time, batch, 3] and lengths with a state h -> Y, new_h."""
    w = Writer()
    x, h = w.input("x", "float32", ["time", "batch", 3]), w.input("h", "float32", [1, "batch", 4])
    lengths = w.input("lengths", "int32", ["batch"])
    y, new_h, _ = w.recurrent(random_cell("GRU", 3, 4, np.random.default_rng(1)), x, lengths=lengths, initial_h=h,
                              name="rnn")  # fmt: skip
    w.output(y, "Y", "float32", ["time", 1, "batch", 4])
    w.output(new_h, "new_h", "float32", [1, "batch", 4])
    return w.model()


CHUNKS = {"x": np.random.default_rng(2).standard_normal((5, 2, 3, 3)).astype(np.float32),
          "lengths": np.array([[2, 1, 2], [1, 1, 2], [2, 2, 2], [2, 1, 1], [1, 2, 2]], np.int32)}  # fmt: skip


@pytest.mark.parametrize("api", APIS)
def test_every_chunked_input_advances_and_lengths_are_ragged(gru: Any, api: str) -> None:
    initial = {"h": np.random.default_rng(3).standard_normal((1, 3, 4)).astype(np.float32)}
    proto = graph.to_proto(gru)
    assert_streams(proto, {"h": "new_h"}, CHUNKS, initial, api)


@pytest.mark.parametrize("api", APIS)
def test_the_stream_is_the_step_by_step_run_of_the_same_model(gru: Any, api: str) -> None:
    """Within the rounding of one compilation against another: XLA fuses the body of a scan in its own way."""
    stream, net = stream_of(gru, {"h": "new_h"}, api), bridge.to_flax(gru, api=api)
    step = jax.jit((lambda **f: net(**f)) if api == "nnx" else (lambda **f: net[0].apply(net[1], **f)))
    initial, states = {"h": np.ones((1, 3, 4), np.float32)}, {"h": "new_h"}
    expected = stepped(lambda f: dict(zip(("Y", "new_h"), step(**f), strict=True)), CHUNKS, initial, states)
    truth = stepped(lambda f: evaluate(gru, f), CHUNKS, initial, states)
    outputs, final = jax.jit(lambda c, i: stream(**c, **i))(CHUNKS, initial)
    assert_within_referee_bound(outputs, expected["Y"], truth["Y"])
    assert_within_referee_bound(final["h"], expected["h"], truth["h"])


@pytest.mark.parametrize("api", APIS)
def test_two_calls_go_on_where_the_first_ended(gru: Any, api: str) -> None:
    stream = stream_of(gru, {"h": "new_h"}, api)
    whole, end = stream(**CHUNKS)
    first, middle = stream(CHUNKS["x"][:2], CHUNKS["lengths"][:2])
    second, final = stream(CHUNKS["x"][2:], CHUNKS["lengths"][2:], **middle)
    np.testing.assert_array_equal(np.concatenate([first, second]), whole)
    np.testing.assert_array_equal(final["h"], end["h"])


def test_states_that_are_left_out_take_their_batch_from_the_chunks(gru: Any) -> None:
    stream = stream_of(gru, {"h": "new_h"}, "nnx")
    outputs, _ = stream(**CHUNKS)
    zeros, _ = stream(**CHUNKS, h=np.zeros((1, 3, 4), np.float32))
    np.testing.assert_array_equal(outputs, zeros)


def test_parameters_are_shared_and_a_gradient_flows_through_the_chunks(gru: Any) -> None:
    net = bridge.to_flax(gru)
    stream = bridge.flax_stream(net, states={"h": "new_h"})
    assert stream.net is net
    grads = nnx.grad(lambda m: jnp.sum(m(**CHUNKS)[0] ** 2))(stream)
    assert all(bool(jnp.any(leaf != 0)) for leaf in jax.tree.leaves(grads))


def test_linen_draws_the_same_variables_as_the_model_has(gru: Any) -> None:
    module, variables = bridge.flax_stream(bridge.to_flax(gru, api="linen"), states={"h": "new_h"})
    fresh = module.init(jax.random.key(0), **CHUNKS)
    assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, variables)


@pytest.mark.parametrize(
    ("states", "what"),
    [({"k": "new_h"}, "no such input"), ({"h": "hn"}, "no such output"),
     ({"h": "new_h", "x": "new_h"}, "one output for two inputs"),
     ({"x": "Y", "h": "new_h"}, None)],
    ids=str)  # fmt: skip
def test_names_that_the_model_does_not_have_are_refused(gru: Any, states: dict[str, str], what: str | None) -> None:
    net = bridge.to_flax(gru)
    if what is None:
        assert bridge.flax_stream(net, states=states).plan.chunked == ("lengths",)
        return
    with pytest.raises(UsageError, match=what):
        bridge.flax_stream(net, states=states)


def test_an_unknown_name_is_answered_with_all_names(gru: Any) -> None:
    with pytest.raises(UsageError, match=r"inputs x, h, lengths; outputs Y, new_h"):
        bridge.flax_stream(bridge.to_flax(gru), states={"k": "new_h"})


def test_a_model_of_states_alone_is_refused() -> None:
    w = Writer()
    w.output(w.op("Neg", w.input("h", "float32", [2])), "hn", "float32", [2])
    with pytest.raises(UsageError, match="every input is a state"):
        bridge.flax_stream(bridge.to_flax(w.model()), states={"h": "hn"})


def test_another_kind_of_model_is_refused() -> None:
    with pytest.raises(UsageError, match="to_flax"):
        bridge.flax_stream(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), states={"h": "hn"})


def test_a_state_that_changes_its_shape_is_refused() -> None:
    w = Writer()
    x, h = w.input("x", "float32", [2]), w.input("h", "float32", ["n"])
    w.output(w.op("Concat", x, h, axis=0), "hn")
    stream = bridge.flax_stream(bridge.to_flax(w.model()), states={"h": "hn"})
    with pytest.raises(BadInput, match=r"state 'h' comes out as 'hn'(.|\n)*float32\[5\](.|\n)*float32\[3\]"):
        stream(np.ones((4, 2), np.float32), h=np.ones(3, np.float32))
    with pytest.raises(UsageError, match=r"stream\(\.\.\., h=array\)"):
        stream(np.ones((4, 2), np.float32))


def test_wrong_calls_are_refused(gru: Any) -> None:
    stream = stream_of(gru, {"h": "new_h"}, "nnx")
    for args, named in [((), {}), ((CHUNKS["x"],), {}), ((), {**CHUNKS, "k": 1}), (tuple(CHUNKS.values()), CHUNKS)]:
        with pytest.raises(UsageError, match="wrong inputs"):
            stream(*args, **named)
    with pytest.raises(BadInput, match="stream: no array"):
        stream(None, CHUNKS["lengths"])
    with pytest.raises(UsageError, match="no mapping"):
        stream_of(gru, None, "nnx")
    with pytest.raises(BadInput, match="numbers of chunks"):
        stream(CHUNKS["x"], CHUNKS["lengths"][:2])
    with pytest.raises(BadInput, match=r"(?s)an axis of their own.*\[chunks, time, batch, 3\]"):
        stream(CHUNKS["x"][0], CHUNKS["lengths"][:2])


def test_the_public_name_costs_no_jax(tmp_path: Path) -> None:
    import subprocess
    import sys

    code = "import bridge, sys; bridge.flax_stream; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
