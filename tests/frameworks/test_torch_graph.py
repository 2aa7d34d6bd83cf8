"""Whole graphs as torch.fx modules: the code, native layers, training, copies, and the way back to ONNX."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import fx, nn

import bridge
from bridge.errors import Unsupported
from bridge.frameworks.torch_graph.operator import Operator
from bridge.graph import Writer, as_model
from bridge.ops.program import evaluate
from tests.ops.agreement import onnxruntime_outputs
from tests.ops.rows import Row, rows
from tests.tolerances import assert_within_referee_bound

CLASSES, HIDDEN = 4, 5


class Everything(nn.Module):
    """One of each layer that owns weights, and a parameter of no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 6)
        self.conv = nn.Sequential(nn.Conv1d(6, 4, 3, padding=1), nn.BatchNorm1d(4), nn.ReLU())
        self.up = nn.ConvTranspose1d(4, 6, 3, padding=1)
        self.rnn = nn.LSTM(6, HIDDEN, batch_first=True, bidirectional=True)
        self.norm = nn.LayerNorm(2 * HIDDEN)
        self.head = nn.Linear(2 * HIDDEN, CLASSES)
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, CLASSES))

    def forward(self, tokens):
        x = self.up(self.conv(self.embedding(tokens).transpose(1, 2))).transpose(1, 2)
        return self.head(self.norm(self.rnn(x)[0])) * self.scale


def tokens(batch: int = 2, time: int = 5, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 7, (batch, time))


@pytest.fixture(scope="module")
def original() -> nn.Module:
    torch.manual_seed(0)
    module = Everything().eval()
    for value in (*module.parameters(), *module.buffers()):
        if value.is_floating_point():
            nn.init.uniform_(value, 0.1, 0.9)
    return module


@pytest.fixture(scope="module")
def proto(original: nn.Module) -> Any:
    return bridge.to_onnx(original, example=(tokens(),))


@pytest.fixture
def imported(proto: Any) -> Any:
    return bridge.to_torch(proto)


def onnx_outputs(proto: Any, *arrays: np.ndarray) -> list[Any]:
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, dict(zip((entry.name for entry in session.get_inputs()), arrays, strict=True))))


def test_it_is_a_graph_module_with_one_readable_line_a_layer(imported: Any) -> None:
    assert isinstance(imported, fx.GraphModule)
    for line in ("def forward(self, tokens)", 'getattr(self.conv, "0")(', "torch.relu(", "self.up(", "self.rnn.l0(",
                 "self.norm(", "self.head(", "torch.mul("):  # fmt: skip
        assert line in imported.code
    imported.graph.lint()
    assert "call_module" in str([node.op for node in imported.graph.nodes])
    assert not any(isinstance(module, Operator) and module.key[1] != "Reshape" for module in imported.modules())


def test_its_layers_are_torchs_under_the_names_of_the_original(original: nn.Module, imported: Any) -> None:
    kinds = {
        name: type(module) for name, module in original.named_modules() if name not in ("", "rnn", "conv", "conv.2")
    }
    assert {name: type(imported.get_submodule(name)) for name in kinds} == kinds
    assert type(imported.rnn.l0) is nn.LSTM


def test_every_parameter_and_statistic_is_the_originals_bit_for_bit(original: nn.Module, imported: Any) -> None:
    returned = imported.state_dict()
    for name, value in original.state_dict().items():
        name = name.replace("rnn.", "rnn.l0.")
        assert torch.equal(returned.pop(name), value) or name.endswith("num_batches_tracked")
    assert not returned


def test_outputs_are_the_originals(original: nn.Module, imported: Any) -> None:
    for batch, time in ((3, 7), (1, 4)):
        x = tokens(batch, time, seed=time)
        with torch.no_grad():
            expected, exact = original(torch.tensor(x)), copy.deepcopy(original).double()(torch.tensor(x))
            assert_within_referee_bound(imported(x).numpy(), expected.numpy(), exact.numpy())


