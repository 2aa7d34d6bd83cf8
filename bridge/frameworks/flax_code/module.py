"""The text of model.py."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from bridge.frameworks.flax_code.code import jax_name
from bridge.frameworks.flax_code.helpers import HELPERS
from bridge.frameworks.flax_code.layers import quiet
from bridge.frameworks.flax_code.render import body, fitted, free_name, shape_comment, sizes_text
from bridge.frameworks.flax_code.walking import Written

if TYPE_CHECKING:
    from bridge.frameworks.flax_code.code import Code

LOAD: Final = '''\
def load(path):
    """The model with the weights of a safetensors file: their names are the paths of its attributes."""
    model = Model(rngs=nnx.Rngs(0))
    for name, value in load_file(path).items():
        variable = functools.reduce(getattr, name.split("."), model)
        variable.set_value(jnp.asarray(value))
    return model
'''


def module_text(written: Written, title: str) -> str:
    """The whole of model.py."""
    lines = body(written)
    code = written.code
    text = "\n".join([f"    def __call__(self, {', '.join(_arguments(written))}):", *(
        fitted(line.text, 8 + line.indent, line.comment) if line.text else "" for line in lines)])  # fmt: skip
    init = "\n".join(_attributes(code)) or "        pass"
    helpers = [text.rstrip() for name, text in HELPERS.items() if name in code.helpers]
    parts = [f'"""{quiet(title)}"""', _imports(code, "".join([text, init, *helpers])), *helpers,
             f"class Model(nnx.Module):\n{_docstring(written)}\n\n    def __init__(self, *, rngs):\n{init}\n\n{text}",
             LOAD.rstrip()]  # fmt: skip
    return parts[0] + "\n\n" + parts[1] + "\n\n\n" + "\n\n\n".join(parts[2:]) + "\n"


def _arguments(written: Written) -> list[str]:
    names: list[str] = []
    for tensor in written.inputs.values():
        names.append(free_name(tensor.hint, {"self", *names}))
    return names


def _docstring(written: Written) -> str:
    shapes = [f"{name} {shape_comment(tensor)[2:]}".strip() for name, tensor in zip(
        _arguments(written), written.inputs.values(), strict=True)]  # fmt: skip
    results = [f"{quiet(name)} {sizes_text(dims)}".strip() for name, dims in written.shapes.items()]
    line = f'    """{", ".join(shapes)} -> {", ".join(results)}."""'
    if len(line) <= 120:
        return line
    rows = ["The graph as a module.", "", "Args:", *(f"    {shape}" for shape in shapes), "", "Returns:",
            *(f"    {result}" for result in results)]  # fmt: skip
    text = "\n".join(f"    {row}".rstrip() for row in rows).lstrip()
    return f'    """{text}\n    """'


def _attributes(code: Code) -> list[str]:
    lines = [fitted(f"self.{layer.name} = {layer.text}", 8) for layer in code.layers.values()]
    for name, array in code.constants.items():
        dtype = "" if array.dtype == np.float32 else f", jnp.{jax_name(array.dtype)}"
        kind = "nnx.Param" if array.dtype.kind == "f" else "nnx.Variable"
        shape = ", ".join(map(str, array.shape)) + ("," if array.ndim == 1 else "")
        lines.append(fitted(f"self.{name} = {kind}(jnp.zeros(({shape}){dtype}))", 8))
    return lines


def _imports(code: Code, text: str) -> str:
    plain = ["import jax", "import jax.numpy as jnp"] if "jax." in text else ["import jax.numpy as jnp"]
    parts = ["from flax import nnx", "from safetensors.numpy import load_file"]
    parts += [line for line in code.imports if line.startswith("from ")]
    return "\n".join(["import functools", "", *plain, *sorted(parts)])
