"""ONNX's equations of LSTM-22, GRU-22 and RNN-22 for one sequence, written apart from bridge.reference."""

from __future__ import annotations

import numpy as np

from bridge.cell import Cell


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


FUNCTIONS = {"Sigmoid": sigmoid, "Tanh": np.tanh, "Relu": lambda x: np.maximum(x, 0)}


def onnx(cell: Cell, x: np.ndarray) -> np.ndarray:
    """Y [T, H] of ONNX's equations, LSTM-22, GRU-22 and RNN-22, for one sequence from states of zero."""
    n, H = len(cell.gates), cell.hidden_size
    W, R, Wb, Rb = (
        dict(zip(cell.gates, block[0].reshape(n, H, -1), strict=True)) for block in (cell.W, cell.R, cell.Wb, cell.Rb)
    )
    P = dict(zip("iof", np.zeros((3, H)) if cell.P is None else cell.P[0].reshape(3, H), strict=True))
    f, g, *rest = (FUNCTIONS[name] for name in (*cell.activations, "Tanh"))
    h, c, out = np.zeros(H), np.zeros(H), []
    for x_t in x:
        a = {k: W[k] @ x_t + R[k] @ h + Wb[k][:, 0] + Rb[k][:, 0] for k in cell.gates}
        if cell.op == "RNN":
            h = f(a["i"])
        elif cell.op == "GRU":
            z, r = f(a["z"]), f(a["r"])
            if cell.linear_before_reset:
                candidate = W["h"] @ x_t + Wb["h"][:, 0] + r * (R["h"] @ h + Rb["h"][:, 0])
            else:
                candidate = W["h"] @ x_t + R["h"] @ (r * h) + Rb["h"][:, 0] + Wb["h"][:, 0]
            h = (1 - z) * g(candidate) + z * h
        else:
            i, forget = f(a["i"] + P["i"] * c), f(a["f"] + P["f"] * c)
            c = forget * c + i * g(a["c"])
            h = f(a["o"] + P["o"] * c) * rest[0](c)
        out.append(h)
    return np.array(out)
