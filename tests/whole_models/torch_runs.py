"""Export a case once and judge it at other sizes: torch in float64 is the referee, torch in float32 sets the bound."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

import bridge
from bridge.errors import BridgeError
from tests.whole_models import verdict
from tests.whole_models.torch_cases import EXAMPLE, OTHERS, Case, all_cases
from tests.whole_models.verdict import Run, Verdict

__all__ = ["PEER", "all_cases", "built", "export", "judge", "outputs", "peer", "run"]

PEER: Final = "torch.onnx"


def built(case: Case) -> nn.Module:
    """The model in inference mode, every parameter and statistic random."""
    torch.manual_seed(1)
    module = case.build().eval()
    for value in module.buffers():
        if value.is_floating_point():
            torch.nn.init.uniform_(value, 0.5, 1.5)
    return module


def export(case: Case, module: nn.Module) -> Any:
    example = case.inputs(*EXAMPLE, np.random.default_rng(0))
    return bridge.to_onnx(module, example=example, **dict(case.options))


def judge(case: Case, module: nn.Module, model: Any) -> Verdict:
    """Run `model` at four sizes that the export has not seen."""
    return verdict.judge(case.name, model, _runs(case, case.meaning(copy.deepcopy(module))))


def _runs(case: Case, module: nn.Module) -> Iterator[Run]:
    exact = copy.deepcopy(module).double()
    for at, sizes in enumerate(OTHERS):
        arrays = case.inputs(*sizes, np.random.default_rng(at + 1))
        yield Run(str(sizes), arrays, outputs(module, arrays), outputs(exact, arrays, exact=True))


def outputs(module: nn.Module, arrays: Any, *, exact: bool = False) -> list[np.ndarray]:
    """The flat outputs of torch itself."""
    tensors = [torch.from_numpy(array) for array in arrays]
    tensors = [value.double() if exact and value.is_floating_point() else value for value in tensors]
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64 if exact else default)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = module(*tensors)
    finally:
        torch.set_default_dtype(default)
    return [value.numpy() for value in pytree.tree_leaves(result)]


def run(case: Case) -> Verdict:
    """Build, export, judge."""
    module = built(case)
    try:
        model = export(case, module)
    except BridgeError as error:
        return Verdict(case.name, "refused", detail=str(error))
    return judge(case, module, model)


def peer(case: Case) -> Verdict:
    """The verdict on torch.onnx.export with the same symbolic axes and nothing of bridge."""
    module = built(case)
    arrays = case.inputs(*EXAMPLE, np.random.default_rng(0))
    try:
        made = torch.onnx.export(module, tuple(map(torch.from_numpy, arrays)), dynamo=True, verbose=False,
                                 dynamic_shapes=_symbolic(case, module, arrays), opset_version=20)  # fmt: skip
        proto = made.model_proto
    except Exception as error:  # noqa: BLE001 (whatever the exporter raises is its refusal)
        return Verdict(case.name, "refused", detail=str(error).strip().splitlines()[0][:120])
    return judge(case, module, proto)


def _symbolic(case: Case, module: nn.Module, arrays: Any) -> tuple[Any, ...]:
    wanted = dict(case.options).get("dynamic")
    auto = torch.export.Dim.AUTO
    axes = [
        dict.fromkeys(next(iter(wanted.values())) if wanted else range(min(2, array.ndim)), auto) for array in arrays
    ]
    entries = inspect.signature(module.forward).parameters.values()
    varying = any(entry.kind.name == "VAR_POSITIONAL" for entry in entries)
    return (axes[0], tuple(axes[1:])) if varying and len(axes) > 1 else tuple(axes)
