"""The primitive in the place of linen layers during a trace, by linen's own way to intercept methods."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import jax
from flax import linen as nn
from flax.core import meta
from flax.linen.recurrent import _concatenate

from bridge.frameworks.flax_cells import read_cell
from bridge.frameworks.flax_linen_read import LAYOUTS, LIFTING, conv_lstm, parameters
from bridge.frameworks.flax_scan_cells import CONV_LSTM
from bridge.frameworks.flax_whole.norms import layer_norm
from bridge.frameworks.flax_whole.stubs import (
    BATCH,
    DROPS,
    Stub,
    call_bidirectional,
    call_rnn,
    call_step,
    dtype_fits,
    stub,
    training,
)
from bridge.frameworks.flax_whole.walk import MARK


def stubbed() -> AbstractContextManager[Any]:
    """For the time of a trace, recurrent layers are the primitive and every call is in the scope of its path."""
    return nn.intercept_methods(_intercept)  # type: ignore[no-any-return]


def _intercept(original: Any, args: tuple[Any, ...], kwargs: dict[str, Any], context: Any) -> Any:
    module = context.module
    with jax.named_scope(MARK + ".".join(module.path)):
        if context.method_name != "__call__":
            return original(*args, **kwargs)
        if type(module) is nn.RNN:
            return _rnn(module, original, *args, **kwargs)
        if type(module) is nn.Bidirectional:
            return _bidirectional(module, original, *args, **kwargs)
        if _kind(module) is not None:
            return _cell(module, original, *args, **kwargs)
        if type(module) is nn.LayerNorm and len(args) == 1 and not kwargs:
            params = meta.unbox(module.variables.get("params", {}))
            found = layer_norm(module, args[0], params.get("scale"), params.get("bias"))
            if found is not None:
                return found
        _check_mode(module, *args, **kwargs)
        return original(*args, **kwargs)


def _path(module: Any, default: str) -> str:
    return ".".join(module.path) or default


def _kind(cell: Any) -> str | None:
    return CONV_LSTM if type(cell) is nn.ConvLSTMCell else LAYOUTS.get(type(cell))


def _stub(cell: Any, path: str, key: Any = None) -> Stub | None:
    kind = _kind(cell)
    if kind is None or cell.scope is None:
        return None
    if kind == CONV_LSTM and not _same_size(cell):
        return None
    key = jax.random.key(0) if key is None else key
    return stub(kind, cell, path, parameters(cell), _read, lambda shape: cell.initialize_carry(key, shape))


def _same_size(cell: Any) -> bool:
    return cell.padding == "SAME" and (cell.strides is None or set(_as_tuple(cell.strides)) == {1})


def _as_tuple(value: Any) -> tuple[int, ...]:
    return (value,) if isinstance(value, int) else tuple(value)


def _read(kind: str, cell: Any, arrays: Mapping[str, Any], path: str) -> Any:
    return conv_lstm(cell, path, arrays) if kind == CONV_LSTM else read_cell(kind, cell, arrays, None, path)


def _layer_stub(rnn: Any, path: str, key: Any) -> Stub | None:
    if type(rnn) is not nn.RNN:
        return None
    for name, default in LIFTING.items():
        value = getattr(rnn, name)
        if (dict(value) if isinstance(value, Mapping) else value) != default:
            return None
    return _stub(rnn.cell, path, key)


def _rnn(module: Any, original: Any, inputs: Any, *, init_key: Any = None, **options: Any) -> Any:
    path = _path(module, "rnn")
    own = _layer_stub(module, path, init_key)
    if own is None or not dtype_fits([own], inputs):
        return original(inputs, init_key=init_key, **options)
    return call_rnn(module, own, inputs, path, **options)


def _bidirectional(module: Any, original: Any, inputs: Any, *, init_key: Any = None, **options: Any) -> Any:
    path = _path(module, "rnn")
    keys = (None, None) if init_key is None else tuple(jax.random.split(init_key))
    parts = [_layer_stub(module.forward_rnn, f"{path}.forward_rnn", keys[0]),
             _layer_stub(module.backward_rnn, f"{path}.backward_rnn", keys[1])]  # fmt: skip
    stubs = [part for part in parts if part is not None]
    if len(stubs) < 2 or not dtype_fits(stubs, inputs):
        return original(inputs, init_key=init_key, **options)
    return call_bidirectional(module, stubs, inputs, path, _concatenate, **options)


def _cell(module: Any, original: Any, carry: Any, inputs: Any) -> Any:
    own = _stub(module, _path(module, "cell"))
    if own is None or not dtype_fits([own], inputs):
        return original(carry, inputs)
    return call_step(own, inputs, carry)


def _check_mode(module: Any, *args: Any, **kwargs: Any) -> None:
    """Refuse what computes otherwise in training."""
    if isinstance(module, nn.Dropout):
        given = kwargs.get("deterministic", args[1] if len(args) > 1 else None)
        if (module.deterministic if given is None else given) is False and module.rate > 0:
            raise training(DROPS, _path(module, "Dropout"), "pass deterministic=True to it")
    if isinstance(module, nn.BatchNorm):
        given = kwargs.get("use_running_average", args[1] if len(args) > 1 else None)
        if (module.use_running_average if given is None else given) is False:
            raise training(BATCH, _path(module, "BatchNorm"), "pass use_running_average=True to it")
