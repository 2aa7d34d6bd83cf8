"""A loop that counts its own steps is found out, however few of them a trace sees."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import bridge
from bridge.errors import Unsupported


class Counting(nn.Module):
    """Steps a cell over time; `late` steps, counted by what was collected, are doubled."""

    def __init__(self, late: int) -> None:
        super().__init__()
        self.cell, self.late = nn.LSTMCell(3, 4), late

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h, c = x.new_zeros(x.shape[0], 4), x.new_zeros(x.shape[0], 4)
        outputs: list[torch.Tensor] = []
        for t in range(x.shape[1]):
            h, c = self.cell(x[:, t], (h, c))
            outputs.append(2 * h if len(outputs) >= self.late else h)
        return torch.stack(outputs, 1)


@pytest.mark.parametrize("late", [5, 10], ids=["within the example", "past the example"])
def test_a_branch_on_the_loops_own_counter_is_refused(late: int) -> None:
    torch.manual_seed(0)
    with pytest.raises(Unsupported, match="later steps"):
        bridge.to_onnx(Counting(late).eval(), example=(torch.zeros(2, 6, 3),))


def test_a_loop_that_does_not_count_is_one_node_and_agrees_at_another_length() -> None:
    torch.manual_seed(0)
    module = Counting(10_000).eval()
    proto = bridge.to_onnx(module, example=(torch.zeros(2, 6, 3),))
    assert [node.op_type for node in proto.graph.node].count("LSTM") == 1
    x = np.random.default_rng(0).standard_normal((3, 17, 3)).astype(np.float32)
    with torch.no_grad():
        expected = module(torch.from_numpy(x)).numpy()
    # float32 against float32 over 17 steps: a few units in the last place.
    assert np.abs(bridge.run(proto, {"x": x})["output"] - expected).max() < 32 * np.finfo(np.float32).eps


class Through(nn.Module):
    """Steps a cell through z, as often as x is long, or as z is."""

    def __init__(self, over_own: bool) -> None:
        super().__init__()
        self.cell, self.over_own = nn.GRUCell(3, 4), over_own

    def forward(self, x: torch.Tensor, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        h = z.new_zeros(z.shape[0], 4)
        for t in range(z.shape[1] if self.over_own else x.shape[1]):
            h = self.cell(z[:, t], h)
        return h, x.sum()


def through(over_own: bool, dynamic: Any) -> tuple[nn.Module, onnx.ModelProto]:
    torch.manual_seed(0)
    module = Through(over_own).eval()
    return module, bridge.to_onnx(module, example=(torch.zeros(2, 5, 3), torch.zeros(2, 5, 3)), dynamic=dynamic)


def test_a_loop_over_the_length_of_another_tensor_is_refused() -> None:
    with pytest.raises(Unsupported, match="the size of one tensor steps through another") as caught:
        through(over_own=False, dynamic=None)
    assert "range(z.shape[1] if self.over_own else x.shape[1])" in caught.value.got


@pytest.mark.parametrize("over_own", [True, False], ids=["its own length", "a length of the same name"])
def test_a_loop_over_the_length_of_its_tensor_is_right_beside_another_tensor(over_own: bool) -> None:
    axes = {0: "batch", 1: "time"}
    module, proto = through(over_own, None if over_own else {"x": axes, "z": axes})
    x, z = (np.random.default_rng(time).standard_normal((3, time, 3)).astype(np.float32) for time in (6, 9))
    x = x if over_own else z
    with torch.no_grad():
        expected = module(torch.from_numpy(x), torch.from_numpy(z))[0].numpy()
    # float32 against float32 over 9 steps: a few units in the last place.
    assert np.abs(bridge.run(proto, {"x": x, "z": z})["output_0"] - expected).max() < 32 * np.finfo(np.float32).eps


class FromTheEnd(nn.Module):
    """Steps a cell over x by an index that `index` makes of the length and the number of the step."""

    def __init__(self, index: Any, padding: int = 0) -> None:
        super().__init__()
        self.cell, self.index, self.padding = nn.LSTMCell(3, 4), index, padding

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        length, outputs = x.shape[1], []
        state = (x.new_zeros(x.shape[0], 4), x.new_zeros(x.shape[0], 4))
        x = nn.functional.pad(x, (0, 0, 0, self.padding))
        for t in range(length):
            state = self.cell(x[:, self.index(length, t)], state)
            outputs.append(state[0])
        return torch.stack(outputs, 1)


@pytest.mark.parametrize(
    "index",
    [lambda length, t: length - 1 - t, lambda _, t: -1 - t, lambda _, t: ~t],
    ids=["length - 1 - t", "-1 - t", "~t"],
)
def test_a_loop_that_counts_from_the_end_is_a_reverse_node(index: Any) -> None:
    torch.manual_seed(0)
    module = FromTheEnd(index).eval()
    proto = bridge.to_onnx(module, example=(torch.zeros(2, 6, 3),))
    (node,) = [node for node in proto.graph.node if node.op_type == "LSTM"]
    assert {entry.name: entry.s for entry in node.attribute}["direction"] == b"reverse"
    x = np.random.default_rng(0).standard_normal((3, 17, 3)).astype(np.float32)
    with torch.no_grad():
        expected = module(torch.from_numpy(x)).numpy()
    # float32 against float32 over 17 steps: a few units in the last place.
    assert np.abs(bridge.run(proto, {"x": x})["output"] - expected).max() < 32 * np.finfo(np.float32).eps


@pytest.mark.parametrize(
    ("index", "padding", "text"),
    [
        (lambda length, t: length - 1 - t, 1, "something else at later steps"),
        (lambda length, t: length - t, 1, "computes with its length and the number of a step"),
        (lambda length, t: t - length, 0, "computes with its length and the number of a step"),
    ],
    ids=["an axis that is longer than the loop", "length - t", "t - length"],
)
def test_a_loop_that_counts_otherwise_is_refused(index: Any, padding: int, text: str) -> None:
    torch.manual_seed(0)
    with pytest.raises(Unsupported, match=text) as caught:
        bridge.to_onnx(FromTheEnd(index, padding).eval(), example=(torch.zeros(2, 6, 3),))
    assert "test_torch_whole_proof.py" in str(caught.value)
    assert "nn.LSTM for nn.LSTMCell" in caught.value.do


def test_a_loop_that_runs_past_another_tensor_is_refused() -> None:
    axes = {"x": {0: "batch", 1: "time"}, "z": {0: "batch"}}
    with pytest.raises(Unsupported, match="fails where its axes are longer"):
        bridge.to_onnx(
            Through(over_own=False).eval(), example=(torch.zeros(2, 5, 3), torch.zeros(2, 5, 3)), dynamic=axes
        )
