"""The inputs and outputs of a whole Keras model: their names, dtypes and shapes, and how they are nested."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bridge.errors import BadInput, UsageError
from bridge.frameworks import keras_graph
from bridge.frameworks.whole import named_outputs

Shape = list[int | None]


@dataclass(frozen=True, slots=True)
class Signature:
    """How a model is called. Leaves are its arrays, flat; `args` and `kwargs` hold a leaf's number in its place."""

    names: list[str]
    dtypes: list[str]
    shapes: list[list[Shape]]
    """Alternatives, the most general first; None is a symbolic axis."""
    args: list[Any]
    kwargs: dict[str, Any]
    opset: int = 18

    def bound(self, leaves: Sequence[Any]) -> tuple[list[Any], dict[str, Any]]:
        """Positional and keyword arguments with `leaves` in their places."""
        import keras

        args, kwargs = keras.tree.map_structure(lambda at: leaves[at], [self.args, self.kwargs])
        return list(args), dict(kwargs)

    def document(self) -> dict[str, Any]:
        """The same as JSON values."""
        return asdict(self)


def is_functional(model: Any) -> bool:
    """Whether the model knows its inputs itself: a Sequential or functional one."""
    import keras

    return isinstance(model, keras.Sequential) or type(model).__name__ == "Functional"


def signature_of(model: Any, example: object, dynamic: object, opset: int) -> Signature:
    """The signature of a model: its own where it is Sequential or functional, else that of `example`.

    Raises:
        UsageError: a subclassed model and no example; an example that it does not take; `dynamic` names what is not.
        BadInput: the model is not built, or an array of the example is empty.
    """
    import keras

    kwargs: dict[str, Any] = {}
    if is_functional(model):
        functional = keras_graph.functional_of(model)
        names, tensors = keras_graph.input_names(model), list(functional.inputs)
        structure = functional._inputs_struct  # noqa: SLF001 (how the model takes them)
        args = [keras.tree.pack_sequence_as(structure, list(range(len(tensors))))]
        declared = [[None if size is None else int(size) for size in tensor.shape] for tensor in tensors]
        dtypes = [str(tensor.dtype) for tensor in tensors]
        shapes = _distinct([[_opened(shape, 1) for shape in declared], declared])
        if isinstance(model, keras.Sequential) and len(declared[0]) > 1:  # it takes other times than its Input declares
            shapes = _distinct([[_opened(declared[0], 2)], *shapes])
    else:
        args, kwargs, leaves, names = _example_of(model, example)
        shapes = _alternatives(leaves)
        dtypes = [str(leaf.dtype) for leaf in leaves]
        declared = [list(leaf.shape) for leaf in leaves]
    if dynamic is not None:
        shapes = [_asked(names, declared, dynamic)]
    return Signature(names, dtypes, shapes, args, kwargs, opset)


@dataclass(frozen=True, slots=True)
class _Leaf:
    dtype: str
    shape: tuple[int | None, ...]


def _example_of(model: Any, example: object) -> tuple[list[Any], dict[str, Any], list[_Leaf], list[str]]:
    import keras

    args, kwargs = _arguments(model, example)
    flat: list[_Leaf] = []

    def number(value: Any) -> int:
        flat.append(_leaf(model, value))
        return len(flat) - 1

    # One argument after another: Keras' tree sorts the keys of a dict, and inputs keep the example's order.
    numbered = [keras.tree.map_structure(number, value) for value in args]
    named = {name: keras.tree.map_structure(number, value) for name, value in kwargs.items()}
    call = inspect.signature(type(model).call)
    try:
        bound = call.bind(model, *numbered, **named)
    except TypeError as error:
        raise UsageError(f"call does not take the example: {error}", where=model.name, expected=str(call)) from None
    names = [""] * len(flat)
    for name, value in list(bound.arguments.items())[1:]:
        for path, at in keras.tree.flatten_with_path(value):
            names[at] = "_".join([name, *map(str, path)])
    return numbered, named, flat, names


