"""Writer: builds one ONNX model, node by node. The only place where bridge makes graphs.

Values are `onnx_ir.Value`s that know dtype and shape as soon as they are made: ONNX's own inference runs on every
node, so a wrong axis or dtype is an error at the line that wrote it and not in a model that fails to load.

    >>> from bridge.graph.writer import Writer
    >>> w = Writer()
    >>> x = w.input("x", "float32", ["time", "batch", 3])
    >>> y = w.op("Tanh", w.transpose(x, (1, 0, 2)), name="squash")
    >>> w.output(y, "y", "float32", ["batch", "time", 3]).name
    'y'
    >>> [node.op_type for node in w.model({"bridge.source": "docs"}).graph]
    ['Transpose', 'Tanh']
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, overload

import numpy as np

from bridge.errors import UsageError
from bridge.graph.infer import infer_outputs
from bridge.graph.naming import Names
from bridge.graph.recurrent import write_recurrent
from bridge.graph.subgraphs import write_choice, write_scan
from bridge.graph.values import as_array, as_attribute, tensor_type

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping, Sequence

    import onnx_ir as ir

    from bridge.cell import Cell
    from bridge.graph.recurrent import Form

    Dim = int | str | ir.SymbolicDim | None

OPSETS: Final = range(17, 23)
"""What bridge writes: 17 is the oldest whose operators it uses, 22 the newest that onnxruntime takes since 1.20."""

IR_VERSION: Final = 10
"""The oldest file format whose nodes carry metadata; onnxruntime 1.31.1 takes 13 at most."""

SHARED_SIZE: Final = 16
"""Constants of up to this many elements are shared by everyone who asks for the same bits."""


class Writer:
    """One ONNX model in the making.

    Args:
        opset: 17 to 22.
        dtype: of Python floats given to `constant`: "float16", "float32" or "float64".
        name: of the graph.
        outer: the Writer of the graph around this one, for the body of a Scan or an If.

    Raises:
        UsageError: an opset or a dtype that bridge does not write.
    """

    def __init__(self, opset: int = 20, dtype: str = "float32", name: str = "bridge", *, outer: Writer | None = None):
        import onnx_ir as ir

        if opset not in OPSETS:
            raise UsageError("this opset is not written", where="Writer", got=opset, expected="17 to 22",
                             do="pass opset=20, which every onnxruntime since 1.18 runs")  # fmt: skip
        if str(dtype) not in ("float16", "float32", "float64"):
            raise UsageError("unknown dtype", where="Writer", got=repr(dtype), expected="float16, float32 or float64")
        self.opset, self.dtype = opset, str(dtype)
        self._root: Writer = self if outer is None else outer.root
        self._values, self._nodes = (Names(), Names()) if outer is None else outer.names
        self._shared: dict[Hashable, ir.Value] = {}
        self._outputs: set[str] = set()
        self.graph = ir.Graph([], [], nodes=[], opset_imports={"": opset} if outer is None else {}, name=name)

    @property
    def root(self) -> Writer:
        """The Writer of the main graph."""
        return self._root

    @property
    def names(self) -> tuple[Names, Names]:
        """The names of values and of nodes, which all graphs of the model share."""
        return self._values, self._nodes

    # ------------------------------------------------------------------ ends of the graph

    def input(self, name: str, dtype: str, shape: Sequence[Dim]) -> ir.Value:
        """A graph input; `shape` holds sizes and symbols such as "batch" and "time"."""
        import onnx_ir as ir

        if name in self._values:
            raise UsageError(f"the name {name!r} is taken", where="Writer.input")
        value = ir.Value(name=self._values.fresh(name), type=tensor_type(dtype), shape=ir.Shape(shape))
        self.graph.inputs.append(value)
        return value

    def output(self, value: ir.Value, name: str, dtype: str | None = None, shape: Sequence[Dim] | None = None
               ) -> ir.Value:  # fmt: skip
        """Make `value` a graph output called `name`; returns the output.

        `dtype` and `shape` are what the output declares: what was inferred where they are None.
        """
        if name in self._outputs:
            raise UsageError(f"two outputs are called {name!r}", where="Writer.output")
        if value.graph is not self.graph or value.producer() is None or value.is_graph_output():
            value = self.op("Identity", value)  # an input, a constant, something of an outer graph, or a second name
        if value.name != name:
            self._release(name)
            value.name = self._values.fresh(name)
        self._outputs.add(name)
        if dtype is not None and value.dtype not in (None, tensor_type(dtype).dtype):
            raise UsageError(f"output {name!r} has another dtype", where="Writer.output", got=value.dtype,
                             expected=dtype)  # fmt: skip
        self.typed(value, value.shape if shape is None else shape, dtype)
        self.graph.outputs.append(value)
        return value

    def _release(self, name: str) -> None:
        # An inner value may hold the name that an output asks for: it takes another one. Ends of the graph keep theirs.
        if name not in self._values:
            return
        held = [value for node in self._root.graph.all_nodes() for value in node.outputs if value.name == name]
        held += [value for key, value in self._root.graph.initializers.items() if key == name]
        for value in held:
            value.name = self._values.fresh(f"{name}_inner")
        if held:
            self._values.release(name)
        else:
            raise UsageError(f"the name {name!r} is taken by an input", where="Writer.output")

    def model(self, metadata: Mapping[str, str] | None = None) -> ir.Model:
        """The model written so far, with its metadata ("bridge.source", …)."""
        import onnx_ir as ir

        from bridge import __version__

        model = ir.Model(self.graph, ir_version=IR_VERSION, producer_name="rnn-bridge", producer_version=__version__)
        model.metadata_props.update(metadata or {})
        return model

    # ------------------------------------------------------------------ constants and nodes

    def constant(self, array: object, name: str | None = None, dtype: str | None = None) -> ir.Value:
        """An initialiser of the model (never of a body). Arrays are kept by reference and not copied.

        Python floats take the Writer's dtype and Python integers int64. Small unnamed constants with the same bits are
        one initialiser, and so is the same array given twice (a cell written as a node and as a Scan).
        """
        import onnx_ir as ir

        from bridge.graph.tensors import ArrayTensor

        values = as_array(array, dtype or self.dtype if not isinstance(array, np.ndarray) else dtype)
        if self is not self._root:
            return self._root.constant(values, name)
        small = name is None and values.size <= SHARED_SIZE
        key: Hashable = (values.dtype.name, values.shape, values.tobytes()) if small else id(values)
        if key in self._shared:
            return self._shared[key]
        fresh = self._values.fresh(name or "constant")
        tensor = ArrayTensor(values, name=fresh)
        value = ir.Value(name=fresh, type=ir.TensorType(tensor.dtype), shape=ir.Shape(values.shape), const_value=tensor)
        self.graph.register_initializer(value)
        self._shared[key] = value  # the tensor keeps the array alive, and with it its id
        return value

    @overload
    def op(self, op_type: str, *inputs: ir.Value | None, outputs: int | Sequence[str], name: str | None = ...,
           domain: str = ..., metadata: Mapping[str, str] | None = ..., **attributes: Any
           ) -> tuple[ir.Value, ...]: ...  # fmt: skip

    @overload
    def op(self, op_type: str, *inputs: ir.Value | None, name: str | None = ..., domain: str = ...,
           metadata: Mapping[str, str] | None = ..., **attributes: Any) -> ir.Value: ...  # fmt: skip

    def op(
        self,
        op_type: str,
        *inputs: ir.Value | None,
        name: str | None = None,
        outputs: int | Sequence[str] = 1,
        domain: str = "",
        metadata: Mapping[str, str] | None = None,
        **attributes: Any,
    ) -> ir.Value | tuple[ir.Value, ...]:
        """One node. Returns its output, or a tuple of them where `outputs` is not 1.

        Args:
            op_type: the operator.
            inputs: values; None leaves an optional input out.
            name: of the node; its output takes the same name.
            outputs: how many, or their names.
            domain: of the operator.
            metadata: of the node ("bridge.path", "bridge.layer").
            attributes: Python values, sequences, arrays (as tensors) or graphs; None leaves one out.

        Raises:
            UsageError: ONNX's inference refuses the node.
        """
        node = self.append(op_type, inputs, name, outputs, metadata, domain, **attributes)
        infer_outputs(node, self.opset)
        return node.outputs[0] if outputs == 1 else tuple(node.outputs)

    def append(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        name: str | None = None,
        outputs: int | Sequence[str] = 1,
        metadata: Mapping[str, str] | None = None,
        domain: str = "",
        **attributes: Any,
    ) -> ir.Node:
        """One node whose outputs the caller declares with `typed`; `op` is what infers them."""
        import onnx_ir as ir
        from onnx_ir.convenience import convert_attributes

        kept = list(inputs)
        while kept and kept[-1] is None:
            kept.pop()
        node_name = self._nodes.fresh(name or op_type)
        if isinstance(outputs, int):
            labels = [node_name if outputs == 1 else f"{node_name}.{at}" for at in range(outputs)]
        else:
            labels = list(outputs)
        values = [ir.Value(name=self._values.fresh(label)) for label in labels]
        given = {key: as_attribute(value) for key, value in attributes.items() if value is not None}
        node = ir.Node(domain, op_type, kept, convert_attributes(given), outputs=values, name=node_name,
                       metadata_props=dict(metadata) if metadata else None)  # fmt: skip
        self.graph.append(node)
        return node

    def fresh(self, wanted: str) -> str:
        """A name for a value that no other value of the model has."""
        return self._values.fresh(wanted)

    def typed(
        self,
        value: ir.Value,
        shape: Sequence[Dim] | ir.Shape | None,
        dtype: str | None = None,
    ) -> ir.Value:
        """Declare what inference could not know: the shape, and the dtype where given."""
        import onnx_ir as ir

        if dtype is not None:
            value.type = tensor_type(dtype)
        if shape is not None:
            value.shape = ir.Shape(tuple(shape))
        return value

    # ------------------------------------------------------------------ recurrence and control flow

    def recurrent(
        self,
        cell: Cell,
        x: ir.Value,
        *,
        lengths: ir.Value | None = None,
        initial_h: ir.Value | None = None,
        initial_c: ir.Value | None = None,
        name: str,
        form: Form = "fused",
        metadata: Mapping[str, str] | None = None,
        valid: ir.Value | None = None,
    ) -> tuple[ir.Value, ir.Value, ir.Value | None]:
        """Write `cell`: x [T, N, I] to Y [T, D, N, H], Y_h and Y_c [D, N, H]. See `bridge.graph.recurrent`."""
        return write_recurrent(self, cell, x, lengths, initial_h, initial_c, name, form, metadata, valid)

    def scan(
        self,
        body: Callable[
            [Writer, tuple[ir.Value, ...], tuple[ir.Value, ...]], tuple[Sequence[ir.Value], Sequence[ir.Value]]
        ],
        states: Sequence[ir.Value],
        xs: Sequence[ir.Value],
        *,
        reverse: bool = False,
        name: str,
        metadata: Mapping[str, str] | None = None,
    ) -> tuple[tuple[ir.Value, ...], tuple[ir.Value, ...]]:
        """Run `body(writer, states, steps) -> (new states, ys)` over axis 0 of `xs`. See `bridge.graph.subgraphs`."""
        return write_scan(self, body, states, xs, reverse, name, metadata)

    def choose(
        self,
        condition: ir.Value,
        then: Callable[[Writer], Sequence[ir.Value]],
        otherwise: Callable[[Writer], Sequence[ir.Value]],
        *,
        name: str,
        metadata: Mapping[str, str] | None = None,
    ) -> tuple[ir.Value, ...]:
        """An If: the values of `then(writer)` where the bool scalar `condition` holds, else of `otherwise(writer)`."""
        return write_choice(self, condition, then, otherwise, name, metadata)

    # ------------------------------------------------------------------ a small vocabulary

    def cast(self, x: ir.Value, dtype: str) -> ir.Value:
        """`x` as `dtype`; `x` itself where it has that dtype."""
        wanted = tensor_type(dtype).dtype
        return x if x.dtype == wanted else self.op("Cast", x, to=int(wanted))

    def transpose(self, x: ir.Value, perm: Sequence[int]) -> ir.Value:
        """`x` with its axes in the order `perm`; `x` itself where that is the order they have."""
        return x if list(perm) == sorted(perm) else self.op("Transpose", x, perm=list(perm))

    def squeeze(self, x: ir.Value, *axes: int) -> ir.Value:
        """`x` without these axes of size 1."""
        return self.op("Squeeze", x, self.constant(list(axes)))

    def unsqueeze(self, x: ir.Value, *axes: int) -> ir.Value:
        """`x` with new axes of size 1."""
        return self.op("Unsqueeze", x, self.constant(list(axes)))

    def reshape(self, x: ir.Value, shape: Sequence[int]) -> ir.Value:
        """`x` in another shape: 0 copies a dimension, -1 takes what is left."""
        return self.op("Reshape", x, self.constant(list(shape)))

    def concat(self, values: Sequence[ir.Value], axis: int) -> ir.Value:
        """The values one after another along `axis`; a lone value is itself."""
        return values[0] if len(values) == 1 else self.op("Concat", *values, axis=axis)

    def slice(self, x: ir.Value, axis: int, start: int, stop: int, step: int = 1) -> ir.Value:
        """`x[start:stop:step]` along `axis`."""
        return self.op("Slice", x, *(self.constant([bound]) for bound in (start, stop, axis, step)))

    def take(self, x: ir.Value, index: int, axis: int) -> ir.Value:
        """`x[index]` along `axis`, which goes away."""
        return self.op("Gather", x, self.constant(index), axis=axis)

    def dim(self, x: ir.Value, axis: int) -> ir.Value:
        """The size of `axis` as an int64 [1]: a constant where it is static."""
        size = None if x.shape is None else x.shape[axis]
        if isinstance(size, int):
            return self.constant([size])
        return self.op("Shape", x, start=axis, end=axis + 1)

    def zeros(self, *dims: ir.Value, dtype: str | None = None) -> ir.Value:
        """Zeros of the shape that the int64 [1] values `dims` say."""
        import onnx_ir as ir

        zero = ir.Tensor(np.zeros(1, dtype or self.dtype))
        return self.op("ConstantOfShape", self.concat(dims, 0), value=zero)
