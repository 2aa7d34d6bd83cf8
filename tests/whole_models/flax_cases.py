"""Whole Flax models of both APIs: recurrent layers times options times surroundings, with inputs for any size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx

INPUTS, HIDDEN, CLASSES, WORDS = 3, 5, 4, 7
EXAMPLE = (2, 5)
"""(batch, time) of the export."""
OTHERS = ((1, 7), (3, 2), (4, 9), (5, 6))
"""(batch, time) of the runs: none is the example's, and no axis keeps its size."""

Arrays = tuple[np.ndarray, ...]
Make = Callable[[int, int, np.random.Generator], Arrays]


@dataclass(frozen=True)
class Case:
    """One model. `build(dtype)` gives its cells that dtype: float64 for the referee."""

    name: str
    build: Callable[[Any], Any]
    """An nnx module, or a linen module."""
    inputs: Make
    fused: int
    """Fused nodes expected: one for each call of each layer that the operator can express; with lengths one for each
    direction, since Flax computes on the padding, and for LSTM one more where the final carry is read."""
    scans: int = 0
    refused: str = ""
    """What the refusal says, where the case is refused."""
    options: tuple[tuple[str, Any], ...] = ()
    """Further options of the export."""


def frames(batch: int, time: int, rng: np.random.Generator) -> Arrays:
    return (rng.standard_normal((batch, time, INPUTS)).astype(np.float32),)


def time_first(batch: int, time: int, rng: np.random.Generator) -> Arrays:
    return (rng.standard_normal((time, batch, INPUTS)).astype(np.float32),)


def tokens(batch: int, time: int, rng: np.random.Generator) -> Arrays:
    return (rng.integers(0, WORDS, (batch, time)).astype(np.int32),)


def lengths_of(batch: int, time: int, rng: np.random.Generator) -> np.ndarray:
    return rng.integers(1, time + 1, batch).astype(np.int32)


def ragged(batch: int, time: int, rng: np.random.Generator) -> Arrays:
    return (*frames(batch, time, rng), lengths_of(batch, time, rng))


def ragged_tokens(batch: int, time: int, rng: np.random.Generator) -> Arrays:
    return (*tokens(batch, time, rng), lengths_of(batch, time, rng))


def ragged_time_first(batch: int, time: int, rng: np.random.Generator) -> Arrays:
    return (*time_first(batch, time, rng), lengths_of(batch, time, rng))


def with_carry(batch: int, time: int, rng: np.random.Generator) -> Arrays:
    states = [rng.uniform(-1, 1, (batch, HIDDEN)).astype(np.float32) for _ in range(2)]
    return (*frames(batch, time, rng), *states)


def pair(batch: int, time: int, rng: np.random.Generator) -> Arrays:
    return (*frames(batch, time, rng), rng.standard_normal((batch, time + 1, INPUTS)).astype(np.float32))


def unbatched(batch: int, time: int, rng: np.random.Generator) -> Arrays:
    return (rng.standard_normal((time + batch, INPUTS)).astype(np.float32),)


def four_axes(batch: int, time: int, rng: np.random.Generator) -> Arrays:
    return (rng.standard_normal((batch, time, 6, INPUTS)).astype(np.float32),)


def video(batch: int, time: int, rng: np.random.Generator) -> Arrays:
    return (rng.standard_normal((batch, time, 4, 3, 2)).astype(np.float32),)


# ---------------------------------------------------------------------------------------------------- nnx


def nnx_cell(kind: Any, d: Any, inputs: int = INPUTS, **options: Any) -> Any:
    if kind is nnx.SimpleCell:  # its dtype is float32 where nobody says otherwise
        options = {"dtype": d, **options}
    return kind(inputs, HIDDEN, param_dtype=d, rngs=nnx.Rngs(0), **options)


def nnx_rnn(kind: Any, d: Any, inputs: int = INPUTS, **options: Any) -> nnx.RNN:
    return nnx.RNN(nnx_cell(kind, d, inputs), **options)


def nnx_both(kind: Any, d: Any, inputs: int = INPUTS, **options: Any) -> nnx.Bidirectional:
    return nnx.Bidirectional(nnx_rnn(kind, d, inputs), nnx_rnn(kind, d, inputs), **options)


