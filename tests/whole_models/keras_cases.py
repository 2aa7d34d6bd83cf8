"""Whole Keras models: recurrent layers times options times surroundings, each with inputs for any (batch, time)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import layers

INPUTS, UNITS, CLASSES, WORDS = 3, 5, 4, 7
EXAMPLE = (2, 5)
"""(batch, time) of the export, where one is asked for."""
OTHERS = ((1, 7), (3, 2), (4, 9), (5, 6))
"""(batch, time) of the runs: none is the example's, and no axis keeps its size."""

Arrays = tuple[np.ndarray, ...]
Make = Callable[[int, int, np.random.Generator], Arrays]


@dataclass(frozen=True)
class Case:
    """One model."""

    name: str
    build: Callable[[], keras.Model]
    inputs: Make
    fused: int
    """Fused nodes expected: one for each call of each layer and direction pair that the operator can express."""
    scans: int = 0
    """Scans expected: one for each direction that needs one, and those of the other branch of a mask's If."""
    refused: str = ""
    """What the refusal says, where the case is refused."""
    options: tuple[tuple[str, Any], ...] = ()
    """Further options of the export."""
    example: bool = False
    """Whether the export needs an example."""
    fixed_time: int = 0
    """The time that the model fixes."""


def sequences(batch: int, time: int, rng: np.random.Generator) -> Arrays:
    return (rng.standard_normal((batch, time, INPUTS)).astype(np.float32),)


def tokens(batch: int, time: int, rng: np.random.Generator) -> Arrays:
    return (rng.integers(1, WORDS, (batch, time)).astype(np.int32),)


def _lengths(batch: int, time: int, rng: np.random.Generator) -> np.ndarray:
    lengths = rng.integers(0, time + 1, batch)
    lengths[rng.integers(batch)] = time
    return lengths


def ragged(batch: int, time: int, rng: np.random.Generator) -> Arrays:
    """Right padding with -1, one sequence full."""
    (x,) = sequences(batch, time, rng)
    x[np.arange(time)[None] >= _lengths(batch, time, rng)[:, None]] = -1
    return (x,)


def holes(batch: int, time: int, rng: np.random.Generator) -> Arrays:
    """Any step may be masked."""
    (x,) = sequences(batch, time, rng)
    x[rng.integers(0, 2, (batch, time)) == 0] = -1
    return (x,)


def left(batch: int, time: int, rng: np.random.Generator) -> Arrays:
    """Left padding."""
    (x,) = sequences(batch, time, rng)
    x[np.arange(time)[None] < rng.integers(0, time, batch)[:, None]] = -1
    return (x,)


def ragged_tokens(batch: int, time: int, rng: np.random.Generator) -> Arrays:
    (x,) = tokens(batch, time, rng)
    return (np.where(np.arange(time)[None] < _lengths(batch, time, rng)[:, None], x, 0).astype(np.int32),)


def holed_tokens(batch: int, time: int, rng: np.random.Generator) -> Arrays:
    (x,) = tokens(batch, time, rng)
    return (x * rng.integers(0, 2, x.shape).astype(np.int32),)


def two(batch: int, time: int, rng: np.random.Generator) -> Arrays:
    """Two sequences of different lengths."""
    return (*sequences(batch, time, rng), *sequences(batch, time + 2, rng))


def with_features(batch: int, time: int, rng: np.random.Generator) -> Arrays:
    return (*sequences(batch, time, rng), rng.standard_normal((batch, 2)).astype(np.float32))


def with_states(count: int) -> Make:
    def make(batch: int, time: int, rng: np.random.Generator) -> Arrays:
        states = [rng.uniform(-1, 1, (batch, UNITS)).astype(np.float32) for _ in range(count)]
        return (*sequences(batch, time, rng), *states)

    return make


def with_mask(batch: int, time: int, rng: np.random.Generator) -> Arrays:
    return (*sequences(batch, time, rng), rng.integers(0, 2, (batch, time)).astype(bool))


