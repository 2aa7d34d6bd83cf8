"""The shape of the package: which part may import which, and where each heavy library is allowed in."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "bridge"

LAYERS = (
    ("cli", "__main__", "demo", "doctor"),
    ("verification", "frameworks", "nnx", "keras", "fetch", "known_models"),
    ("runtime", "ops", "graph"),
    ("layout", "reference"),
    ("cell", "schema_files"),
    ("errors",),
)
"""Highest first: a part imports its own row and the rows below it."""

FORBIDDEN_IN_ROW = {("graph", "ops"), ("graph", "runtime"), ("frameworks", "verification"), ("ops", "runtime")}
"""Within a row too, these do not look at each other."""

DOORS = {
    "onnx": ("graph/",),
    "onnx_ir": ("graph/",),
    "onnxscript": ("graph/",),
    "onnxruntime": ("runtime/",),
    "torch": ("frameworks/torch", "frameworks/checkpoint", "ops/backend_torch"),
    "keras": ("frameworks/keras", "ops/backend_keras"),
    "tensorflow": ("frameworks/keras", "ops/backend_keras"),
    "h5py": ("frameworks/keras",),
    "jax": ("frameworks/flax_", "ops/backend_jax"),
    "flax": ("frameworks/flax_",),
}
"""Where each heavy library may be imported, by the beginning of the path inside the package."""


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def imports(tree: ast.AST, *, typing_only: bool = False) -> Iterator[str]:
    """Names of imported modules, those under `if TYPE_CHECKING` left out."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for other in node.orelse:
                yield from imports(other)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            yield from (f"{base}.{alias.name}" for alias in node.names)
        else:
            yield from imports(node)


def part(dotted: str) -> str | None:
    pieces = dotted.split(".")
    return pieces[1] if pieces[0] == "bridge" and len(pieces) > 1 else None


def rank(name: str) -> int | None:
    return next((at for at, row in enumerate(LAYERS) if name in row), None)


def test_every_part_has_a_place_in_the_order() -> None:
    parts = {path.stem if path.suffix else path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"}
    placed = {name for row in LAYERS for name in row}
    assert parts - {"__init__", "py"} - placed == set()


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_dependencies_point_one_way(path: Path) -> None:
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if own == "__init__":
        return
    for name in imports(ast.parse(path.read_text())):
        other = part(name)
        if other is None or other == own or rank(other) is None:
            continue
        assert rank(own) <= rank(other), f"{path} imports {name} from above"
        assert (own, other) not in FORBIDDEN_IN_ROW, f"{path} imports {name}"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_heavy_libraries_enter_by_their_doors_only(path: Path) -> None:
    inside = path.relative_to(PACKAGE).as_posix()
    for name in imports(ast.parse(path.read_text())):
        top = name.partition(".")[0]
        if top in DOORS:
            assert inside.startswith(DOORS[top]), f"{inside} imports {name}"


def loaded_by(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.split())


HEAVY = {*DOORS, "array_api_compat", "safetensors", "typer", "rich"}


@pytest.mark.parametrize(
    "statement",
    [
        "import bridge",
        "import bridge; bridge.layouts()",
        "import bridge.frameworks.conversion as c; [c.door(name) for name in c.DOORS]",
    ],
)
def test_importing_costs_numpy_and_nothing_heavy(statement: str) -> None:
    assert loaded_by(statement) & HEAVY == set()


def test_the_import_test_can_fail() -> None:
    assert "onnx" in loaded_by("import bridge, onnx") & HEAVY
