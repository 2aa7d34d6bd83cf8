"""Which nodes a native module computes exactly: one rule an operator.

A rule answers with nothing wherever an attribute, a shape or an input is not the native layer's own: such a node runs
as the operator it is, with plain parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from bridge.graph.nodes import input_of
from bridge.ops.native import Kind, NativeModule, Taken, Weight, Weights

if TYPE_CHECKING:
    import onnx_ir as ir

Rule = Callable[["ir.Node", Weights], Iterator[Taken]]


def matches(node: ir.Node, weights: Weights) -> Iterator[Taken]:
    """The native modules that could take `node` over, the best first."""
    rule = RULES.get(node.op_type) if not node.domain else None
    if rule is not None and all(not value.name or value is node.outputs[0] for value in node.outputs):
        yield from rule(node, weights)


def _mat_mul(node: ir.Node, weights: Weights) -> Iterator[Taken]:
    """A MatMul by a constant matrix, with the Add behind it where that is the bias."""
    kernel = weights.find(node.inputs[1])
    if kernel is None or kernel.array.ndim != 2 or weights.find(node.inputs[0]) is not None:
        return
    added = _bias_behind(node, weights)
    if added is not None:
        bias, add = added
        if bias.array.shape == kernel.native().shape[1:]:
            yield _taken(node, "Linear", {"use_bias": True}, {"kernel": kernel, "bias": bias}, bias_node=add)
    yield _taken(node, "Linear", {"use_bias": False}, {"kernel": kernel})


def _bias_behind(node: ir.Node, weights: Weights) -> tuple[Weight, ir.Node] | None:
    """The constant that the one reader of a node's output adds to it."""
    output = node.outputs[0]
    uses = list(output.uses())
    if len(uses) != 1 or output.is_graph_output():
        return None
    add, at = uses[0]
    if add.op_type != "Add" or add.domain or add.graph is not node.graph:
        return None
    bias = weights.find(add.inputs[1 - at])
    return None if bias is None else (bias, add)


def _gemm(node: ir.Node, weights: Weights) -> Iterator[Taken]:
    """A Gemm of an input by a constant matrix, plus a constant row."""
    given = _attributes(node, {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0})
    kernel = weights.find(node.inputs[1])
    if given is None or kernel is None or kernel.array.ndim != 2 or weights.find(node.inputs[0]) is not None:
        return
    if given["alpha"] != 1 or given["transA"]:
        return
    kernel = replace(kernel, axes=kernel.axes[::-1]) if given["transB"] else kernel
    held, added = {"kernel": kernel}, input_of(node, 2)
    if added is not None:
        bias = weights.find(added)
        width = kernel.native().shape[1]
        if bias is None or given["beta"] != 1 or bias.array.shape not in ((width,), (1, width)):
            return
        held["bias"] = bias if bias.array.ndim == 1 else replace(bias, axes=())
    yield _taken(node, "Linear", {"use_bias": added is not None}, held, rank=2)


def _conv(node: ir.Node, weights: Weights) -> Iterator[Taken]:
    """A convolution along one to three axes with a constant kernel."""
    kernel = weights.find(input_of(node, 1))
    if kernel is None or kernel.array.ndim not in (3, 4, 5) or kernel.axes != tuple(range(kernel.array.ndim)):
        return
    rank = kernel.array.ndim - 2
    defaults = {"auto_pad": "NOTSET", "dilations": [1] * rank, "group": 1, "kernel_shape": kernel.array.shape[2:],
                "pads": [0] * 2 * rank, "strides": [1] * rank}  # fmt: skip
    given = _attributes(node, defaults)
    if given is None or tuple(given["kernel_shape"]) != kernel.array.shape[2:] or min(given["pads"]) < 0:
        return
    group, pads = int(given["group"]), list(map(int, given["pads"]))
    padding: Any = tuple(zip(pads[:rank], pads[rank:], strict=True))
    if given["auto_pad"] not in ("NOTSET", ""):
        padding = {"VALID": "VALID", "SAME_UPPER": "SAME", "SAME_LOWER": "SAME_LOWER"}.get(given["auto_pad"])
    held, added = {"kernel": replace(kernel, axes=(*range(2, rank + 2), 1, 0))}, input_of(node, 2)
    if added is not None:
        bias = weights.find(added)
        if bias is None or bias.array.shape != kernel.array.shape[:1]:
            return
        held["bias"] = bias
    if padding is None or group < 1 or kernel.array.shape[0] % group:
        return
    options = {"kernel_size": kernel.array.shape[2:], "strides": tuple(map(int, given["strides"])), "padding": padding,
               "kernel_dilation": tuple(map(int, given["dilations"])), "feature_group_count": group,
               "use_bias": added is not None}  # fmt: skip
    sizes = (kernel.array.shape[1] * group, kernel.array.shape[0])
    yield _taken(node, "Conv", options, held, sizes, rank=rank + 2)