def frames(*shape: int) -> Make:
    def make(batch: int, time: int, rng: np.random.Generator) -> Arrays:
        return (rng.standard_normal((batch, time, *shape)).astype(np.float32),)

    return make


def sequential(*parts: Any, shape: tuple[int | None, ...] = (None, INPUTS), dtype: str = "float32") -> keras.Model:
    return keras.Sequential([keras.Input(shape, dtype=dtype), *parts])


def functional(make: Callable[..., Any], *shapes: tuple[int | None, ...], dtype: str = "float32") -> keras.Model:
    inputs = [keras.Input(shape, dtype=dtype) for shape in shapes or ((None, INPUTS),)]
    return keras.Model(inputs if len(inputs) > 1 else inputs[0], make(*inputs))


def head() -> Any:
    return layers.Dense(CLASSES, activation="softmax", name="head")


KINDS = {"LSTM": layers.LSTM, "GRU": layers.GRU, "SimpleRNN": layers.SimpleRNN}


@keras.saving.register_keras_serializable(package="tests")
class Tagger(keras.Model):
    """A subclassed model: its graph is its Python code."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.embed = layers.Embedding(WORDS, 4, mask_zero=True)
        self.encoder = layers.Bidirectional(layers.LSTM(UNITS, return_sequences=True))
        self.towers = [layers.Dense(3, activation="tanh"), layers.Dense(2)]

    def call(self, inputs: Any, training: Any = None) -> Any:
        y = self.encoder(self.embed(inputs), training=training)
        return {"tags": self.towers[1](self.towers[0](y)), "mean": keras.ops.mean(y, axis=1)}


@keras.saving.register_keras_serializable(package="tests")
class Pair(keras.Model):
    """Two arguments, a tuple out, and a layer of its own inside."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rnn = layers.GRU(UNITS, return_sequences=True, return_state=True)
        self.gate = Gate()

    def call(self, left: Any, right: Any) -> Any:
        y, state = self.rnn(left)
        return self.gate(y), state + self.rnn(right)[1]


@keras.saving.register_keras_serializable(package="tests")
class Gate(layers.Layer):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rnn = layers.SimpleRNN(2)
        self.dense = layers.Dense(UNITS, activation="sigmoid")

    def call(self, x: Any) -> Any:
        return x * keras.ops.expand_dims(self.dense(self.rnn(x)), 1)


@keras.saving.register_keras_serializable(package="tests")
class ValueDependent(keras.Model):
    """Python decides on a value: no graph can hold it."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.chooser = Chooser(name="chooser")

    def call(self, x: Any) -> Any:
        return self.chooser(x)


@keras.saving.register_keras_serializable(package="tests")
class Chooser(layers.Layer):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rnn = layers.GRU(UNITS)

    def call(self, x: Any) -> Any:
        if keras.ops.sum(x) > 0:
            return self.rnn(x)
        return self.rnn(-x)


@keras.saving.register_keras_serializable(package="tests")
class OwnCell(layers.Layer):
    """A cell of the caller's own: a residual unit."""

    def __init__(self, units: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.units = self.state_size = self.output_size = units

    def build(self, shape: Any) -> None:
        self.kernel = self.add_weight(shape=(shape[-1], self.units), name="kernel")
        self.recurrent = self.add_weight(shape=(self.units, self.units), name="recurrent")
        self.built = True

    def call(self, x: Any, states: Any) -> Any:
        h = keras.ops.tanh(x @ self.kernel + states[0] @ self.recurrent) + 0.5 * states[0]
        return h, [h]

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "units": self.units}


def tagged(name: str, make: Callable[[], Any]) -> list[Case]:
    """One layer with sequences under a head, and its last output under a head."""
    return [
        Case(f"{name} tagger", lambda: sequential(make(True), layers.Dropout(0.5), head()), sequences, 1),
        Case(f"{name} last", lambda: sequential(make(False), head()), sequences, 1),
    ]


