"""Values that are zeros whatever the inputs are."""

from __future__ import annotations

import onnx
import pytest

from bridge.graph import parse
from bridge.graph.zeros import is_zeros

DOUBLED = " ".join(f"z{at + 1} = Concat <axis = 0> (z{at}, z{at})" for at in range(2000))  # 2**2000 elements

CASES = {
    "s = Shape (x)  y = ConstantOfShape (s)": True,
    "s = Shape (x)  y = ConstantOfShape <value = float[1] {1}> (s)": False,
    "s = Shape (x)  f = ConstantOfShape (s)  y = Neg (f)": True,
    "y = Concat <axis = 0> (z0, z0)": True,
    "y = Concat <axis = 0> (z0, x)": False,
    "y = Identity (x)": False,
    "y = Exp (z0)": False,
    f"{DOUBLED} y = Identity (z2000)": True,
}


@pytest.mark.parametrize(("nodes", "expected"), CASES.items(), ids=lambda text: str(text)[:60])
def test_zeros_are_known_by_where_they_come_from(nodes: str, expected: bool) -> None:
    text = f'<ir_version: 8, opset_import: ["": 17]> g (float[n] x) => (float[m] y) <float[1] z0 = {{0}}> {{ {nodes} }}'
    model = parse(onnx.parser.parse_model(text))
    assert is_zeros(model.graph.outputs[0]) is expected
