"""After a framework's exporter: constants folded, dead nodes gone, names and symbols settled, the whole checked."""

from __future__ import annotations

import ast
import linecache
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from bridge.errors import Unsupported
from bridge.graph.merging import merge_equal_calls
from bridge.graph.naming import Names, unused
from bridge.graph.nodes import input_of
from bridge.graph.quiet import quiet
from bridge.graph.recurrent import PATH
from bridge.graph.writer import IR_VERSION

if TYPE_CHECKING:
    import onnx_ir as ir

FOLDED_SIZE: Final = 2**20
"""Elements that folding may read or make: transposed weights of linear layers too, 4 MB of float32."""

HIDDEN: Final = "bridge.hidden"
"""The domain of nodes that the optimizer is to leave alone, while it runs."""

SHOWN_SIZE: Final = 1024
"""Constants of more elements are shown to the checker by their type only."""

NO_SCOPE: Final = "_empty_nn_module_stack_from_metadata_hook"
"""What torch's exporter writes for a node that stands in no module.

Source: torch 2.13 torch/_export/passes/_node_metadata_hook.py.
"""

RANDOM: Final = ("Bernoulli", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial")
"""Operators that give other numbers at every run."""


def tidy(model: ir.Model) -> None:
    """Fold what hangs on constants alone and remove what nobody reads; names of layers and of the ends stay.

    It is what `onnxscript.optimizer.optimize` does but for two things, so that every parameter returns as it was: a
    BatchNormalization is not folded into the convolution before it (onnxruntime does so when it loads the model), and
    weights that hold the same numbers by chance are not made one. See `_stays` for a third.
    """
    hidden = [node for node in model.graph.all_nodes() if not node.domain and _stays(node)]
    try:
        for node in hidden:
            node.domain = HIDDEN
        with quiet("onnxscript"):
            _optimize(model)
    finally:
        for node in hidden:
            node.domain = ""
    _lift_constants(model)


def _stays(node: ir.Node) -> bool:
    """Whether folding must not see a node: a BatchNormalization, and a split into parts whose size is computed.

    Source of the second: onnxscript 0.7.2 onnxscript/optimizer/_constant_folding.py, split_to_sequence, which takes
    the value of every `split` of rank 0 for known.
    """
    if node.op_type != "SplitToSequence":
        return node.op_type == "BatchNormalization"
    size = input_of(node, 1)
    maker = None if size is None else size.producer()
    return maker is not None and maker.op_type != "Constant" and size is not None and size.shape == []


def _optimize(model: ir.Model) -> None:
    """Source: onnxscript 0.7.2 onnxscript/optimizer/_optimizer.py, optimize_ir."""
    from onnx_ir.passes import common
    from onnxscript.optimizer import fold_constants
    from onnxscript.rewriter import rewrite

    common.InlinePass()(model)
    for _ in range(2):
        folded = fold_constants(model, onnx_shape_inference=True, input_size_limit=FOLDED_SIZE,
                                output_size_limit=FOLDED_SIZE)  # fmt: skip
        rewrite(model)
        if not folded.modified:
            break
    common.RemoveUnusedNodesPass()(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.LiftSubgraphInitializersToMainGraphPass()(model)
    _share_indices(model)
    alike = True
    while alike:
        common.CommonSubexpressionEliminationPass()(model)
        alike = merge_equal_calls(model)
    for each in (common.OutputFixPass(), common.NameFixPass()):
        each(model)


def _share_indices(model: ir.Model) -> None:
    """Make one of equal shapes, axes and indices; never of weights."""
    from onnx_ir.convenience import replace_all_uses_with

    first: dict[tuple[Any, ...], ir.Value] = {}
    for name, value in list(model.graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or tensor.dtype.is_floating_point() or tensor.size > SHOWN_SIZE or value.is_graph_output():
            continue
        same = first.setdefault((tensor.dtype, tuple(tensor.shape), tensor.tobytes()), value)
        if same is not value and not value.is_graph_input():
            replace_all_uses_with(value, same)
            model.graph.initializers.pop(name)


def name_outputs(model: ir.Model, names: Sequence[str]) -> None:
    """Call the graph's outputs so, with `_1` where an input has the name.

    A value that is an input too, or two outputs at once, goes by an Identity.
    """
    import onnx_ir as ir

    taken = {str(value.name): value for node in model.graph.all_nodes() for value in node.outputs}
    taken |= {str(value.name): value for value in (*model.graph.inputs, *model.graph.initializers.values())}
    seen: set[int] = set()
    for at, (value, name) in enumerate(zip(list(model.graph.outputs), names, strict=True)):
        if id(value) in seen or value.producer() is None or value.graph is not model.graph:
            node = ir.Node("", "Identity", [value], name=f"{name}.identity")
            node.outputs[0].type, node.outputs[0].shape = value.type, value.shape
            model.graph.append(node)
            value = model.graph.outputs[at] = node.outputs[0]
        seen.add(id(value))
        holder = taken.get(name)
        if holder is not None and holder.is_graph_input():
            name, holder = unused(name, taken), None
        if holder is not None and holder is not value:
            holder.name = unused(f"{name}_inner", taken)
        taken.pop(str(value.name), None)
        value.name = name
        taken[name] = value


def rename_symbols(model: ir.Model, names: Mapping[str, str]) -> None:
    """Give symbolic sizes other names, also inside expressions such as `s0 + 1`; a symbol that is a number is one."""
    import onnx_ir as ir

    pattern = re.compile(r"\b(" + "|".join(map(re.escape, names)) + r")\b") if names else None
    values = [*model.graph.initializers.values()]
    values += [value for graph in model.graphs() for value in (*graph.inputs, *graph.outputs)]
    values += [value for node in model.graph.all_nodes() for value in node.outputs]

    def renamed(dim: Any) -> Any:
        if isinstance(dim, int) or dim.value is None:
            return dim
        label = str(dim.value)
        label = label if pattern is None else pattern.sub(lambda found: names[found.group()], label)
        return int(label) if label.isdigit() else label

    for value in {id(value): value for value in values}.values():
        if value.shape is not None:
            value.shape = ir.Shape([renamed(dim) for dim in value.shape])


def random_nodes(model: ir.Model) -> list[ir.Node]:
    """Nodes that give other numbers at every run: a Dropout in training mode, random sources."""
    found = []
    for node in model.graph.all_nodes():
        training = node.op_type == "Dropout" and input_of(node, 2) is not None
        if node.domain == "" and (node.op_type in RANDOM or training):
            found.append(node)
    return found


def line_of(node: ir.Node) -> str:
    """The line of the model's own code that a node comes from, "" where the exporter does not say."""
    frames = re.findall(r'File "(.+)", line (\d+)', node.metadata_props.get("pkg.torch.onnx.stack_trace", ""))
    if not frames:
        return ""
    file, number = frames[-1]
    return f"{file}:{number}: {linecache.getline(file, int(number)).strip()}"


def name_nodes(model: ir.Model) -> None:
    """Name nodes by module path and operator (`encoder.fc.MatMul`); what else the exporter noted goes away.

    Nodes with "bridge.path" have their name. The exporter's stack traces hold paths of the machine.
    """
    kept = [node for node in model.graph.all_nodes() if PATH in node.metadata_props]
    names = Names()
    for node in kept:
        names.fresh(str(node.name))
    for node in model.graph.all_nodes():
        scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]")
        if PATH not in node.metadata_props:
            node.name = names.fresh(".".join(filter(None, (_scope(scopes), node.op_type))))
        for key in [key for key in node.metadata_props if key.startswith("pkg.") or key == "namespace"]:
            del node.metadata_props[key]
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    for graph in model.graphs():
        graph.metadata_props.clear()


def _scope(scopes: str) -> str:
    found = ast.literal_eval(scopes) if scopes.startswith("[") else []
    scope = str(found[-2]) if len(found) > 1 else ""
    return "" if scope == NO_SCOPE else scope


def settle(model: ir.Model, opset: int, where: str) -> None:
    """Bring the model to `opset` and the oldest file format that holds it, and check it.

    Raises:
        Unsupported: an operator that `opset` does not have; ONNX refuses the graph.
    """
    from bridge.graph.downgrade import to_opset_17
    from bridge.graph.half import write_otherwise

    write_otherwise(model)
    if opset < model.opset_imports.get("", opset):
        to_opset_17(model, where)
    model.opset_imports[""] = opset
    model.ir_version = IR_VERSION
    check(model, where)


def same_graph(first: ir.Model, second: ir.Model) -> bool:
    """Whether two models are the same nodes in the same order over the same constants, whatever they are called."""
    return _outline(first) == _outline(second)


def _outline(model: ir.Model) -> list[Any]:
    numbers: dict[int, int] = {}

    def number(value: ir.Value | None) -> Any:
        if value is None:
            return None
        if value.const_value is not None and value.producer() is None:
            array = value.const_value.numpy()
            return array.dtype.name, array.shape, array.tobytes()
        return numbers.setdefault(id(value), len(numbers))

    lines: list[Any] = [[number(value) for value in model.graph.inputs]]
    for node in model.graph.all_nodes():
        attributes = sorted((name, str(attribute.value)) for name, attribute in node.attributes.items()
                            if attribute.type.name not in ("GRAPH", "GRAPHS"))  # fmt: skip
        lines.append((node.domain, node.op_type, attributes, [number(value) for value in node.inputs],
                      [number(value) for value in node.outputs]))  # fmt: skip
    return [*lines, [number(value) for value in model.graph.outputs]]


def check(model: ir.Model, where: str) -> None:
    """ONNX's full check and strict shape inference, without the weights' values.

    Raises:
        Unsupported: ONNX refuses the graph, in its own words.
    """
    import onnx
    from onnx_ir import serde

    proto = serde.serialize_model(without_weights(model))
    try:
        onnx.checker.check_model(proto, full_check=True)
        onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise Unsupported("the exported graph does not pass ONNX's own check", where=where, got=str(error).strip()[:800]
                          ) from error  # fmt: skip


def without_weights(model: ir.Model) -> ir.Model:
    """A copy of the graph in which constants of more than SHOWN_SIZE elements are inputs."""
    copy = model.clone()
    copy.ir_version = min(copy.ir_version, IR_VERSION)
    for name, value in list(copy.graph.initializers.items()):
        if value.const_value is not None and value.const_value.size > SHOWN_SIZE:
            copy.graph.initializers.pop(name)
            value.const_value = None
            copy.graph.inputs.append(value)
    return copy


def _lift_constants(model: ir.Model) -> None:
    from onnx_ir.passes.common import LiftConstantsToInitializersPass, RemoveUnusedNodesPass

    LiftConstantsToInitializersPass(lift_all_constants=True)(model)
    RemoveUnusedNodesPass()(model)