def test_gradients_are_the_originals(original: nn.Module, imported: Any) -> None:
    own = copy.deepcopy(original)
    for module in (own, imported):
        module(torch.tensor(tokens())).square().sum().backward()
    mine = {name.replace("rnn.l0.", "rnn."): value.grad for name, value in imported.named_parameters()}
    assert mine.keys() == {name for name, _ in own.named_parameters()}
    for name, value in own.named_parameters():
        torch.testing.assert_close(mine[name], value.grad, rtol=1e-4, atol=1e-5)  # float32 sums in another order


def test_a_trained_module_is_exported_again_with_what_it_learned(imported: Any) -> None:
    imported.train()
    step = torch.optim.SGD(imported.parameters(), 0.1)
    imported(tokens(3, 6)).square().mean().backward()
    step.step()
    imported.eval()
    assert int(imported.state_dict()["conv.1.num_batches_tracked"]) == 1
    again, x = bridge.to_onnx(imported), tokens(2, 8, 3)
    with torch.no_grad():
        mine = imported(x).numpy()
    exact = evaluate(as_model(again), {"tokens": x})["output"]
    assert_within_referee_bound(onnx_outputs(again, x)[0], mine, exact)
    assert torch.equal(bridge.to_torch(again).state_dict()["head.weight"], imported.head.weight)


def test_copies_and_pickles_compute_the_same_and_are_exported_as_well(imported: Any) -> None:
    with torch.no_grad():
        imported.head.weight.mul_(2)
    imported.head.bias.requires_grad_(False)
    imported.conv.train()
    file = io.BytesIO()
    torch.save(imported, file)
    file.seek(0)
    expected = bridge.to_onnx(imported).SerializeToString()
    for twin in (copy.deepcopy(imported), pickle.loads(pickle.dumps(imported)), torch.load(file, weights_only=False)):
        assert twin.code == imported.code
        assert not twin.head.bias.requires_grad
        assert not twin.training
        assert twin.input_names == ("tokens",)
        assert bridge.to_onnx(twin).SerializeToString() == expected
        assert twin.head is not imported.head
    pickled = pickle.loads(pickle.dumps(imported))
    assert [module.training for module in pickled.modules()] == [module.training for module in imported.modules()]


def test_a_state_dict_goes_from_one_import_to_another(proto: Any, imported: Any) -> None:
    with torch.no_grad():
        for value in imported.parameters():
            value.mul_(0.5)
    other = bridge.to_torch(proto)
    other.load_state_dict(imported.state_dict())
    assert torch.equal(other(tokens()), imported(tokens()))


def test_a_layer_that_was_replaced_is_not_exported_as_the_old_one(imported: Any) -> None:
    imported.head = nn.Sequential(nn.Linear(2 * HIDDEN, 2))
    with pytest.raises(Unsupported, match=r"replaced[\s\S]*Sequential"):
        bridge.to_onnx(imported)


def test_a_layer_of_other_sizes_is_not_exported(imported: Any) -> None:
    imported.head = nn.Linear(2 * HIDDEN, 2)
    with pytest.raises(Unsupported, match="another shape"):
        bridge.to_onnx(imported)


def test_changed_code_is_not_exported_as_the_old_one_and_not_pickled(imported: Any) -> None:
    relu = next(node for node in imported.graph.nodes if node.target is torch.relu)
    relu.target = torch.tanh
    imported.recompile()
    assert "torch.tanh" in copy.deepcopy(imported).code
    for call in (lambda: bridge.to_onnx(imported), lambda: pickle.dumps(imported)):
        with pytest.raises(Unsupported, match="code of an imported graph was changed"):
            call()


def test_fresh_norms_that_hold_the_same_ones_stay_apart() -> None:
    module = nn.Sequential(nn.LayerNorm(3), nn.Linear(3, 3), nn.LayerNorm(3)).eval()
    back = bridge.to_torch(bridge.to_onnx(module, example=(np.ones((2, 3), np.float32),)))
    assert back.state_dict().keys() == module.state_dict().keys()


def test_negative_rows_of_an_embedding_count_from_the_end(imported: Any) -> None:
    assert torch.equal(imported(tokens() - 7), imported(tokens()))