class NnxTagger(nnx.Module):
    """Embed, a recurrent layer, LayerNorm, Linear."""

    def __init__(self, rnn: nnx.Module, width: int) -> None:
        rngs = nnx.Rngs(1)
        self.embed = nnx.Embed(WORDS, INPUTS, rngs=rngs)
        self.rnn = rnn
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.head = nnx.Linear(width, CLASSES, rngs=rngs)

    def __call__(self, tokens: Any, lengths: Any = None) -> Any:
        return nnx.log_softmax(self.head(self.norm(self.rnn(self.embed(tokens), seq_lengths=lengths))))


class NnxAround(nnx.Module):
    """`before` and `after` around a layer; `call` is given the layer, the input and what else there is."""

    def __init__(self, layers: dict[str, Any], call: Callable[..., Any]) -> None:
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.call = call

    def __call__(self, x: Any, *others: Any) -> Any:
        return self.call(self, x, *others)


def around(call: Callable[..., Any], **layers: Callable[[Any, nnx.Rngs], Any]) -> Callable[[Any], NnxAround]:
    """An nnx model of named layers, each made for a dtype and a source of random numbers."""
    return lambda d: NnxAround({name: make(d, nnx.Rngs(2)) for name, make in layers.items()}, call)


def lstm(d: Any, rngs: nnx.Rngs) -> nnx.RNN:
    del rngs
    return nnx_rnn(nnx.LSTMCell, d)


def gru(d: Any, rngs: nnx.Rngs) -> nnx.RNN:
    del rngs
    return nnx_rnn(nnx.GRUCell, d)


def linear(inputs: int, outputs: int) -> Callable[[Any, nnx.Rngs], nnx.Linear]:
    return lambda d, rngs: nnx.Linear(inputs, outputs, rngs=rngs)


def fixed(make: Callable[[nnx.Rngs], Any]) -> Callable[[Any, nnx.Rngs], Any]:
    return lambda d, rngs: make(rngs)


def conv(inputs: int, kernel: Any, **options: Any) -> Callable[[Any, nnx.Rngs], nnx.Conv]:
    return lambda d, rngs: nnx.Conv(inputs, 6, kernel, rngs=rngs, **options)


class NnxScanned(nnx.Module):
    """A cell that the caller scans."""

    def __init__(self, d: Any) -> None:
        self.cell = nnx_cell(nnx.GRUCell, d)
        self.head = nnx.Linear(HIDDEN, CLASSES, rngs=nnx.Rngs(1))

    def __call__(self, x: Any) -> Any:
        carry = self.cell.initialize_carry((x.shape[0], INPUTS), nnx.Rngs(0))

        @nnx.scan(in_axes=(nnx.Carry, None, 1), out_axes=(nnx.Carry, 1))
        def step(carry: Any, cell: Any, x: Any) -> Any:
            return cell(carry, x)

        carry, y = step(carry, self.cell, x)
        return self.head(y), carry


