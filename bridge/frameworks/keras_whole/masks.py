"""Recurrent Keras layers under a mask of any shape: an If on "right-padded" chooses the operator or an exact Scan.

The operators know lengths only: a mask is theirs where every row is valid steps first and masked steps after. Any other
mask skips steps in the middle or at the start, which a Scan carries: a masked step keeps the state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bridge.frameworks.keras_read import Direction, Layer
from bridge.frameworks.keras_series import Mask, Series
from bridge.frameworks.keras_write import (
    Form,
    Written,
    check_mask,
    initial_of,
    leads_with_initial,
    learned_states,
    merge,
    node_states,
    pair_states,
    time_major,
    write_layer,
    write_scan,
    zeros_masked,
)

if TYPE_CHECKING:
    import onnx_ir as ir

    from bridge.graph import Writer


@dataclass(frozen=True, slots=True)
class StepMask:
    """A mask in the forms that layers ask for."""

    valid: ir.Value
    """bool [T, N]."""
    lengths: ir.Value
    """int32 [N]: how many steps are valid."""
    right: ir.Value
    """A bool scalar: whether every row is right-padded."""


def step_mask(w: Writer, mask: ir.Value) -> StepMask:
    """The forms of a mask bool [N, T]."""
    from bridge.graph import sequences

    shape = tuple(mask.shape or (None, None))
    valid = w.typed(w.transpose(mask, (1, 0)), (shape[1], shape[0]), "bool")
    return StepMask(valid, sequences.lengths_of_mask(w, mask), sequences.right_padded(w, mask))


def write_masked(
    w: Writer, layer: Layer, x: Series, initial: Sequence[ir.Value] | None, mask: StepMask, form: Form, *,
    exact: bool, states: bool,
) -> Written:  # fmt: skip
    """Write `layer` over `x` [N, T, ...] under a mask; `exact=False` takes it as right-padded without asking.

    The final states are among the results where `states` asks for them.

    Raises:
        Unsupported: options under which Keras itself fails on a mask.
    """
    fused = form == "fused" and any(
        direction.node is not None and direction.node.dtype != np.float64 for direction in layer.directions
    )
    if not fused:
        return _write_exactly(w, layer, x, initial, mask)
    if not exact:
        return write_layer(w, layer, x, initial, Mask(w, mask.lengths), form, states=states)

    def right(b: Writer) -> list[ir.Value]:
        return _flat(write_layer(b, layer, x, initial, Mask(b, mask.lengths), form, states=states), states)

    def otherwise(b: Writer) -> list[ir.Value]:
        return _flat(_write_exactly(b, layer, x, initial, mask), states)

    values = w.choose(mask.right, right, otherwise, name=f"{layer.name}.padded")
    count = 2 if layer.merge is None and len(layer.directions) == 2 else 1
    outputs = [Series.of(w, value, time_major(x.rank)) if layer.sequences else value for value in values[:count]]
    return Written(tuple(outputs), tuple(values[count:]))


def _flat(written: Written, states: bool) -> list[ir.Value]:
    outputs = [output.in_order(time_major(output.rank)) if isinstance(output, Series) else output
               for output in written.outputs]  # fmt: skip
    return [*outputs, *(written.states if states else ())]


def _write_exactly(w: Writer, layer: Layer, x: Series, initial: Sequence[ir.Value] | None, mask: StepMask) -> Written:
    """Every step under the mask, one after another, as Keras does."""
    from bridge.graph import sequences

    for direction in layer.directions:
        check_mask(layer, direction)
    initial = initial or learned_states(w, layer, x)
    outputs: list[Series | ir.Value] = []
    states: list[ir.Value] = []
    for at, (direction, (y, finals)) in enumerate(
        zip(layer.directions, _held(w, layer, x, initial, mask), strict=True)
    ):
        y = _filled(w, direction, y, mask, given=initial is not None)
        states += finals
        if not layer.sequences:
            outputs.append(w.take(y, 0 if direction.backwards else -1, 0))
            continue
        # Keras leaves go_backwards in processing order; Bidirectional flips its second layer once more.
        y = sequences.flip(w, y, 0) if direction.backwards != (at == 1) else y
        outputs.append(Series.of(w, y, time_major(x.rank)))
    return Written(merge(w, layer, outputs), tuple(states))


Held = tuple["ir.Value", Sequence["ir.Value"]]


def _held(w: Writer, layer: Layer, x: Series, initial: Sequence[ir.Value] | None, mask: StepMask) -> list[Held]:
    """Outputs [T, N, ...] and final states of each direction; a masked step outputs the h that it keeps."""
    if layer.joined is not None:
        Y, *finals = w.recurrent(layer.joined, x.in_order((1, 0, 2)), name=layer.name, valid=mask.valid,
                                 **pair_states(w, initial))  # fmt: skip
        return [(w.take(Y, at, 1), [w.take(final, at, 0) for final in finals if final is not None])
                for at in range(2)]  # fmt: skip
    found: list[Held] = []
    for at, (direction, name) in enumerate(zip(layer.directions, layer.node_names, strict=True)):
        own = initial_of(layer, at, initial)
        if direction.node is None:
            found.append(write_scan(w, direction, x, own, mask.valid, name, hold=not zeros_masked(direction)))
            continue
        Y, *finals = w.recurrent(direction.node, x.in_order((1, 0, 2)), name=name, valid=mask.valid,
                                 **node_states(w, own))  # fmt: skip
        found.append((w.squeeze(Y, 1), [w.squeeze(final, 0) for final in finals if final is not None]))
    return found


def _filled(w: Writer, direction: Direction, y: ir.Value, mask: StepMask, *, given: bool) -> ir.Value:
    """`y` with what Keras outputs at masked steps: zeros, or the output before; before any, 0 or the initial h."""
    condition = mask.valid
    if not zeros_masked(direction):
        if not given or leads_with_initial(direction):
            return y
        steps = w.op("CumSum", w.cast(mask.valid, "int32"), w.constant(np.asarray(0)), reverse=int(direction.backwards))
        condition = w.op("Greater", steps, w.constant(np.asarray(0, np.int32)))
    rank = len(y.shape or ())
    zero = w.constant(np.asarray(0, "float32" if y.dtype is None else y.dtype.numpy()))
    return w.typed(w.op("Where", w.unsqueeze(condition, *range(2, rank)), y, zero), y.shape)
