from __future__ import annotations

import numpy as np
import pytest

from bridge.graph.tensors import ArrayTensor, owner_of
from bridge.layout import read_params, template

DATA = np.arange(12, dtype=np.float32).tobytes()


def test_an_array_that_lies_in_bytes_gives_them_without_a_copy() -> None:
    array = np.frombuffer(DATA, np.float32).reshape(3, 4)
    assert ArrayTensor(array).tobytes() is DATA


@pytest.mark.parametrize("part", ["rows", "columns", "transposed", "reversed"])
def test_a_part_of_an_array_in_bytes_gives_its_own_elements(part: str) -> None:
    whole = np.frombuffer(DATA, np.float32).reshape(3, 4)
    array = {"rows": whole[1:], "columns": whole[:, 1:], "transposed": whole.T, "reversed": whole[::-1]}[part]
    assert ArrayTensor(array).tobytes() == np.ascontiguousarray(array).tobytes()


def test_an_array_of_its_own_is_copied() -> None:
    array = np.arange(4, dtype=np.float32)
    assert owner_of(array) is None
    assert ArrayTensor(array).tobytes() == array.tobytes()


def test_torch_weights_are_laid_down_as_bytes_and_keras_kernels_are_transposed() -> None:
    torch_cell = read_params("torch.LSTM", template("torch.LSTM", 3, 4).params)
    keras_cell = read_params("keras.LSTM", template("keras.LSTM", 3, 4).params)
    assert isinstance(owner_of(torch_cell.W), bytes)
    assert owner_of(keras_cell.W) is None