class NnxLaxScanned(nnx.Module):
    """A cell between two layers, all of it under lax.scan."""

    def __init__(self, d: Any) -> None:
        rngs = nnx.Rngs(1)
        self.before = nnx.Linear(INPUTS, INPUTS, rngs=rngs)
        self.cell = nnx_cell(nnx.LSTMCell, d)
        self.after = nnx.Linear(HIDDEN, CLASSES, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        carry = self.cell.initialize_carry((x.shape[0], INPUTS), nnx.Rngs(0))

        def step(carry: Any, x: Any) -> Any:
            carry, y = self.cell(carry, jnp.tanh(self.before(x)))
            return carry, self.after(y)

        _, y = jax.lax.scan(step, carry, jnp.swapaxes(x, 0, 1))
        return jnp.swapaxes(y, 0, 1)


class OwnCell(nnx.RNNCellBase):
    """A cell that no operator is: layer norm inside."""

    def __init__(self, d: Any) -> None:
        rngs = nnx.Rngs(1)
        self.d = d
        self.mix = nnx.Linear(INPUTS + HIDDEN, HIDDEN, rngs=rngs)
        self.norm = nnx.LayerNorm(HIDDEN, rngs=rngs)

    def __call__(self, carry: Any, x: Any) -> Any:
        carry = jnp.tanh(self.norm(self.mix(jnp.concatenate([x, carry], -1))))
        return carry, carry

    def initialize_carry(self, input_shape: Any, rngs: Any = None, carry_init: Any = None) -> Any:
        del rngs, carry_init
        return jnp.zeros((*input_shape[:-1], HIDDEN), self.d)

    @property
    def num_feature_axes(self) -> int:
        return 1


class Ensemble(nnx.Module):
    """One layer for each of three members, their weights stacked."""

    def __init__(self, d: Any) -> None:
        make = nnx.vmap(lambda rngs: nnx.RNN(nnx.GRUCell(INPUTS, HIDDEN, param_dtype=d, rngs=rngs)))
        self.members = nnx.split_rngs(splits=3)(make)(nnx.Rngs(0))

    def __call__(self, x: Any) -> Any:
        return nnx.vmap(lambda member, x: member(x), in_axes=(0, None))(self.members, x)


def nnx_cases() -> list[Case]:
    kinds = (nnx.LSTMCell, nnx.OptimizedLSTMCell, nnx.GRUCell, nnx.SimpleCell)
    found = [Case(f"nnx tagger {kind.__name__}", lambda d, k=kind: NnxTagger(nnx_rnn(k, d), HIDDEN), tokens, 1)
             for kind in kinds]  # fmt: skip
    for kind in kinds[::2]:
        name = kind.__name__
        found += [
            Case(f"nnx tagger Bidirectional {name}", lambda d, k=kind: NnxTagger(nnx_both(k, d), 2 * HIDDEN), tokens,
                 1),
            Case(f"nnx tagger Bidirectional {name}, seq_lengths",
                 lambda d, k=kind: NnxTagger(nnx_both(k, d), 2 * HIDDEN), ragged_tokens, 2),
            Case(f"nnx {name} reverse", around(lambda m, x: m.head(m.rnn(x)),
                 rnn=lambda d, r, k=kind: nnx_rnn(k, d, reverse=True), head=linear(HIDDEN, 2)), frames, 1),
            Case(f"nnx {name} reverse, keep_order, seq_lengths",
                 around(lambda m, x, n: m.head(m.rnn(x, seq_lengths=n)),
                        rnn=lambda d, r, k=kind: nnx_rnn(k, d, reverse=True, keep_order=True), head=linear(HIDDEN, 2)),
                 ragged, 1),
            Case(f"nnx {name} return_carry, seq_lengths",
                 around(lambda m, x, n: m.rnn(m.fc(x), seq_lengths=n, return_carry=True),
                        rnn=lambda d, r, k=kind: nnx_rnn(k, d), fc=linear(INPUTS, INPUTS)),
                 ragged, 2 if "LSTM" in name else 1),
        ]  # fmt: skip
    return [*found, *nnx_layers(), *nnx_surroundings()]


def nnx_layers() -> list[Case]:
    add = lambda a, b: a + b  # noqa: E731
    return [
        Case("nnx time_major, seq_lengths",
             around(lambda m, x, n: m.head(m.rnn(x, seq_lengths=n)),
                    rnn=lambda d, r: nnx_rnn(nnx.LSTMCell, d, time_major=True), head=linear(HIDDEN, 2)),
             ragged_time_first, 1),
        Case("nnx carry given and returned",
             around(lambda m, x, c, h: m.rnn(jnp.tanh(x), initial_carry=(c, h), return_carry=True), rnn=lstm),
             with_carry, 1),
        Case("nnx learned carry",
             around(lambda m, x: m.rnn(x, initial_carry=jnp.broadcast_to(m.start[...], (x.shape[0], HIDDEN))),
                    rnn=gru, start=lambda d, r: nnx.Param(jnp.ones((1, HIDDEN)))), frames, 1),
        Case("nnx Bidirectional summed", around(lambda m, x: m.head(m.rnn(x)), head=linear(HIDDEN, 2),
             rnn=lambda d, r: nnx_both(nnx.GRUCell, d, merge_fn=add)), frames, 1),
        Case("nnx Bidirectional carry", around(lambda m, x: m.rnn(2 * x, return_carry=True),
             rnn=lambda d, r: nnx_both(nnx.LSTMCell, d)), frames, 1),
        Case("nnx two layers, residual", around(lambda m, x: m.b(m.a(x)) + m.a(x)[..., ::-1], a=gru,
             b=lambda d, r: nnx_rnn(nnx.GRUCell, d, HIDDEN)), frames, 2),  # `a` is called on the same x twice
        Case("nnx unbatched", around(lambda m, x: m.head(m.rnn(x)), rnn=lstm, head=linear(HIDDEN, 2)), unbatched, 1),
        Case("nnx two batch axes", around(lambda m, x: m.head(m.rnn(x)), rnn=gru, head=linear(HIDDEN, 2)), four_axes,
             1),
        Case("nnx gelu cell", around(lambda m, x: m.head(m.rnn(x)), head=linear(HIDDEN, 2), rnn=lambda d, r: nnx.RNN(
             nnx_cell(nnx.GRUCell, d, activation_fn=nnx.gelu))), frames, 0, 1),
        Case("nnx cell of one's own", around(lambda m, x: m.head(m.rnn(x)), head=linear(HIDDEN, 2),
             rnn=lambda d, r: nnx.RNN(OwnCell(d))), frames, 0, 1),
        Case("nnx one step", around(lambda m, x, c, h: m.cell((c, h), x[:, -1]),
             cell=lambda d, r: nnx_cell(nnx.LSTMCell, d)), with_carry, 1),
        Case("nnx cell under nnx.scan", NnxScanned, frames, 1),
        Case("nnx cell and layers under lax.scan", NnxLaxScanned, frames, 1),
        Case("nnx encoder-decoder", around(lambda m, x, y: m.head(m.decoder(
             y, initial_carry=m.encoder(x, return_carry=True)[0])), encoder=lstm, decoder=lstm,
             head=linear(HIDDEN, CLASSES)), pair, 2),
        Case("nnx form=scan", around(lambda m, x: m.head(m.rnn(x)), rnn=gru, head=linear(HIDDEN, 2)), frames, 0, 1,
             options=(("form", "scan"),)),
        Case("nnx ensemble", Ensemble, frames, 3),
        Case("nnx Sequential", lambda d: nnx.Sequential(nnx_rnn(nnx.GRUCell, d), nnx.relu,
             nnx.Linear(HIDDEN, 2, rngs=nnx.Rngs(0))), frames, 1),
        Case("nnx jit inside", around(lambda m, x: m.head(nnx.jit(lambda rnn, x: rnn(x))(m.rnn, x)), rnn=gru,
             head=linear(HIDDEN, 2)), frames, 1),
    ]  # fmt: skip


def attention(m: Any, x: Any) -> Any:
    y = m.rnn(x)
    return m.attention(y, mask=nnx.make_causal_mask(y[..., 0])) + y


def pooled(m: Any, x: Any) -> Any:
    y = nnx.max_pool(nnx.relu(m.conv(x)), (2,), (2,), "SAME")
    return m.rnn(nnx.avg_pool(y, (2,), (1,), "SAME"))


def masked_mean(m: Any, x: Any, n: Any) -> Any:
    y = m.rnn(x, seq_lengths=n)
    mask = jnp.arange(x.shape[1])[None] < n[:, None]
    return m.head(jnp.sum(jnp.where(mask[..., None], y, 0), 1) / n[:, None])


def last_valid(m: Any, x: Any, n: Any) -> Any:
    return m.head(m.rnn(x)[jnp.arange(x.shape[0]), n - 1])


def bilinear(m: Any, x: Any) -> Any:
    y = m.rnn(x)
    scores = jnp.einsum("bti,ij,bsj->bts", y, m.fc(jnp.eye(HIDDEN)), y)
    return jnp.einsum("bts,bsh->bth", nnx.softmax(scores), y)


def sorted_scores(m: Any, x: Any) -> Any:
    y = m.head(m.rnn(x))
    values, _ = jax.lax.top_k(y, 2)
    return {"top": values, "best": jnp.argmax(y, -1), "order": jnp.argsort(y, -1), "sorted": jnp.sort(y, -1)}


def pieces(m: Any, x: Any) -> Any:
    y = jnp.pad(m.rnn(x), ((0, 0), (1, 2), (0, 0)))
    left, right = jnp.split(y[..., :4], 2, -1)
    rolled = jnp.roll(jnp.concatenate([left, right * 2, jnp.cumsum(left, 1)], -1), 1, 1)
    return rolled.at[:, 0].set(0.5)[:, ::-1], jnp.repeat(y[:, 1:], 2, 1), y.reshape(y.shape[0], -1)


def activations(m: Any, x: Any) -> Any:
    y = m.rnn(x) * 3
    functions = (nnx.relu, nnx.gelu, lambda v: nnx.gelu(v, approximate=False), nnx.silu, nnx.elu, nnx.softplus,
                 nnx.leaky_relu, nnx.hard_tanh, nnx.hard_sigmoid, nnx.hard_silu, nnx.celu, nnx.selu, nnx.log_sigmoid,
                 nnx.soft_sign, nnx.relu6, nnx.tanh, nnx.sigmoid, jax.nn.mish, jax.nn.squareplus)  # fmt: skip
    return [function(y) for function in functions], nnx.logsumexp(y, -1), nnx.standardize(y), nnx.softmax(y, 1)


def arithmetic(m: Any, x: Any) -> Any:
    y = m.rnn(x)
    whole = jnp.floor(y * 10).astype(jnp.int32)
    three = jnp.full_like(whole, 3)
    return (whole // 3, whole % 3, jax.lax.rem(whole, three), jax.lax.div(whole, three), jnp.round(y * 3),
            jnp.trunc(y * 3),
            jnp.clip(y, -0.2, 0.3), jnp.log1p(jnp.abs(y)), jnp.expm1(y), jax.lax.rsqrt(jnp.exp(y)), y**3,
            (y + 2) ** -2.0,
            nnx.one_hot(jnp.abs(whole) % 5, 5), jnp.isfinite(y).all(-1), jnp.var(y, -1), jnp.linalg.norm(y, axis=-1),
            jnp.sign(y), jnp.minimum(y, 0.1), jnp.tril(jnp.ones((y.shape[1], y.shape[1]))), jax.lax.cummax(y, 1),
            jnp.max(y, 1), jnp.min(y, -1), jnp.any(y > 0.3, -1), jnp.prod(y, -1))  # fmt: skip


def chosen(m: Any, x: Any) -> Any:
    y = m.rnn(x)
    return jax.lax.cond(y.mean() > 0, lambda v: m.a(v), lambda v: jnp.tanh(m.b(v)), y)


def nnx_surroundings() -> list[Case]:
    rnn6 = lambda d, r: nnx_rnn(nnx.GRUCell, d, 6)  # noqa: E731
    head = linear(HIDDEN, CLASSES)
    return [
        Case("nnx Conv 1D, strides, BatchNorm", around(lambda m, x: m.rnn(m.norm(m.conv(x))), rnn=rnn6,
             conv=conv(INPUTS, (3,), strides=2), norm=fixed(lambda r: nnx.BatchNorm(6, use_running_average=True, rngs=r)
             )), frames, 1),
        Case("nnx Conv 1D causal, dilation", around(lambda m, x: m.rnn(m.conv(x)), rnn=rnn6,
             conv=conv(INPUTS, (2,), padding="CAUSAL", kernel_dilation=2)), frames, 1),
        Case("nnx Conv 1D circular, groups", around(lambda m, x: m.rnn(m.conv(x)), rnn=rnn6,
             conv=conv(INPUTS, (3,), padding="CIRCULAR", feature_group_count=3)), frames, 1),
        Case("nnx Conv 2D", around(lambda m, x: m.rnn(nnx.relu(m.conv(x)).mean(2)), rnn=rnn6,
             conv=conv(INPUTS, (3, 3), strides=(1, 2))), four_axes, 1),
        Case("nnx ConvTranspose", around(lambda m, x: m.conv(m.rnn(x)), rnn=gru, conv=fixed(lambda r: nnx.ConvTranspose(
             HIDDEN, 3, (3,), strides=2, rngs=r))), frames, 1),
        Case("nnx ConvTranspose valid, dilation", around(lambda m, x: m.conv(m.rnn(x)), rnn=gru, conv=fixed(
             lambda r: nnx.ConvTranspose(HIDDEN, 3, (4,), strides=3, padding="VALID", kernel_dilation=2, rngs=r))),
             frames, 1),
        Case("nnx pooling", around(pooled, rnn=rnn6, conv=conv(INPUTS, (3,))), frames, 1),
        Case("nnx RMSNorm, GroupNorm", around(lambda m, x: m.groups(m.rms(m.rnn(x))[..., :4]), rnn=gru, rms=fixed(
             lambda r: nnx.RMSNorm(HIDDEN, rngs=r)), groups=fixed(lambda r: nnx.GroupNorm(4, 2, rngs=r))), frames, 1),
        Case("nnx LinearGeneral, Einsum", around(lambda m, x: m.einsum(m.general(m.rnn(x))), rnn=gru, general=fixed(
             lambda r: nnx.LinearGeneral(HIDDEN, (2, 3), rngs=r)), einsum=fixed(lambda r: nnx.Einsum(
             "bthd,hdk->btk", (2, 3, 4), (4,), rngs=r))), frames, 1),
        Case("nnx Dropout off", around(lambda m, x: m.drop(m.rnn(x)), rnn=gru,
             drop=fixed(lambda r: nnx.Dropout(0.5, deterministic=True, rngs=r))), frames, 1),
        Case("nnx Dropout on", around(lambda m, x: m.drop(m.rnn(x)), rnn=gru,
             drop=fixed(lambda r: nnx.Dropout(0.5, rngs=r))), frames, 1, refused="drops values at random"),
        Case("nnx BatchNorm in training", around(lambda m, x: m.norm(m.rnn(x)), rnn=gru,
             norm=fixed(lambda r: nnx.BatchNorm(HIDDEN, rngs=r))), frames, 1, refused="statistics of the batch"),
        Case("nnx attention, causal mask", around(attention, rnn=lambda d, r: nnx_rnn(nnx.GRUCell, d, INPUTS),
             attention=fixed(lambda r: nnx.MultiHeadAttention(1, HIDDEN, 6, decode=False, rngs=r))), frames, 1),
        Case("nnx masked mean", around(masked_mean, rnn=lstm, head=head), ragged, 1),
        Case("nnx last valid step", around(last_valid, rnn=lstm, head=head), ragged, 1),
        Case("nnx einsum attention", around(bilinear, rnn=gru, fc=linear(HIDDEN, HIDDEN)), frames, 1),
        Case("nnx sort, top_k, argmax", around(sorted_scores, rnn=gru, head=head), frames, 1),
        Case("nnx pad, split, roll, set", around(pieces, rnn=gru), frames, 1),
        Case("nnx activations", around(activations, rnn=gru), frames, 1),
        Case("nnx arithmetic", around(arithmetic, rnn=gru), frames, 1, 1),
        Case("nnx cond", around(chosen, rnn=gru, a=linear(HIDDEN, 2), b=linear(HIDDEN, 2)), frames, 1),
        Case("nnx fft", around(lambda m, x: jnp.abs(jnp.fft.fft(m.rnn(x), axis=-1)), rnn=gru), frames, 1,
             refused="fft (1x"),
    ]  # fmt: skip


# ---------------------------------------------------------------------------------------------------- linen


class Tagger(nn.Module):
    """Embed, a recurrent layer, LayerNorm, Dense, from setup."""

    kind: Any
    d: Any
    both: bool = False

    def setup(self) -> None:
        self.embed = nn.Embed(WORDS, INPUTS)
        cells = [nn.RNN(self.kind(HIDDEN, param_dtype=self.d)) for _ in range(2 if self.both else 1)]
        self.rnn = nn.Bidirectional(*cells) if self.both else cells[0]
        self.norm = nn.LayerNorm()
        self.head = nn.Dense(CLASSES)

    def __call__(self, tokens: Any, lengths: Any = None) -> Any:
        return nn.log_softmax(self.head(self.norm(self.rnn(self.embed(tokens), seq_lengths=lengths))))


class Compact(nn.Module):
    """`body(d, *inputs)` makes and calls layers in a compact method."""

    body: Callable[..., Any]
    d: Any

    @nn.compact
    def __call__(self, x: Any, *others: Any) -> Any:
        return self.body(self.d, x, *others)


def compact(body: Callable[..., Any]) -> Callable[[Any], nn.Module]:
    return lambda d: Compact(body, d)


def layer(kind: Any, d: Any, **options: Any) -> nn.RNN:
    return nn.RNN(kind(HIDDEN, param_dtype=d), **options)


class Scanned(nn.Module):
    """nn.scan of a cell."""

    d: Any

    @nn.compact
    def __call__(self, x: Any) -> Any:
        scan = nn.scan(nn.LSTMCell, variable_broadcast="params", split_rngs={"params": False}, in_axes=1, out_axes=1)
        cell = scan(HIDDEN, param_dtype=self.d)
        carry = cell.initialize_carry(jax.random.key(0), x[:, 0].shape)
        carry, y = cell(carry, x)
        return nn.Dense(CLASSES)(y), carry


class Stepper(nn.Module):
    """What nn.scan takes over time: a layer, two cells and a head."""

    d: Any

    @nn.compact
    def __call__(self, carry: Any, x: Any) -> Any:
        first, second = carry
        first, y = nn.GRUCell(HIDDEN, param_dtype=self.d)(first, nn.Dense(4)(x))
        second, y = nn.LSTMCell(HIDDEN, param_dtype=self.d)(second, jnp.tanh(y))
        return (first, second), nn.Dense(CLASSES)(y)


def stepped(d: Any, x: Any) -> Any:
    scan = nn.scan(Stepper, variable_broadcast="params", split_rngs={"params": False}, in_axes=1, out_axes=1)
    zeros = jnp.zeros((x.shape[0], HIDDEN), d)
    return scan(d)((zeros, (zeros, zeros)), x)


class Block(nn.Module):
    """A layer of a stack that nn.scan goes through."""

    d: Any

    @nn.compact
    def __call__(self, x: Any, _: Any) -> Any:
        return x + nn.RNN(nn.GRUCell(INPUTS, param_dtype=self.d))(x), None


def stacked(d: Any, x: Any) -> Any:
    scan = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
    y, _ = scan(d)(x, None)
    return nn.Dense(2)(y)


class TeacherForced(nn.Module):
    """The output of a step is part of the input of the next: no layer is that."""

    d: Any

    @nn.compact
    def __call__(self, carry: Any, x: Any) -> Any:
        state, last = carry
        state, y = nn.GRUCell(HIDDEN, param_dtype=self.d)(state, jnp.concatenate([x, last], -1))
        out = nn.Dense(2)(y)
        return (state, out), out


def fed_back(d: Any, x: Any) -> Any:
    scan = nn.scan(TeacherForced, variable_broadcast="params", split_rngs={"params": False}, in_axes=1, out_axes=1)
    batch = x.shape[0]
    return scan(d)((jnp.zeros((batch, HIDDEN), d), jnp.zeros((batch, 2), d)), x)


class Looped(nn.Module):
    """A Python loop over time."""

    d: Any

    @nn.compact
    def __call__(self, x: Any) -> Any:
        cell = nn.GRUCell(HIDDEN, param_dtype=self.d)
        carry = jnp.zeros((x.shape[0], HIDDEN), self.d)
        for at in range(x.shape[1]):
            carry, _ = cell(carry, x[:, at])
        return nn.Dense(2)(carry)


def linen_attention(d: Any, x: Any, n: Any) -> Any:
    y = layer(nn.GRUCell, d)(x)
    valid = jnp.arange(x.shape[1])[None] < n[:, None]
    y = nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=6)(y, y, mask=nn.make_attention_mask(valid, valid))
    return nn.Dense(2)(y)