def plain() -> list[Case]:
    found = []
    for name, kind in KINDS.items():
        found += tagged(name, lambda all_, kind=kind: kind(UNITS, return_sequences=all_))
        found += tagged(f"bidirectional {name}",
                        lambda all_, kind=kind: layers.Bidirectional(kind(UNITS, return_sequences=all_)))  # fmt: skip
    found += tagged("GRU reset before", lambda all_: layers.GRU(UNITS, reset_after=False, return_sequences=all_))
    found += tagged("LSTM backwards", lambda all_: layers.LSTM(UNITS, go_backwards=True, return_sequences=all_))
    hard: dict[str, Any] = {"recurrent_activation": "hard_sigmoid"}
    found += tagged("LSTM hard_sigmoid", lambda all_: layers.LSTM(UNITS, return_sequences=all_, **hard))
    found += tagged("RNN(GRUCell)", lambda all_: layers.RNN(layers.GRUCell(UNITS), return_sequences=all_))
    for merge in ("sum", "mul", "ave"):
        bidirectional = lambda merge=merge: layers.Bidirectional(  # noqa: E731
            layers.GRU(UNITS, return_sequences=True), merge_mode=merge)  # fmt: skip
        found.append(
            Case(f"bidirectional {merge}", lambda make=bidirectional: sequential(make(), head()), sequences, 1)
        )
    return found


def stacks() -> list[Case]:
    deep = lambda: sequential(  # noqa: E731
        layers.Bidirectional(layers.LSTM(UNITS, return_sequences=True)), layers.LayerNormalization(),
        layers.GRU(4, return_sequences=True), layers.BatchNormalization(), layers.SimpleRNN(3), head(),
    )  # fmt: skip
    stacked = lambda **options: lambda: sequential(  # noqa: E731
        layers.RNN([layers.LSTMCell(4), layers.GRUCell(UNITS)], return_sequences=True, **options), head())  # fmt: skip

    def with_finals(x: Any) -> Any:
        y, *states = layers.RNN([layers.LSTMCell(4), layers.SimpleRNNCell(UNITS)], return_state=True)(x)
        return [head()(y), *keras.tree.flatten(states)]

    return [
        Case("three layers with norms", deep, sequences, 3),
        Case("StackedRNNCells", stacked(), sequences, 2),
        Case("StackedRNNCells backwards", stacked(go_backwards=True), sequences, 2),
        Case("StackedRNNCells states", lambda: functional(with_finals), sequences, 2),
        Case("two kinds of direction", lambda: sequential(layers.Bidirectional(
            layers.LSTM(UNITS, return_sequences=True),
            backward_layer=layers.GRU(UNITS, return_sequences=True, go_backwards=True)), head()), sequences, 2),
        Case("silu cell", lambda: sequential(layers.LSTM(UNITS, activation="silu", return_sequences=True), head()),
             sequences, 0, scans=1),
        Case("unrolled", lambda: sequential(layers.LSTM(UNITS, unroll=True), head(), shape=(6, INPUTS)), sequences, 1,
             fixed_time=6),
    ]  # fmt: skip