def _conv_transpose(node: ir.Node, weights: Weights) -> Iterator[Taken]:
    """A transposed convolution along one to three axes with a constant kernel and padding that is written out."""
    kernel = weights.find(input_of(node, 1))
    if kernel is None or kernel.array.ndim not in (3, 4, 5) or kernel.axes != tuple(range(kernel.array.ndim)):
        return
    rank = kernel.array.ndim - 2
    defaults = {"auto_pad": "NOTSET", "dilations": [1] * rank, "group": 1, "kernel_shape": kernel.array.shape[2:],
                "output_padding": [0] * rank, "pads": [0] * 2 * rank, "strides": [1] * rank}  # fmt: skip
    given = _attributes(node, defaults)
    if (
        given is None
        or tuple(given["kernel_shape"]) != kernel.array.shape[2:]
        or given["auto_pad"] not in ("NOTSET", "")
    ):
        return
    group, added = int(given["group"]), input_of(node, 2)
    held, sizes = {"kernel": kernel}, (kernel.array.shape[0], kernel.array.shape[1] * group)
    if added is not None:
        bias = weights.find(added)
        if bias is None or bias.array.shape != sizes[1:]:
            return
        held["bias"] = bias
    options: dict[str, Any] = {name: tuple(map(int, given[name])) for name in
                               ("dilations", "kernel_shape", "output_padding", "pads", "strides")}  # fmt: skip
    if group >= 1 and kernel.array.shape[0] % group == 0 and min(options["pads"]) >= 0:
        yield _taken(node, "ConvTranspose", options | {"group": group, "use_bias": added is not None}, held, sizes,
                     rank=rank + 2)  # fmt: skip


def _batch_norm(node: ir.Node, weights: Weights) -> Iterator[Taken]:
    """A BatchNormalization by running statistics, as at inference."""
    given = _attributes(node, {"epsilon": 1e-5, "momentum": 0.9, "spatial": 1, "training_mode": 0})
    found = {
        name: weights.find(input_of(node, at)) for at, name in ((1, "scale"), (2, "bias"), (3, "mean"), (4, "var"))
    }
    held = {name: replace(weight, statistic=name in ("mean", "var")) for name, weight in found.items() if weight}
    if given is None or given["spatial"] != 1 or given["training_mode"] or len(held) < 4:
        return
    size = held["scale"].array.shape
    if len(size) != 1 or any(weight.array.shape != size for weight in held.values()):
        return
    options = {"epsilon": given["epsilon"], "momentum": given["momentum"]}
    yield _taken(node, "BatchNorm", options, held, size)


def _layer_norm(node: ir.Node, weights: Weights) -> Iterator[Taken]:
    """A LayerNormalization of the last axis, in the dtype of its input."""
    given = _attributes(node, {"axis": -1, "epsilon": 1e-5, "stash_type": 1})
    scale, added = weights.find(input_of(node, 1)), input_of(node, 2)
    bias = weights.find(added)
    if given is None or scale is None or scale.array.ndim != 1 or scale.array.size < 2 or (added and bias is None):
        return
    source = node.inputs[0]
    rank = None if source is None or source.shape is None else len(source.shape)
    if given["axis"] not in (-1, None if rank is None else rank - 1):
        return
    if scale.array.dtype.name != "float32" or given["stash_type"] != 1:
        return
    held = {"scale": scale} if bias is None else {"scale": scale, "bias": bias}
    options = {"epsilon": given["epsilon"], "use_bias": bias is not None}
    if all(weight.array.shape == scale.array.shape for weight in held.values()):
        yield _taken(node, "LayerNorm", options, held, scale.array.shape)


def _gather(node: ir.Node, weights: Weights) -> Iterator[Taken]:
    """Rows of a constant table by indices that are not constant: an embedding."""
    from bridge.graph.expressions import constant_of, is_expression

    given, table = _attributes(node, {"axis": 0}), weights.find(node.inputs[0])
    indices = node.inputs[1]
    if given is None or table is None or table.array.ndim != 2 or table.axes != (0, 1) or given["axis"] not in (0, -2):
        return
    if constant_of(indices) is None and not is_expression(indices):
        sizes = table.array.shape
        yield _taken(node, "Embed", {}, {"embedding": table}, sizes, inputs=(1,))


RULES: Final[Mapping[str, Rule]] = MappingProxyType(
    {"MatMul": _mat_mul, "Gemm": _gemm, "Conv": _conv, "ConvTranspose": _conv_transpose,
     "BatchNormalization": _batch_norm,
     "LayerNormalization": _layer_norm, "Gather": _gather}
)  # fmt: skip


def _taken(
    node: ir.Node, kind: Kind, options: Mapping[str, Any], held: Mapping[str, Weight],
    sizes: tuple[int, ...] | None = None, *, inputs: tuple[int, ...] = (0,), rank: int | None = None,
    bias_node: ir.Node | None = None,
) -> Taken:  # fmt: skip
    sizes = held["kernel"].native().shape if sizes is None else sizes
    module = NativeModule(kind=kind, options=options, sizes=tuple(map(int, sizes)), weights=held)
    return Taken(node=node, module=module, inputs=inputs, rank=rank, bias_node=bias_node)


def _attributes(node: ir.Node, defaults: Mapping[str, Any]) -> dict[str, Any] | None:
    """The node's attributes over the defaults; None where it has others, which only the operator itself may judge."""
    given = {name: attribute.value for name, attribute in node.attributes.items()}
    return {**defaults, **given} if set(given) <= set(defaults) else None
