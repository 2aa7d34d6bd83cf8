"""Streaming: an imported model whose states are graph inputs, run chunk by chunk under `lax.scan`.

jax and flax are imported inside functions only; the modules themselves are in flax_nnx_stream and flax_linen_stream.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bridge.errors import BadInput, UsageError, check_mapping
from bridge.ops.port import array_like

if TYPE_CHECKING:
    import onnx_ir as ir

    from bridge.frameworks.flax_import import Graph

Step = Callable[..., Any]
"""The imported model: its inputs by name -> an array, or a tuple in the order of the graph's outputs."""


def flax_stream(net: Any, *, states: Mapping[str, str]) -> Any:
    """Make a model that runs `net` over many chunks, its states carried from each chunk to the next.

    Args:
        net: what `to_flax` returned, an nnx module or a pair (linen module, variables), whose states are inputs.
        states: for each state the input that takes it and the output that gives its new value: {"h": "hn", "c": "cn"}.

    Returns:
        For nnx a module that holds `net` (the parameters are shared, not copied); for linen a pair (module,
        variables) with the variables of `net` themselves. Called with the other inputs, positionally in graph order
        or by name, each with one more leading axis [chunks, ...], and with initial states by name (without chunks
        axis). A state that is left out starts from zeros where its sizes are known. The result is a pair: the other
        outputs stacked [chunks, ...], one array or a tuple in graph order, and the final states as a dict by input
        name, so that `stream(more, **final)` goes on where the last call ended.

    Raises:
        UsageError: `net` is no imported Flax model, a name in `states` is none of its inputs or outputs; at the call,
            wrong inputs, or a state left out whose sizes are not known.
        BadInput: at the call, inputs with different numbers of chunks, or a state that comes out with another shape
            or dtype than it went in.
    """
    pair = isinstance(net, tuple) and len(net) == 2
    module = net[0] if pair else net
    graph: Any = getattr(module, "graph", None)
    if not hasattr(graph, "program"):
        raise UsageError("takes a model that to_flax imported", where="flax_stream", got=type(net).__qualname__)
    check_mapping(states, "flax_stream, states", "inputs to outputs")
    plan = make_plan(graph, states)
    if pair:
        from bridge.frameworks.flax_linen_stream import LinenStream

        return LinenStream(module, plan), net[1]
    from bridge.frameworks.flax_nnx_stream import NnxStream

    return NnxStream(net, plan)


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """Which inputs and outputs of a graph are states, and what is declared of them; static for JAX."""

    states: Mapping[str, str]
    """Input name -> output name."""
    inputs: Mapping[str, ir.Value]
    """The graph's inputs in order, with their declared dtypes and shapes."""
    output_names: tuple[str, ...]

    @property
    def chunked(self) -> tuple[str, ...]:
        """The inputs that are no states, in graph order."""
        return tuple(name for name in self.inputs if name not in self.states)

    @property
    def stacked(self) -> tuple[str, ...]:
        """The outputs that are no states, in graph order."""
        return tuple(name for name in self.output_names if name not in self.states.values())

    def start(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The chunks and the initial states of a call, zeros for those not given. Raises as `flax_stream` says."""
        import jax.numpy as jnp

        named = {name: array_like(value, f"stream, {name}") for name, value in kwargs.items()}
        chunks, given = self._sorted([array_like(value, "stream") for value in args], named)
        for name, value in chunks.items():
            declared = self.inputs[name].shape
            if declared is not None and len(value.shape) != 1 + len(declared):
                sizes = ", ".join(map(str, declared))
                raise BadInput(
                    "chunks come along an axis of their own, before those of the input",
                    where=f"stream, {name}",
                    got=list(value.shape),
                    expected=f"[chunks, {sizes}]",
                )
        chunk = {name: value.shape[1:] for name, value in chunks.items()}
        known = _symbols(self.inputs, chunk | {name: value.shape for name, value in given.items()})
        carry = {name: jnp.asarray(given[name]) if name in given else _zeros(self.inputs[name], known)
                 for name in self.states}  # fmt: skip
        return chunks, carry

    def run(self, step: Step, chunks: Mapping[str, Any], carry: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        """The stacked outputs and the final states. Raises BadInput for a state that changes its shape or dtype."""
        import jax

        def body(carry: dict[str, Any], chunk: dict[str, Any]) -> tuple[dict[str, Any], tuple[Any, ...]]:
            result = step(**chunk, **carry)
            named = dict(zip(self.output_names, result if isinstance(result, tuple) else (result,), strict=True))
            new = {name: named[output] for name, output in self.states.items()}
            self._check_states(carry, new)
            return new, tuple(named[name] for name in self.stacked)

        final, outputs = jax.lax.scan(body, carry, chunks)
        return outputs[0] if len(outputs) == 1 else outputs, final

    def _sorted(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The chunked inputs and the initial states of a call, each by name."""
        given = dict(zip(self.chunked, args, strict=False)) | dict(kwargs)
        chunks = {name: given[name] for name in self.chunked if name in given}
        initial = {name: given[name] for name in self.states if name in given}
        if len(args) + len(kwargs) != len(chunks) + len(initial) or len(chunks) != len(self.chunked):
            raise UsageError("wrong inputs", where="stream", got=f"{len(args)} positional, by name: "
                             f"{', '.join(kwargs) or 'none'}", expected=f"{', '.join(self.chunked)}; initial states "
                             f"by name: {', '.join(self.states)}")  # fmt: skip
        lengths = {name: value.shape[0] if value.ndim else None for name, value in chunks.items()}
        if None in lengths.values() or len(set(lengths.values())) != 1:
            raise BadInput("the inputs have different numbers of chunks, their first axis", where="stream", got=lengths)
        return chunks, initial

    def _check_states(self, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
        for name, output in self.states.items():
            went, came = before[name], after[name]
            if (went.shape, went.dtype) != (came.shape, came.dtype):
                raise BadInput(f"state {name!r} comes out as {output!r} with another shape or dtype", where="stream",
                               got=f"{came.dtype}{list(came.shape)}",
                               expected=f"{went.dtype}{list(went.shape)}")  # fmt: skip


def make_plan(graph: Graph, states: Mapping[str, str]) -> Plan:
    """The plan of a graph. Raises UsageError for names that it does not have, and where nothing would be chunked."""
    for kind, names, known in (("input", list(states), graph.input_names),
                               ("output", list(states.values()), graph.output_names)):  # fmt: skip
        if unknown := [name for name in names if name not in known]:
            raise UsageError(f"states: the model has no such {kind}", where="flax_stream", got=", ".join(unknown),
                             expected=f"inputs {', '.join(graph.input_names)}; "
                             f"outputs {', '.join(graph.output_names)}")  # fmt: skip
        if len(set(names)) != len(names):
            raise UsageError("states: one output for two inputs", where="flax_stream", got=", ".join(names))
    if not set(graph.input_names) - set(states):
        raise UsageError("every input is a state: nothing says how many chunks there are", where="flax_stream",
                         got=", ".join(states))  # fmt: skip
    declared = {str(value.name): value for value in graph.model.graph.inputs}
    inputs = {name: declared[name] for name in graph.input_names}
    return Plan(states=dict(states), inputs=inputs, output_names=graph.output_names)


def _symbols(inputs: Mapping[str, ir.Value], sizes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """The symbolic sizes that the given arrays settle: "batch" is 3."""
    known: dict[str, int] = {}
    for name, shape in sizes.items():
        declared = inputs[name].shape
        if declared is not None and len(declared) == len(shape):
            known |= {dim.value: size for dim, size in zip(declared, shape, strict=True)
                      if not isinstance(dim, int) and dim.value is not None}  # fmt: skip
    return known


def _zeros(value: ir.Value, known: Mapping[str, int]) -> Any:
    import jax.numpy as jnp

    dims = None if value.shape is None else [d if isinstance(d, int) else known.get(d.value or "") for d in value.shape]
    if dims is None or None in dims or value.dtype is None:
        raise UsageError(f"state {value.name!r} starts from zeros only where its sizes are known", where="stream",
                         got=str(value.shape), do=f"give it: stream(..., {value.name}=array)")  # fmt: skip
    return jnp.zeros(dims, value.dtype.numpy())
