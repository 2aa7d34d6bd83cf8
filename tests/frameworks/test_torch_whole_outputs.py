"""What a torch model returns: trees with None in them, things that are no arrays, parts of one layer's results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import bridge
from bridge.errors import Unsupported, UsageError
from tests.tolerances import assert_within_referee_bound

Forward = Callable[[Any, torch.Tensor], Any]


class Returning(nn.Module):
    """Two bidirectional layers, and what a function makes of them."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.rnn = nn.LSTM(3, 4, 2, bidirectional=True, batch_first=True)
        self.made = forward

    def forward(self, x: torch.Tensor) -> Any:
        return self.made(self.rnn, x)


def in_halves(rnn: nn.Module, x: torch.Tensor) -> Any:
    first, second = x.chunk(2, 1)
    output, states = rnn(first)
    return torch.cat([output, rnn(second, states)[0]], 1)


TREES: dict[str, tuple[Forward, list[str]]] = {
    "none": (lambda rnn, x: {"y": rnn(x)[0], "no": None, "h": (None, x * 2)}, ["y", "h_1"]),
    "one name twice": (lambda rnn, x: {"a_b": x * 2, "a": {"b": rnn(x)[0]}}, ["a_b", "a_b_"]),
    "called once for each output": (
        lambda rnn, x: (torch.tanh(rnn(x)[0]), rnn(x)[1][1], rnn(x)[0], rnn(x)[1]),
        ["output_0", "output_1", "output_2", "output_3_0", "output_3_1"],
    ),
    "halves": (in_halves, ["output"]),
}


@pytest.mark.parametrize("name", TREES)
def test_every_array_of_the_result_is_an_output(name: str) -> None:
    forward, names = TREES[name]
    module = Returning(forward).eval()
    model = bridge.to_onnx(module, example=(torch.zeros(2, 6, 3),))
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((3, 4, 3)).astype(np.float32))
    found = bridge.run(model, {"x": x.numpy()})
    assert list(found) == names
    with torch.no_grad():
        got, wanted = (
            [leaf.numpy() for leaf in torch.utils._pytree.tree_leaves(result) if leaf is not None]
            for result in (module(x), module.double()(x.double()))
        )
    for value, own, referee in zip(found.values(), got, wanted, strict=True):
        assert_within_referee_bound(value, own, referee)


def test_calls_of_a_layer_on_one_input_are_one_node() -> None:
    model = bridge.to_onnx(Returning(TREES["called once for each output"][0]).eval(), example=(torch.zeros(2, 6, 3),))
    assert [node.name for node in model.graph.node if node.op_type == "LSTM"] == ["rnn.l0", "rnn.l1"]
    assert list(bridge.cells(model)) == ["rnn.l0", "rnn.l1"]


@pytest.mark.parametrize("value", [3, "text"], ids=str)
def test_a_result_that_is_no_array_is_refused(value: object) -> None:
    module = Returning(lambda rnn, x: (rnn(x)[0], value)).eval()
    with pytest.raises(Unsupported, match=r"no array(?s:.)*got: " + repr(value)):
        bridge.to_onnx(module, example=(torch.zeros(2, 6, 3),))


class OneStep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(3, 4)

    def forward(self, x: torch.Tensor, h: torch.Tensor, c: torch.Tensor) -> Any:
        return self.cell(x, (h, c))


def test_the_states_of_one_step_have_the_cell_s_sizes() -> None:
    example = (torch.zeros(2, 3), torch.zeros(2, 4), torch.zeros(2, 4))
    model = bridge.to_onnx(OneStep().eval(), example=example)
    shapes = [[dim.dim_param or dim.dim_value for dim in each.type.tensor_type.shape.dim] for each in model.graph.input]
    assert shapes == [["batch", 3], ["batch", 4], ["batch", 4]]
    with pytest.raises(UsageError, match=r"cell \(LSTMCell\): forward fails on the example(?s:.)*got 5, expected 4"):
        bridge.to_onnx(OneStep().eval(), example=(*example[:2], torch.zeros(2, 5)))


class Streaming(nn.Module):
    """A layer whose states come in and go out."""

    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.rnn = rnn

    def forward(self, x, *states):
        return self.rnn(x, states if len(states) > 1 else states[0])


STREAMING = {
    "one row": (lambda: nn.GRU(3, 4, batch_first=True), (2, 5, 3), [(1, 2, 4)], [[1, "batch", 4]]),
    "one row, one unit": (lambda: nn.LSTM(3, 1, batch_first=True), (2, 5, 3), [(1, 2, 1)] * 2, [[1, "batch", 1]] * 2),
    "projected": (lambda: nn.LSTM(3, 4, proj_size=1), (5, 2, 3), [(1, 2, 1), (1, 2, 4)],
                  [[1, "batch", 1], [1, "batch", 4]]),
    "unbatched": (lambda: nn.LSTM(3, 1), (5, 3), [(1, 1)] * 2, [[1, 1]] * 2),
    "four rows": (lambda: nn.GRU(3, 4, 2, bidirectional=True), (5, 2, 3), [(4, 2, 4)], [[4, "batch", 4]]),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")  # torch, natively
@pytest.mark.parametrize("case", STREAMING.values(), ids=STREAMING)
def test_states_are_declared_with_the_sizes_that_they_must_have(case: Any) -> None:
    make, shape, states, declared = case
    torch.manual_seed(0)
    module = Streaming(make()).eval()
    model = bridge.to_onnx(module, example=tuple(torch.randn(size) for size in (shape, *states)))
    found = [[dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
             for value in model.graph.input[1:]]  # fmt: skip
    assert found == declared
    assert bridge.verify(model, "torch").passed