def surroundings() -> list[Case]:
    def attended(x: Any) -> Any:
        y = layers.GRU(UNITS, return_sequences=True)(x)
        return head()(layers.GlobalAveragePooling1D()(layers.Attention()([y, y])))

    def multihead(x: Any) -> Any:
        y = layers.LSTM(UNITS, return_sequences=True)(x)
        y = layers.Add()([y, layers.MultiHeadAttention(2, 3)(y, y)])
        return layers.LSTM(4, return_sequences=True)(layers.LayerNormalization()(y))

    def additive(x: Any) -> Any:
        y = layers.Bidirectional(layers.LSTM(UNITS, return_sequences=True))(x)
        return head()(layers.GlobalMaxPooling1D()(layers.AdditiveAttention()([y, y])))

    def convolved(*before: Callable[[], Any]) -> Callable[[], keras.Model]:
        return lambda: sequential(*(make() for make in before), layers.GRU(UNITS, return_sequences=True), head())

    def operations(x: Any) -> Any:
        y = layers.LSTM(UNITS, return_sequences=True)(x * 0.5 + 1.0)
        return keras.ops.concatenate([y[:, -1], keras.ops.max(y, axis=1)], axis=-1)

    return [
        Case("Conv1D causal", convolved(lambda: layers.Conv1D(4, 3, padding="causal", activation="relu")), sequences,
             1),
        Case("Conv1D same and pooling", convolved(lambda: layers.Conv1D(4, 3, padding="same"),
                                                  lambda: layers.MaxPooling1D(2, padding="same")), sequences, 1),
        Case("Conv1D strided", convolved(lambda: layers.Conv1D(4, 2, strides=2, padding="same")), sequences, 1),
        Case("depthwise, norm and upsampling", convolved(
            lambda: layers.SeparableConv1D(4, 2, padding="same"), layers.BatchNormalization,
            lambda: layers.Activation("gelu"), lambda: layers.UpSampling1D(2)), sequences, 1),
        Case("attention over GRU", lambda: functional(attended), sequences, 1),
        Case("multi-head attention between LSTM", lambda: functional(multihead), sequences, 2),
        Case("additive attention", lambda: functional(additive), sequences, 1),
        Case("keras.ops around LSTM", lambda: functional(operations), sequences, 1),
        Case("flatten after fixed time", lambda: sequential(
            layers.LSTM(UNITS, return_sequences=True), layers.Flatten(), head(), shape=(6, INPUTS)), sequences, 1,
             fixed_time=6),
        Case("embedding", lambda: sequential(layers.Embedding(WORDS, 4), layers.SpatialDropout1D(0.2),
             layers.GRU(UNITS), head(), shape=(None,), dtype="int32"), tokens, 1),
        Case("repeat and reshape", lambda: sequential(layers.LSTM(UNITS), layers.RepeatVector(3),
             layers.LSTM(4, return_sequences=True), layers.Permute((2, 1)), layers.Reshape((12,)), head()),
             sequences, 2),
        Case("prelu, leaky and unit norm", convolved(
            lambda: layers.Dense(4), lambda: layers.PReLU(shared_axes=[1]), layers.LeakyReLU, layers.UnitNormalization,
            lambda: layers.GroupNormalization(2)), sequences, 1),
        Case("image columns", lambda: sequential(
            layers.Conv2D(3, 3, padding="same", activation="relu"), layers.MaxPooling2D((1, 2)),
            layers.TimeDistributed(layers.Flatten()), layers.Bidirectional(layers.LSTM(UNITS)), head(),
            shape=(None, 6, 1)), frames(6, 1), 1),
    ]  # fmt: skip