def general(d: Any, x: Any) -> Any:
    y = nn.DenseGeneral((2, 3))(layer(nn.GRUCell, d)(x)).swapaxes(-1, -2)
    return nn.GroupNorm(2)(nn.RMSNorm()(nn.DenseGeneral(4, axis=(-2, -1))(y)))


def gated(d: Any, x: Any) -> Any:
    y = nn.glu(nn.Conv(8, (3,), padding="SAME")(x))
    y = nn.avg_pool(y, (3,), (2,), "VALID") if x.shape[1] >= 3 else y
    return layer(nn.GRUCell, d)(y)


def linen_cases() -> list[Case]:
    kinds = (nn.LSTMCell, nn.OptimizedLSTMCell, nn.GRUCell, nn.SimpleCell, nn.MGUCell)
    found = [Case(f"linen tagger {kind.__name__}", lambda d, k=kind: Tagger(k, d), tokens, 1) for kind in kinds]
    for kind in kinds[1:3]:
        name = kind.__name__
        found += [
            Case(f"linen tagger Bidirectional {name}", lambda d, k=kind: Tagger(k, d, True), tokens, 1),
            Case(f"linen tagger Bidirectional {name}, seq_lengths", lambda d, k=kind: Tagger(k, d, True), ragged_tokens,
                 2),
            Case(f"linen {name} reverse, seq_lengths, carry", compact(lambda d, x, n, k=kind: layer(
                k, d, reverse=True, return_carry=True)(nn.Dense(INPUTS)(x), seq_lengths=n)), ragged,
                2 if "LSTM" in name else 1),
            Case(f"linen {name} keep_order, time_major", compact(lambda d, x, k=kind: nn.Dense(2)(layer(
                k, d, reverse=True, keep_order=True, time_major=True)(x))), time_first, 1),
        ]  # fmt: skip
    return [*found, *linen_others()]


