"""Scan, Loop and If: nodes that hold graphs. A body sees the values around it; all constants live in the main graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridge.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import onnx_ir as ir

    from bridge.graph.writer import Writer

    Values = Sequence[ir.Value]
    ScanBody = Callable[[Writer, tuple[ir.Value, ...], tuple[ir.Value, ...]], tuple[Values, Values]]


def write_scan(
    w: Writer,
    body: ScanBody,
    states: Values,
    xs: Values,
    reverse: bool,
    name: str,
    metadata: Mapping[str, str] | None,
) -> tuple[tuple[ir.Value, ...], tuple[ir.Value, ...]]:
    """A Scan over axis 0 of `xs`; with `reverse` the last step comes first and outputs keep time order.

    `body(writer, states, steps)` gets one value for each of `states` (same shape) and one for each of `xs` (its shape
    without axis 0), and returns the new states and the values to stack into outputs [T, ...].

    Raises:
        UsageError: a new state has another dtype or rank than the state; an output whose shape is unknown (declare it
            with `writer.typed(value, shape)`: onnxruntime needs it).
    """
    import onnx_ir as ir

    inner = _body(w, f"{name}.body")
    state_in = tuple(_body_input(inner, f"{name}.state", value.type, value.shape) for value in states)
    step_in = tuple(
        _body_input(inner, f"{name}.step", value.type, None if value.shape is None else ir.Shape(value.shape[1:]))
        for value in xs
    )
    new_states, ys = body(inner, state_in, step_in)
    results = _close(inner, [*new_states, *ys], name)
    for at, (state, result) in enumerate(zip(states, results[: len(states)], strict=True)):
        _agree(w, state, result, f"Scan {name!r}, state {at}")
    for at, value in enumerate(results):
        if value.shape is None:
            raise UsageError(f"output {at} of the body has no shape", where=f"Scan {name!r}",
                             do="declare it with writer.typed(value, shape)")  # fmt: skip
    count = len(states)
    steps, stacks = len(xs), len(results) - count
    labels = [f"{name}.final{at}" for at in range(count)] + [f"{name}.stack{at}" for at in range(stacks)]
    node = w.append(
        "Scan", [*states, *xs], name, labels, metadata,
        body=inner.graph, num_scan_inputs=steps,
        scan_input_directions=[1] * steps if reverse else None,
        scan_output_directions=[1] * stacks if reverse and stacks else None,
    )  # fmt: skip
    time = None if xs[0].shape is None else xs[0].shape[0]
    for at, (value, result) in enumerate(zip(node.outputs, results, strict=True)):
        value.type = result.type
        shape = result.shape or ()
        value.shape = ir.Shape(tuple(shape) if at < count else (time, *shape))
    return tuple(node.outputs[:count]), tuple(node.outputs[count:])


def write_loop(
    w: Writer,
    condition: ir.Value,
    body: Callable[[Writer, tuple[ir.Value, ...]], tuple[ir.Value, Values]],
    states: Values,
    name: str,
    metadata: Mapping[str, str] | None,
) -> tuple[ir.Value, ...]:
    """A Loop: while the bool scalar `condition` holds, `body(writer, states) -> (condition, new states)`.

    Raises:
        UsageError: a new state has another dtype or rank than the state.
    """
    import onnx_ir as ir

    inner = _body(w, f"{name}.body")
    _body_input(inner, f"{name}.count", ir.TensorType(ir.DataType.INT64), ir.Shape([]))
    _body_input(inner, f"{name}.condition", ir.TensorType(ir.DataType.BOOL), ir.Shape([]))
    held = tuple(_body_input(inner, f"{name}.state", value.type, value.shape) for value in states)
    goes_on, new_states = body(inner, held)
    results = _close(inner, [goes_on, *new_states], name)
    for at, (state, result) in enumerate(zip(states, results[1:], strict=True)):
        _agree(w, state, result, f"Loop {name!r}, state {at}")
    labels = [f"{name}.final{at}" for at in range(len(states))]
    node = w.append("Loop", [None, condition, *states], name, labels, metadata, body=inner.graph)
    for value, state in zip(node.outputs, states, strict=True):
        value.type, value.shape = state.type, None if state.shape is None else state.shape.copy()
    return tuple(node.outputs)


def write_choice(
    w: Writer,
    condition: ir.Value,
    then: Callable[[Writer], Values],
    otherwise: Callable[[Writer], Values],
    name: str,
    metadata: Mapping[str, str] | None,
) -> tuple[ir.Value, ...]:
    """An If node. Both branches return as many values, alike in dtype and rank."""
    import onnx_ir as ir

    branches, results = [], []
    for label, write in (("then", then), ("else", otherwise)):
        inner = _body(w, f"{name}.{label}")
        results.append(_close(inner, list(write(inner)), f"{name}.{label}"))
        branches.append(inner.graph)
    if len(results[0]) != len(results[1]):
        raise UsageError("the branches return different numbers of values", where=f"If {name!r}",
                         got=f"{len(results[0])} and {len(results[1])}")  # fmt: skip
    labels = [f"{name}.{at}" for at in range(len(results[0]))]
    node = w.append("If", [condition], name, labels, metadata, then_branch=branches[0], else_branch=branches[1])
    for value, first, second in zip(node.outputs, *results, strict=True):
        if first.dtype != second.dtype:
            raise UsageError("the branches disagree in dtype", where=f"If {name!r}",
                             got=f"{first.dtype} and {second.dtype}")  # fmt: skip
        value.type = first.type
        if first.shape is not None and second.shape is not None and len(first.shape) == len(second.shape):
            value.shape = ir.Shape([a if a == b else None for a, b in zip(first.shape, second.shape, strict=True)])
    return tuple(node.outputs)


def _body(w: Writer, name: str) -> Writer:
    return type(w)(w.opset, w.dtype, name, outer=w)


def _body_input(inner: Writer, name: str, type_: ir.TypeProtocol | None, shape: ir.Shape | None) -> ir.Value:
    import onnx_ir as ir

    value = ir.Value(name=inner.fresh(name), type=type_, shape=None if shape is None else shape.copy())
    inner.graph.inputs.append(value)
    return value


def _close(inner: Writer, values: list[ir.Value], name: str) -> list[ir.Value]:
    # A body's outputs are made by its own nodes, each once: what only passes through goes by an Identity.
    results: list[ir.Value] = []
    for value in values:
        own = value.graph is inner.graph and value.producer() is not None and not any(value is r for r in results)
        results.append(value if own else inner.op("Identity", value, name=f"{name}.pass"))
    inner.graph.outputs.extend(results)
    return results


def _agree(w: Writer, state: ir.Value, result: ir.Value, where: str) -> None:
    if result.dtype is None:
        result.type = state.type
    if result.dtype != state.dtype:
        raise UsageError("the new state has another dtype", where=where, got=result.dtype, expected=state.dtype)
    if state.shape is None:
        return
    if result.shape is None:
        w.typed(result, tuple(state.shape))
        return
    if len(result.shape) != len(state.shape):
        raise UsageError("the new state has another shape", where=where, got=result.shape, expected=state.shape)
    known: list[Any] = [old if _unknown(new) else new for old, new in zip(state.shape, result.shape, strict=True)]
    w.typed(result, known)


def _unknown(dim: object) -> bool:
    return not isinstance(dim, int) and getattr(dim, "value", None) is None
