"""An LSTM with a projected hidden state (torch's proj_size) as an ONNX Scan: the operator LSTM has no place for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from bridge.frameworks.stack import Layer

if TYPE_CHECKING:
    import onnx_ir as ir

    from bridge.graph import Writer

Values = tuple["ir.Value", ...]


def write_projected(
    w: Writer,
    layer: Layer,
    x: ir.Value,
    lengths: ir.Value | None,
    initial_h: ir.Value | None,
    initial_c: ir.Value | None,
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """One Scan a direction over x [T,N,I]: Y [T,D,N,P], Y_h [D,N,P], Y_c [D,N,H].

    The step is LSTM's with h = weight_hr (o * tanh(c)). Past `lengths` the states stand still and Y is zero, and a
    sequence of length 0 ends in zeros, as onnxruntime's LSTM does; float16 is computed in float32 and rounded once.

    The Scans take (h, c, x[, valid]) and name their weights in the metadata "bridge.layer", so that torch's importer
    can put its own layer in their place.
    """
    from bridge.graph.sequences import valid_steps

    dtype = layer.cell.dtype.name
    working = "float32" if dtype == "float16" else dtype
    x = w.cast(x, working)
    valid = None if lengths is None else w.unsqueeze(valid_steps(w, x, lengths), 2)
    results = []
    for at in range(layer.cell.num_directions):
        sizes = {"h": layer.state_size, "c": layer.cell.hidden_size}
        states = [
            _initial(w, x, value, at, sizes[name], working) for name, value in (("h", initial_h), ("c", initial_c))
        ]
        weights = _weights(w, layer, at)
        name = layer.name if layer.cell.num_directions == 1 else f"{layer.name}.{('forward', 'reverse')[at]}"
        finals, (y,) = w.scan(
            _step(layer, {key: w.cast(value, working) for key, value in weights.items()}),
            states,
            [x] if valid is None else [x, valid],
            reverse=layer.cell.direction == "reverse" or at == 1,
            name=name,
            metadata={"bridge.path": layer.name, "bridge.layer": _describe(layer, at, weights)},
        )
        results.append((y, *(_without_empty(w, value, lengths) for value in finals)))
    columns = zip(*results, strict=True)
    return tuple(  # type: ignore[return-value]
        w.cast(w.concat([w.unsqueeze(value, axis) for value in column], axis), dtype)
        for axis, column in zip((1, 0, 0), columns, strict=True)
    )


BODY: Final = (
    "Gemm", "Gemm", "Add", "Split", "Sigmoid", "Sigmoid", "Sigmoid", "Mul", "Tanh", "Mul", "Add", "Tanh", "Mul", "Gemm",
)  # fmt: skip
"""The operators of one step in order, without what `lengths` adds after them."""


def describes_projection(node: ir.Node) -> dict[str, Any] | None:
    """The "bridge.layer" of a Scan that `write_projected` wrote, None for any other node.

    Metadata can be stale or made up: it is believed only where the body still is the one that was written, over
    initialisers of these names and of the shapes that belong together.
    """
    if node.op_type != "Scan" or "bridge.layer" not in node.metadata_props:
        return None
    try:
        described = json.loads(node.metadata_props["bridge.layer"])
        options, weights = described["options"], described["weights"]
        hidden, projected = options["hidden_size"], options["proj_size"]
        known = described["layer"] == "torch.LSTM" and options["direction"] in ("forward", "reverse")
        shapes: dict[str, tuple[int | None, ...]] = {
            "W": (4 * hidden, None),
            "R": (4 * hidden, projected),
            "weight_hr": (projected, hidden),
        }
        shapes |= {"Wb": (4 * hidden,), "Rb": (4 * hidden,)} if "Wb" in weights else {}
        held = _captured_weights(node.attributes["body"].value)
        agrees = weights.keys() == shapes.keys() and all(_fits(held[own], shapes[key]) for key, own in weights.items())
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    return described if known and agrees and 0 < projected < hidden and _is_own_body(node) else None


def _is_own_body(node: ir.Node) -> bool:
    operators = tuple(inner.op_type for inner in node.attributes["body"].value)
    return operators[: len(BODY)] == BODY and operators[len(BODY) :] in (("Identity",), ("Where",) * 3)


def _captured_weights(body: ir.Graph) -> dict[str, tuple[int, ...]]:
    """Shapes by name of the initialisers that a body reads from outside, directly or through a Cast."""
    found = {}
    for value in (value for inner in body for value in inner.inputs):
        producer = None if value is None else value.producer()
        source = producer.inputs[0] if producer is not None and producer.op_type == "Cast" else value
        if source is not None and source.graph is not body and source.const_value is not None:
            found[str(source.name)] = tuple(source.const_value.shape.numpy())
    return found


def _fits(shape: tuple[int, ...], expected: tuple[int | None, ...]) -> bool:
    return len(shape) == len(expected) and all(want in (None, have) for want, have in zip(expected, shape, strict=True))


def _step(layer: Layer, weights: dict[str, ir.Value]) -> Callable[[Writer, Values, Values], tuple[Values, Values]]:
    def step(body: Writer, states: Values, steps: Values) -> tuple[Values, Values]:
        (h, c), x = states, steps[0]
        inner = body.op("Gemm", x, weights["W"], weights.get("Wb"), transB=1)
        recurrent = body.op("Gemm", h, weights["R"], weights.get("Rb"), transB=1)
        parts = body.op("Split", body.op("Add", inner, recurrent), _gate_sizes(body, layer), outputs=4, axis=1)
        gates = dict(zip(layer.cell.gates, parts, strict=True))
        i, o, f = (body.op("Sigmoid", gates[letter]) for letter in "iof")
        kept, added = body.op("Mul", f, c), body.op("Mul", i, body.op("Tanh", gates["c"]))
        new_c = body.op("Add", kept, added)
        new_h = body.op("Gemm", body.op("Mul", o, body.op("Tanh", new_c)), weights["weight_hr"], transB=1)
        if len(steps) == 1:
            return (new_h, new_c), (body.op("Identity", new_h),)
        y = body.op("Where", steps[1], new_h, _zero(body, new_h))
        return (body.op("Where", steps[1], new_h, h), body.op("Where", steps[1], new_c, c)), (y,)

    return step


def _gate_sizes(w: Writer, layer: Layer) -> ir.Value:
    return w.constant(np.full(len(layer.cell.gates), layer.cell.hidden_size, np.int64))


def blocks(layer: Layer, at: int) -> dict[str, np.ndarray]:
    """The arrays of one direction of a projected layer: W [4H, I], R [4H, P][, Wb, Rb [4H]], weight_hr [P, H]."""
    cell, projection = layer.cell, layer.projection
    if projection is None:
        return {}
    arrays = {"W": cell.W[at], "R": np.ascontiguousarray(cell.R[at, :, : layer.state_size])}
    if cell.B is not None:
        arrays |= {"Wb": cell.Wb[at], "Rb": cell.Rb[at]}
    arrays["weight_hr"] = projection[at]
    return arrays


def _weights(w: Writer, layer: Layer, at: int) -> dict[str, ir.Value]:
    side = ("", "_reverse")[at]
    return {key: w.constant(array, f"{layer.name}.{key}{side}") for key, array in blocks(layer, at).items()}


def _describe(layer: Layer, at: int, weights: dict[str, ir.Value]) -> str:
    return json.dumps(
        {
            "layer": "torch.LSTM",
            "options": {"proj_size": layer.state_size, "hidden_size": layer.cell.hidden_size,
                        "direction": layer.cell.direction if layer.cell.num_directions == 1
                        else ("forward", "reverse")[at]},
            "weights": {key: value.name for key, value in weights.items()},
        }
    )  # fmt: skip


def _initial(w: Writer, x: ir.Value, value: ir.Value | None, at: int, size: int, dtype: str) -> ir.Value:
    """The state [N, size] of one direction, zeros where none is given."""
    if value is None:
        return w.zeros(w.dim(x, 1), w.constant([size]), dtype=dtype)
    return w.cast(w.take(value, at, 0), dtype)


def _without_empty(w: Writer, state: ir.Value, lengths: ir.Value | None) -> ir.Value:
    if lengths is None:
        return state
    some = w.unsqueeze(w.op("Greater", lengths, w.constant(np.array(0, np.int32))), 1)
    return w.op("Where", some, state, _zero(w, state))


def _zero(w: Writer, like: ir.Value) -> ir.Value:
    return w.constant(np.zeros((), "float64" if like.dtype is not None and like.dtype.name == "DOUBLE" else "float32"))
