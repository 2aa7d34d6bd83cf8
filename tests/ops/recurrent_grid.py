"""Every variant of one LSTM, GRU or RNN node that the ONNX text allows, imported into Flax and judged.

onnxruntime is the judge where it has a kernel. It refuses layout 1 and an absent hidden_size: the same node in layout
0 with hidden_size is run for it. It refuses float64: the float64 referee alone decides. `scripts/operator-grid` runs
all of them, `test_recurrent_grid.py` a part.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, get_args

import numpy as np
import onnx
from onnx import helper, numpy_helper

from bridge import reference
from bridge.cell import ACTIVATIONS, DEFAULT_ACTIVATIONS, GATES
from bridge.ops.backend_jax_recurrent import Form
from tests.ops.covering import Row, cover
from tests.single_node import INPUTS, OUTPUTS, run_node

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

T, N, I, H = 5, 4, 3, 6  # noqa: E741 - the operators' own name
"""One shape for all cases, all sizes different, so that what JAX compiled for one case serves others."""
LENGTHS: Final = MappingProxyType(
    {"full": (5, 5, 5, 5), "ragged": (4, 1, 3, 2), "with 0": (5, 0, 2, 1), "all 0": (0, 0, 0, 0)}
)
STATES = ("absent", "initialiser", "zeros", "node", "input")
CONSTANT = ("initialiser", "node")

COMMON: dict[str, tuple[Any, ...]] = {
    "direction": ("forward", "reverse", "bidirectional"),
    "dtype": ("float32", "float32 x64", "float16", "float64"),
    "layout": (0, 1),
    "opset": (7, 14, 20, 22),
    "hidden_size": ("given", "absent"),
    "lengths": ("absent", *LENGTHS),
    "lengths are": ("input", *CONSTANT),
    "W": ("initialiser", "node", "input"),
    "R": ("initialiser", "input"),
    "B": ("absent", "initialiser", "input"),
    "initial_h": STATES,
    "clip": ("absent", 0.3),
    "parameters": ("no activations", "none given", "all given", "too few", "too many"),
    "run": ("nnx eager", "nnx jit", "linen jit"),
    "loop": get_args(Form),
}
TRANSPOSED: Final = MappingProxyType(
    {"lengths": ("absent",), "parameters": ("no activations",), "P": ("absent",), "loop": ("transposed",)}
)
"""Where an LSTM on JAX can run the transposed form of the loop; elsewhere "transposed" comes to "in the loop"."""
OWN: dict[str, dict[str, tuple[Any, ...]]] = {
    "LSTM": {"initial_c": STATES, "P": ("absent", "initialiser", "input"), "input_forget": ("absent", 0, 1),
             "outputs": (("Y", "Y_h", "Y_c"), ("Y", "Y_h"), ("Y", "Y_c"), ("Y_h", "Y_c"), ("Y",), ("Y_h",), ("Y_c",))},
    "GRU": {"linear_before_reset": ("absent", 0, 1, 2), "outputs": (("Y", "Y_h"), ("Y",), ("Y_h",))},
    "RNN": {"outputs": (("Y", "Y_h"), ("Y",), ("Y_h",))},
}  # fmt: skip


def structure(op: str) -> dict[str, tuple[Any, ...]]:
    """The factors without the activations."""
    return COMMON | OWN[op]


def activations(op: str) -> dict[str, tuple[Any, ...]]:
    """One factor for every activation of either direction, and of RNN the second of a list of two for one."""
    letters = {"LSTM": "fgh", "GRU": "fg", "RNN": "f"}[op]
    each = {f"{letter} {way}": tuple(ACTIVATIONS) for way in ("first", "second") for letter in letters}
    return each if op != "RNN" else {**each, "list": ("one per direction", "two for one")}


def needs(op: str) -> dict[str, Callable[[Any], Mapping[str, Sequence[Any]]]]:
    """What else must hold for a factor's value to mean anything."""
    written = COMMON["parameters"][1:]
    found: dict[str, Callable[[Any], Mapping[str, Sequence[Any]]]] = {
        "layout": lambda layout: {"opset": (14, 20, 22)} if layout else {},
        "lengths are": lambda _: {"lengths": tuple(LENGTHS)},
        "list": lambda value: (
            {"parameters": written} | ({"direction": ("forward", "reverse")} if value == "two for one" else {})
        ),
    }
    for name in activations(op):
        if name.endswith("first"):
            found[name] = lambda _: {"parameters": written}
        if name.endswith("second"):
            found[name] = lambda _: {"parameters": written, "direction": ("bidirectional",)}
    return found


