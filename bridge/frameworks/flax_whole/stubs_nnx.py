"""The primitive in the place of nnx layers during a trace: their classes' `__call__` is another one for that long."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import jax
from flax import nnx
from flax.nnx.nn import dtypes
from flax.nnx.nn.recurrent import _concatenate

from bridge.frameworks.flax_cells import read_cell
from bridge.frameworks.flax_nnx_read import LAYOUTS, parameters
from bridge.frameworks.flax_whole.norms import layer_norm
from bridge.frameworks.flax_whole.stubs import (
    BATCH,
    DROPS,
    Stub,
    call_bidirectional,
    call_rnn,
    call_step,
    chosen,
    dtype_fits,
    stub,
    training,
)
from bridge.frameworks.flax_whole.walk import MARK

PATH = "bridge_path"
"""The attribute of a copied module that holds its path; it goes through nnx.split and nnx.merge."""


def name_modules(module: nnx.Module) -> None:
    """Let every module of a copy know its path."""
    for path, each in nnx.iter_modules(module):
        setattr(each, PATH, ".".join(map(str, path)))


@contextmanager
def stubbed(module: nnx.Module) -> Iterator[None]:
    """For the time of a trace, recurrent layers are the primitive and every call is in the scope of its path."""
    classes = {kind for _, each in nnx.iter_modules(module) for kind in type(each).__mro__
               if issubclass(kind, nnx.Module) and "__call__" in vars(kind)}  # fmt: skip
    with ExitStack() as undo:
        for kind in classes:
            original = vars(kind)["__call__"]
            undo.callback(setattr, kind, "__call__", original)
            kind.__call__ = _scoped(_stands_for(kind, original))  # type: ignore[method-assign]
        yield


def _scoped(function: Any) -> Any:
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        with jax.named_scope(MARK + getattr(self, PATH, type(self).__name__)):
            return function(self, *args, **kwargs)

    return call


def _stands_for(kind: type, original: Any) -> Any:
    if kind is nnx.RNN:
        return lambda self, *args, **kwargs: _rnn(self, original, *args, **kwargs)
    if kind is nnx.Bidirectional:
        return lambda self, *args, **kwargs: _bidirectional(self, original, *args, **kwargs)
    if kind in LAYOUTS:
        return lambda self, carry, inputs: _cell(self, original, carry, inputs)
    if kind is nnx.Dropout:
        return lambda self, *args, **kwargs: _dropout(self, original, *args, **kwargs)
    if kind is nnx.LayerNorm:
        return lambda self, *args, **kwargs: _layer_norm(self, original, *args, **kwargs)
    if kind is nnx.BatchNorm:
        return lambda self, *args, **kwargs: _norm(self, original, *args, **kwargs)
    return original


def _path(module: Any, default: str) -> str:
    return getattr(module, PATH, "") or default


def _stub(cell: Any, path: str, rngs: Any = None) -> Stub | None:
    kind = LAYOUTS.get(type(cell))
    if kind is None or getattr(cell, "promote_dtype", dtypes.promote_dtype) is not dtypes.promote_dtype:
        return None
    return stub(kind, cell, path, parameters(cell), _read, lambda shape: cell.initialize_carry(shape, rngs))


def _read(kind: str, cell: Any, arrays: Any, path: str) -> Any:
    return read_cell(kind, cell, arrays, None, path)


def _layer_stub(rnn: Any, path: str, rngs: Any) -> Stub | None:
    if type(rnn) is not nnx.RNN or rnn.state_axes != nnx.StateAxes({...: nnx.Carry}):
        return None
    rngs = rnn.rngs if rngs is None else rngs
    return _stub(rnn.cell, path, rngs.carry.fork() if isinstance(rngs, nnx.Rngs) else rngs)


def _rnn(self: Any, original: Any, inputs: Any, *, rngs: Any = None, **options: Any) -> Any:
    path = _path(self, "rnn")
    own = _layer_stub(self, path, rngs)
    if own is None or not dtype_fits([own], inputs):
        return original(self, inputs, rngs=rngs, **options)
    return call_rnn(self, own, inputs, path, **options)


def _bidirectional(self: Any, original: Any, inputs: Any, *, rngs: Any = None, **options: Any) -> Any:
    path = _path(self, "rnn")
    source = self.rngs if rngs is None else rngs
    source = source.carry if isinstance(source, nnx.Rngs) else source
    parts = [_layer_stub(self.forward_rnn, f"{path}.forward_rnn", source),
             _layer_stub(self.backward_rnn, f"{path}.backward_rnn", source)]  # fmt: skip
    stubs = [part for part in parts if part is not None]
    if len(stubs) < 2 or not dtype_fits(stubs, inputs):
        return original(self, inputs, rngs=rngs, **options)
    return call_bidirectional(self, stubs, inputs, path, _concatenate, **options)


def _cell(self: Any, original: Any, carry: Any, inputs: Any) -> Any:
    own = _stub(self, _path(self, "cell")) if type(self) in LAYOUTS else None
    if own is None or not dtype_fits([own], inputs):
        return original(self, carry, inputs)
    return call_step(own, inputs, carry)


def _layer_norm(self: Any, original: Any, x: Any, *, mask: Any = None) -> Any:
    found = None
    if type(self) is nnx.LayerNorm and mask is None and self.promote_dtype is dtypes.promote_dtype:
        scale, bias = (None if each is None else each[...] for each in (self.scale, self.bias))
        found = layer_norm(self, x, scale, bias)
    return original(self, x, mask=mask) if found is None else found


def _dropout(self: Any, original: Any, inputs: Any, *, deterministic: Any = None, rngs: Any = None) -> Any:
    if not chosen(deterministic, self.deterministic) and self.rate > 0:
        raise training(DROPS, _path(self, "Dropout"), "call model.eval() before the export")
    return original(self, inputs, deterministic=True, rngs=rngs)


def _norm(self: Any, original: Any, x: Any, use_running_average: Any = None, *, mask: Any = None) -> Any:
    if not chosen(use_running_average, self.use_running_average):
        raise training(BATCH, _path(self, "BatchNorm"), "call model.eval() before the export")
    return original(self, x, use_running_average, mask=mask)
