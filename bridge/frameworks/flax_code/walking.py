"""Walk a graph node by node: numbers are computed, what depends on inputs is written as code."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.errors import Refused, Unsupported, UsageError
from bridge.frameworks.flax_code.bodies import BODIES
from bridge.frameworks.flax_code.code import Code
from bridge.frameworks.flax_code.layers import clean
from bridge.frameworks.flax_code.operands import Dims, Operand, Sizes, Tensor
from bridge.frameworks.flax_code.site import Site, dims_of, dtype_of
from bridge.frameworks.flax_code.table import EMITTERS
from bridge.graph.declaring import declare_constant, declare_dtype, declare_shape

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx_ir as ir

    from bridge.ops.steps import Block, Step


@dataclass(slots=True, eq=False)
class Written:
    """A whole graph as code."""

    code: Code
    inputs: dict[str, Tensor]
    """Graph input name -> its tensor, in graph order."""
    outputs: dict[str, str]
    """Graph output name -> its expression, in graph order."""
    shapes: dict[str, Dims]
    """What is known of each output's sizes."""


def write_graph(model: ir.Model) -> Written:
    """Write `model`, whose weights are constants (`graph.fold`); its Values get the shapes that are inferred.

    Raises:
        Unsupported: nodes that cannot be written, all of them in one error.
    """
    block, constants, opset = _compiled(model)
    walk = Walk(opset=opset, scope=dict(constants))
    inputs: dict[str, Tensor] = {}
    for value in model.graph.inputs:
        if value in constants:
            continue
        tensor = walk.code.tensor(dims_of(value), dtype_of(value), clean(str(value.name)))
        inputs[str(value.name)] = walk.scope[value] = tensor
        for axis, dim in enumerate(tensor.dims or ()):
            if isinstance(dim, str) and dim != "?":
                walk.code.symbols.setdefault(dim, f"{tensor.token}.shape[{axis}]")
    for value, array in constants.items():
        declare_constant(value, array)
    walk.run(block)
    refuse_all(walk.refused)
    for value in block.outputs:
        result = walk.scope[value]
        if isinstance(result, Tensor) and result not in inputs.values():
            result.hint = clean(str(value.name))
    outputs = {str(value.name): walk.code.array_ref(walk.scope[value]) for value in block.outputs}
    return Written(walk.code, inputs, outputs, {str(value.name): dims_of(value) for value in block.outputs})


def _compiled(model: ir.Model) -> tuple[Block, Mapping[ir.Value, np.ndarray], int]:
    """The graph as steps. Raises Unsupported for operators that bridge does not carry, all of them named."""
    from bridge.ops.backend_numpy import NumpyBackend
    from bridge.ops.registry import resolve
    from bridge.ops.steps import Compiler, node_name
    from bridge.ops.table import HANDLERS

    opsets = dict(model.opset_imports)

    def choose(node: ir.Node) -> Any:
        handler = resolve(HANDLERS, node.domain, node.op_type, node.version or opsets.get(node.domain, 0))
        return None if handler is None else (handler, range(len(node.inputs)))

    missing: dict[str, list[str]] = defaultdict(list)
    for node in model.graph.all_nodes():
        if choose(node) is None:
            missing[node.op_type].append(node_name(node))
    refuse_all(missing)
    compiler = Compiler(backend=NumpyBackend(), static_backend=NumpyBackend(), choose=choose)
    return compiler.block(model.graph), compiler.constants, opsets.get("", 0)