def graphs() -> list[Case]:
    def two_towers(a: Any, b: Any) -> Any:
        joined = layers.Concatenate()([layers.LSTM(UNITS)(a), layers.GRU(4)(b)])
        return [layers.Dense(2, name="first")(joined), layers.Dense(1, activation="sigmoid", name="second")(joined)]

    def with_side(x: Any, features: Any) -> Any:
        return head()(layers.Concatenate()([layers.Bidirectional(layers.GRU(UNITS))(x), features]))

    def shared(a: Any, b: Any) -> Any:
        encoder = layers.LSTM(UNITS, name="shared")
        return layers.Subtract()([encoder(a), encoder(b)])

    def encoder_decoder(a: Any, b: Any) -> Any:
        _, h, c = layers.LSTM(UNITS, return_state=True, name="encoder")(a)
        y, *_ = layers.LSTM(UNITS, return_sequences=True, return_state=True, name="decoder")(b, initial_state=[h, c])
        return head()(y)

    def bidirectional_states(a: Any, b: Any) -> Any:
        _, *states = layers.Bidirectional(layers.GRU(UNITS, return_state=True))(a)
        return head()(layers.Bidirectional(layers.GRU(UNITS, return_sequences=True))(b, initial_state=states))

    def projected_state(x: Any, features: Any) -> Any:
        state = layers.Dense(UNITS, activation="tanh")(features)
        return head()(layers.GRU(UNITS, return_sequences=True)(x, initial_state=state))

    def nested(x: Any) -> Any:
        inner = keras.Sequential([keras.Input((None, INPUTS)), layers.GRU(4, return_sequences=True, name="deep"),
                                  layers.Dense(3)], name="inner")  # fmt: skip
        return head()(layers.LSTM(UNITS)(inner(inner(x))))

    def branches(x: Any) -> Any:
        y = layers.LSTM(UNITS, return_sequences=True)(x)
        return {"b": layers.GRU(2)(y), "a": head()(y), "c": y}

    def apart(x: Any) -> Any:
        forward, backward = layers.Bidirectional(layers.LSTM(UNITS, return_sequences=True), merge_mode=None)(x)
        return layers.Dense(2)(layers.Multiply()([forward, backward]))

    sequence, features = (None, INPUTS), (2,)
    return [
        Case("two inputs, two outputs", lambda: functional(two_towers, sequence, sequence), two, 2),
        Case("sequence and features", lambda: functional(with_side, sequence, features), with_features, 1),
        Case("shared layer", lambda: functional(shared, sequence, sequence), two, 2),
        Case("encoder and decoder", lambda: functional(encoder_decoder, sequence, sequence), two, 2),
        Case("bidirectional states", lambda: functional(bidirectional_states, sequence, sequence), two, 2),
        Case("state from Dense", lambda: functional(projected_state, sequence, features), with_features, 1),
        Case("model in model, twice", lambda: functional(nested), sequences, 3),
        Case("dict of outputs", lambda: functional(branches), sequences, 2),
        Case("merge_mode None", lambda: functional(apart), sequences, 1),
        Case("subclassed", lambda: Tagger(name="tagger"), holed_tokens, 1, scans=2, example=True),
        Case("subclassed with two arguments", lambda: Pair(name="pair"), two, 3, example=True),
        Case("data-dependent Python", lambda: ValueDependent(name="dependent"), sequences, 0, example=True,
             refused="chooser"),
    ]  # fmt: skip


def wrapped() -> list[Case]:
    inner = lambda: keras.Sequential([keras.Input((4, 2)), layers.GRU(UNITS)], name="words")  # noqa: E731
    return [
        Case("TimeDistributed Dense", lambda: sequential(
            layers.LSTM(UNITS, return_sequences=True), layers.TimeDistributed(layers.Dense(4, activation="relu")),
            layers.GRU(3)), sequences, 2),
        Case("TimeDistributed Conv2D", lambda: sequential(
            layers.TimeDistributed(layers.Conv2D(2, 2)), layers.TimeDistributed(layers.Flatten()), layers.LSTM(UNITS),
            shape=(None, 4, 3, 1)), frames(4, 3, 1), 1),
        Case("TimeDistributed LSTM", lambda: sequential(
            layers.TimeDistributed(layers.LSTM(UNITS)), layers.GRU(4), head(), shape=(None, 4, 2)), frames(4, 2), 2),
        Case("TimeDistributed model", lambda: sequential(
            layers.TimeDistributed(inner()), layers.Bidirectional(layers.LSTM(4)), head(), shape=(None, 4, 2)),
            frames(4, 2), 2),
        Case("ConvLSTM1D", lambda: sequential(
            layers.ConvLSTM1D(2, 2, padding="same"), layers.Flatten(), head(), shape=(None, 4, 2)), frames(4, 2), 0,
            scans=1),
        Case("ConvLSTM2D", lambda: sequential(
            layers.ConvLSTM2D(2, (2, 3), return_sequences=True), layers.TimeDistributed(layers.Flatten()),
            layers.LSTM(UNITS), head(), shape=(None, 4, 4, 2)), frames(4, 4, 2), 1, scans=1),
        Case("ConvLSTM3D", lambda: sequential(
            layers.ConvLSTM3D(2, 2, padding="same"), layers.GlobalAveragePooling3D(), head(),
            shape=(None, 3, 3, 2, 1)), frames(3, 3, 2, 1), 0, scans=1),
    ]  # fmt: skip


