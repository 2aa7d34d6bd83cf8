"""One ONNX node as a leaf of an imported torch graph, run by bridge's operator table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from torch import nn

from bridge.ops.backend_numpy import NumpyBackend
from bridge.ops.backend_torch import TorchBackend
from bridge.ops.node import Body, Node
from bridge.ops.registry import Handler
from bridge.ops.steps import Operation, Step
from bridge.ops.table import HANDLERS

SHOWN: Final = 8
"""Elements of a constant that `print` shows."""


class Operator(nn.Module):  # type: ignore[misc]
    """A node that no native layer is: its attributes and constant inputs are inside, subgraphs are submodules.

    `forward(*inputs, *captured)` takes the inputs that are no constants, then what the subgraphs read beside their own
    inputs. One output is a tensor, several a tuple; what is known without running (shapes) is numpy.
    """

    def __init__(
        self,
        step: Step,
        constants: Mapping[int, np.ndarray],
        positions: Sequence[int],
        bodies: Mapping[str, tuple[nn.Module, Sequence[int]]],
    ) -> None:
        """`bodies`: each subgraph with the numbers of the captured values that it takes, in its order."""
        super().__init__()
        label = step.handler.label
        self.key = (label.domain, label.op, max(label.versions))
        """Where the operator table has what carries this node."""
        self.node_name, self.count = step.node.name, len(step.outputs)
        self.attributes: dict[str, Any] = dict(step.attributes)
        self.arity, self.constants, self.positions = len(step.inputs), dict(constants), tuple(positions)
        self.declared = {name: step.bodies[name].declared for name in bodies}
        self.captured = {name: tuple(numbers) for name, (_, numbers) in bodies.items()}
        for name, (body, _) in bodies.items():
            self.add_module(name, body)

    def forward(self, *values: Any) -> Any:
        """The outputs of the node."""
        given: list[Any] = [None] * self.arity
        for at, constant in self.constants.items():
            given[at] = constant
        for at, value in zip(self.positions, values, strict=False):
            given[at] = value
        captured = values[len(self.positions) :]
        bodies = {name: self._body(name, captured) for name in self.captured}
        with np.errstate(all="ignore"):
            results = self._operation().run(given, captured, bodies)
        return results[0] if self.count == 1 else results

    def _operation(self) -> Operation:
        record: dict[str, Any] = {"name": self.node_name, "op_type": self.key[1], "outputs": self.count}
        return Operation(
            node=Node(backend=TorchBackend(), **record), static_node=Node(backend=NumpyBackend(), **record),
            handler=self._handler(), attributes=self.attributes,
        )  # fmt: skip

    def _handler(self) -> Handler:
        return HANDLERS[self.key]

    def _body(self, name: str, captured: Sequence[Any]) -> Body:
        module: Any = getattr(self, name)
        outer = tuple(captured[number] for number in self.captured[name])

        def run(*values: Any) -> tuple[Any, ...]:
            result: tuple[Any, ...] = module(*values, *outer)
            return result

        return Body(run=run, declared=self.declared[name])

    def extra_repr(self) -> str:
        """What `print` shows: operator, constants, attributes."""
        names = self._handler().inputs
        shown = {names[at] if at < len(names) else f"input_{at}": _short(value) for at, value in self.constants.items()}
        shown |= {name: _short(value) for name, value in self.attributes.items()}
        return ", ".join([self.key[1], *(f"{name}={value}" for name, value in shown.items())])


class Constant(nn.Module):  # type: ignore[misc]
    """A value of the graph that is an output as it is."""

    def __init__(self, value: np.ndarray) -> None:
        super().__init__()
        self.value = value

    def forward(self) -> np.ndarray:
        """The value."""
        return self.value

    def extra_repr(self) -> str:
        """What `print` shows."""
        return _short(self.value)


def _short(value: Any) -> str:
    if not isinstance(value, np.ndarray):
        return repr(value)
    return str(value.tolist()) if value.size <= SHOWN else f"{value.dtype} {list(value.shape)}"
