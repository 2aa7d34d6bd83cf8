"""Which elements of an integer output rounding may change: where two sides differ there, neither is wrong.

The referee runs in Monte Carlo arithmetic: every operand that hangs on an input moves by one rounding up or down, and
what a run changes has no margin. Integers, sizes and constants are exact and do not move.
Source: D. S. Parker, "Monte Carlo Arithmetic", UCLA CSD-970002, 1997.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from bridge.ops.backend_numpy import NumpyBackend
from bridge.ops.node import Body
from bridge.ops.program import Program
from bridge.ops.registry import Handler
from bridge.ops.steps import graph_inputs

if TYPE_CHECKING:
    import onnx_ir as ir

PAIRS: Final = 16
"""Pairs of runs, the second with every sign turned: one of each pair decides two near values the other way round with
a chance of at least one in two, so that a tie stays unseen once in 65536 times."""


class _Moved(Program):
    """A graph in float64 whose operands move by a relative `size`, in directions that a seed draws."""

    def __init__(self, model: ir.Model, size: float) -> None:
        self._size, self._sign, self._rng = size, 1, np.random.default_rng(0)
        super().__init__(model, NumpyBackend(double=True))

    def run(self, feeds: Mapping[str, np.ndarray], seed: int, sign: int) -> dict[str, np.ndarray]:
        """The outputs of one run."""
        self._rng, self._sign = np.random.default_rng(seed), sign
        return {name: np.asarray(array) for name, array in self(feeds).items()}

    def _choose(self, node: ir.Node) -> tuple[Handler, Sequence[int]] | None:
        chosen = super()._choose(node)
        if chosen is None:
            return None
        handler, taken = chosen
        # What hangs on sizes and constants alone is exact; moved, it would make other shapes.
        places = {at for at, value in enumerate(node.inputs) if not handler.is_static(at) and graph_inputs(value)}
        return replace(handler, function=self._moving(handler.function, places)), taken

    def _moving(self, function: Callable[..., Any], places: Collection[int]) -> Callable[..., Any]:
        def run(node: Any, *inputs: Any, **attributes: Any) -> Any:
            if not any(isinstance(value, Body) for value in attributes.values()):  # whose own nodes move theirs
                inputs = tuple(self._moved(value) if at in places else value for at, value in enumerate(inputs))
            return function(node, *inputs, **attributes)

        return run

    def _moved(self, value: Any) -> Any:
        if not isinstance(value, np.ndarray) or value.dtype.kind != "f":
            return value
        return value * (1 + self._sign * self._size * self._rng.choice((-1.0, 1.0), value.shape))


class Margin:
    """What rounding may change in the outputs of one graph on one set of inputs."""

    def __init__(
        self, model: ir.Model, feeds: Mapping[str, np.ndarray], truth: Mapping[str, np.ndarray], size: float
    ) -> None:
        """`truth` are the referee's outputs; an operand may be wrong by `size`, relative to itself."""
        self._model, self._feeds, self._truth, self._size = model, feeds, truth, size
        self._changed = {name: np.zeros(np.shape(array), bool) for name, array in truth.items()}
        self._runs = 0

    def undecided(self, name: str, asked: np.ndarray) -> np.ndarray:
        """Where runs change output `name`; as many are made as it takes to change all that is `asked`, bools too."""
        while not self._changed[name][asked].all() and self._runs < 2 * PAIRS:
            self._run()
        return self._changed[name]

    @cached_property
    def _program(self) -> _Moved:  # compiled for the first difference, of which there is mostly none
        return _Moved(self._model, self._size)

    def _run(self) -> None:
        for name, array in self._program.run(self._feeds, self._runs // 2, -1 if self._runs % 2 else 1).items():
            truth = self._truth[name]
            # A run that gives an output another shape has changed all of it.
            self._changed[name] |= np.True_ if array.shape != np.shape(truth) else array != truth
        self._runs += 1