def masked() -> list[Case]:
    def masking(*parts: Callable[[], Any]) -> Callable[[], keras.Model]:
        return lambda: sequential(layers.Masking(-1.0), *(make() for make in parts))

    def embedded(*parts: Callable[[], Any]) -> Callable[[], keras.Model]:
        return lambda: sequential(layers.Embedding(WORDS, 4, mask_zero=True), *(make() for make in parts),
                                  shape=(None,), dtype="int32")  # fmt: skip

    def explicit() -> keras.Model:
        x, mask = keras.Input((None, INPUTS)), keras.Input((None,), dtype="bool")
        return keras.Model([x, mask], head()(layers.LSTM(UNITS)(x, mask=mask)))

    def masked_states() -> keras.Model:
        x, h, c = keras.Input((None, INPUTS)), keras.Input((UNITS,)), keras.Input((UNITS,))
        mask = layers.Masking(-1.0).compute_mask(x)
        y = layers.LSTM(UNITS, return_sequences=True, return_state=True)(x, initial_state=[h, c], mask=mask)
        return keras.Model([x, h, c], [layers.Dense(2)(y[0]), *y[1:]])

    def masked_with_states(batch: int, time: int, rng: np.random.Generator) -> Arrays:
        return (*holes(batch, time, rng), *with_states(2)(batch, time, rng)[1:])

    def attended() -> keras.Model:
        x = keras.Input((None,), dtype="int32")
        y = layers.GRU(UNITS, return_sequences=True)(layers.Embedding(WORDS, 4, mask_zero=True)(x))
        return keras.Model(x, layers.GlobalAveragePooling1D()(layers.MultiHeadAttention(1, 3)(y, y)))

    lstm = lambda **options: lambda: layers.LSTM(UNITS, **options)  # noqa: E731
    gru = lambda **options: lambda: layers.GRU(UNITS, **options)  # noqa: E731
    both = lambda kind, **options: lambda: layers.Bidirectional(kind(UNITS, **options))  # noqa: E731
    dense = lambda: layers.Dense(3, activation="relu")  # noqa: E731
    every: dict[str, Any] = {"return_sequences": True}
    right = (("masks", "right"),)
    return [
        Case("masked LSTM, ragged", masking(lstm(**every), head), ragged, 1, scans=1),
        Case("masked LSTM, holes", masking(lstm(**every), head), holes, 1, scans=1),
        Case("masked LSTM, left", masking(lstm(), head), left, 1, scans=1),
        Case("masked LSTM, masks=right", masking(lstm(**every), head), ragged, 1, options=right),
        Case("masked GRU last", masking(dense, gru(), head), holes, 1, scans=1),
        Case("masked GRU zero output", masking(gru(zero_output_for_mask=True, **every), dense), holes, 1, scans=1),
        Case("masked GRU backwards", masking(gru(go_backwards=True, **every), dense), holes, 1, scans=1),
        Case("masked GRU backwards right", masking(gru(go_backwards=True, **every), dense), ragged, 1, options=right),
        Case("masked bidirectional LSTM", masking(both(layers.LSTM, **every), head), holes, 1, scans=2),
        Case("masked bidirectional GRU last", masking(both(layers.GRU), head), ragged, 1, scans=2),
        Case("masked stack", masking(layers.BatchNormalization, dense, both(layers.GRU, **every), lstm(), head), holes,
             2, scans=3),
        Case("masked SimpleRNN unroll", lambda: sequential(
            layers.Masking(-1.0), layers.SimpleRNN(UNITS, unroll=True, return_sequences=True), dense(),
            shape=(6, INPUTS)), holes, 1, scans=1, fixed_time=6),
        Case("masked silu GRU", masking(gru(activation="silu", **every), dense), holes, 0, scans=1),
        Case("masked StackedRNNCells", masking(
            lambda: layers.RNN([layers.LSTMCell(4), layers.GRUCell(UNITS)], **every), head), holes, 2, scans=2),
        Case("mask_zero embedding", embedded(lstm(**every), gru(), head), holed_tokens, 2, scans=2),
        Case("mask_zero embedding right", embedded(both(layers.LSTM), head), ragged_tokens, 1, options=right),
        Case("mask as input", explicit, with_mask, 1, scans=1),
        Case("mask and states", masked_states, masked_with_states, 1, scans=1),
        Case("mask into attention", attended, ragged_tokens, 1, scans=1),
        Case("masked ConvLSTM1D", lambda: sequential(
            layers.ConvLSTM1D(2, 2, return_sequences=True), layers.TimeDistributed(layers.Flatten()),
            layers.Masking(0.0), layers.GRU(3), shape=(None, 4, 2)), frames(4, 2), 1, scans=2),
    ]  # fmt: skip


