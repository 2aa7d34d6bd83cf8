"""Operators with constant weights as native nnx layers."""

# ruff: noqa: ARG001  (an emitter's signature is the ONNX schema)
from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from bridge.frameworks.flax_code.code import literal, shape_text
from bridge.frameworks.flax_code.emit_shape import rank_of, size
from bridge.frameworks.flax_code.layers import Layer
from bridge.frameworks.flax_code.operands import Dims, Operand, Tensor
from bridge.frameworks.flax_code.registry import emits
from bridge.frameworks.flax_code.site import Site

EXACT: Final = ("use_fast_variance=False", "rngs=rngs")
"""Flax subtracts squares to find the variance unless told otherwise; ONNX squares the differences."""


@emits("MatMul")
def matmul(site: Site, A: Operand, B: Operand) -> Operand:
    """nnx.Linear where the right side is a constant matrix, else @."""
    if isinstance(A, Tensor) and isinstance(B, np.ndarray) and B.ndim == 2 and B.dtype == np.float32:
        return _linear(site, A, B, None, ("kernel", site.inputs[1]), site.layer_name("linear", 1))
    return site.emit(f"{site.ref(A)} @ {site.ref(B)}")


@emits("Gemm")
def gemm(site: Site, A: Operand, B: Operand, C: Operand = None, *, alpha: float = 1.0, beta: float = 1.0,
         transA: int = 0, transB: int = 0) -> Operand:  # fmt: skip
    """nnx.Linear where the weights are constant and nothing is scaled, else written out."""
    bias = np.broadcast_to(C.reshape(-1), B.shape[0 if transB else 1]) if (
        isinstance(C, np.ndarray) and isinstance(B, np.ndarray) and C.ndim < 2) else None  # fmt: skip
    plain = (alpha, beta, transA) == (1.0, 1.0, 0) and (C is None or bias is not None)
    if plain and isinstance(A, Tensor) and isinstance(B, np.ndarray):
        key = ("gemm", site.inputs[1], transB, site.inputs[2] if len(site.inputs) > 2 else None)
        return _linear(site, A, B.T if transB else B, bias, key, site.layer_name("linear", 1, 2))
    left = f"{site.ref(A)}.T" if transA else site.ref(A)
    right = f"{site.ref(B)}.T" if transB else site.ref(B)
    scaled = [f"{literal(np.float32(alpha))} * ({left} @ {right})" if alpha != 1.0 else f"{left} @ {right}"]
    if C is not None:
        scaled.append(f"{literal(np.float32(beta))} * {site.ref(C)}" if beta != 1.0 else site.ref(C))
    return site.emit(" + ".join(scaled))


def _linear(site: Site, x: Tensor, kernel: np.ndarray, bias: np.ndarray | None, key: tuple[Any, ...],
            name: str) -> Tensor:  # fmt: skip
    """A linear layer; without a bias it waits for an Add, unless other nodes share the weights."""
    value = site.inputs[1]
    alone = value is not None and len(list(value.uses())) == 1

    def make() -> object:
        sizes = [str(kernel.shape[0]), str(kernel.shape[1])]
        weights = {"kernel": kernel} | ({} if bias is None else {"bias": np.array(bias)})
        return site.code.layer(name, "nnx.Linear", [*sizes, *([] if bias is not None else ["use_bias=False"]),
                                                    "rngs=rngs"], weights)  # fmt: skip

    layer: Any = site.code.shared(("nnx.Linear", *key), make)
    made = site.on_last_axis(x, lambda text: f"{layer_call(layer)}({text})", int(kernel.shape[1]))
    base = made.view[0] if made.view is not None else made
    base.linear = layer if bias is None and alone else None
    return made


def layer_call(layer: Layer) -> str:
    """The expression of a layer; a placeholder, since the name may still change."""
    return f"self.<{id(layer)}>"