def linen_others() -> list[Case]:
    return [
        Case("linen MGUCell Bidirectional carry", compact(lambda d, x: nn.Bidirectional(
            layer(nn.MGUCell, d), layer(nn.MGUCell, d), return_carry=True)(2 * x)), frames, 1),
        Case("linen carry given", compact(lambda d, x, c, h: nn.Dense(2)(layer(nn.LSTMCell, d)(
            x, initial_carry=(c, h)))), with_carry, 1),
        Case("linen nn.scan of a cell", Scanned, frames, 1),
        Case("linen nn.scan of two cells and layers", compact(stepped), frames, 2),
        Case("linen nn.scan over layers", compact(stacked), frames, 3),
        Case("linen output fed back", compact(fed_back), frames, 1, 1),
        Case("linen ConvLSTM", compact(lambda d, x: nn.Dense(2)(nn.RNN(nn.ConvLSTMCell(3, (2, 3), param_dtype=d))(x))),
             video, 0, 1),
        Case("linen Python loop over time", Looped, frames, 0, refused="stepped over axis 1"),
        Case("linen attention, padding mask", compact(linen_attention), ragged, 1),
        Case("linen Conv, glu, GRU", compact(lambda d, x: layer(nn.GRUCell, d)(nn.glu(nn.Conv(8, (3,))(x)))), frames,
             1),
        Case("linen a size asked", compact(gated), frames, 1, options=(("dynamic", {"x": {0: "batch", 1: "time"}}),),
             refused="inconclusive"),
        Case("linen BatchNorm, Dropout in inference", compact(lambda d, x: nn.Dropout(0.5, deterministic=True)(
            nn.BatchNorm(use_running_average=True)(layer(nn.SimpleCell, d)(x)))), frames, 1),
        Case("linen Dropout on", compact(lambda d, x: nn.Dropout(0.5, deterministic=False)(layer(nn.GRUCell, d)(x))),
             frames, 1, refused="drops values at random"),
        Case("linen DenseGeneral, RMSNorm, GroupNorm", compact(general), frames, 1),
        Case("linen remat and jit", compact(lambda d, x: nn.remat(nn.Dense)(3)(nn.jit(nn.Dense)(4)(layer(
            nn.GRUCell, d)(x)))), frames, 1),
        Case("linen ConvTranspose, pooling", compact(lambda d, x: layer(nn.GRUCell, d)(-nn.max_pool(-nn.ConvTranspose(
            4, (3,), strides=(2,))(x), (2,), (2,)))), frames, 1),
        Case("linen embed attend", compact(lambda d, x: (lambda e: e.attend(layer(nn.GRUCell, d)(e(x))))(
            nn.Embed(WORDS, HIDDEN))), tokens, 1),
        Case("linen float16 head", compact(lambda d, x: nn.Dense(2, dtype=jnp.float16)(layer(nn.GRUCell, d)(x))),
             frames, 1),
        Case("linen bfloat16", compact(lambda d, x: nn.Dense(2, dtype=jnp.bfloat16)(layer(nn.GRUCell, d)(x))), frames,
             1, refused="bfloat16"),
    ]  # fmt: skip


def all_cases() -> list[Case]:
    """The whole table."""
    return [*nnx_cases(), *linen_cases()]
