"""Program: an ONNX model compiled once for a backend, run any number of times, also while the backend traces."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.errors import BadInput, Unsupported, UsageError
from bridge.ops.backend import Array, Backend
from bridge.ops.backend_numpy import NumpyBackend
from bridge.ops.dtypes import CARRIED
from bridge.ops.layers import layer_handler
from bridge.ops.native import running_nodes
from bridge.ops.parameters import trainable
from bridge.ops.port import Port
from bridge.ops.registry import NEWEST_OPSET, Handler, resolve
from bridge.ops.steps import Block, Compiler, node_name
from bridge.ops.table import HANDLERS

if TYPE_CHECKING:
    import onnx_ir as ir

Layer = Callable[..., Any]


class Program:
    """An ONNX model on a backend.

    `layers` maps node names to native layers that take the nodes over, in subgraphs too: for LSTM, GRU and RNN
    `layer(X, sequence_lens=None, initial_h=None, initial_c=None) -> (Y, Y_h[, Y_c])` in ONNX layout 0 (the weights W,
    R, B, P are the layer's own; an initial state stays an argument), for any other node `layer(*inputs) -> outputs`
    with all inputs, or a Takeover with some of them.

    Raises:
        Unsupported: operators that are not carried, all of them in one error; a dtype that the backend cannot hold.
        UsageError: a layer or a static value for a name that the model does not have.
    """

    def __init__(
        self,
        model: Any,
        backend: Backend,
        *,
        layers: Mapping[str, Layer] | None = None,
        static: Mapping[str, object] | None = None,
    ) -> None:
        from bridge.graph import as_model, expand, fold

        model = fold(as_model(model), static)
        self._backend = backend
        self._numpy = backend if isinstance(backend, NumpyBackend) else NumpyBackend()
        self._opsets = dict(model.opset_imports)
        _check_opset(self._opsets)
        self._layers = dict(layers or {})
        _check_layers(self._layers, model.graph)
        model = expand(model, lambda node: self._choose(node) is not None)
        taken_over = {node for node in model.graph.all_nodes() if node_name(node) in self._layers}
        _check_operators(self._choose, running_nodes(model.graph, taken_over))
        compiler = Compiler(backend=backend, static_backend=self._numpy, choose=self._choose)
        self._block = compiler.block(model.graph)
        self._inputs = {value.name or "": value for value in self._block.inputs if value not in compiler.constants}
        self._constants = {value: self._numpy.asarray(array) for value, array in compiler.constants.items()}
        self._ports = {name: Port.of(name, value) for name, value in self._inputs.items()}
        self._parameters = _named(trainable(self._block, compiler.constants))

    @property
    def input_names(self) -> tuple[str, ...]:
        """Inputs of a call in graph order, those fixed by `static` left out."""
        return tuple(self._inputs)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Outputs in graph order."""
        return tuple(value.name or "" for value in self._block.outputs)

    @property
    def ports(self) -> tuple[Port, ...]:
        """The inputs of a call as the graph declares them."""
        return tuple(self._ports.values())

    @property
    def block(self) -> Block:
        """The compiled graph, for whoever writes it in another form; native layers are steps with their node's name."""
        return self._block

    @property
    def constants(self) -> Mapping[ir.Value, np.ndarray]:
        """Every value of the graph and its bodies that is known without inputs, parameters included."""
        return self._constants

    @property
    def parameter_values(self) -> Mapping[str, ir.Value]:
        """Where the graph has each of `parameters`."""
        return self._parameters

    @property
    def parameters(self) -> dict[str, np.ndarray]:
        """Trainable arrays by initialiser name; a call takes their current values under the same names."""
        return {name: self._constants[value] for name, value in self._parameters.items()}

    def __call__(self, feeds: Mapping[str, Array], parameters: Mapping[str, Array] | None = None) -> dict[str, Array]:
        """Outputs by name, as the backend's arrays. Parameters that are not given keep the model's own values.

        Raises:
            BadInput: a missing or unexpected input or parameter, a wrong rank, size or dtype.
            Unsupported: a value that must be known while tracing and is not.
        """
        scope = dict(self._constants)
        for name, array in {**self.parameters, **_checked_names(parameters or {}, self._parameters)}.items():
            scope[self._parameters[name]] = self._backend.asarray(array)
        if missing := sorted(set(self._inputs) - set(feeds)):
            raise BadInput("missing inputs", where="call", got=", ".join(missing), expected=", ".join(self._inputs))
        for name, array in _checked_names(feeds, self._inputs).items():
            scope[self._inputs[name]] = self._ports[name].placed(array, self._backend)
        with np.errstate(all="ignore"):
            results = self._block.run(scope)
        return {name: self._backend.asarray(result) for name, result in zip(self.output_names, results, strict=True)}

    def _choose(self, node: ir.Node) -> tuple[Handler, Sequence[int]] | None:
        layer = self._layers.get(node_name(node))
        if layer is not None:
            return layer_handler(node, layer)
        opset = node.version or self._opsets.get(node.domain, 0)
        handler = resolve(HANDLERS, node.domain, node.op_type, opset)
        return None if handler is None else (handler, range(len(node.inputs)))


def evaluate(model: Any, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The referee of whole graphs: `model` in numpy, every floating value in float64.

    Initialisers, inputs, attributes and casts to float16 or float32 are carried in float64: a referee does not round.
    """
    program = Program(model, NumpyBackend(double=True))
    return {name: np.asarray(array) for name, array in program(feeds).items()}


def _check_opset(opsets: Mapping[str, int]) -> None:
    """Refuse opsets past the newest that is judged; a native layer would be taken whatever its node's version is."""
    opset = max(opsets.get("", 0), opsets.get("ai.onnx", 0))
    if opset > NEWEST_OPSET:
        raise Unsupported("the model's opset is newer than what onnxruntime runs", where="model", got=f"opset {opset}",
                          expected=f"at most {NEWEST_OPSET}",
                          do="export it with an older opset, or convert it with onnx.version_converter")  # fmt: skip


def _check_operators(choose: Callable[[ir.Node], object], nodes: Iterable[ir.Node]) -> None:
    missing: dict[str, list[str]] = defaultdict(list)
    for node in nodes:
        element = node.attributes.get("to") if node.op_type == "Cast" else None
        if element is not None and int(element.value) not in CARRIED:
            missing[f"Cast to element type {element.value}"].append(node_name(node))
        elif choose(node) is None:
            missing[f"{node.domain}::{node.op_type}" if node.domain else node.op_type].append(node_name(node))
    if missing:
        lines = [f"{op} x{len(names)} ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})"
                 for op, names in sorted(missing.items())]  # fmt: skip
        own = any(op.startswith("com.microsoft::") for op in missing)
        raise Unsupported(f"{sum(map(len, missing.values()))} nodes are not carried", where="model",
                          got="; ".join(lines), do="take the model as it was before onnxruntime's optimiser, quantised "
                          "as QuantFormat.QDQ: com.microsoft is its own domain" if own else "")  # fmt: skip


def _check_layers(layers: Mapping[str, Layer], graph: ir.Graph) -> None:
    names = {node_name(node) for node in graph.all_nodes()}
    if unknown := sorted(set(layers) - names):
        raise UsageError("layers for nodes that the model does not have", where="Program", got=", ".join(unknown))


def _named(values: Sequence[ir.Value]) -> dict[str, ir.Value]:
    """Values by name; a name that sibling subgraphs share gets a number."""
    named: dict[str, ir.Value] = {}
    for value in values:
        name, count = value.name or "parameter", 2
        while name in named:
            name, count = f"{value.name}.{count}", count + 1
        named[name] = value
    return named


def _checked_names(given: Mapping[str, Array], known: Mapping[str, object]) -> Mapping[str, Array]:
    if unknown := sorted(set(given) - set(known)):
        raise BadInput("unexpected names", where="call", got=", ".join(unknown), expected=", ".join(known))
    return given
