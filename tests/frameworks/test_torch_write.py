"""Cells into torch: native modules built from them, and the user's own modules filled with them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bridge import reference
from bridge.cell import Cell
from bridge.errors import NotRepresentable, UsageError
from bridge.frameworks import torch as door
from bridge.frameworks.door import ExportOptions
from bridge.graph import to_proto
from tests.cells import random_cell
from tests.tolerances import assert_within_referee_bound

TORCH = {"LSTM": {}, "GRU": {"linear_before_reset": True}, "RNN": {}}


def cell_of(op: str, inputs: int = 3, hidden: int = 5, seed: int = 0, **options: Any) -> Cell:
    return random_cell(op, inputs, hidden, np.random.default_rng(seed), **(TORCH[op] | options))


def stack_of(op: str, layers: int = 2, direction: str = "bidirectional") -> list[Cell]:
    width = 10 if direction == "bidirectional" else 5
    return [cell_of(op, width if at else 3, seed=at, direction=direction) for at in range(layers)]


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
@pytest.mark.parametrize("op", TORCH)
def test_build_makes_the_native_module_that_computes_the_cells(op: str, direction: str) -> None:
    cells = stack_of(op, direction=direction)
    module = door.build(cells, own_cells=False)
    assert type(module) is getattr(nn, op)
    assert not module.batch_first
    assert list(door.cells(module).values()) == cells
    x = np.random.default_rng(9).standard_normal((4, 2, 3)).astype(np.float32)
    actual, expected = door.execute(module, {"input": x}), x.astype(np.float64)
    for cell in cells:
        expected, *_ = reference.evaluate(cell, expected)
        expected = expected.transpose(0, 2, 1, 3).reshape(4, 2, -1)
    assert_within_referee_bound(actual["output"], actual["output"], expected)
    assert np.abs(actual["output"] - expected).max() < 1e-6  # float32, values below 1


def test_build_gives_trainable_parameters_of_the_cells_dtype() -> None:
    module = door.build([cell_of("GRU", dtype="float64")], own_cells=False)
    assert {value.dtype for value in module.parameters()} == {torch.float64}
    assert all(value.requires_grad for value in module.parameters())


def test_build_keeps_a_missing_bias_missing_unless_another_layer_has_one() -> None:
    without = cell_of("LSTM", bias=False)
    assert not door.build([without], own_cells=False).bias
    module = door.build([without, cell_of("LSTM", 5, seed=1)], own_cells=False)
    assert module.bias
    assert not module.bias_ih_l0.any()
    assert module.bias_ih_l1.any()


def test_relu_is_found_in_the_cell() -> None:
    assert door.build([cell_of("RNN", activations=("Relu",))], own_cells=False).nonlinearity == "relu"


REFUSED: dict[str, Callable[[], list[Cell]]] = {
    "non-zero P": lambda: [cell_of("LSTM", peepholes=True)],
    "clip": lambda: [cell_of("LSTM", clip=1.0)],
    "input_forget": lambda: [cell_of("LSTM", input_forget=True)],
    "reset": lambda: [cell_of("GRU", linear_before_reset=False)],
    "Softsign|softsign": lambda: [cell_of("RNN", activations=("Softsign",))],
    "initial_h": lambda: [cell_of("GRU", initial_h=1)],
    "reverse": lambda: [cell_of("LSTM", direction="reverse")],
    "options": lambda: [cell_of("RNN"), cell_of("RNN", 5, activations=("Relu",))],
}


@pytest.mark.parametrize("text", REFUSED)
def test_build_refuses_what_torch_has_no_place_for_and_own_cells_hold_it(text: str) -> None:
    cells = REFUSED[text]()
    with pytest.raises(NotRepresentable, match=text):
        door.build(cells, own_cells=False)
    own = door.build(cells, own_cells=True)
    assert list(door.cells(own).values()) == cells
    x = np.random.default_rng(9).standard_normal((4, 2, 3)).astype(np.float32)
    actual, expected = door.execute(own, {"input": x, "lengths": np.array([4, 2], np.int32)}), x.astype(np.float64)
    for cell in cells:
        expected, *_ = reference.evaluate(cell, expected, lengths=np.array([4, 2], np.int32))
        expected = expected.transpose(0, 2, 1, 3).reshape(4, 2, -1)
    assert np.abs(actual["output"] - expected).max() < 1e-6  # float32, values below 1


def test_an_own_module_exports_as_any_other() -> None:
    import onnxruntime as ort

    cells = [cell_of("LSTM", peepholes=True, initial_h=1, initial_c=1), cell_of("LSTM", 5, seed=1, input_forget=True)]
    own = door.build(cells, own_cells=True)
    proto = to_proto(door.export(own, ExportOptions()))
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.random.default_rng(9).standard_normal((4, 2, 3)).astype(np.float32)
    native = door.execute(own, {"input": x})
    for name, value in zip(native, session.run(None, {"input": x}), strict=True):
        assert np.abs(native[name] - value).max() < 1e-6  # float32, values below 1


@pytest.mark.parametrize(
    ("cells", "text"),
    [
        ([cell_of("LSTM"), cell_of("GRU", 5)], "share their op"),
        ([cell_of("LSTM"), cell_of("LSTM", 5, 4)], "share their hidden_size"),
        ([cell_of("LSTM"), cell_of("LSTM", 4)], "no stack"),
        ([cell_of("LSTM"), cell_of("LSTM", 5, direction="bidirectional")], "share their num_directions"),
    ],
    ids=["op", "size", "chain", "direction"],
)
def test_cells_that_are_no_stack_are_refused_also_as_own_cells(cells: list[Cell], text: str) -> None:
    for own_cells in (False, True):
        with pytest.raises(NotRepresentable, match=text):
            door.build(cells, own_cells=own_cells)


# ---------------------------------------------------------------------- assign


class Model(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.encoder = nn.ModuleDict({"rnn": nn.GRU(3, 5, num_layers=2, bidirectional=True, **options)})
        self.step = nn.LSTMCell(3, 5)
        self.head = nn.Linear(5, 2)


def test_assign_fills_layers_by_path_and_returns_the_model() -> None:
    model, cells, step = Model(), stack_of("GRU"), cell_of("LSTM")
    head = copy.deepcopy(model.head.state_dict())
    assert door.assign(model, {"encoder.rnn": cells, "step": step}) is model
    assert list(door.cells(model).values()) == [*cells, step]
    assert all(torch.equal(value, head[name]) for name, value in model.head.state_dict().items())
    assert model.encoder["rnn"].weight_hh_l1_reverse.requires_grad


def test_assign_takes_what_cells_returns() -> None:
    source, target = Model(), Model()
    door.assign(target, door.cells(source))
    x = np.random.default_rng(0).standard_normal((4, 2, 3)).astype(np.float32)
    for mine, theirs in zip(*(door.execute(m.encoder["rnn"], {"input": x}).values() for m in (target, source)),
                            strict=True):  # fmt: skip
        assert np.array_equal(mine, theirs)


@pytest.mark.parametrize(("module", "path"), [(nn.LSTM, ""), (nn.LSTM, "l0"), (nn.LSTMCell, ""), (nn.LSTMCell, "cell")])
def test_a_bare_module_is_assigned_by_the_empty_path_or_its_cells_name(module: Any, path: str) -> None:
    cell = cell_of("LSTM")
    assert list(door.cells(door.assign(module(3, 5), {path: cell})).values()) == [cell]


WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "path": ({"decoder": cell_of("LSTM")}, UsageError, "encoder.rnn"),
    "layer": ({"encoder.rnn.l2": cell_of("GRU", 10, direction="bidirectional")}, UsageError, "no recurrent"),
    "count": ({"encoder.rnn": stack_of("GRU", 1)}, UsageError, "one a layer"),
    "direction": ({"encoder.rnn": stack_of("GRU", 2, "forward")}, NotRepresentable, "another way"),
    "reverse": ({"step": cell_of("LSTM", direction="reverse")}, NotRepresentable, "another way"),
    "size": ({"step": cell_of("LSTM", 3, 6)}, NotRepresentable, "shape"),
    "operator": ({"step": cell_of("GRU")}, NotRepresentable, "LSTM"),
    "dtype": ({"step": cell_of("LSTM", dtype="float64")}, NotRepresentable, "dtype"),
    "peepholes": ({"step": cell_of("LSTM", peepholes=True)}, NotRepresentable, "P"),
    "reset": ({"encoder.rnn.l0": cell_of("GRU", direction="bidirectional", linear_before_reset=False)},
              NotRepresentable, "reset"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_refused_assignment_changes_nothing(name: str) -> None:
    mapping, error, text = WRONG[name]
    model = Model()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(error, match=text):
        door.assign(model, {"encoder.rnn.l1": cell_of("GRU", 10, direction="bidirectional"), **mapping})
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_layer_without_bias_takes_only_cells_whose_bias_is_zero() -> None:
    module = nn.LSTM(3, 5, bias=False)
    cell = cell_of("LSTM")
    with pytest.raises(NotRepresentable, match="b"):
        door.assign(module, {"": cell})
    zero = Cell("LSTM", W=cell.W, R=cell.R, B=np.zeros_like(cell.B))
    assert np.array_equal(door.cells(door.assign(module, {"": zero}))["l0"].W, cell.W)


def test_a_nonlinearity_that_the_layer_does_not_have_is_refused() -> None:
    with pytest.raises(NotRepresentable):
        door.assign(nn.RNN(3, 5, nonlinearity="relu"), {"": cell_of("RNN")})


def test_computed_weights_are_not_assigned_to() -> None:
    module = nn.LSTM(3, 5)
    nn.utils.parametrizations.weight_norm(module, "weight_hh_l0")
    with pytest.raises(NotRepresentable, match="computed and not stored"):
        door.assign(module, {"": cell_of("LSTM")})


def test_tied_layers_take_equal_cells_only() -> None:
    module = nn.LSTM(5, 5, num_layers=2)
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        setattr(module, f"{name}_l1", getattr(module, f"{name}_l0"))
    first, second = cell_of("LSTM", 5), cell_of("LSTM", 5, seed=1)
    with pytest.raises(NotRepresentable, match="shared parameter"):
        door.assign(module, {"": [first, second]})
    assert door.cells(door.assign(module, {"": [first, first]}))["l1"] == first
