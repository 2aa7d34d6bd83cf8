"""Constant, If and Scan: values and subgraphs as attributes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bridge.ops.backend import Array, is_static
from bridge.ops.node import Body, Node
from bridge.ops.registry import handles
from bridge.ops.shape import LAYOUT_VERSIONS


@handles("Constant", versions={1, 9, 11, 12, 13, 19} | LAYOUT_VERSIONS)
def constant(
    node: Node,
    *,
    sparse_value: object = None,
    value: np.ndarray | None = None,
    value_float: float | None = None,
    value_floats: Sequence[float] | None = None,
    value_int: int | None = None,
    value_ints: Sequence[int] | None = None,
    value_string: str | None = None,
    value_strings: Sequence[str] | None = None,
) -> np.ndarray:
    """The one value that is given; sparse and string values are refused."""
    refused = {"sparse_value": sparse_value, "value_string": value_string, "value_strings": value_strings}
    for name, given in refused.items():
        if given is not None:
            node.refuse(f"{name} is not carried")
    typed: tuple[tuple[Any, type[np.generic]], ...] = (
        (value_float, np.float32), (value_floats, np.float32), (value_int, np.int64), (value_ints, np.int64)
    )  # fmt: skip
    values = [np.asarray(given, dtype) for given, dtype in typed if given is not None]
    values += [] if value is None else [value]
    if len(values) != 1:
        node.reject("has not exactly one value", got=len(values), expected=1)
    return values[0]


@handles("If", versions={1, 11, 13, 16, 19} | LAYOUT_VERSIONS, raw=True)
def if_(node: Node, cond: Array, *, else_branch: Body, then_branch: Body) -> tuple[Array, ...]:
    """One branch: chosen while tracing where `cond` is known, by the backend's conditional where it is not."""
    if is_static(cond):
        return then_branch() if bool(cond.reshape(())) else else_branch()

    def arrays(branch: Body) -> tuple[Array, ...]:
        return tuple(node.backend.asarray(value, like=cond) for value in branch())

    return node.backend.cond(cond, lambda: arrays(then_branch), lambda: arrays(else_branch))


@handles("Scan", versions={9, 11, 16, 19} | LAYOUT_VERSIONS)
def scan(
    node: Node,
    *initial_state_and_scan_inputs: Array,
    body: Body,
    num_scan_inputs: int,
    scan_input_axes: Sequence[int] | None = None,
    scan_input_directions: Sequence[int] | None = None,
    scan_output_axes: Sequence[int] | None = None,
    scan_output_directions: Sequence[int] | None = None,
) -> tuple[Array, ...]:
    """Run `body` over slices of the scan inputs, states first. Source: onnx/defs/controlflow/defs.cc, Scan-25."""
    split = len(initial_state_and_scan_inputs) - num_scan_inputs
    states, inputs = initial_state_and_scan_inputs[:split], initial_state_and_scan_inputs[split:]
    forward_in, forward_out = [0] * num_scan_inputs, [0] * (node.outputs - split)
    xs = tuple(
        _reversed(node, node.xp.moveaxis(x, axis, 0), backwards)
        for x, axis, backwards in zip(
            inputs, scan_input_axes or forward_in, scan_input_directions or forward_in, strict=True
        )
    )
    if len({int(x.shape[0]) for x in xs}) != 1 or int(xs[0].shape[0]) == 0:
        node.reject("the scan inputs need one common length above 0", got=[tuple(x.shape) for x in xs])

    def step(carry: tuple[Array, ...], x: tuple[Array, ...]) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
        results = [node.backend.asarray(value, like=xs[0]) for value in body(*carry, *x)]
        return tuple(results[:split]), tuple(results[split:])

    final, ys = node.backend.scan(step, states, xs)
    ys = tuple(
        node.xp.moveaxis(_reversed(node, y, backwards), 0, axis)
        for y, axis, backwards in zip(
            ys, scan_output_axes or forward_out, scan_output_directions or forward_out, strict=True
        )
    )
    return *final, *ys


def _reversed(node: Node, value: Array, backwards: int) -> Array:
    return node.xp.flip(value, axis=0) if backwards else value
