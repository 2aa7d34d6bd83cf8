"""Layouts on torch tensors: read_blocks under autograd, and torch's own cells as they run."""

from __future__ import annotations

import numpy as np
import pytest

from bridge.errors import Unsupported
from bridge.layout import read_blocks, read_params, template
from tests.onnx_equations import onnx

torch = pytest.importorskip("torch", reason="needs the extra torch")

INPUTS, HIDDEN, TIME = 3, 4, 5


@pytest.mark.parametrize("layout", ["torch.LSTM", "torch.GRU", "flax.linen.MGUCell", "haiku.GRU", "keras.CuDNNGRU"])
def test_blocks_of_tensors_have_the_bits_of_the_cell_and_gradients(layout):
    made = template(layout, INPUTS, HIDDEN)
    params = {name: torch.rand(zero.shape, requires_grad=True) for name, zero in made.params.items()}
    blocks = read_blocks(layout, params, **made.options)
    cell = read_params(layout, params, **made.options)
    for name in ("W", "R", "B"):
        np.testing.assert_array_equal(getattr(blocks, name).detach().numpy(), getattr(cell, name))
    (blocks.W.sum() + blocks.R.sum() + blocks.B.sum()).backward()
    assert all(bool((param.grad.abs() >= 1).all()) for param in params.values())


def test_bfloat16_is_refused():
    params = {
        name: torch.zeros(zero.shape, dtype=torch.bfloat16) for name, zero in template("torch.GRU", 3, 4).params.items()
    }
    with pytest.raises(Unsupported, match="weight_ih is bfloat16"):
        read_params("torch.GRU", params)


@pytest.mark.parametrize(
    ("name", "options"),
    [("LSTM", {}), ("GRU", {}), ("RNN", {}), ("RNN", {"nonlinearity": "relu"}), ("GRU", {"bias": False})],
)
def test_torchs_own_layers_and_cells_are_what_is_read(name, options):
    torch.manual_seed(0)
    layer = getattr(torch.nn, name)(INPUTS, HIDDEN, **options)
    x = torch.randn(TIME, INPUTS)
    params = {key.removesuffix("_l0"): value for key, value in layer.named_parameters()}
    cell = read_params(f"torch.{name}", params, **options)
    # float32 against float64: sums of at most 9 products of numbers below 2, five steps
    np.testing.assert_allclose(layer(x)[0].detach().numpy(), onnx(cell, x.double().numpy()), rtol=0, atol=2e-6)
    step = getattr(torch.nn, f"{name}Cell")(INPUTS, HIDDEN, **options)
    step.load_state_dict(params)
    assert read_params(f"torch.{name}Cell", dict(step.named_parameters()), **options) == cell
