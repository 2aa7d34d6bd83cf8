"""Primitives of JAX as ONNX operators, each at a size that the export has not seen: JAX in float64 is the referee."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime as ort
import pytest
from flax import nnx
from jax import lax

import bridge
from bridge.errors import Unsupported
from tests.tolerances import assert_within_referee_bound
from tests.whole_models.flax_runs import QUICK

FEATURES = 6
Make = Callable[[int, int, np.random.Generator], tuple[np.ndarray, ...]]


class Function(nnx.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, x: Any, *others: Any) -> Any:
        return self.function(x, *others)


def floats(batch: int, time: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    return (rng.standard_normal((batch, time, FEATURES)).astype(np.float32),)


def integers(batch: int, time: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    return (rng.integers(-9, 10, (batch, time, FEATURES)).astype(np.int32),)


def booleans(batch: int, time: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    return (rng.random((batch, time, FEATURES)) > 0.5,)


def rows(batch: int, time: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    return (*floats(batch, time, rng), rng.integers(-time, time, batch).astype(np.int32))


def place(batch: int, time: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    return (*floats(batch, time, rng), np.asarray(rng.integers(0, time), np.int32))


def beyond(batch: int, time: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    return (*floats(batch, time, rng), np.asarray([0, 3, 7, -2, 5, 9][:batch], np.int32))


def heads(x: Any) -> Any:
    return x.reshape(*x.shape[:2], 2, 3)


FUNCTIONS: dict[str, tuple[Callable[..., Any], Make]] = {
    "shapes": (lambda x: (x.reshape(-1, 3, 2), x.reshape(x.shape[0], -1), jnp.moveaxis(x, 0, -1), jnp.stack([x, -x], 1),
                          jnp.tile(x, (2, 1, 3)), jnp.repeat(x, 3, 0), x[:, :, None] * x[:, None]), floats),
    "slices": (lambda x: (x[:, ::2, 1::3], x[:, ::-2], x[:, 1:-1], x[:, -2:], x[:, : x.shape[1] // 2],
                          x[..., [0, 3, 1]], jnp.flip(x, (0, 2)), jnp.roll(x, (1, -2), (1, 2)), jnp.diff(x, axis=1)),
               floats),
    "pads": (lambda x: (lax.pad(x, 0.0, ((0, 0, 0), (-1, 2, 0), (1, -2, 2))),
                        jnp.pad(x, ((0, 0), (2, 1), (0, 0)), "edge"), jnp.pad(x, ((0, 0), (9, 9), (0, 0)), "reflect"),
                        jnp.pad(x, ((0, 0), (9, 1), (0, 0)), "wrap"), jnp.pad(x, 1, constant_values=3.0)), floats),
    "gathers": (lambda x, n: (x[jnp.arange(x.shape[0]), n], jnp.take_along_axis(x, n[:, None, None], 1),
                              jax.vmap(lambda row, at: row[at])(x, n)), rows),
    "gathers for each row": (lambda x, n: (jax.vmap(lambda row, at: row[:, at % 6])(x, jnp.stack([n, n + 1], 1)),
                                           jax.vmap(lambda row, at: row.at[:, at].get(mode="fill", fill_value=0.0))(
                                               x, jnp.stack([n, n + 2], 1))), rows),
    "takes out of range": (lambda x, n: (jnp.take(x, n, axis=-1, mode="clip"),
                                         jnp.take(x, n, axis=-1, mode="fill", fill_value=-1.0)), beyond),
    "scatters": (lambda x, n: (x.at[jnp.arange(x.shape[0]), n].set(0.5), x.at[jnp.arange(x.shape[0]), n].add(1.0),
                               x.at[..., 1:3].set(9.0), x.at[:, :2].max(0.0), x.at[:, -1].add(x[:, 0])), rows),
    "scatters that drop": (lambda x, n: x.at[:, :, n].set(7.0), beyond),
    "scatters that clip": (lambda x, n: (x.at[:, :, n].set(7.0, mode="clip"), x.at[:, :, n].add(1.0, mode="clip"),
                                         x.at[:, 20].set(7.0, mode="clip"), x.at[:, -20].set(7.0, mode="clip")),
                           beyond),
    "places that are not there": (lambda x: (x.at[:, 6].set(7.0), x.at[:, 6].add(1.0), x.at[:, 20].set(7.0),
                                             x.at[:, 20, 1].add(1.0), x.at[:, 6].get(mode="fill", fill_value=-1.0),
                                             x.at[:, 20].get(mode="fill", fill_value=-1.0),
                                             x.at[0, 20, 1].get(mode="fill", fill_value=-1.0)), floats),
    "dynamic slices": (lambda x, s: (x[:, s], lax.dynamic_slice_in_dim(x, s + 7, 1, 1),
                                     lax.dynamic_update_slice_in_dim(x, 2 * x[:, :1], s, 1), x.at[:, s].set(7.0)),
                       place),
    "running": (lambda x: (jnp.cumsum(x, 1), lax.cumsum(x, 1, reverse=True), lax.cummax(x, 1), jnp.cumprod(x, -1),
                           lax.cummin(x, 1, reverse=True), lax.cumlogsumexp(x, 1)), floats),
    "order": (lambda x: (jnp.sort(x, 1), jnp.argsort(-x, 1), lax.top_k(x, 3), jnp.argmin(x, -1), jnp.median(x, -1)),
              floats),
    "order of integers": (lambda x: (jnp.sort(x, -1), jnp.argsort(x, -1), lax.top_k(x, 3), jnp.argmax(x, -1)),
                          integers),
    "integers": (lambda x: (x // 3, x % 3, x // -4, x % -4, lax.rem(x, jnp.full_like(x, 4)), x & 3, x | 4, x ^ 5, ~x,
                            lax.div(x, jnp.full_like(x, 4)), x**2, x << 1, x >> 1, jnp.clip(x, -2, 2), x.max(1),
                            jax.nn.one_hot(abs(x) % 5, 5, dtype=jnp.int32)), integers),
    "booleans": (lambda x: (x.sum(-1), x.any(-1), x.all(1), jnp.where(x, 1, 2), x < ~x, jnp.cumsum(x, 1), x.max(-1)),
                 booleans),
    "rounding": (lambda x: (jnp.round(x * 4), jnp.trunc(x), lax.round(x * 2, lax.RoundingMethod.AWAY_FROM_ZERO),
                            (x * 3).astype(jnp.int32), x.astype(bool)), floats),
    "casts of what is no such integer": (
        lambda x: ((300 * x).astype(jnp.int8), (300 * x).astype(jnp.uint8), (9e4 * x).astype(jnp.int16),
                   (3e9 * x).astype(jnp.int32), (9e9 * x).astype(jnp.uint32), jnp.log(x).astype(jnp.int32)), floats),
    "halves": (lambda x: (jnp.round(x * 0.5), lax.round(x * 0.5, lax.RoundingMethod.AWAY_FROM_ZERO)), integers),
    "shifts of all bits": (lambda x: (x << 31, x >> 31, x << 40, x >> 40), integers),
    "small and large": (lambda x: (jnp.log1p(x * 1e-4), jnp.expm1(x * 1e-5), jnp.expm1(20 * x), jax.nn.softplus(60 * x),
                                   jax.nn.elu(40 * x), jnp.logaddexp(50 * x, 0.0), jax.nn.log_sigmoid(50 * x)), floats),
    "angles": (lambda x: (jnp.arctan2(x, x[..., ::-1]), jnp.arctan2(x, jnp.zeros_like(x)), jnp.sin(x), jnp.arcsinh(x),
                          jnp.hypot(x, 2.0)), floats),
    "angles of zeros": (lambda x: (jnp.arctan2(-jnp.maximum(x, 0.0), x), jnp.arctan2(-jnp.maximum(x, 0.0), 0 * x),
                                   jnp.arctan2(1 / jnp.maximum(x, 0.0), -1 / jnp.maximum(-x, 0.0))), floats),
    "reductions": (lambda x: (x.sum((0, 2)), x.max(0), x.prod(-1), x.std(-1), jnp.nanmean(x, -1), jnp.average(x, 1),
                              jax.nn.logsumexp(x, 1), jax.nn.log_softmax(x, 1)), floats),
    "products": (lambda x: (jnp.einsum("bti,btj->bij", x, x), jnp.einsum("bti,cti->bc", x, x), x @ x.swapaxes(1, 2),
                            jnp.einsum("bthd,bshd->bhts", heads(x), heads(x)), jnp.tensordot(x, jnp.ones((6, 2, 3)), 1),
                            jnp.einsum("bti->it", x), jnp.vdot(x[0], x[0])), floats),
    "softmax and what looks like it": (
        lambda x: (jax.nn.softmax(5 * x, 1), jax.nn.log_softmax(5 * x, -1), jax.nn.softmax(x, (0, 1)),
                   jax.nn.softmax(x, -1, where=x > 0), jnp.exp(x) / jnp.exp(x).sum(1, keepdims=True),
                   jnp.exp(x - x.max(1, keepdims=True)) / jnp.exp(x - x.max(1, keepdims=True)).sum(2, keepdims=True)),
        floats),
    "attention": (lambda x: jax.nn.dot_product_attention(heads(x), heads(x), heads(x), is_causal=True), floats),
    "windows": (lambda x: (nnx.max_pool(x, (3,), (2,), "SAME"), nnx.avg_pool(x, (3,), (1,), "SAME"),
                           nnx.avg_pool(x, (3,), (1,), "SAME", count_include_pad=False),
                           nnx.avg_pool(x, (x.shape[1],)), nnx.min_pool(x, (2,), (1,), ((1, 1),)),
                           nnx.avg_pool(x[..., None], (2, 3), (1, 2), "SAME")), floats),
    "sizes": (lambda x: (jnp.arange(x.shape[1]) * 2, jnp.tril(jnp.ones((x.shape[1], x.shape[1]))), x / x.shape[1],
                         jnp.arange(0, 2 * x.shape[1] - 1, 2), jnp.full((x.shape[0], 2), x.shape[1])), floats),
    "loops": (lambda x: (lax.scan(lambda c, v: (0.9 * c + v, c), jnp.zeros_like(x[:, 0]), x.swapaxes(0, 1),
                                  reverse=True),
                         lax.fori_loop(0, x.shape[1], lambda at, c: 0.5 * c + x[:, at], jnp.zeros_like(x[:, 0])),
                         lax.while_loop(lambda c: c.sum() < 100, lambda c: 2 * c + 1, jnp.abs(x))), floats),
    "loops for each row": (lambda x, n: jax.vmap(lambda row, steps: lax.while_loop(
        lambda c: c[0] < steps, lambda c: (c[0] + 1, 0.9 * c[1] + 1, ~c[2]), (0, row, row > 0)))(x, abs(n)), rows),
    "branches": (lambda x, s: (lax.switch(s, [lambda v: v, lambda v: 2 * v, lambda v: -v], x),
                               lax.cond(s > 2, jnp.sin, lambda v: v + 1, x)), place),
    "the power 0 of what is not finite": (lambda x: (1 / jnp.maximum(x, 0.0)) ** 0 + jnp.log(x) ** 0, floats),
    "running logarithms of zeros": (
        lambda x: (jnp.exp(lax.cumlogsumexp(jnp.log(jnp.maximum(x, 0.0)), 1)),
                   jnp.exp(lax.cumlogsumexp(jnp.log(jnp.maximum(x, 0.0)), 1, reverse=True))), floats),
    "what is not finite": (lambda x: (jnp.isnan(jnp.log(x)), jnp.isinf(1 / jnp.floor(x)), jnp.nan_to_num(jnp.log(x))),
                           floats),
}  # fmt: skip


@pytest.mark.parametrize("function", [lambda x: x.at[:, 1].apply(jnp.sin), lambda x: x.at[:, [1, 2]].apply(jnp.sin)])
def test_a_function_applied_at_places_is_refused(function: Callable[..., Any]) -> None:
    with pytest.raises(Unsupported, match=r"a function applied at places of an array"):
        bridge.to_onnx(Function(function), example=floats(2, 5, np.random.default_rng(0)))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_of_jax_is_right_at_a_size_the_export_has_not_seen(name: str) -> None:
    function, make = FUNCTIONS[name]
    model = bridge.to_onnx(Function(function), example=make(2, 5, np.random.default_rng(0)))
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    arrays = make(3, 8, np.random.default_rng(1))
    actual = session.run(None, dict(zip((entry.name for entry in session.get_inputs()), arrays, strict=True)))
    expected = jax.tree.leaves(jax.jit(function, compiler_options=QUICK)(*arrays))
    with jax.enable_x64(True):
        exact = [array.astype(np.float64) if array.dtype.kind == "f" else array for array in arrays]
        referee = jax.tree.leaves(jax.jit(function, compiler_options=QUICK)(*exact))
    for got, want, truth in zip(actual, expected, referee, strict=True):
        if np.asarray(want).dtype.kind != "f":
            np.testing.assert_array_equal(got, want, strict=True)
        else:
            assert got.dtype == want.dtype
            assert_within_referee_bound(got, want, truth)
