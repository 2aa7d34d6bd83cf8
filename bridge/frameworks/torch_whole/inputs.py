"""The example of a whole model: what torch's export is called with, and which axes are symbolic."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.export import Dim
from torch.utils import _pytree as pytree

from bridge.errors import BadInput, Unsupported, UsageError
from bridge.frameworks.whole import Fixed, named_outputs

Args = tuple[tuple[Any, ...], dict[str, Any]]


def arguments_of(module: nn.Module, example: object) -> Args:
    """Positional and keyword arguments of forward, arrays as tensors on the module's device.

    Raises:
        UsageError: no example, or one that forward does not take.
        BadInput: an array with an axis of size 0.
    """
    where = type(module).__name__
    if example is None:
        raise UsageError("a whole model is traced, and needs an example of its inputs", where=where,
                         do="pass example=(x, ...), arrays or tensors of any valid batch and time")  # fmt: skip
    device = next((value.device for value in module.parameters()), torch.device("cpu"))
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    if isinstance(example, Mapping):
        kwargs = {str(name): _tensors(value, device, where) for name, value in example.items()}
    elif isinstance(example, (tuple, list)):
        args = tuple(_tensors(value, device, where) for value in example)
    else:
        args = (_tensors(example, device, where),)
    try:
        inspect.signature(module.forward).bind(*args, **kwargs)
    except TypeError as error:
        raise UsageError(f"forward does not take the example: {error}", where=where,
                         expected=str(inspect.signature(module.forward))) from None  # fmt: skip
    return args, kwargs


def _tensors(value: Any, device: torch.device, where: str) -> Any:
    def tensor(leaf: Any) -> Any:
        made = torch.from_numpy(np.array(leaf)).to(device) if isinstance(leaf, np.ndarray | np.generic) else leaf
        if isinstance(made, torch.Tensor) and 0 in made.shape:
            raise BadInput("an array of the example is empty", where=where, got=list(made.shape))
        return made

    return pytree.tree_map(tensor, value)


def dynamic_shapes(module: nn.Module, args: Args, dynamic: object) -> dict[str, Any]:
    """`dynamic_shapes` of torch.export: axes 0 and 1 of every array may be symbolic, unless `dynamic` names the input.

    `dynamic` maps an input's name to {axis: symbol}, the symbol a name or a `torch.export.Dim`: those axes must be
    symbolic, and the input's other axes are fixed.

    Raises:
        UsageError: `dynamic` names an input or an axis that the example does not have.
    """
    given = inspect.signature(module.forward).bind(*args[0], **args[1]).arguments
    wanted = _checked(dynamic, given)
    return {name: _axes(value, wanted.get(name)) for name, value in given.items()}


def _axes(value: Any, wanted: Mapping[int, Any] | None) -> Any:
    if wanted is not None:
        return {axis: Dim.DYNAMIC if isinstance(symbol, str) else symbol for axis, symbol in wanted.items()
                if symbol is not None}  # fmt: skip
    return pytree.tree_map(
        lambda leaf: dict.fromkeys(range(min(2, leaf.dim())), Dim.AUTO) if isinstance(leaf, torch.Tensor) else None,
        value,
    )


def _checked(dynamic: object, given: Mapping[str, Any]) -> dict[str, dict[int, Any]]:
    if dynamic is None:
        return {}
    if not isinstance(dynamic, Mapping):
        raise UsageError("dynamic is no mapping", where="to_onnx", got=type(dynamic).__name__,
                         expected="{input name: {axis: symbol}}")  # fmt: skip
    for name, axes in dynamic.items():
        value = given.get(name)
        if not isinstance(value, torch.Tensor) or not isinstance(axes, Mapping):
            raise UsageError(f"dynamic: {name!r} is no array among the inputs", where="to_onnx", got=repr(axes)[:80],
                             expected=", ".join(name for name, leaf in given.items() if isinstance(leaf, torch.Tensor))
                             )  # fmt: skip
        for axis, symbol in axes.items():
            known = symbol is None or isinstance(symbol, (str, Dim)) or type(symbol).__name__ == "_DimHint"
            if not isinstance(axis, int) or not 0 <= axis < value.dim() or not known:
                raise UsageError(f"dynamic: {name!r} has no such axis or symbol", where="to_onnx",
                                 got=f"{{{axis}: {symbol!r}}}", expected=f"an axis from 0 to {value.dim() - 1}, "
                                 "a name or a torch.export.Dim")  # fmt: skip
    return {name: dict(axes) for name, axes in dynamic.items()}


def symbols(program: Any, dynamic: object) -> dict[str, str]:
    """The names that `dynamic` gives to the symbols of an exported program."""
    names: dict[str, str] = {}
    wanted = dynamic if isinstance(dynamic, Mapping) else {}
    placeholders = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    for name, axes in wanted.items():
        for axis, symbol in axes.items():
            value = placeholders.get(name)
            size = None if value is None else value.shape[axis]
            label = symbol if isinstance(symbol, str) else getattr(symbol, "__name__", None)
            if isinstance(size, torch.SymInt) and label:
                names.setdefault(str(size.node.expr), label)
    return names


def fixed_axes(program: Any, dynamic: object) -> list[Fixed]:
    """Input, axis and size of the axes 0 and 1 that nobody named and the model itself fixes (channels, layers, …)."""
    named = set(dynamic) if isinstance(dynamic, Mapping) else set()
    wanted = set(program.graph_signature.user_inputs) - named
    found: list[Fixed] = []
    for node in program.graph.nodes:
        value = node.meta.get("val") if node.op == "placeholder" and node.name in wanted else None
        if not isinstance(value, torch.Tensor):
            continue
        for axis, size in enumerate(value.shape[:2]):
            number = size if isinstance(size, int) else size.node.maybe_as_int()
            found += [] if number is None else [(node.name, axis, number)]
    return found


def check_outputs(program: Any, where: str) -> None:
    """Refuse outputs that are no arrays, None excepted: ONNX has no place for a number or a text.

    Raises:
        Unsupported: what is returned.
    """
    for spec in program.graph_signature.output_specs:
        value = getattr(spec.arg, "value", None)
        if value is not None:
            raise Unsupported("the model returns something that is no array", where=where, got=repr(value)[:80],
                              expected="tensors, in tuples, lists or mappings, and None",
                              do="return arrays only, or wrap the module in one that drops it")  # fmt: skip


def output_names(program: Any) -> list[str]:
    """Names of the outputs of an exported program that are arrays. See `named_leaves`."""
    specs = program.graph_signature.output_specs
    made = [None if type(spec.arg).__name__ == "ConstantArgument" else at for at, spec in enumerate(specs)
            if spec.kind.name == "USER_OUTPUT"]  # fmt: skip
    named = named_leaves(pytree.tree_unflatten(made, program.call_spec.out_spec))
    return [name for name, leaf in named.items() if leaf is not None]


def named_leaves(result: Any) -> dict[str, Any]:
    """What a model returns by name. See `named_outputs`."""
    leaves = pytree.tree_flatten_with_path(result)[0]
    return named_outputs(
        ([getattr(key, "key", getattr(key, "idx", getattr(key, "name", ""))) for key in path], leaf)
        for path, leaf in leaves
    )
