"""Cell: one ONNX recurrent node as constants and attributes. The pivot of every conversion.

Names, gate letters, shapes and attributes are those of the ONNX operators LSTM, GRU and RNN
(onnx/defs/rnn/defs.cc). With D directions, H hidden and I input units, n gates:

    W [D, n*H, I]   R [D, n*H, H]   B [D, 2*n*H] = Wb, Rb   P [D, 3*H] = Pi, Po, Pf
    initial_h, initial_c [D, N or 1, H]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple

import numpy as np

from bridge.errors import BadInput, NotRepresentable, Unsupported, UsageError

Op = Literal["LSTM", "GRU", "RNN"]
Direction = Literal["forward", "reverse", "bidirectional"]
Spec = Literal["onnxruntime", "text"]

GATES: Final = MappingProxyType({"LSTM": "iofc", "GRU": "zrh", "RNN": "i"})
DEFAULT_ACTIVATIONS: Final = MappingProxyType(
    {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}
)


class Parameters(NamedTuple):
    """Which of alpha and beta an activation consumes, and their values where the node does not give them.

    `runtime` is what onnxruntime 1.31.1 computes with, `text` what the ONNX operators say (Affine and
    ScaledTanh are no ai.onnx operators: the text has no default, and onnxruntime's zeros stand).
    """

    runtime: tuple[float, ...]
    text: tuple[float, ...]


ACTIVATIONS: Final = MappingProxyType(
    {
        "Relu": Parameters((), ()),
        "Tanh": Parameters((), ()),
        "Sigmoid": Parameters((), ()),
        "Softsign": Parameters((), ()),
        "Softplus": Parameters((), ()),
        "LeakyRelu": Parameters((0.01,), (0.01,)),
        "ThresholdedRelu": Parameters((0.0,), (1.0,)),
        "Elu": Parameters((1.0,), (1.0,)),
        "Affine": Parameters((0.0, 0.0), (0.0, 0.0)),
        "ScaledTanh": Parameters((0.0, 0.0), (0.0, 0.0)),
        "HardSigmoid": Parameters((0.2, 0.5), (0.2, 0.5)),
    }
)
_SPELLING: Final = MappingProxyType({name.lower(): name for name in ACTIVATIONS})


class Activation(NamedTuple):
    """One activation with the values it computes with; `alpha` and `beta` are None where it has none."""

    name: str
    alpha: float | None = None
    beta: float | None = None

    def __str__(self) -> str:
        values = [f"{value:g}" for value in (self.alpha, self.beta) if value is not None]
        return f"{self.name}({', '.join(values)})" if values else self.name


@dataclass(frozen=True, slots=True, eq=False)
class Cell:
    """One recurrent node: weights, attributes and constant initial states. Validated here and nowhere else.

    Arrays are numpy, C-contiguous and read-only, all of one dtype (float16, float32 or float64).
    `None` for B, P, initial_h or initial_c means that the node has no such input (zeros in the equations).

    Raises:
        BadInput: shapes that disagree, a dimension of 0, NaN or inf, an attribute that the operator lacks.
        Unsupported: a dtype that is not carried (bfloat16, complex, integers).
        NotRepresentable: an activation that the operator does not have.

    Source: onnx/defs/rnn/defs.cc, LSTM-22, GRU-22, RNN-22 (onnx 1.23.2).

    >>> cell = Cell("GRU", W=np.ones((1, 6, 3), np.float32), R=np.ones((1, 6, 2), np.float32))
    >>> cell.num_directions, cell.hidden_size, cell.input_size, cell.gates
    (1, 2, 3, 'zrh')
    """

    op: Op
    """The operator."""
    W: np.ndarray
    """Input weights [D, n*H, I]."""
    R: np.ndarray
    """Recurrent weights [D, n*H, H]."""
    B: np.ndarray | None = None
    """Both biases, Wb then Rb, [D, 2*n*H]."""
    P: np.ndarray | None = None
    """LSTM peepholes [D, 3*H], gates in the order i, o, f."""
    direction: Direction = "forward"
    """Which way time runs; "bidirectional" exactly where D = 2."""
    activations: tuple[str, ...] | None = None
    """Activation names, those of one direction after those of the other; None is the operator's default."""
    activation_alpha: tuple[float, ...] | None = None
    """Consumed in order by the activations that have an alpha."""
    activation_beta: tuple[float, ...] | None = None
    """Consumed in order by the activations that have a beta."""
    clip: float | None = None
    """Bound of the activations' inputs, > 0."""
    input_forget: bool = False
    """LSTM: couple the gates, f = 1 - i."""
    linear_before_reset: bool = False
    """GRU: apply the reset gate after the recurrent product, r * (Rh h + Rbh)."""
    initial_h: np.ndarray | None = None
    """Constant initial hidden state [D, N or 1, H]; N = 1 serves every batch."""
    initial_c: np.ndarray | None = None
    """Constant initial cell state of an LSTM [D, N or 1, H]."""

    def __post_init__(self) -> None:
        _check_operator(self)
        _freeze_arrays(self)
        _check_shapes(self)
        _freeze_attributes(self)

    @property
    def gates(self) -> str:
        """Gate letters in the order of the rows of W and R."""
        return GATES[self.op]

    @property
    def num_directions(self) -> int:
        """D, 2 for a bidirectional cell."""
        return int(self.W.shape[0])

    @property
    def hidden_size(self) -> int:
        """H, the units of one direction."""
        return int(self.R.shape[2])

    @property
    def input_size(self) -> int:
        """I, the features of one step of the input."""
        return int(self.W.shape[2])

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of every array of the cell."""
        return self.W.dtype

    @property
    def Wb(self) -> np.ndarray:
        """The input bias [D, n*H]; zeros where B is absent."""
        return self._bias(slice(None, len(self.gates) * self.hidden_size))

    @property
    def Rb(self) -> np.ndarray:
        """The recurrent bias [D, n*H]; zeros where B is absent."""
        return self._bias(slice(len(self.gates) * self.hidden_size, None))

    def _bias(self, columns: slice) -> np.ndarray:
        if self.B is None:
            return np.zeros((self.num_directions, len(self.gates) * self.hidden_size), self.dtype)
        return self.B[:, columns]

    def activation_table(self, spec: Spec = "onnxruntime") -> tuple[tuple[Activation, ...], ...]:
        """The activations of each direction with the alpha and beta they compute with.

        Lists are consumed in order by their users across both directions; a short list falls back to the
        defaults; values left over are ignored (facts of onnxruntime 1.31.1; `spec="text"`: the text's defaults).
        Defaults are float32 as the attributes are, so that writing them out changes nothing in float64.
        """
        alphas, betas = iter(self.activation_alpha or ()), iter(self.activation_beta or ())
        table = []
        for name in self.activations or ():
            parameters = ACTIVATIONS[name]
            values = [*(parameters.runtime if spec == "onnxruntime" else parameters.text), None, None][:2]
            given = [float(np.float32(next(source, value))) if value is not None else None
                     for source, value in zip((alphas, betas), values, strict=True)]  # fmt: skip
            table.append(Activation(name, *given))
        per_direction = len(DEFAULT_ACTIVATIONS[self.op])
        return tuple(tuple(table[at : at + per_direction]) for at in range(0, len(table), per_direction))

    @property
    def has_default_activations(self) -> bool:
        """True where every direction computes with the operator's own default activations."""
        return self.activations == DEFAULT_ACTIVATIONS[self.op] * self.num_directions

    def split(self) -> tuple[Cell, ...]:
        """The directions as Cells with D = 1, forward first."""
        if self.num_directions == 1:
            return (self,)
        arrays = ("W", "R", "B", "P", "initial_h", "initial_c")
        halves = []
        directions: tuple[Direction, Direction] = ("forward", "reverse")
        for at, (direction, table) in enumerate(zip(directions, self.activation_table(), strict=True)):
            own: dict[str, Any] = {
                name: None if (value := getattr(self, name)) is None else value[at : at + 1] for name in arrays
            }
            halves.append(replace(self, direction=direction, **own, **_flat_activations(table)))
        return tuple(halves)

    @classmethod
    def join(cls, forward: Cell, backward: Cell) -> Cell:
        """One bidirectional Cell from two directions, D = 2.

        A bias, peephole or initial state that only one direction has is zeros in the other.

        Raises:
            NotRepresentable: operator, sizes, dtype, clip, input_forget or linear_before_reset differ.
            UsageError: something else than two cells of one direction each.
        """
        if not isinstance(forward, Cell) or not isinstance(backward, Cell):
            raise UsageError("takes two cells of one direction each", where="Cell.join",
                             got=f"{type(forward).__qualname__}, {type(backward).__qualname__}",
                             do="read them with cells(source)")  # fmt: skip
        for name in ("op", "hidden_size", "input_size", "dtype", "clip", "input_forget", "linear_before_reset"):
            first, second = getattr(forward, name), getattr(backward, name)
            if first != second:
                raise NotRepresentable(
                    f"the directions differ in {name}",
                    where="Cell.join",
                    got=f"forward {first}, backward {second}",
                    do="write them as two nodes, one forward and one reverse",
                )
        if (forward.num_directions, backward.num_directions) != (1, 1):
            raise UsageError("takes two cells of one direction each", where="Cell.join", do="split() them first")
        table = forward.activation_table() + backward.activation_table()
        return replace(
            forward,
            direction="bidirectional",
            **{name: _join(getattr(forward, name), getattr(backward, name))
               for name in ("W", "R", "B", "P", "initial_h", "initial_c")},
            **_flat_activations([activation for direction in table for activation in direction]),
        )  # fmt: skip

    def __eq__(self, other: object) -> bool:
        """Equal attributes and bit-identical arrays."""
        if not isinstance(other, Cell):
            return NotImplemented
        return all(_identical(getattr(self, field.name), getattr(other, field.name)) for field in fields(self))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        extras = [name for name in ("B", "P", "initial_h", "initial_c") if getattr(self, name) is not None]
        return (
            f"Cell({self.op}, {self.direction}, input_size={self.input_size}, hidden_size={self.hidden_size}, "
            f"{self.dtype}{', ' + ', '.join(extras) if extras else ''})"
        )


def canonical_activation(name: str, where: str = "Cell") -> str:
    """The ONNX spelling of an activation's name (onnxruntime compares LSTM's and GRU's without case)."""
    try:
        return _SPELLING[name.lower()]
    except KeyError:
        raise NotRepresentable(
            f"the ONNX recurrent operators have no activation {name!r}", where=where, expected=", ".join(ACTIVATIONS)
        ) from None


def settled(op: str, attributes: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes of a node as onnxruntime reads them.

    Empty lists are none. One direction of an RNN takes the first of two names, which is what the schema's default
    lists, and a negative clip of an RNN is none (that of the others it refuses).

    Raises:
        BadInput: a layout that is neither 0 nor 1.
    """
    if (layout := attributes.get("layout", 0)) not in (0, 1):
        raise BadInput("unknown layout", got=layout, expected="0 (time first) or 1 (batch first)")
    found = {name: value for name, value in attributes.items() if not isinstance(value, Sized) or len(value)}
    if op == "RNN":
        if found.get("direction", "forward") != "bidirectional" and len(found.get("activations") or ()) == 2:
            found["activations"] = found["activations"][:1]
        if (found.get("clip") or 0) < 0:
            del found["clip"]
    return found


def _check_operator(cell: Cell) -> None:
    if cell.op not in GATES:
        raise UsageError("unknown operator", where="Cell", got=repr(cell.op), expected=", ".join(GATES))
    if cell.direction not in ("forward", "reverse", "bidirectional"):
        raise UsageError(
            "unknown direction", where="Cell", got=repr(cell.direction), expected="forward, reverse or bidirectional"
        )
    owners = {"P": "LSTM", "initial_c": "LSTM", "input_forget": "LSTM", "linear_before_reset": "GRU"}
    for name, owner in owners.items():
        value = getattr(cell, name)
        present = value is not None if name in ("P", "initial_c") else bool(value)
        if present and cell.op != owner:
            raise BadInput(f"{name} belongs to {owner}", where=f"Cell({cell.op})")


def _freeze_arrays(cell: Cell) -> None:
    for name in ("W", "R", "B", "P", "initial_h", "initial_c"):
        value = getattr(cell, name)
        if value is None and name not in ("W", "R"):
            continue
        array = np.array(value, order="C", copy=None)
        if array.dtype.name not in ("float16", "float32", "float64"):
            reason = ": no kernel of onnxruntime computes it" if array.dtype.name == "bfloat16" else ""
            raise Unsupported(
                f"{name} has dtype {array.dtype.name}{reason}",
                where=f"Cell({cell.op})",
                expected="float16, float32 or float64",
            )
        array = array.view()
        array.flags.writeable = False
        object.__setattr__(cell, name, array)


def _check_shapes(cell: Cell) -> None:
    where = f"Cell({cell.op})"
    directions = 2 if cell.direction == "bidirectional" else 1
    if cell.R.ndim != 3 or cell.W.ndim != 3:
        raise BadInput("W and R have three axes", where=where, got=f"W {cell.W.shape}, R {cell.R.shape}",
                       expected="W [D, n*H, I], R [D, n*H, H]")  # fmt: skip
    n, hidden, inputs = len(cell.gates), cell.hidden_size, cell.input_size
    shapes: dict[str, tuple[int | None, ...]] = {
        "W": (directions, n * hidden, inputs),
        "R": (directions, n * hidden, hidden),
        "B": (directions, 2 * n * hidden),
        "P": (directions, 3 * hidden),
        "initial_h": (directions, None, hidden),
        "initial_c": (directions, None, hidden),
    }
    for name, expected in shapes.items():
        array = getattr(cell, name)
        if array is None:
            continue
        if array.ndim != len(expected) or any(e not in (None, a) for e, a in zip(expected, array.shape, strict=True)):
            text = ", ".join("N" if size is None else str(size) for size in expected)
            raise BadInput(f"{name} has the wrong shape", where=where, got=list(array.shape), expected=f"[{text}]")
        if 0 in array.shape:
            raise BadInput(f"{name} has a dimension of 0, on which onnxruntime aborts", where=where, got=array.shape)
        if array.dtype != cell.W.dtype:
            raise BadInput(f"{name} is {array.dtype} and W is {cell.W.dtype}", where=where, do="cast them to one dtype")
        if not is_finite(array):
            raise BadInput(f"{name} holds NaN or inf, which onnxruntime would hide", where=where,
                           expected="finite numbers", do="train or load the weights again")  # fmt: skip


def is_finite(array: np.ndarray) -> bool:
    """Whether no element of a float array is NaN or inf; no array of booleans is made beside a large one."""
    # A sum of squares is finite only where every element is, and costs a fifth of looking at each: for large weights
    # that look is a seventh of an export. It may overflow on finite elements, and only then they are looked at.
    if array.dtype != np.float16:
        flat = array.reshape(-1)
        with np.errstate(over="ignore", invalid="ignore"):
            if np.isfinite(np.dot(flat, flat)):
                return True
    return bool(array.size == 0 or (np.isfinite(array.min()) and np.isfinite(array.max())))


def _freeze_attributes(cell: Cell) -> None:
    where, defaults = f"Cell({cell.op})", DEFAULT_ACTIVATIONS[cell.op]
    names = cell.activations
    if names is None:
        names = defaults * cell.num_directions
    elif len(names) != len(defaults) * cell.num_directions:
        raise BadInput(
            "wrong number of activations", where=where, got=len(names), expected=len(defaults) * cell.num_directions
        )
    object.__setattr__(cell, "activations", tuple(canonical_activation(name, where) for name in names))
    for name in ("activation_alpha", "activation_beta"):
        values = getattr(cell, name)
        if values is not None:
            values = _single_precision(values)
            if not np.isfinite(values).all():
                raise BadInput(f"{name} holds NaN or inf", where=where, got=values)
            object.__setattr__(cell, name, values or None)
    if cell.clip is not None:
        if not (np.isfinite(cell.clip) and cell.clip > 0):
            raise BadInput("clip is a finite number above 0", where=where, got=cell.clip)
        object.__setattr__(cell, "clip", float(np.float32(cell.clip)))
    object.__setattr__(cell, "input_forget", bool(cell.input_forget))
    object.__setattr__(cell, "linear_before_reset", bool(cell.linear_before_reset))


def _single_precision(values: Sequence[float]) -> tuple[float, ...]:
    # ONNX attributes are float32: a Cell keeps the value that the operator will see.
    return tuple(float(np.float32(value)) for value in values)


def _flat_activations(table: Sequence[Activation]) -> dict[str, Any]:
    return {
        "activations": tuple(activation.name for activation in table),
        "activation_alpha": tuple(a.alpha for a in table if a.alpha is not None) or None,
        "activation_beta": tuple(a.beta for a in table if a.beta is not None) or None,
    }


def _join(first: np.ndarray | None, second: np.ndarray | None) -> Any:
    if first is None and second is None:
        return None
    first = np.zeros_like(second) if first is None else first
    second = np.zeros_like(first) if second is None else second
    batch = max(first.shape[1], second.shape[1]) if first.ndim == 3 else None
    if batch is not None and first.shape[1] != second.shape[1]:
        first, second = (np.broadcast_to(half, (1, batch, half.shape[2])) for half in (first, second))
    return np.concatenate([first, second])


def _identical(first: object, second: object) -> bool:
    if isinstance(first, np.ndarray) and isinstance(second, np.ndarray):
        return first.dtype == second.dtype and first.shape == second.shape and first.tobytes() == second.tobytes()
    return first is second if isinstance(first, np.ndarray) or isinstance(second, np.ndarray) else first == second
