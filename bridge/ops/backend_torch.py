"""PyTorch: the array namespace is array-api-compat's view of `torch`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from bridge.ops.backend import Array, Pads, Shape

Values = tuple[Array, ...]


@dataclass(frozen=True, slots=True)
class TorchBackend:
    """PyTorch as a Backend; autograd goes through every operator."""

    @property
    def name(self) -> str:
        """The framework, for messages."""
        return "torch"

    @property
    def xp(self) -> Any:
        """The array namespace."""
        import array_api_compat.torch as xp

        return xp

    def asarray(self, value: Any, like: Array | None = None) -> Array:
        """`value` as a tensor on the device of `like`."""
        import torch

        device = None if like is None else like.device
        if isinstance(value, np.ndarray | np.generic):
            return torch.from_numpy(np.array(value)).to(device)
        return value if device is None else value.to(device)

    def concrete(self, value: Array) -> np.ndarray | None:
        """Eager tensors are known."""
        return np.asarray(value.detach().cpu().numpy())

    def dtype(self, value: Array) -> np.dtype[Any]:
        """The dtype of `value`."""
        return np.dtype(str(value.dtype).removeprefix("torch."))

    def astype(self, value: Array, dtype: np.dtype[Any]) -> Array:
        """`value` in another dtype."""
        import torch

        return value.to(getattr(torch, np.dtype(dtype).name))

    def matmul(self, a: Array, b: Array) -> Array:
        """Matrix product."""
        return self.xp.matmul(a, b)

    def sigmoid(self, x: Array) -> Array:
        """Logistic function."""
        import torch

        return torch.sigmoid(x)

    def erf(self, x: Array) -> Array:
        """Error function."""
        import torch

        return torch.erf(x)

    def conv(self, x: Array, w: Array, *, strides: Shape, pads: Pads, dilations: Shape, groups: int) -> Array:
        """Convolution by `torch.nn.functional`."""
        from torch.nn import functional

        both_sides = [side for pad in reversed(pads) for side in pad]
        convolve = (functional.conv1d, functional.conv2d, functional.conv3d)[x.ndim - 3]
        return convolve(
            functional.pad(x, both_sides), w, stride=tuple(strides), dilation=tuple(dilations), groups=groups
        )

    def scan(
        self, body: Callable[[Values, Values], tuple[Values, Values]], carry: Values, xs: Values, reverse: bool = False
    ) -> tuple[Values, Values]:
        """A Python loop."""
        import torch

        steps, rows = len(xs[0]), []
        for at in range(steps - 1, -1, -1) if reverse else range(steps):
            carry, row = body(carry, tuple(x[at] for x in xs))
            rows.append(row)
        rows = rows[::-1] if reverse else rows
        return carry, tuple(torch.stack(column) for column in zip(*rows, strict=True))

    def cond(self, predicate: Array, then: Callable[[], Values], otherwise: Callable[[], Values]) -> Values:
        """The branch that is taken, and only that."""
        return then() if bool(predicate.reshape(())) else otherwise()
