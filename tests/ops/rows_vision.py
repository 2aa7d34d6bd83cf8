"""Rows for pooling, transposed convolution, resizing, normalisation and blocks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tests.ops.row import Row

F32, I64 = np.float32, np.int64


def vision_rows(rng: np.random.Generator) -> Iterator[Row]:
    yield from _pooling(rng)
    yield from _transposed(rng)
    yield from _resizing(rng)
    yield from _normalisation(rng)
    x = rng.standard_normal((1, 8, 2, 3)).astype(F32)
    yield Row("DepthToSpace", {"input": x}, {"blocksize": 2})
    yield Row("DepthToSpace", {"input": x}, {"blocksize": 2, "mode": "CRD"})
    yield Row("DepthToSpace", {"input": x}, {"blocksize": 2}, opset=10)
    yield Row("SpaceToDepth", {"input": x[..., :2].copy()}, {"blocksize": 2})


def _pooling(rng: np.random.Generator) -> Iterator[Row]:
    x = rng.standard_normal((2, 3, 7, 6)).astype(F32)
    cases = (
        {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 1, 1]},
        {"kernel_shape": [2, 3], "strides": [2, 2], "ceil_mode": 1},
        {"kernel_shape": [3, 3], "auto_pad": "SAME_UPPER", "strides": [2, 2]},
        {"kernel_shape": [2, 3], "auto_pad": "SAME_LOWER", "dilations": [2, 2], "strides": [1, 2], "ceil_mode": 1},
        {"kernel_shape": [2, 2], "auto_pad": "VALID", "strides": [2, 4], "ceil_mode": 1},
        {"kernel_shape": [1, 2], "auto_pad": "SAME_UPPER", "dilations": [1, 3], "strides": [1, 3]},
    )
    for options in cases:
        yield Row("MaxPool", {"X": x}, options)
        yield Row("AveragePool", {"X": x}, options)
        yield Row("LpPool", {"X": x}, {**options, "p": 3})
    yield Row("AveragePool", {"X": x}, {**cases[0], "count_include_pad": 1})
    yield Row("AveragePool", {"X": x[:, :, 0]}, {"kernel_shape": [3], "dilations": [2]})
    yield Row("MaxPool", {"X": x}, {"kernel_shape": [2, 2], "dilations": [3, 2]}, outputs=2)
    yield Row("MaxPool", {"X": np.round(x)}, {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}, outputs=2)
    yield Row("MaxPool", {"X": x}, {"kernel_shape": [2, 2], "storage_order": 1}, outputs=2)
    yield Row("MaxPool", {"X": (x * 40).astype(np.int8)}, {"kernel_shape": [2, 2]})
    lowest = np.zeros((1, 2, 3, 4), np.uint8)  # as small as the padding
    yield Row("MaxPool", {"X": lowest}, {"kernel_shape": [2, 3], "pads": [1, 2, 1, 2]}, outputs=2)
    for op in ("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"):
        yield Row(op, {"X": x})


def _transposed(rng: np.random.Generator) -> Iterator[Row]:
    cases = (
        (1, {"strides": [3], "pads": [1, 0], "output_padding": [1]}),
        (2, {"strides": [2, 1], "dilations": [1, 2], "group": 2}),
        (2, {"strides": [2, 3], "output_shape": [9, 10]}),
        (2, {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
        (2, {"strides": [2, 2], "auto_pad": "SAME_LOWER"}),
        (2, {"strides": [4, 3], "auto_pad": "SAME_UPPER"}),
        (1, {"pads": [3, 3]}),
    )
    for rank, options in cases:
        x = rng.standard_normal((2, 4, *[5, 4][:rank])).astype(F32)
        w = rng.standard_normal((4, 6 // options.get("group", 1), *[3, 2][:rank])).astype(F32)
        yield Row("ConvTranspose", {"X": x}, options, {"W": w, "B": rng.standard_normal(w.shape[1] * options.get(
            "group", 1)).astype(F32)})  # fmt: skip


def _resizing(rng: np.random.Generator) -> Iterator[Row]:
    x = rng.standard_normal((1, 2, 4, 5)).astype(F32)
    up, down = np.array([1, 1, 2.5, 2], F32), np.array([1, 1, 0.6, 0.8], F32)
    for mode in ("nearest", "linear", "cubic"):
        for place in ("half_pixel", "asymmetric", "pytorch_half_pixel", "half_pixel_symmetric"):
            options = {"mode": mode, "coordinate_transformation_mode": place}
            yield Row("Resize", {"X": x}, options, {"scales": up})
        yield Row("Resize", {"X": x}, {"mode": mode}, {"scales": down})
        sizes = {"sizes": np.array([1, 2, 3, 9], I64)}
        yield Row("Resize", {"X": x}, {"mode": mode, "coordinate_transformation_mode": "align_corners"}, sizes)
    for rounding in ("round_prefer_ceil", "floor", "ceil"):
        options = {"nearest_mode": rounding, "coordinate_transformation_mode": "asymmetric"}
        yield Row("Resize", {"X": x}, options, {"scales": up})
    yield Row("Resize", {"X": x}, {"mode": "cubic", "exclude_outside": 1, "cubic_coeff_a": -0.5}, {"scales": down})
    crop = {"roi": np.array([0, 0, 0.2, -0.1, 1, 1, 0.9, 1.2], F32), "sizes": np.array([1, 2, 3, 6], I64)}
    options = {"mode": "linear", "coordinate_transformation_mode": "tf_crop_and_resize", "extrapolation_value": 7.0}
    yield Row("Resize", {"X": x}, options, crop)
    yield Row("Resize", {"X": x}, {"axes": [2, 3], "mode": "linear"}, {"sizes": np.array([8, 3], I64)})
    for mode in ("nearest", "linear"):
        yield Row("Resize", {"X": x}, {"mode": mode}, {"scales": np.array([1, 1, 2, 1.5], F32)}, opset=10)
        yield Row("Upsample", {"X": x}, {"mode": mode}, {"scales": np.array([1, 1, 2, 3], F32)}, opset=9)
        yield Row("Upsample", {"X": x}, {"mode": mode, "scales": [1.0, 1.0, 2.0, 3.0]}, opset=7)


def _normalisation(rng: np.random.Generator) -> Iterator[Row]:
    x = rng.standard_normal((2, 6, 3, 4)).astype(F32)
    scale, bias, mean = (rng.standard_normal(6).astype(F32) for _ in range(3))
    var = rng.uniform(0.5, 2, 6).astype(F32)
    statistics = {"scale": scale, "B": bias, "input_mean": mean, "input_var": var}
    yield Row("BatchNormalization", {"X": x}, {"epsilon": 1e-3}, statistics)
    yield Row("BatchNormalization", {"X": x}, {"training_mode": 1, "momentum": 0.7}, statistics, outputs=3)
    old = {"scale": scale, "B": bias, "mean": mean, "var": var}
    yield Row("BatchNormalization", {"X": x}, {}, old, opset=9)
    yield Row("BatchNormalization", {"X": x[:, :, 0, 0].copy()}, {}, old, opset=8)
    yield Row("InstanceNormalization", {"input": x}, {}, {"scale": scale, "B": bias})
    weights = {"Scale": rng.standard_normal((3, 4)).astype(F32), "B": rng.standard_normal((3, 4)).astype(F32)}
    yield Row("LayerNormalization", {"X": x}, {"axis": -2}, weights, outputs=3)
    yield Row("LayerNormalization", {"X": x}, {"epsilon": 0.1}, {"Scale": weights["Scale"][0]})
    yield Row("GroupNormalization", {"X": x}, {"num_groups": 3}, {"scale": scale, "bias": bias}, opset=21)
    yield Row("GroupNormalization", {"X": x}, {"num_groups": 3}, {"scale": scale[:3], "bias": bias[:3]}, opset=18)
    yield Row("RMSNormalization", {"X": x}, {"axis": 2}, {"scale": weights["Scale"]}, opset=23)
    yield Row("MeanVarianceNormalization", {"X": x})
    yield Row("MeanVarianceNormalization", {"X": x}, {"axes": [1, 3]})
    for p in (1, 2):
        yield Row("LpNormalization", {"input": x}, {"axis": 1, "p": p})
    yield Row("LRN", {"X": x}, {"size": 3, "alpha": 0.2, "beta": 0.6, "bias": 1.5})
    yield Row("LRN", {"X": x}, {"size": 5, "alpha": 0.2})
