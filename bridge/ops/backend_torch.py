"""PyTorch: the array namespace is array-api-compat's view of `torch`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from bridge.errors import Unsupported
from bridge.ops.backend import Array, Pads, Shape, Values, is_static
from bridge.ops.python_loops import python_scan, python_while


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
        """`value` as a tensor on the device of `like`.

        Raises:
            Unsupported: unsigned integers of 16 bits and more, for which torch has hardly an operator.
        """
        import torch

        _check_dtype(self.dtype(value) if isinstance(value, torch.Tensor) else value.dtype)
        device = None if like is None else like.device
        if is_static(value):
            return torch.from_numpy(np.array(value)).to(device)
        return value if device is None else value.to(device)

    def concrete(self, value: Array) -> np.ndarray | None:
        """Eager tensors are known, those on the meta device are not."""
        return None if value.device.type == "meta" else np.asarray(value.detach().cpu().numpy())

    def dtype(self, value: Array) -> np.dtype[Any]:
        """The dtype of `value`."""
        return np.dtype(str(value.dtype).removeprefix("torch."))

    def astype(self, value: Array, dtype: np.dtype[Any]) -> Array:
        """`value` in another dtype; raises Unsupported as `asarray` does."""
        import torch

        _check_dtype(np.dtype(dtype))
        return value.to(getattr(torch, np.dtype(dtype).name))

    def divide(self, a: Array, b: Array) -> Array:
        """The quotient."""
        return a / b

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
        """Convolution by `torch.nn.functional`; integers in float64, which holds their sums."""
        import torch
        from torch.nn import functional

        if not x.dtype.is_floating_point:
            wide = x.to(torch.float64), w.to(torch.float64)
            return self.conv(*wide, strides=strides, pads=pads, dilations=dilations, groups=groups).to(x.dtype)
        both_sides = [side for pad in reversed(pads) for side in pad]
        convolve = (functional.conv1d, functional.conv2d, functional.conv3d)[x.ndim - 3]
        return convolve(
            functional.pad(x, both_sides), w, stride=tuple(strides), dilation=tuple(dilations), groups=groups
        )

    def split(self, value: Array, parts: int) -> tuple[Array, ...]:
        """Equal parts of the last axis."""
        import torch

        return tuple(torch.tensor_split(value, parts, dim=-1))

    def einsum(self, equation: str, *operands: Array) -> Array:
        """Einstein summation."""
        import torch

        return torch.einsum(equation, *operands)

    def fft(self, real: Array, imaginary: Array, inverse: bool) -> tuple[Array, Array]:
        """The discrete Fourier transform along the last axis."""
        import torch

        result = (torch.fft.ifft if inverse else torch.fft.fft)(torch.complex(real, imaginary))
        return result.real, result.imag

    def scatter(self, data: Array, rows: Array, updates: Array, reduction: str) -> Array:
        """Rows written or joined."""
        rows = rows.long()
        if reduction == "none":
            return data.index_put((rows,), updates)
        if reduction == "add":
            return data.index_put((rows,), updates, accumulate=True)
        name = {"mul": "prod", "max": "amax", "min": "amin"}[reduction]
        index = rows.reshape(-1, *[1] * (updates.ndim - 1)).expand_as(updates)
        return data.scatter_reduce(0, index, updates, name)

    def while_loop(self, holds: Callable[[Values], Array], step: Callable[[Values], Values], carry: Values) -> Values:
        """A Python loop."""
        return python_while(holds, step, carry)

    def scan(
        self, body: Callable[[Values, Values], tuple[Values, Values]], carry: Values, xs: Values, reverse: bool = False
    ) -> tuple[Values, Values]:
        """A Python loop."""
        import torch

        return python_scan(body, carry, xs, reverse, torch.stack)

    def cond(self, predicate: Array, then: Callable[[], Values], otherwise: Callable[[], Values]) -> Values:
        """The branch that is taken, and only that."""
        return then() if bool(predicate.reshape(())) else otherwise()


def _check_dtype(dtype: np.dtype[Any]) -> None:
    if dtype.kind == "u" and dtype.itemsize > 1:
        raise Unsupported("torch computes next to nothing in this dtype", where="torch", got=dtype,
                          do="cast to int64 in the model")  # fmt: skip
