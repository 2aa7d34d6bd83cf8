"""What stands around recurrent layers in a graph, without layers of its own.

Keras' recurrent layers are batch-major and ONNX' operators time-major, one axis more for the directions: values
remember what they are made of, and transposes that cancel are never made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from bridge.ops.steps import Step

if TYPE_CHECKING:
    import onnx_ir as ir

Make = Callable[[], Any]

SEQUENCES: Final = ("TDNH", "NTDH", "TNDH")
"""Orders of the axes of all directions' outputs; the first is the operator's own. Final states are DNH."""


class Arranged:
    """Values that are rearrangements of others, made where they are read."""

    def __init__(
        self,
        constants: Mapping[ir.Value, np.ndarray],
        is_inlined: Callable[[ir.Value], bool],
        value: Callable[[ir.Value], Any],
    ) -> None:
        """`value` gives the tensor of a value; what `is_inlined` has none."""
        self._constants, self._is_inlined, self._value = constants, is_inlined, value
        self._later: dict[ir.Value, Make] = {}
        self._batch_major: dict[ir.Value, Make] = {}
        """Batch-major forms of time-major sequences [T, N, F]."""
        self._parts: dict[ir.Value, tuple[str, list[Any]]] = {}
        """Outputs [N, T, H] or states [N, H] of each direction, and the order of the axes that they have as one."""

    def __contains__(self, value: ir.Value) -> bool:
        return value in self._later

    def made(self, value: ir.Value) -> Any:
        """The tensor of a value that is here."""
        return self._later[value]()

    def batch_major(self, value: ir.Value) -> Any:
        """A time-major sequence [T, N, F] as [N, T, F]."""
        from keras import ops

        made = self._batch_major.get(value)
        return ops.transpose(self._value(value), (1, 0, 2)) if made is None else made()

    def remember(self, value: ir.Value, order: str, parts: list[Any]) -> None:
        """`value` is the parts of all directions as one tensor, its axes in `order`."""
        from keras import ops

        def make() -> Any:
            if order == "DNH":
                return ops.stack(parts, 0)
            stacked = ops.stack(parts, 2)  # [N, T, D, H]
            return stacked if order == "NTDH" else ops.transpose(stacked, ["NTDH".index(axis) for axis in order])

        self._parts[value], self._later[value] = (order, parts), make

    def takes(self, step: Step) -> bool:
        """Whether `step` is a rearrangement that is here now."""
        rules = {"Transpose": self._transpose, "Squeeze": self._squeeze, "Reshape": self._reshape}
        rule = rules.get(step.node.op_type)
        source = step.inputs[0] if step.inputs else None
        if rule is None or source is None or step.handler.native:
            return False
        return not self._is_inlined(source) and source not in self._constants and rule(step, source, step.outputs[0])

    def _transpose(self, step: Step, source: ir.Value, target: ir.Value) -> bool:
        from keras import ops

        perm = step.attributes.get("perm")
        if perm is None:
            return False
        axes = [int(axis) for axis in perm]
        order, parts = self._parts.get(source, ("", []))
        turned = "".join(order[axis] for axis in axes) if order else ""
        if turned in SEQUENCES:
            self.remember(target, turned, parts)
        elif axes == [1, 0, 2] and source in self._batch_major:
            self._later[target] = self._batch_major[source]
        else:
            self._later[target] = lambda: ops.transpose(self._value(source), axes)
            if axes == [1, 0, 2]:
                self._batch_major[target] = lambda: self._value(source)
            elif len(axes) == 3:
                swapped = [axes[1], axes[0], axes[2]]
                self._batch_major[target] = lambda: ops.transpose(self._value(source), swapped)
        return True

    def _squeeze(self, step: Step, source: ir.Value, target: ir.Value) -> bool:
        """One direction without its axis."""
        axes = self._constant(step, 1)
        order, parts = self._parts.get(source, ("", []))
        if len(parts) != 1 or axes is None or axes.size != 1 or order[int(axes.reshape(())) % len(order)] != "D":
            return False
        self._flat(target, order.replace("D", ""), parts[0])
        return True

    def _reshape(self, step: Step, source: ir.Value, target: ir.Value) -> bool:
        """[·, ·, D, H] to [·, ·, D * H]: the directions side by side."""
        from keras import ops

        shape = self._constant(step, 1)
        order, parts = self._parts.get(source, ("", []))
        if order not in ("NTDH", "TNDH") or shape is None or step.attributes.get("allowzero"):
            return False
        width = sum(int(part.shape[-1]) for part in parts)
        if shape.tolist() not in ([0, 0, -1], [0, 0, width]):
            return False
        self._flat(target, order.replace("D", ""), parts[0] if len(parts) == 1 else ops.concatenate(parts, -1))
        return True

    def _flat(self, value: ir.Value, order: str, tensor: Any) -> None:
        """`value` is `tensor` ([N, T, F] or [N, F]) with its axes in `order`."""
        from keras import ops

        if order != "TNH":
            self._later[value] = lambda: tensor
            return
        self._later[value] = lambda: ops.transpose(tensor, (1, 0, 2))
        self._batch_major[value] = lambda: tensor

    def _constant(self, step: Step, at: int) -> np.ndarray | None:
        value = step.inputs[at] if at < len(step.inputs) else None
        return None if value is None else self._constants.get(value)
