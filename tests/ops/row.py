"""One node on its own: inputs, attributes, constants and the opset, as a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper


@dataclass(frozen=True)
class Row:
    """`inputs` are fed, `constants` are initialisers; an input named in neither place is absent."""

    op: str
    inputs: Mapping[str, np.ndarray]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    constants: Mapping[str, np.ndarray] = field(default_factory=dict)
    opset: int = 20
    outputs: int = 1

    @property
    def name(self) -> str:
        shown = ",".join(f"{key}={value}" for key, value in self.attributes.items() if not hasattr(value, "node"))
        return f"{self.op}-{self.opset}" + (f"[{shown}]" if shown else "")

    def model(self) -> onnx.ModelProto:
        given = {**self.inputs, **self.constants}
        schema = onnx.defs.get_schema(self.op, self.opset)
        variadic = schema.inputs and schema.inputs[-1].option == onnx.defs.OpSchema.FormalParameterOption.Variadic
        fixed = [i.name for i in schema.inputs[:-1]] if variadic else [i.name for i in schema.inputs]
        names = [name if name in given else "" for name in fixed]
        names += [name for name in given if variadic and name not in fixed]
        while names and not names[-1]:
            names.pop()
        outputs = [f"out{at}" for at in range(self.outputs)]
        node = helper.make_node(self.op, names, outputs, name="node", **self.attributes)
        infos = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), list(value.shape))
            for name, value in self.inputs.items()
        ]
        results = [helper.make_empty_tensor_value_info(name) for name in outputs]
        initialisers = [numpy_helper.from_array(value, name) for name, value in self.constants.items()]
        graph = helper.make_graph([node], "single", infos, results, initialisers)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=10)
