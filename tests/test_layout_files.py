"""The layout files against their schema, and what loading them refuses."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib

import jsonschema
import pytest

from bridge.cell import ACTIVATIONS, Activation
from bridge.errors import BadInput, UsageError
from bridge.layout import activation, describe, layouts, op_of
from bridge.layout.files import catalogue
from bridge.layout.records import Constant, Layout, Option, Slot, Variant
from bridge.schema_files import schema_files

FILES = sorted(file.name for file in (schema_files() / "layouts").iterdir() if file.name.endswith(".toml"))
SCHEMA = json.loads((schema_files() / "layout.schema.json").read_text("utf-8"))


def load(name: str) -> dict:
    return tomllib.loads((schema_files() / "layouts" / name).read_text("utf-8"))


@pytest.mark.parametrize("name", FILES)
def test_every_file_is_accepted_by_the_schema(name):
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.Draft202012Validator(SCHEMA).validate(load(name))


@pytest.mark.parametrize(
    "damage",
    [
        lambda row: row.pop("source"),
        lambda row: row.update(op="lstm"),
        lambda row: row.update(unknown=1),
        lambda row: row["slots"][0].pop("key"),
        lambda row: row["slots"][0].update(axes="in"),
        lambda row: row["slots"][0].update(gates="ifgo"),
        lambda row: row["slots"][0].update(blocks=["W", "R"]),
        lambda row: row["options"].update(bias={"kind": "maybe"}),
        lambda row: row["options"].update(bias={"kind": "flag"}),
    ],
)
def test_the_schema_refuses_a_damaged_row(damage):
    document = load("torch.toml")
    damage(document["layout"][0])
    assert not jsonschema.Draft202012Validator(SCHEMA).is_valid(document)


def test_every_layout_of_the_files_is_listed_once():
    assert sorted(layouts()) == sorted(row["name"] for name in FILES for row in load(name)["layout"])


def test_every_layout_of_the_issue_is_there():
    expected = (
        "torch.LSTM torch.GRU torch.RNN torch.LSTMCell torch.GRUCell torch.RNNCell "
        "keras.LSTM keras.GRU keras.SimpleRNN keras.CuDNNLSTM keras.CuDNNGRU "
        "flax.linen.LSTMCell flax.linen.OptimizedLSTMCell flax.linen.GRUCell flax.linen.MGUCell flax.linen.SimpleCell "
        "flax.nnx.LSTMCell flax.nnx.OptimizedLSTMCell flax.nnx.GRUCell flax.nnx.SimpleCell "
        "equinox.LSTMCell equinox.GRUCell haiku.LSTM haiku.GRU haiku.VanillaRNN "
        "tf1.LSTMCell tf1.BasicLSTMCell tf1.GRUCell tf1.BlockLSTM bridge.LSTMCell bridge.GRUCell bridge.RNNCell"
    ).split()
    assert set(expected) <= set(layouts())


def test_a_layout_describes_itself_in_plain_values():
    found = json.loads(json.dumps(describe("keras.GRU")))
    assert found["parameters"] == ["kernel", "recurrent_kernel", "bias"]
    assert found["options"]["reset_after"] == {"kind": "flag", "default": True}
    assert op_of("keras.GRU") == found["op"] == "GRU"


@pytest.mark.parametrize("name", layouts())
def test_every_source_names_package_version_and_file(name):
    package, version, *rest = describe(name)["source"].split()
    assert version[0].isdigit()
    assert ".py" in rest[0] or package == "rnn-bridge"


def test_import_costs_numpy_only():
    code = "import sys, bridge.layout; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    heavy = {
        "torch",
        "jax",
        "flax",
        "keras",
        "tensorflow",
        "onnx",
        "onnx_ir",
        "onnxruntime",
        "array_api_compat",
        "h5py",
    }
    assert "numpy" in loaded
    assert not heavy & set(loaded)


W = Slot(key="w", blocks=("W",), gates=("i",), axes=("out", "in"))
R = Slot(key="r", blocks=("R",), gates=("i",), axes=("out", "in"))


def layout(*slots: Slot, constants: tuple[Constant, ...] = (), **changes: object) -> Layout:
    variant = Variant(when={}, linear_before_reset=None, slots=slots, constants=constants)
    return Layout(**{"name": "a.B", "framework": "a", "op": "RNN", "source": "", "variants": (variant,), **changes})


@pytest.mark.parametrize(
    "make",
    [
        lambda: layout(W),
        lambda: layout(W, R, R),
        lambda: layout(W, R, Slot(key="q", blocks=("R",), gates=("i",), axes=("in", "out"))),
        lambda: layout(W, R, Slot(key="b", blocks=("Wb",), gates=("z",), axes=("out",))),
        lambda: layout(W, R, Slot(key="b", blocks=("Wb",), gates=("i",), axes=("out",), optional="bias")),
        lambda: layout(W, R, constants=(Constant(block="Wb", gate="i", value="forget_bias"),)),
        lambda: layout(W, R, activations=(Activation("Tanh"), Activation("Tanh"))),
        lambda: layout(W, R, op="GRU"),
        lambda: Slot(key="b", blocks=("Wb", "W"), gates=("i",), axes=("out",)),
        lambda: Slot(key="b", blocks=("Wb",), gates=("i",), axes=("in", "out")),
        lambda: Slot(key="w", blocks=("W",), gates=("i",), axes=("out", "in"), buffers=True),
        lambda: Slot(key="w", blocks=("W",), gates=("i",), axes=("out", "in"), identity="residual"),
        lambda: Slot(key="w", blocks=("W",), gates=("i",), axes=("out", "in"), negate="o"),
        lambda: Option(kind="activation"),
        lambda: Option(kind="fixed"),
    ],
)
def test_a_record_that_contradicts_itself_is_refused(make):
    with pytest.raises(BadInput):
        make()


def test_a_record_that_is_whole_is_accepted():
    assert layout(W, R).activations == (Activation("Tanh"),)


def test_an_unknown_layout_gets_the_nearest_names():
    with pytest.raises(UsageError, match=r"nearest: .*torch\.LSTM"):
        op_of("torch.lstm")
    with pytest.raises(UsageError, match="unknown layout 'nothing'"):
        op_of("nothing")


@pytest.mark.parametrize(
    ("framework", "name", "meaning"),
    [
        ("keras", "hard_sigmoid", Activation("HardSigmoid", 1 / 6, 0.5)),
        ("keras2", "hard_sigmoid", Activation("HardSigmoid", 0.2, 0.5)),
        ("keras", "leaky_relu", Activation("LeakyRelu", 0.2)),
        ("keras", "linear", Activation("Affine", 1.0, 0.0)),
        ("flax", "leaky_relu", Activation("LeakyRelu", 0.01)),
        ("flax.nnx", "soft_sign", Activation("Softsign")),
        ("torch", "relu", Activation("Relu")),
        ("keras", "gelu", None),
        ("nobody", "relu", None),
    ],
)
def test_activation_names(framework, name, meaning):
    assert activation(framework, name) == meaning
    if meaning is not None:
        assert activation(framework, meaning) == name


def test_activations_that_a_framework_cannot_name():
    assert activation("keras", Activation("LeakyRelu", 0.3)) is None
    assert activation("torch", Activation("Sigmoid")) is None


def test_every_vocabulary_speaks_of_activations_that_onnx_has():
    words = [meaning for table in catalogue().vocabularies.values() for meaning in table.values()]
    assert len(words) > 20
    for meaning in words:
        assert len(ACTIVATIONS[meaning.name].runtime) == sum(value is not None for value in meaning[1:])
