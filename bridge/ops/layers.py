"""Native layers in the place of nodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from bridge.graph.nodes import is_recurrent
from bridge.ops.backend import Array
from bridge.ops.node import Node
from bridge.ops.registry import Handler, Label

if TYPE_CHECKING:
    import onnx_ir as ir

RECURRENT_INPUTS = (0, 4, 5, 6)
"""X, sequence_lens, initial_h, initial_c: what a native layer takes; W, R, B and P are its own."""


@dataclass(frozen=True, slots=True, eq=False)
class Takeover:
    """A native layer that takes some inputs of its node and owns what stands at the others."""

    run: Callable[..., Any]
    inputs: tuple[int, ...]
    """Positions of the inputs that `run` takes, in its order."""

    def __call__(self, *inputs: Array) -> Any:
        """The outputs of the node."""
        return self.run(*inputs)


def layer_handler(node: ir.Node, layer: Callable[..., Any]) -> tuple[Handler, Sequence[int]]:
    """A handler that runs `layer` for `node`, and the positions of the inputs it takes."""
    if not is_recurrent(node):
        taken = layer.inputs if isinstance(layer, Takeover) else range(len(node.inputs))
        return _handler(node, lambda _node, *inputs: _as_tuple(layer(*inputs))), taken
    attribute = node.attributes.get("layout")
    batch_major = attribute is not None and bool(attribute.value)

    def run(
        node: Node,
        X: Array,
        sequence_lens: Array | None = None,
        initial_h: Array | None = None,
        initial_c: Array | None = None,
    ) -> tuple[Array, ...]:
        given: dict[str, Any] = {"sequence_lens": sequence_lens, "initial_h": initial_h, "initial_c": initial_c}
        given = {name: value for name, value in given.items() if value is not None}
        if not batch_major:
            return _as_tuple(layer(X, **given))
        permute = node.xp.permute_dims
        states = {name: value if len(value.shape) == 1 else permute(value, (1, 0, 2)) for name, value in given.items()}
        Y, *finals = layer(permute(X, (1, 0, 2)), **states)
        return permute(Y, (2, 0, 1, 3)), *(permute(final, (1, 0, 2)) for final in finals)

    return _handler(node, run), RECURRENT_INPUTS[: 4 if node.op_type == "LSTM" else 3]


def _handler(node: ir.Node, function: Callable[..., Any]) -> Handler:
    label = Label(
        domain=node.domain,
        op=node.op_type,
        versions=frozenset(),
        static=frozenset(),
        raw=False,
        differentiable=True,
    )
    none: MappingProxyType[str, Any] = MappingProxyType({})
    return Handler(function=function, label=label, inputs=(), variadic=None, attributes=none, native=True)


def _as_tuple(result: Any) -> tuple[Array, ...]:
    return tuple(result) if isinstance(result, tuple | list) else (result,)
