"""Bridge's own recurrent cells for flax.nnx: they hold everything that an ONNX recurrent node holds.

Normal nnx cells: base class RNNCellBase, carry (c, h) or h, usable in nnx.RNN, nnx.Bidirectional and nnx.scan.
Import this module inside functions only: it imports flax.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any, ClassVar, Final

import jax
import jax.numpy as jnp
from flax import nnx

from bridge.cell import GATES, Activation, Op
from bridge.frameworks.flax_loop import one_step

_kernel = nnx.initializers.lecun_normal()
_recurrent = nnx.initializers.orthogonal()
_zeros = nnx.initializers.zeros_init()


class OwnCell(nnx.RNNCellBase):  # type: ignore[misc]
    """What the three cells share: parameters in the layouts bridge.LSTMCell, bridge.GRUCell and bridge.RNNCell.

    Parameters: kernel [I, n*H], recurrent_kernel [H, n*H], input_bias and recurrent_bias [n*H] (with `use_bias`),
    peephole [3*H] (LSTM with `use_peepholes`), initial_h and initial_c [H], or [N, H] for a batch of N (with
    `learned_carry`). Gates stand in ONNX order; the attributes are those of bridge.Cell, activations by ONNX name or
    as bridge.cell.Activation.
    """

    op: ClassVar[Op]

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        activations: Sequence[str | Activation] | None = None,
        clip: float | None = None,
        input_forget: bool = False,
        linear_before_reset: bool = False,
        use_bias: bool = True,
        use_peepholes: bool = False,
        learned_carry: bool = False,
        carry_batch: int | None = None,
        kernel_init: Any = _kernel,
        recurrent_kernel_init: Any = _recurrent,
        bias_init: Any = _zeros,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        self.in_features, self.hidden_features, self.param_dtype = in_features, hidden_features, param_dtype
        self.activations = None if activations is None else tuple(activations)
        self.clip, self.input_forget, self.linear_before_reset = clip, input_forget, linear_before_reset
        width, is_lstm = len(GATES[self.op]) * hidden_features, self.op == "LSTM"
        carry = (hidden_features,) if carry_batch is None else (carry_batch, hidden_features)

        def param(wanted: bool, init: Any, *shape: int) -> Any:
            return nnx.data(nnx.Param(init(rngs.params(), shape, param_dtype)) if wanted else None)

        self.kernel = param(True, kernel_init, in_features, width)
        self.recurrent_kernel = param(True, recurrent_kernel_init, hidden_features, width)
        self.input_bias = param(use_bias, bias_init, width)
        self.recurrent_bias = param(use_bias, bias_init, width)
        self.peephole = param(use_peepholes and is_lstm, bias_init, 3 * hidden_features)
        self.initial_h = param(learned_carry, bias_init, *carry)
        self.initial_c = param(learned_carry and is_lstm, bias_init, *carry)

    @property
    def options(self) -> dict[str, Any]:
        """The options of the layout bridge.*: the attributes of the ONNX operator that are not at their default."""
        names = ("activations", "clip", "input_forget", "linear_before_reset")
        return {name: value for name in names if (value := getattr(self, name)) not in (None, False)}

    @property
    def parameters(self) -> dict[str, jax.Array]:
        """The parameters of the layout bridge.* that this cell has, by name."""
        names = ("kernel", "recurrent_kernel", "input_bias", "recurrent_bias", "peephole")
        return {name: param[...] for name in names if (param := getattr(self, name)) is not None}

    def __call__(self, carry: Any, inputs: jax.Array) -> tuple[Any, jax.Array]:
        """One step: inputs [..., I] and the carry -> (new carry, output [..., H])."""
        return one_step(self.op, self.parameters, self.options, carry, inputs)

    def initialize_carry(self, input_shape: tuple[int, ...], rngs: Any = None, carry_init: Any = None) -> Any:
        """Zeros, the learned initial carry, or what `carry_init` draws: (c, h) for LSTM, else h; [..., H]."""
        shape = (*input_shape[:-1], self.hidden_features)

        def state(param: Any) -> jax.Array:
            if carry_init is not None:
                stream = rngs.carry if isinstance(rngs, nnx.Rngs) else rngs
                return carry_init(stream(), shape, self.param_dtype)
            return jnp.zeros(shape, self.param_dtype) if param is None else jnp.broadcast_to(param[...], shape)

        return (state(self.initial_c), state(self.initial_h)) if self.op == "LSTM" else state(self.initial_h)

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