def rows(op: str, strength: int, rng: np.random.Generator) -> Iterator[Row]:
    """Every pair of values, also beside the transposed loop; with `strength` 3 also every three of the structure."""
    every = structure(op) | activations(op)
    yield from cover(every, needs(op), 2, rng)
    if op == "LSTM":
        plain = structure(op) | TRANSPOSED
        yield from cover(
            {name: values for name, values in plain.items() if name != "lengths are"},
            {"layout": needs(op)["layout"]},
            2,
            rng,
        )
    if strength > 2:
        for row in cover(structure(op), needs(op), strength, rng):
            yield {**{name: str(rng.choice(list(ACTIVATIONS))) for name in activations(op) if name != "list"}, **row}


@dataclass(frozen=True)
class Case:
    """One node: its inputs and attributes in ONNX's names, layout 0, and how the row presents them."""

    op: str
    row: Row
    inputs: dict[str, np.ndarray]
    attributes: dict[str, Any]

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self.row["dtype"].split()[0])

    @property
    def constants(self) -> dict[str, str]:
        """Of every input that is not fed, whether it is an initialiser or a Constant node."""
        factors = {name: "lengths are" if name == "sequence_lens" else name for name in self.inputs if name != "X"}
        kinds = {name: self.row[factor] for name, factor in factors.items()}
        return {name: "initialiser" if kind == "zeros" else kind for name, kind in kinds.items() if kind != "input"}

    def presented(self) -> dict[str, np.ndarray]:
        """The inputs in the row's layout."""
        moved = ("X", "initial_h", "initial_c") if self.row["layout"] else ()
        return {name: value.swapaxes(0, 1) if name in moved else value for name, value in self.inputs.items()}

    def feeds(self) -> dict[str, np.ndarray]:
        return {name: value for name, value in self.presented().items() if name not in self.constants}

    def model(self) -> onnx.ModelProto:
        """The model that is imported."""
        more = {"layout": self.row["layout"]} if self.row["opset"] >= 14 else {}
        more |= {"hidden_size": H} if self.row["hidden_size"] == "given" else {}
        return one_node(self.op, self.presented(), self.attributes | more, self.constants, self.row["outputs"],
                        self.row["opset"])  # fmt: skip

    def in_layout(self, outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs of layout 0 in the row's layout."""
        if not self.row["layout"]:
            return dict(outputs)
        return {name: np.moveaxis(value, -2, 0) for name, value in outputs.items()}

    def onnxruntime(self) -> dict[str, np.ndarray] | None:
        """What onnxruntime computes, from the node in layout 0 with hidden_size; None for float64."""
        if self.dtype == np.float64:
            return None
        model = one_node(self.op, self.inputs, self.attributes | {"hidden_size": H}, {}, self.row["outputs"],
                         self.row["opset"])  # fmt: skip
        return self.in_layout(run_node(model.SerializeToString(), self.inputs))

    def referee(self, **changes: Any) -> dict[str, np.ndarray]:
        """The outputs in float64, with some inputs or attributes changed."""
        run = {"LSTM": reference.lstm, "GRU": reference.gru, "RNN": reference.rnn}[self.op]
        given = {**self.inputs, **self.attributes, **changes}
        outputs = dict(zip(OUTPUTS[self.op], run(**given), strict=True))
        return self.in_layout({name: outputs[name] for name in self.row["outputs"]})


def one_node(
    op: str,
    inputs: Mapping[str, np.ndarray],
    attributes: Mapping[str, Any],
    constants: Mapping[str, str],
    outputs: Sequence[str],
    opset: int,
) -> onnx.ModelProto:
    """A checked model of one node; `constants` says which inputs are initialisers and which come from a Constant."""
    tensors = {name: numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in inputs.items()}
    nodes = [helper.make_node("Constant", [], [name], value=tensors[name])
             for name, kind in constants.items() if kind == "node"]  # fmt: skip
    names = [name if name in inputs else "" for name in INPUTS[op]]
    wanted = [name if name in outputs else "" for name in OUTPUTS[op]]
    nodes.append(helper.make_node(op, names, wanted, name="cell", **attributes))
    infos = [helper.make_tensor_value_info(name, tensors[name].data_type, [None] * value.ndim)
             for name, value in inputs.items() if name not in constants]  # fmt: skip
    results = [helper.make_tensor_value_info(name, tensors["X"].data_type, [None] * (4 if name == "Y" else 3))
               for name in outputs]  # fmt: skip
    stored = [tensors[name] for name, kind in constants.items() if kind == "initialiser"]
    graph = helper.make_graph(nodes, "single", infos, results, stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def make_case(op: str, row: Row, rng: np.random.Generator) -> Case:
    """Random numbers for a row: nothing is zero that is not said to be, no two sizes are equal."""
    sides, gates = (2 if row["direction"] == "bidirectional" else 1), len(GATES[op])
    dtype = row["dtype"].split()[0]
    shapes = {"W": (sides, gates * H, I), "R": (sides, gates * H, H), "B": (sides, 2 * gates * H), "P": (sides, 3 * H),
              "initial_h": (sides, N, H), "initial_c": (sides, N, H)}  # fmt: skip
    inputs = {"X": rng.uniform(-1.5, 1.5, (T, N, I)).astype(dtype)}
    for name in INPUTS[op]:
        if name == "sequence_lens" and row["lengths"] != "absent":
            inputs[name] = np.array(LENGTHS[row["lengths"]], np.int32)
        elif name in shapes and row[name] != "absent":
            bound = 0.0 if row[name] == "zeros" else 0.8 if name.startswith("initial") else 1 / np.sqrt(H)
            inputs[name] = rng.uniform(-bound, bound, shapes[name]).astype(dtype)
    return Case(op, row, inputs, _attributes(op, row, sides, rng))


def _attributes(op: str, row: Row, sides: int, rng: np.random.Generator) -> dict[str, Any]:
    names = ("direction", "clip", "input_forget", "linear_before_reset")
    given = {name: row[name] for name in names if row.get(name, "absent") != "absent"}
    if row["parameters"] == "no activations":
        return given
    count = len(DEFAULT_ACTIVATIONS[op]) * sides
    chosen = [row[name] for name in activations(op) if name != "list"][:count]
    users = [len(ACTIVATIONS[name].runtime) for name in chosen]
    alpha = rng.uniform(0.1, 0.9, sum(each >= 1 for each in users)).astype(np.float32).tolist()
    beta = rng.uniform(0.1, 0.9, sum(each == 2 for each in users)).astype(np.float32).tolist()
    kept = {"none given": slice(0), "all given": slice(None), "too few": slice(1), "too many": slice(None)}
    extra = [0.7] if row["parameters"] == "too many" else []
    lists = {"activation_alpha": alpha[kept[row["parameters"]]] + extra,
             "activation_beta": beta[kept[row["parameters"]]] + extra}  # fmt: skip
    given["activations"] = chosen + (["Tanh"] if row.get("list") == "two for one" else [])
    return given | {name: values for name, values in lists.items() if values}
