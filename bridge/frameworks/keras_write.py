"""One Keras recurrent layer as ONNX nodes, with Keras' own rules: masks, reversed order, merging of directions.

What Keras does at masked steps depends on its backend (measured on keras 3.15.1): where masked steps come first in
processing order, the jax backend outputs the initial h and the others 0. The backend in use is reproduced.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from bridge.errors import Unsupported
from bridge.frameworks import keras_scan
from bridge.frameworks.keras_read import Direction, Layer
from bridge.frameworks.keras_series import Mask, Order, Series

if TYPE_CHECKING:
    import onnx_ir as ir

    from bridge.graph import Writer

Form = Literal["fused", "scan"]


@dataclass(frozen=True, slots=True)
class Written:
    """What a layer became: its outputs (two for merge_mode None) and its states, in Keras' order and axes."""

    outputs: tuple[Series | ir.Value, ...]
    states: tuple[ir.Value, ...]


@dataclass(frozen=True, slots=True)
class Run:
    """One direction after its node."""

    direction: Direction
    y: ir.Value
    """Outputs [T, N, ...] in the order of time, 0 at masked steps; [T, D, N, H] where only its time is asked for."""
    states: tuple[ir.Value, ...]
    """Final states [N, ...]."""
    initial: tuple[ir.Value, ...] | None


def write_layer(
    w: Writer,
    layer: Layer,
    x: Series,
    initial: Sequence[ir.Value] | None,
    mask: Mask | None,
    form: Form,
    *,
    states: bool = True,
) -> Written:
    """Write `layer` over `x`.

    Args:
        w: the Writer.
        layer: what to write.
        x: its input.
        initial: the initial states of every direction in Keras' order and axes; None for zeros.
        mask: which steps are valid; None for all.
        form: fused operators or Scans.
        states: whether the final states are wanted.

    Raises:
        Unsupported: a mask or states under options where Keras itself fails or masks the wrong steps.
    """
    if initial is not None and len({direction.num_states for direction in layer.directions}) > 1:
        raise Unsupported("Keras cannot give states to directions of different kinds: it splits them in two halves",
                          where=layer.name, do="export with zero states")  # fmt: skip
    if mask is not None:
        for direction in layer.directions:
            check_mask(layer, direction)
        initial = initial or learned_states(w, layer, x)
    joined = layer.joined
    if joined is not None and layer.merge == "concat" and layer.sequences and _leaves_zeros(layer, mask):
        return _write_concatenated(w, layer, x, initial, mask, form, states)
    runs = _write_joined(w, layer, x, initial, mask, form) if joined is not None else [
        _write_direction(w, layer, at, x, initial, mask, form) for at in range(len(layer.directions))
    ]  # fmt: skip
    outputs = [_output(w, layer, at, run, mask) for at, run in enumerate(runs)]
    finals = tuple(state for run in runs for state in _final_states(run, mask)) if states else ()
    return Written(merge(w, layer, outputs), finals)


def time_major(rank: int) -> Order:
    """Time first, then batch."""
    return (1, 0, *range(2, rank))


def channels(direction: Direction, rank: int) -> Order:
    """Time first, then batch; the channels of a channels_last ConvLSTM next."""
    if direction.convolutional and direction.keras_cell.data_format == "channels_last":
        return (1, 0, rank - 1, *range(2, rank - 1))
    return time_major(rank)


# ---------------------------------------------------------------------- nodes


def initial_of(layer: Layer, at: int, initial: Sequence[ir.Value] | None) -> tuple[ir.Value, ...] | None:
    """The initial states of direction `at` among those of all."""
    if initial is None:
        return None
    start = sum(direction.num_states for direction in layer.directions[:at])
    return tuple(initial[start : start + layer.directions[at].num_states])


def learned_states(w: Writer, layer: Layer, x: Series) -> list[ir.Value] | None:
    """The constant states of bridge's own cells as values, zeros where one has none; None where none has any."""
    from bridge.graph.recurrent import expand_state

    cells = [direction.cell for direction in layer.directions]
    if all(cell is None or (cell.initial_h is None and cell.initial_c is None) for cell in cells):
        return None
    value, states = x.in_order(time_major(x.rank)), []
    for name, direction, cell in zip(layer.node_names, layer.directions, cells, strict=True):
        for kind in ("initial_h", "initial_c")[: direction.num_states]:
            array = np.zeros((1, 1, cell.hidden_size), cell.dtype) if cell is not None else np.zeros(())
            array = array if cell is None or getattr(cell, kind) is None else getattr(cell, kind)
            states.append(w.squeeze(expand_state(w, w.constant(array, f"{name}.{kind}"), value), 0))
    return states