@emits("Conv")
def conv(site: Site, X: Operand, W: Operand, B: Operand = None, *, auto_pad: Any = "NOTSET",
         dilations: Sequence[int] | None = None, group: int = 1, kernel_shape: Sequence[int] | None = None,
         pads: Sequence[int] | None = None, strides: Sequence[int] | None = None) -> Operand:  # fmt: skip
    """nnx.Conv; it keeps channels last, so transpositions around it meet and vanish where they can."""
    if not isinstance(X, Tensor) or not isinstance(W, np.ndarray) or not isinstance(B, np.ndarray | None):
        site.refuse("Conv whose weights are not constant")
    space = W.ndim - 2
    kernel = np.ascontiguousarray(np.moveaxis(W, (0, 1), (-1, -2)))

    def make() -> object:
        arguments = [str(W.shape[1] * group), str(W.shape[0]), _tuple(W.shape[2:])]
        arguments += _window(strides, padding_text(site, auto_pad, pads or [0] * 2 * space), dilations)
        arguments += [f"feature_group_count={group}"] if group != 1 else []
        arguments += ["use_bias=False"] if B is None else []
        weights = {"kernel": kernel} | ({} if B is None else {"bias": B})
        return site.code.layer(site.layer_name("conv", 1, 2), "nnx.Conv", [*arguments, "rngs=rngs"], weights)

    attributes = (auto_pad, dilations, group, pads, strides)
    layer: Any = site.code.shared(("nnx.Conv", *site.inputs[1:3], attributes), make)
    last = site.code.view(X, (0, *range(2, space + 2), 1))
    dims = window_dims(last.dims, W.shape[2:], strides or [1] * space, dilations or [1] * space,
                       pads or [0] * 2 * space, auto_pad, int(W.shape[0]))  # fmt: skip
    y = site.code.assign(f"{layer_call(layer)}({site.ref(last)})", dims, site.dtype())
    return site.code.view(y, (0, space + 1, *range(1, space + 1)))


def _window(strides: Sequence[int] | None, padding: str, dilations: Sequence[int] | None) -> list[str]:
    """The arguments that say how a kernel moves; what is 1 goes without saying."""
    return [
        *([f"strides={_tuple(strides)}"] if strides and set(strides) != {1} else []),
        f"padding={padding}",
        *([f"kernel_dilation={_tuple(dilations)}"] if dilations and set(dilations) != {1} else []),
    ]


@emits("ConvTranspose")
def conv_transpose(site: Site, X: Operand, W: Operand, B: Operand = None, *, auto_pad: Any = "NOTSET",
                   dilations: Sequence[int] | None = None, group: int = 1, kernel_shape: Sequence[int] | None = None,
                   output_padding: Sequence[int] | None = None, output_shape: Sequence[int] | None = None,
                   pads: Sequence[int] | None = None, strides: Sequence[int] | None = None) -> Operand:  # fmt: skip
    """nnx.ConvTranspose: its padding is what the convolution over the spread input takes, its kernel runs forwards."""
    if not isinstance(X, Tensor) or not isinstance(W, np.ndarray) or not isinstance(B, np.ndarray | None):
        site.refuse("ConvTranspose whose weights are not constant")
    if group != 1 or output_shape is not None or auto_pad not in ("NOTSET", b"NOTSET"):
        site.refuse("ConvTranspose with groups, output_shape or auto_pad")
    space = W.ndim - 2
    steps, spread, cut = strides or [1] * space, dilations or [1] * space, pads or [0] * 2 * space
    reach = [dilation * (size - 1) for dilation, size in zip(spread, W.shape[2:], strict=True)]
    sides = [(reach[at] - cut[at], reach[at] - cut[at + space] + (output_padding or [0] * space)[at])
             for at in range(space)]  # fmt: skip
    kernel = np.ascontiguousarray(np.moveaxis(np.flip(W, tuple(range(2, W.ndim))), (0, 1), (-2, -1)))

    def make() -> object:
        arguments = [str(W.shape[0]), str(W.shape[1]), _tuple(W.shape[2:])]
        arguments += _window(steps, f"[{', '.join(map(str, sides))}]", spread)
        arguments += ["use_bias=False"] if B is None else []
        weights = {"kernel": kernel} | ({} if B is None else {"bias": B})
        return site.code.layer(site.layer_name("conv", 1, 2), "nnx.ConvTranspose", [*arguments, "rngs=rngs"], weights)

    layer: Any = site.code.shared(("nnx.ConvTranspose", *site.inputs[1:3], str(sides), str(steps), str(spread)), make)
    last = site.code.view(X, (0, *range(2, space + 2), 1))
    sizes = [(dim - 1) * steps[at] + 1 + sum(sides[at]) - reach[at] if isinstance(dim, int) else "?"
             for at, dim in enumerate(last.dims[1:-1])] if last.dims else []  # fmt: skip
    dims = (last.dims[0], *sizes, int(W.shape[1])) if last.dims else None
    y = site.code.assign(f"{layer_call(layer)}({site.ref(last)})", dims, site.dtype())
    return site.code.view(y, (0, space + 1, *range(1, space + 1)))


