"""Bridge's own Keras cell: it holds everything that an ONNX recurrent node of one direction holds.

A normal Keras cell, for `keras.layers.RNN` and `keras.layers.Bidirectional`, saved and loaded with the model.
Import this module inside functions only: it imports keras.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import keras
import numpy as np

from bridge.cell import GATES, Cell, Op
from bridge.ops.recurrent_steps import gru_step, hoisted_bias, lstm_step, rnn_step, side_of

_STEPS: Mapping[str, Any] = {"LSTM": lstm_step, "GRU": gru_step, "RNN": rnn_step}

ATTRIBUTES = ("activations", "activation_alpha", "activation_beta", "clip", "input_forget", "linear_before_reset")
"""The attributes of a node of one direction; names and meanings are those of bridge.Cell."""


@keras.saving.register_keras_serializable(package="bridge")
class RecurrentCell(keras.layers.Layer):  # type: ignore[misc]
    """One ONNX LSTM, GRU or RNN cell with every attribute, states [h, c] or [h] as in Keras.

    Weights, gates in ONNX order: kernel [I, n*H], recurrent_kernel [H, n*H], input_bias and recurrent_bias [n*H] (with
    `use_bias`), peephole [3*H] (with `use_peepholes`), initial_h and initial_c [rows, H] (with `initial_rows`, 1 for
    every batch), the trainable states that a sequence begins with.

    Args:
        op: "LSTM", "GRU" or "RNN".
        units: H.
        attributes: those of bridge.Cell; what is left out has the operator's default.
        use_bias: two biases per gate.
        use_peepholes: LSTM peepholes.
        initial_rows: rows of initial_h and of initial_c; 0 for states of zeros.
        kwargs: of keras.layers.Layer.

    Raises:
        BridgeError: attributes that the operator does not have.
    """

    def __init__(
        self,
        op: Op,
        units: int,
        attributes: Mapping[str, Any] | None = None,
        use_bias: bool = True,
        use_peepholes: bool = False,
        initial_rows: Sequence[int] = (0, 0),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.op, self.units, self.use_bias, self.use_peepholes = op, int(units), use_bias, use_peepholes
        self.attributes = {name: value for name, value in (attributes or {}).items() if value is not None}
        self.initial_rows = tuple(int(rows) for rows in initial_rows)
        self.num_states = 2 if op == "LSTM" else 1
        self.state_size = [self.units] * self.num_states if op == "LSTM" else self.units
        self.output_size = self.units
        self._template = _template(op, self.attributes)

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Make the weights for inputs [N, I]."""
        gates = len(GATES[self.op]) * self.units
        self.kernel = self.add_weight(shape=(int(input_shape[-1] or 0), gates), name="kernel")
        self.recurrent_kernel = self.add_weight(shape=(self.units, gates), name="recurrent_kernel")
        self.input_bias = self.recurrent_bias = self.peephole = self.initial_h = self.initial_c = None
        if self.use_bias:
            self.input_bias = self.add_weight(shape=(gates,), name="input_bias", initializer="zeros")
            self.recurrent_bias = self.add_weight(shape=(gates,), name="recurrent_bias", initializer="zeros")
        if self.use_peepholes:
            self.peephole = self.add_weight(shape=(3 * self.units,), name="peephole", initializer="zeros")
        for name, rows in zip(("initial_h", "initial_c"), self.initial_rows, strict=True):
            if rows:
                setattr(self, name, self.add_weight(shape=(rows, self.units), name=name, initializer="zeros"))
        self.built = True

    def call(self, inputs: Any, states: Any, training: bool = False) -> tuple[Any, Any]:  # noqa: ARG002 (Keras' signature)
        """One step: inputs [N, I] and states [h, c] or [h] to (h, new states)."""
        given = tuple(states) if isinstance(states, (list, tuple)) else (states,)
        side = replace(
            self._template, W=_value(self.kernel), R=_value(self.recurrent_kernel), Wb=_value(self.input_bias),
            Rb=_value(self.recurrent_bias), P=_value(self.peephole), hidden=self.units,
        )  # fmt: skip
        projected, bias = keras.ops.matmul(inputs, side.W), hoisted_bias(side)
        new = list(_STEPS[self.op](side, projected if bias is None else projected + bias, given))
        return new[0], new if isinstance(states, (list, tuple)) else new[0]

    def get_initial_state(self, batch_size: Any = None) -> list[Any]:
        """The learned states where there are any, else zeros, [N, H] each."""
        learned = (self.initial_h, self.initial_c)[: self.num_states] if self.built else (None,) * self.num_states
        shape = (batch_size, self.units)
        return [keras.ops.zeros(shape, self.compute_dtype) if value is None else keras.ops.broadcast_to(value, shape)
                for value in learned]  # fmt: skip

    def get_config(self) -> dict[str, Any]:
        """What makes the same cell, its weights aside."""
        names = ("op", "units", "attributes", "use_bias", "use_peepholes", "initial_rows")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


def attributes_of(cell: Cell) -> dict[str, Any]:
    """The attributes of a Cell of one direction, as plain JSON values."""
    found = {name: getattr(cell, name) for name in ATTRIBUTES}
    return {name: list(value) if isinstance(value, tuple) else value
            for name, value in found.items() if value is not None and value is not False}  # fmt: skip


def _template(op: Op, attributes: Mapping[str, Any]) -> Any:
    from bridge.ops.backend_keras import KerasBackend

    rows = len(GATES[op])
    flat: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in attributes.items()
    }
    W = np.zeros((1, rows, 1), np.float32)
    return side_of(KerasBackend(), Cell(op, W, W, **flat), 0, W, W, None, None)


def _value(variable: Any) -> Any:
    return None if variable is None else keras.ops.convert_to_tensor(variable)