def stateful() -> list[Case]:
    def stateful_model() -> keras.Model:
        x = keras.Input(batch_shape=(2, None, INPUTS))
        y = layers.LSTM(UNITS, stateful=True, return_sequences=True, name="first")(x)
        return keras.Model(x, head()(layers.GRU(UNITS, stateful=True, name="second")(y)))

    three = with_states(3)
    return [
        Case("stateful", stateful_model, three, 2),
        Case("states as inputs", lambda: sequential(layers.Dense(3), layers.LSTM(UNITS, return_sequences=True), head()),
             with_states(2), 1, options=(("states", "inputs"),)),
        Case("states of a masked layer", lambda: sequential(
            layers.Masking(-1.0), layers.GRU(UNITS, return_sequences=True), head()), with_states(1), 1, scans=1,
            options=(("states", "inputs"),)),
    ]  # fmt: skip


def other() -> list[Case]:
    def half() -> keras.Model:
        return keras.Sequential([keras.Input((None, INPUTS)), layers.LSTM(UNITS, dtype="mixed_float16"),
                                 layers.Dense(2)])  # fmt: skip

    def labelled() -> keras.Model:
        x = keras.Input((None, INPUTS))
        y = layers.GRU(UNITS, return_sequences=True)(layers.Normalization(mean=[0.1, 0.2, 0.3], variance=[1, 2, 3])(x))
        return keras.Model(x, [y, keras.ops.argmax(y, -1), x])

    return [
        Case("cell of the caller's own", lambda: sequential(
            layers.LSTM(4, return_sequences=True), layers.RNN(OwnCell(UNITS), return_sequences=True), head()),
             sequences, 1),
        Case("masked cell of the caller's own", lambda: sequential(
            layers.Masking(-1.0), layers.Bidirectional(layers.RNN(OwnCell(UNITS), return_sequences=True)), head()),
             holes, 0),
        Case("activation of the caller's own", lambda: sequential(
            layers.GRU(UNITS, activation=lambda x: x / (1 + abs(x))), head()), sequences, 0),
        Case("grouped Conv1D, celu", lambda: sequential(
            layers.Conv1D(4, 2), layers.Activation("celu"), layers.Conv1D(6, 3, groups=2, padding="same"),
            layers.GRU(UNITS), head()), sequences, 1),
        Case("labels and the input itself", labelled, sequences, 1),
        Case("opset 17", lambda: sequential(layers.LSTM(UNITS, return_sequences=True), head()), sequences, 1,
             options=(("opset", 17),)),
        Case("opset 22", lambda: sequential(layers.Conv1D(3, 2, padding="same"), layers.GRU(UNITS), head()), sequences,
             1, options=(("opset", 22),)),
        Case("form scan", lambda: sequential(layers.GRU(UNITS, return_sequences=True), head()), sequences, 0, scans=1,
             options=(("form", "scan"),)),
        Case("mixed precision", half, sequences, 0, refused="policy 'mixed_float16'"),
    ]  # fmt: skip


def all_cases() -> list[Case]:
    return [*plain(), *stacks(), *surroundings(), *graphs(), *wrapped(), *masked(), *stateful(), *other()]