def _write_direction(
    w: Writer,
    layer: Layer,
    at: int,
    x: Series,
    initial: Sequence[ir.Value] | None,
    mask: Mask | None,
    form: Form,
) -> Run:
    direction, name = layer.directions[at], layer.node_names[at]
    own = initial_of(layer, at, initial)
    value = x.in_order(channels(direction, x.rank))
    if direction.node is not None:
        Y, *finals = w.recurrent(direction.node, value, lengths=None if mask is None else mask.lengths, name=name,
                                 form=form, **node_states(w, own))  # fmt: skip
        kept = tuple(w.squeeze(state, 0) for state in finals if state is not None)
        return Run(direction, w.squeeze(Y, 1) if layer.sequences else Y, kept, own)
    steps = None if mask is None else mask.valid(value)
    y, ends = write_scan(w, direction, x, own, steps, name)
    return Run(direction, y, ends, own)


def write_scan(
    w: Writer,
    direction: Direction,
    x: Series,
    initial: Sequence[ir.Value] | None,
    steps: ir.Value | None,
    name: str,
    *,
    hold: bool = False,
) -> tuple[ir.Value, tuple[ir.Value, ...]]:
    """One direction that no operator has: outputs [T, N, ...] and final states [N, ...] in Keras' axes.

    `initial`, `steps` and `hold` are those of `keras_scan.write_direction`.
    """
    order = channels(direction, x.rank)
    axes = [0, *(axis - 1 for axis in order[2:])]  # the same move for a state, which has no time axis
    inverse = [axes.index(axis) for axis in range(len(axes))]
    start = None if initial is None else [w.transpose(state, axes) for state in initial]
    y, finals = keras_scan.write_direction(w, direction, x.in_order(order), steps, start, name, hold=hold)
    back = tuple(w.transpose(state, inverse) for state in finals)
    return w.transpose(y, (0, *(axis + 1 for axis in inverse))), back


def _write_joined(
    w: Writer, layer: Layer, x: Series, initial: Sequence[ir.Value] | None, mask: Mask | None, form: Form
) -> list[Run]:
    Y, finals = _bidirectional(w, layer, x, initial, mask, form)
    return [
        Run(direction, w.take(Y, at, 1) if layer.sequences else Y, tuple(w.take(final, at, 0) for final in finals),
            initial_of(layer, at, initial))
        for at, direction in enumerate(layer.directions)
    ]  # fmt: skip


def _write_concatenated(
    w: Writer,
    layer: Layer,
    x: Series,
    initial: Sequence[ir.Value] | None,
    mask: Mask | None,
    form: Form,
    states: bool,
) -> Written:
    # [T, 2, N, H] as [T, N, 2H] or [N, T, 2H] by one Transpose and one Reshape: the common case.
    from bridge.graph import sequences

    Y, finals = _bidirectional(w, layer, x, initial, mask, form)

    def make(order: Order) -> ir.Value:
        return sequences.merge_directions(w, Y, batch_first=order == (0, 1, 2))

    if not states:
        return Written((Series(make, 3),), ())
    runs = [Run(direction, Y, tuple(w.take(final, at, 0) for final in finals), initial_of(layer, at, initial))
            for at, direction in enumerate(layer.directions)]  # fmt: skip
    return Written((Series(make, 3),), tuple(state for run in runs for state in _final_states(run, mask)))


def _bidirectional(
    w: Writer, layer: Layer, x: Series, initial: Sequence[ir.Value] | None, mask: Mask | None, form: Form
) -> tuple[ir.Value, list[ir.Value]]:
    cell = layer.joined
    if cell is None:
        raise Unsupported("the directions cannot be one node", where=layer.name)
    Y, *finals = w.recurrent(cell, x.in_order((1, 0, 2)), lengths=None if mask is None else mask.lengths,
                             name=layer.name, form=form, **pair_states(w, initial))  # fmt: skip
    return Y, [final for final in finals if final is not None]


def node_states(w: Writer, initial: Sequence[ir.Value] | None) -> dict[str, Any]:
    """The states of one direction as its node takes them, [1, N, H] by name; none for None."""
    return {f"initial_{letter}": w.unsqueeze(state, 0) for letter, state in zip("hc", initial or (), strict=False)}