@dataclass(slots=True, eq=False)
class Walk:
    """The state of one walk."""

    opset: int
    scope: dict[ir.Value, Operand]
    code: Code = field(default_factory=Code)
    refused: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """Reason -> nodes."""
    unknown: set[ir.Value] = field(default_factory=set)
    """What hangs on nodes that are refused: of it less is known than there will be."""

    def run(self, block: Block) -> None:
        """Write every step."""
        for step in block.steps:
            operands = [None if value is None else self.scope[value] for value in step.inputs]
            if all(isinstance(operand, np.ndarray | None) for operand in operands) and not step.bodies:
                self._compute(step)
            elif step.node.op_type == "If" and isinstance(operands[0], np.ndarray):
                self._branch(step, operands[0])
            else:
                self._write(step, operands)

    def bind(self, value: ir.Value, operand: np.ndarray | Tensor) -> None:
        """`value`, an input of a body, is `operand`."""
        self.scope[value] = self._settled(value, operand)
        if isinstance(operand, Tensor) and value.dtype is None:
            declare_dtype(value, operand.dtype)

    def _compute(self, step: Step) -> None:
        known: dict[Any, Any] = {value: self.scope[value] for value in step.inputs if value is not None}
        step.run(known)
        for value in step.outputs:
            if value in known:
                self.scope[value] = np.asarray(known[value])
                declare_constant(value, np.asarray(known[value]))

    def _branch(self, step: Step, condition: np.ndarray) -> None:
        """The branch of an If that sizes or constants decide."""
        chosen = step.bodies["then_branch" if condition.reshape(())[()] else "else_branch"]
        self.run(chosen)
        for value, result in zip(step.outputs, chosen.outputs, strict=True):
            self.scope[value] = self.scope[result]
            value.shape, value.type = result.shape, result.type

    def _write(self, step: Step, operands: list[Operand]) -> None:
        if not step.bodies:
            _infer(step, self.opset)
        node = step.outputs[0].producer()
        metadata = {} if node is None else dict(node.metadata_props)
        site = Site(code=self.code, name=step.node.name, op_type=step.node.op_type, inputs=step.inputs,
                    outputs=step.outputs, metadata=metadata, opset=self.opset)  # fmt: skip
        domain = step.handler.label.domain
        emitter = EMITTERS.get((domain, step.node.op_type))
        guessing = not self.unknown.isdisjoint(step.inputs)
        before = {reason: [*names] for reason, names in self.refused.items()} if step.bodies else {}
        try:
            if step.bodies:
                results = BODIES[step.node.op_type](self, site, step, operands)
            elif emitter is None:
                site.refuse("no emitter")
            else:
                results = emitter(site, *operands, **step.attributes)
        except Refused as refusal:
            if step.bodies:  # what its bodies lack says nothing more once the node itself cannot be written
                self.refused = defaultdict(list, before)
            known = emitter is not None or step.bodies
            reason = f"{step.node.op_type}: {refusal.what}" if known else step.node.op_type
            if not (known and guessing):
                self.refused[reason].append(step.node.name)
            guessing = True
            results = tuple(self.code.tensor(dims_of(value), dtype_of(value)) for value in step.outputs)
        self.unknown |= set(step.outputs) if guessing else set()
        results = results if isinstance(results, tuple) else (results,)
        for value, result in zip(step.outputs, results, strict=False):
            self.scope[value] = self._settled(value, result)

    def _settled(self, value: ir.Value, result: Operand) -> Operand:
        """`result`; sizes that are all known are numbers, and what was found is told to the inference."""
        if isinstance(result, Sizes) and all(isinstance(item, int) for item in result.items):
            array = np.asarray(result.items, np.int64)
            result = array.reshape(()) if result.is_scalar else array
        if isinstance(result, np.ndarray):
            declare_constant(value, result)
        elif isinstance(result, Tensor):
            if result.dims is None:
                result.dims = dims_of(value)
            elif value.shape is None or any(isinstance(dim, int) for dim in result.dims):
                declare_shape(value, [None if dim == "?" else dim for dim in result.dims])
        return result


def refuse_all(refused: Mapping[str, list[str]]) -> None:
    """Raise one Unsupported that names every reason with its nodes, where there is any."""
    if refused:
        lines = [f"{reason} x{len(names)} ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})"
                 for reason, names in sorted(refused.items())]  # fmt: skip
        count = sum(map(len, refused.values()))
        fixing = any(": " in reason for reason in refused)  # an operator without an emitter has none, whatever is fixed
        raise Unsupported(f"{count} nodes cannot be written as code", where="flax-code", got="; ".join(lines),
                          do="import the model with to_flax" + fixing * (", or fix inputs: their values with static= "
                          "(--static), their sizes with shapes= (--shape)"))  # fmt: skip


def _infer(step: Step, opset: int) -> None:
    """Ask ONNX for dtypes and shapes of what a step makes."""
    from bridge.graph.infer import infer_outputs

    node = step.outputs[0].producer()
    if node is None:
        return
    for value in step.outputs:
        # What a file says of values inside is often stale, and less than what is known by now.
        value.shape = value.shape if value.is_graph_output() else None
    try:
        infer_outputs(node, opset)
    except UsageError:
        return  # what is inferred only fills comments; onnxruntime judges the code