def window_dims(dims: Dims, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int],
                pads: Sequence[int], auto_pad: Any, channels: int | str) -> Dims:  # fmt: skip
    """Sizes after a window of `kernel` over `dims`, channels last; an axis that keeps its size keeps its symbol."""
    if dims is None:
        return None
    spatial: list[int | str] = []
    for at, dim in enumerate(dims[1:-1]):
        lost = (kernel[at] - 1) * dilations[at] - pads[at] - pads[at + len(strides)]
        if auto_pad not in ("NOTSET", b"NOTSET"):
            spatial.append("?")
        elif isinstance(dim, int):
            spatial.append((dim - lost - 1) // strides[at] + 1)
        else:
            spatial.append(dim if lost == 0 and strides[at] == 1 else "?")
    return (dims[0], *spatial, channels)


def _tuple(sizes: Sequence[int]) -> str:
    return shape_text([int(each) for each in sizes])


def padding_text(site: Site, auto_pad: Any, pads: Sequence[int], *, pairs_only: bool = False) -> str:
    """ONNX's padding as Flax takes it: a name, pairs of (before, after), or, unless `pairs_only`, one number."""
    name = auto_pad.decode() if isinstance(auto_pad, bytes) else auto_pad
    if name == "SAME_LOWER":
        site.refuse("auto_pad SAME_LOWER")
    if name in ("SAME_UPPER", "VALID"):
        return f'"{name.removesuffix("_UPPER")}"'
    half = len(pads) // 2
    pairs = list(zip(pads[:half], pads[half:], strict=True))
    if not any(pads):
        return '"VALID"'
    return str(pads[0]) if len(set(pads)) == 1 and not pairs_only else f"[{', '.join(map(str, pairs))}]"


@emits("BatchNormalization")
def batch_normalization(site: Site, X: Operand, scale: Operand, B: Operand, mean: Operand, var: Operand, *,
                        epsilon: float = 1e-5, momentum: float = 0.9, training_mode: int = 0,
                        spatial: int = 1) -> Operand:  # fmt: skip
    """nnx.BatchNorm with the running statistics; they move again where the module is set to train."""
    arrays = {"scale": scale, "bias": B, "mean": mean, "var": var}
    if training_mode or not spatial or not isinstance(X, Tensor):
        site.refuse("BatchNormalization in training mode or over space")
    if not all(isinstance(array, np.ndarray) for array in arrays.values()):
        site.refuse("BatchNormalization whose weights are not constant")
    weights = {name: array for name, array in arrays.items() if isinstance(array, np.ndarray)}
    arguments = [str(weights["scale"].size), "use_running_average=True", f"momentum={literal(np.float32(momentum))}",
                 f"epsilon={literal(np.float32(epsilon))}", "rngs=rngs"]  # fmt: skip
    return _on_channels(site, X, site.code.layer(site.layer_name("norm", 1, 2), "nnx.BatchNorm", arguments, weights))


def _on_channels(site: Site, X: Tensor, layer: Layer) -> Operand:
    """A layer that has its channels last, of a tensor [N, C, ...]."""
    rank = rank_of(site, X)
    last = site.code.view(X, (0, *range(2, rank), 1))
    y = site.code.assign(f"{layer_call(layer)}({site.ref(last)})", last.dims, site.dtype())
    return site.code.view(y, (0, rank - 1, *range(1, rank - 1)))


@emits("InstanceNormalization")
def instance_normalization(site: Site, input: Operand, scale: Operand, B: Operand, *,  # noqa: A002
                           epsilon: float = 1e-5) -> Operand:  # fmt: skip
    """nnx.InstanceNorm."""
    if not isinstance(input, Tensor) or not isinstance(scale, np.ndarray) or not isinstance(B, np.ndarray):
        site.refuse("InstanceNormalization whose weights are not constant")
    arguments = [str(scale.size), f"epsilon={literal(np.float32(epsilon))}", *EXACT]
    weights = {"scale": scale, "bias": B}
    return _on_channels(
        site, input, site.code.layer(site.layer_name("norm", 1, 2), "nnx.InstanceNorm", arguments, weights)
    )


@emits("GroupNormalization")
def group_normalization(site: Site, X: Operand, scale: Operand, bias: Operand, *, epsilon: float = 1e-5,
                        num_groups: int, stash_type: int = 1) -> Operand:  # fmt: skip
    """nnx.GroupNorm."""
    if not isinstance(X, Tensor) or not isinstance(scale, np.ndarray) or not isinstance(bias, np.ndarray):
        site.refuse("GroupNormalization whose weights are not constant")
    channels = size(site, X, 1)
    if stash_type != 1 or channels != scale.size:
        site.refuse("GroupNormalization with a scale for each group, as before opset 21, or in another precision")
    arguments = [str(channels), f"num_groups={num_groups}", f"epsilon={literal(np.float32(epsilon))}", *EXACT]
    weights = {"scale": scale, "bias": bias}
    return _on_channels(site, X, site.code.layer(site.layer_name("norm", 1, 2), "nnx.GroupNorm", arguments, weights))


@emits("RMSNormalization")
def rms_normalization(site: Site, X: Operand, scale: Operand, *, axis: int = -1, epsilon: float = 1e-5,
                      stash_type: int = 1) -> Operand:  # fmt: skip
    """nnx.RMSNorm over the last axis."""
    if not isinstance(X, Tensor) or not isinstance(scale, np.ndarray) or stash_type != 1:
        site.refuse("RMSNormalization whose weights are not constant, or in another precision")
    if axis % rank_of(site, X) != rank_of(site, X) - 1 or scale.ndim != 1:
        site.refuse("RMSNormalization over more than the last axis")
    arguments = [str(scale.size), f"epsilon={literal(np.float32(epsilon))}", "rngs=rngs"]
    layer = site.code.layer(site.layer_name("norm", 1), "nnx.RMSNorm", arguments, {"scale": scale})
    return site.on_last_axis(X, lambda text: f"{layer_call(layer)}({text})")


@emits("LayerNormalization")
def layer_normalization(site: Site, X: Operand, Scale: Operand, B: Operand = None, *, axis: int = -1,
                        epsilon: float = 1e-5, stash_type: int = 1) -> Operand:  # fmt: skip
    """nnx.LayerNorm over the last axis."""
    if not isinstance(X, Tensor) or not isinstance(Scale, np.ndarray) or not isinstance(B, np.ndarray | None):
        site.refuse("LayerNormalization whose weights are not constant")
    if axis % rank_of(site, X) != rank_of(site, X) - 1 or stash_type != 1 or site.used(1) or site.used(2):
        site.refuse("LayerNormalization over more than the last axis, or whose statistics are read")
    arguments = [
        str(Scale.size),
        f"epsilon={literal(np.float32(epsilon))}",
        *([] if B is not None else ["use_bias=False"]),
    ]
    weights = {"scale": Scale} | ({} if B is None else {"bias": B})
    layer = site.code.layer(site.layer_name("norm", 1, 2), "nnx.LayerNorm", [*arguments, *EXACT], weights)
    return site.on_last_axis(X, lambda text: f"{layer_call(layer)}({text})")