def _arguments(model: Any, example: object) -> tuple[list[Any], dict[str, Any]]:
    if example is None:
        built = getattr(model, "_build_shapes_dict", None) or {}
        needed = [parameter for parameter in inspect.signature(model.call).parameters.values()
                  if parameter.default is parameter.empty]  # fmt: skip
        if len(built) != 1 or len(needed) != 1:
            raise UsageError("a subclassed model is traced, and needs an example of its inputs", where=model.name,
                             do="pass example=(x, ...), arrays of any valid batch and time")  # fmt: skip
        (shape,) = built.values()
        return [_Leaf(str(model.input_dtype), tuple(shape))], {}
    if isinstance(example, Mapping):
        return [], {str(name): value for name, value in example.items()}
    return list(example) if isinstance(example, tuple) else [example], {}


def _leaf(model: Any, value: Any) -> _Leaf:
    from bridge.frameworks.keras_read import keras_array

    if isinstance(value, _Leaf):
        return value
    array = np.asarray(value) if isinstance(value, (np.ndarray, np.generic, list, int, float)) else keras_array(value)
    if 0 in array.shape:
        raise BadInput("an array of the example is empty", where=model.name, got=list(array.shape))
    return _Leaf(array.dtype.name, array.shape)


def _alternatives(leaves: Sequence[_Leaf]) -> list[list[Shape]]:
    """Batch and time symbolic; then without the second axis of matrices; then the batch alone; then nothing."""
    ranks = [len(leaf.shape) for leaf in leaves]
    tokens = [2 if rank > 2 or "int" in leaf.dtype else 1 for rank, leaf in zip(ranks, leaves, strict=True)]
    counts = ([2] * len(leaves), tokens, [2 if rank > 2 else 1 for rank in ranks], [1] * len(leaves), [0] * len(leaves))
    return _distinct([[_opened(leaf.shape, count) for leaf, count in zip(leaves, axes, strict=True)]
                      for axes in counts])  # fmt: skip


def _opened(shape: Sequence[int | None], axes: int) -> Shape:
    return [None if at < axes else size for at, size in enumerate(shape)]


def _distinct(found: list[list[Shape]]) -> list[list[Shape]]:
    return [shapes for at, shapes in enumerate(found) if shapes not in found[:at]]


def _asked(names: Sequence[str], declared: Sequence[Shape], dynamic: object) -> list[Shape]:
    if not isinstance(dynamic, Mapping):
        raise UsageError("dynamic is no mapping", where="to_onnx", got=type(dynamic).__name__,
                         expected="{input name: {axis: symbol}}")  # fmt: skip
    shapes = [[None, *shape[1:]] for shape in declared]
    for name, axes in dynamic.items():
        if name not in names or not isinstance(axes, Mapping):
            raise UsageError(f"dynamic: {name!r} is no input", where="to_onnx", got=repr(axes)[:80],
                             expected=", ".join(names))  # fmt: skip
        at = names.index(name)
        for axis, symbol in axes.items():
            if not isinstance(axis, int) or not 0 <= axis < len(declared[at]) or not isinstance(symbol, str | None):
                raise UsageError(f"dynamic: {name!r} has no such axis or symbol", where="to_onnx",
                                 got=f"{{{axis}: {symbol!r}}}", expected="an axis and a name")  # fmt: skip
        shapes[at] = [None if axes.get(axis) is not None else size for axis, size in enumerate(declared[at])]
    return shapes


def symbols(names: Sequence[str], shapes: Sequence[Shape], dynamic: object) -> list[list[int | str]]:
    """A name for every symbolic axis: batch, time (with the input's name where several have one), input and axis."""
    wanted = dynamic if isinstance(dynamic, Mapping) else {}
    several = sum(len(shape) > 1 and shape[1] is None for shape in shapes) > 1
    found = []
    for name, shape in zip(names, shapes, strict=True):
        labels = {0: "batch", 1: f"{name}.time" if several else "time"}
        given = {axis: symbol for axis, symbol in wanted.get(name, {}).items() if isinstance(symbol, str)}
        found.append([given.get(axis, labels.get(axis, f"{name}.dim{axis}")) if size is None else size
                      for axis, size in enumerate(shape)])  # fmt: skip
    return found


def outputs_of(model: Any, result: Any) -> dict[str, Any]:
    """What a model returns by name: its layers' names where it is functional, else those of `named_outputs`."""
    import keras

    if is_functional(model):
        return dict(zip(keras_graph.output_names(model), keras.tree.flatten(result), strict=True))
    named = named_outputs(keras.tree.flatten_with_path(result))
    return {name: value for name, value in named.items() if value is not None}