def test_names_that_python_torch_or_a_graph_module_keeps_for_itself() -> None:
    names = ["self", "obj", "torch", "x.1", "X.1", "123", "ünï", "class", "x y\n; import os", "device", "forward"]
    w = Writer()
    total, *others = [w.input(name, "float32", ("n", 2)) for name in names]
    for value in others:
        total = w.op("Add", total, value)
    square = w.op("MatMul", total, w.constant(np.full((2, 2), 0.5, np.float32), "train"))
    limited = w.op("Clip", square, w.constant(np.float32(0)), w.constant(np.float32(9)))
    w.output(w.op("Mul", limited, w.constant(np.ones(2, np.float32), "code")), "out.put")
    own = {"MatMul": "graph/lambda", "Clip": "meta"}
    model = w.model()
    for node in model.graph:
        node.name = own.get(node.op_type, node.name)
    module = bridge.to_torch(model)
    arrays = [np.full((3, 2), at, np.float32) for at in range(len(names))]
    assert module.input_names == tuple(names)
    by_name = module(**dict(zip(names, arrays, strict=True)))
    assert torch.equal(module(*arrays), by_name)
    np.testing.assert_array_equal(by_name.detach(), np.full((3, 2), 9, np.float32))
    assert {name.split(".")[0] for name in module.state_dict()} == {"graph_1", "code_1"}
    assert bridge.to_onnx(copy.deepcopy(module)).graph.input[0].name == "self"


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.GRU(3, HIDDEN, batch_first=True), nn.GRU(3, HIDDEN, batch_first=True)
        self.head = nn.Linear(HIDDEN, 2)

    def forward(self, x):
        if not torch.compiler.is_exporting():  # torch.cond itself runs no recurrent layer
            return self.head((self.one if x.sum() > 0 else self.other)(x)[0])
        return torch.cond(x.sum() > 0, lambda x: self.head(self.one(x)[0]), lambda x: self.head(self.other(x)[0]), (x,))


def test_branches_are_modules_of_their_own_with_native_layers() -> None:
    torch.manual_seed(0)
    module = Branches().eval()
    x = np.random.default_rng(0).uniform(0.1, 1, (2, 5, 3)).astype(np.float32)
    back = bridge.to_torch(bridge.to_onnx(module, example=(x,)))
    branches = [inner for inner in back.modules() if isinstance(inner, fx.GraphModule) and inner is not back]
    assert [sum(isinstance(inner, nn.GRU) for inner in branch.modules()) for branch in branches] == [1, 1]
    with torch.no_grad():
        for value in back.parameters():
            value.mul_(0.5)
        for value in module.parameters():
            value.mul_(0.5)
    again = bridge.to_onnx(copy.deepcopy(back))
    for given in (x, -x):
        with torch.no_grad():
            expected, mine = module(torch.tensor(given)).numpy(), back(given).numpy()
        np.testing.assert_allclose(mine, expected, rtol=0, atol=1e-6)  # float32, values below 1
        np.testing.assert_allclose(onnx_outputs(again, given)[0], expected, rtol=0, atol=1e-6)


def test_a_power_has_the_dtype_of_its_base() -> None:
    w = Writer(20)
    w.output(w.op("Pow", w.input("x", "float32", ["n"]), w.input("y", "float64", ["n"])), "z", "float32")
    z = bridge.to_torch(w.model())(np.full(3, 2.0, np.float32), np.full(3, 3.0))
    assert z.dtype == torch.float32
    assert z.tolist() == [8.0, 8.0, 8.0]


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.name)
def test_every_operator_agrees_with_onnxruntime_as_a_module(row: Row) -> None:
    model = row.model()
    module = bridge.to_torch(model)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        result = copy.deepcopy(module)(**row.inputs)
    referee = evaluate(model, row.inputs)
    values = result if isinstance(result, tuple) else (result,)
    for name, value, wanted in zip(module.output_names, values, onnxruntime_outputs(row), strict=True):
        assert value.detach().numpy().dtype == wanted.dtype
        if wanted.dtype.kind == "f":
            assert_within_referee_bound(value.detach().numpy(), wanted, referee[name])
        else:
            np.testing.assert_array_equal(value.detach().numpy(), wanted)