def pair_states(w: Writer, initial: Sequence[ir.Value] | None) -> dict[str, Any]:
    """The states of two directions, forward first, as their one node takes them, [2, N, H] by name; none for None."""
    states = initial or ()
    pairs = zip("hc", states, states[len(states) // 2 :], strict=False)
    return {f"initial_{letter}": w.concat([w.unsqueeze(each, 0) for each in both], 0) for letter, *both in pairs}


# ---------------------------------------------------------------------- masked steps


def _backend() -> str:
    import keras

    return str(keras.backend.backend())


def zeros_masked(direction: Direction) -> bool:
    """Whether a masked step outputs zeros."""
    # The unrolled loop of the jax backend does not look at zero_output_for_mask.
    return direction.zero_output and not (direction.unroll and _backend() == "jax")


def leads_with_initial(direction: Direction) -> bool:
    """Whether masked steps before any other output the initial h; zeros where not."""
    return _backend() == "jax" and not direction.unroll and not direction.zero_output


def check_mask(layer: Layer, direction: Direction) -> None:
    """Refuse options under which Keras itself fails on a mask, or masks the wrong steps."""
    backend = _backend()
    if direction.convolutional and backend == "jax":
        raise Unsupported("Keras' jax backend applies a mask to the wrong axes of a ConvLSTM", where=layer.name,
                          do="export without lengths, or on the tensorflow or torch backend")  # fmt: skip
    if direction.unroll and direction.backwards and backend == "torch":
        raise Unsupported("Keras' torch backend fails on a mask with unroll and go_backwards", where=layer.name,
                          do="set unroll=False: the values are the same")  # fmt: skip
    if direction.unroll and direction.backwards and direction.zero_output and backend == "tensorflow":
        raise Unsupported("Keras' tensorflow backend zeroes the wrong steps with unroll, go_backwards and a mask",
                          where=layer.name, do="set unroll=False")  # fmt: skip


def _leaves_zeros(layer: Layer, mask: Mask | None) -> bool:
    """Whether the operator's zeros past a length are what Keras outputs too."""
    return mask is None or all(
        zeros_masked(direction) or (direction.backwards and not leads_with_initial(direction))
        for direction in layer.directions
    )


def _final_states(run: Run, mask: Mask | None) -> tuple[ir.Value, ...]:
    # The operator ends a sequence of length 0 in zeros, Keras in the initial state.
    if mask is None or run.initial is None:
        return run.states
    return tuple(mask.choose(mask.some, state, first) for state, first in zip(run.states, run.initial, strict=True))


def _output(w: Writer, layer: Layer, at: int, run: Run, mask: Mask | None) -> Series | ir.Value:
    """The output of one direction as Keras gives it, before merging."""
    from bridge.graph import sequences

    if not layer.sequences:
        return run.states[0] if mask is None else _last_output(run, mask)
    y = run.y if mask is None else _masked_outputs(w, run, mask)
    # Keras leaves go_backwards in processing order; Bidirectional flips its second layer once more.
    if run.direction.backwards != (at == 1):
        y = sequences.flip(w, y, 0)
    return Series.of(w, y, time_major(len(y.shape or ())))


def _lead(run: Run) -> ir.Value | None:
    return run.initial[0] if run.initial is not None and leads_with_initial(run.direction) else None


def _last_valid(run: Run, mask: Mask) -> ir.Value:
    # Where no step is valid: the initial h on the jax backend, else 0.
    return run.states[0] if run.initial is None else mask.choose(mask.some, run.states[0], _lead(run))


def _masked_outputs(w: Writer, run: Run, mask: Mask) -> ir.Value:
    if zeros_masked(run.direction):
        return run.y
    if run.direction.backwards:
        lead = _lead(run)
        return run.y if lead is None else mask.choose(mask.valid(run.y), run.y, w.unsqueeze(lead, 0))
    return mask.choose(mask.valid(run.y), run.y, w.unsqueeze(_last_valid(run, mask), 0))


def _last_output(run: Run, mask: Mask) -> ir.Value:
    # The last step in processing order: time T - 1 forward, which may be masked, time 0 backwards.
    if zeros_masked(run.direction) and not run.direction.backwards:
        return mask.choose(mask.full(run.y), run.states[0], None)
    return _last_valid(run, mask)


# ---------------------------------------------------------------------- merging


def merge(w: Writer, layer: Layer, outputs: list[Series | ir.Value]) -> tuple[Series | ir.Value, ...]:
    """The outputs of two directions as the layer merges them; those of one as they are."""
    if len(outputs) == 1 or layer.merge is None:
        return tuple(outputs)
    values = [output.in_order(time_major(output.rank)) if isinstance(output, Series) else output for output in outputs]
    first, second = values
    if layer.merge == "concat":
        merged = w.concat(values, -1)
    elif layer.merge == "ave":
        total = w.op("Add", first, second)
        two = np.asarray(2, "float32" if total.dtype is None else total.dtype.numpy())
        merged = w.op("Div", total, w.constant(two))
    else:
        merged = w.op({"sum": "Add", "mul": "Mul"}[layer.merge], first, second)
    return (Series.of(w, merged, time_major(len(values[0].shape or ()))) if layer.sequences else merged,)
