"""Bridge's own recurrent cells for flax.linen: they hold everything that an ONNX recurrent node holds.

Normal linen cells: base class RNNCellBase, carry (c, h) or h, usable in nn.RNN, nn.Bidirectional and nn.scan.
Import this module inside functions only: it imports flax.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any, ClassVar, Final

import jax
import jax.numpy as jnp
from flax import linen as nn

from bridge.cell import GATES, Activation, Op
from bridge.errors import UsageError
from bridge.frameworks.flax_loop import one_step


class OwnCell(nn.RNNCellBase):  # type: ignore[misc]
    """What the three cells share: parameters in the layouts bridge.LSTMCell, bridge.GRUCell and bridge.RNNCell.

    Parameters: kernel [I, n*H], recurrent_kernel [H, n*H], input_bias and recurrent_bias [n*H] (with `use_bias`),
    peephole [3*H] (LSTM with `use_peepholes`), initial_h and initial_c [H], or [N, H] with `carry_batch` (with
    `learned_carry`). Gates stand in ONNX order; the attributes are those of bridge.Cell, activations by ONNX name or
    as bridge.cell.Activation.
    """

    features: int
    activations: tuple[str | Activation, ...] | None = None
    clip: float | None = None
    input_forget: bool = False
    linear_before_reset: bool = False
    use_bias: bool = True
    use_peepholes: bool = False
    learned_carry: bool = False
    carry_batch: int | None = None
    kernel_init: Any = nn.initializers.lecun_normal()
    recurrent_kernel_init: Any = nn.initializers.orthogonal()
    bias_init: Any = nn.initializers.zeros_init()
    param_dtype: Any = jnp.float32

    op: ClassVar[Op]

    @property
    def options(self) -> dict[str, Any]:
        """The options of the layout bridge.*: the attributes of the ONNX operator that are not at their default."""
        names = ("activations", "clip", "input_forget", "linear_before_reset")
        return {name: value for name in names if (value := getattr(self, name)) not in (None, False)}

    def setup(self) -> None:
        """Declare the learned initial carry; the other parameters wait for the size of the input."""
        shape = (self.features,) if self.carry_batch is None else (self.carry_batch, self.features)
        if self.learned_carry:
            self.initial_h = self.param("initial_h", self.bias_init, shape, self.param_dtype)
        if self.learned_carry and self.op == "LSTM":
            self.initial_c = self.param("initial_c", self.bias_init, shape, self.param_dtype)

    @nn.compact  # type: ignore[untyped-decorator]
    def __call__(self, carry: Any, inputs: jax.Array) -> tuple[Any, jax.Array]:
        """One step: inputs [..., I] and the carry -> (new carry, output [..., H])."""
        width = len(GATES[self.op]) * self.features

        def param(name: str, init: Any, *shape: int) -> jax.Array:
            return self.param(name, init, shape, self.param_dtype)

        params = {
            "kernel": param("kernel", self.kernel_init, inputs.shape[-1], width),
            "recurrent_kernel": param("recurrent_kernel", self.recurrent_kernel_init, self.features, width),
        }
        if self.use_bias:
            params |= {name: param(name, self.bias_init, width) for name in ("input_bias", "recurrent_bias")}
        if self.use_peepholes and self.op == "LSTM":
            params["peephole"] = param("peephole", self.bias_init, 3 * self.features)
        return one_step(self.op, params, self.options, carry, inputs)

    @nn.nowrap  # type: ignore[untyped-decorator]
    def initialize_carry(self, rng: Any, input_shape: tuple[int, ...]) -> Any:  # noqa: ARG002 (linen's signature)
        """Zeros or the learned initial carry: (c, h) for LSTM, else h; [..., H]. `rng` is not used.

        Raises:
            UsageError: a learned carry is asked of a module that is not bound to its variables.
        """
        shape = (*input_shape[:-1], self.features)
        if self.learned_carry and self.scope is None:
            raise UsageError(
                "a learned initial carry lives in the variables, and this module is not bound to any",
                where=f"{type(self).__name__}.initialize_carry",
                do="call it inside apply, or on cell.bind(variables)",
            )

        def state(name: str) -> jax.Array:
            return jnp.broadcast_to(getattr(self, name), shape) if self.learned_carry else zeros

        zeros = jnp.zeros(shape, self.param_dtype)
        return (state("initial_c"), state("initial_h")) if self.op == "LSTM" else state("initial_h")

    @property
    def num_feature_axes(self) -> int:
        """1: the last axis holds the features."""
        return 1


class LSTMCell(OwnCell):
    """ONNX LSTM, one step: peepholes, coupled gates, clip, activations per gate, both biases; carry (c, h)."""

    op: ClassVar[Op] = "LSTM"


class GRUCell(OwnCell):
    """ONNX GRU, one step: the reset gate before or after the recurrent product, both biases; carry h."""

    op: ClassVar[Op] = "GRU"


class RNNCell(OwnCell):
    """ONNX RNN, one step: any of the eleven activations, both biases, clip; carry h."""

    op: ClassVar[Op] = "RNN"


OWN_CELLS: Final = MappingProxyType({"LSTM": LSTMCell, "GRU": GRUCell, "RNN": RNNCell})
"""The cell of each operator."""
