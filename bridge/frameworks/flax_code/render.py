"""From what was written to the text of model.py: names, folded expressions, shape comments, lines that fit."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Final

import numpy as np

from bridge.frameworks.flax_code.code import TOKEN, Code, Statement
from bridge.frameworks.flax_code.operands import Dims, Tensor
from bridge.frameworks.flax_code.walking import Written

WIDTH: Final = 120
"""Columns."""

FOLDED: Final = 88
"""An expression is folded into the one line that reads it up to this width."""

IMPORTED: Final = frozenset({"jax", "jnp", "nnx", "zero_padding"})
"""Names that the code of a call uses."""

ACTIVATIONS: Final = re.compile(r"^(-|~|jax\.nn\.\w+\(|jnp\.(tanh|abs|exp|log|sqrt|clip|maximum|minimum)\()§\d+§")
"""Expressions that read well around the call that makes their input."""

MOVES: Final = re.compile(r"^§\d+§(\.(transpose|reshape|squeeze|astype)\([^§]*\)|\[[^§]*\])+$")
"""Expressions that only arrange one tensor: they may stand inside or around others."""

ATOMIC: Final = re.compile(r"^[\w.§<>]+(\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)|\[[^\[\]]*\]|\.\w+)*$")
"""Expressions that need no parentheses."""

LAYER: Final = re.compile(r"self\.<(\d+)>")


@dataclass(frozen=True, slots=True)
class Line:
    """One statement with names."""

    text: str
    comment: str


def body(written: Written) -> list[Line]:
    """The lines of `__call__`, with the return at the end."""
    code = written.code
    statements = _folded(_live(code.statements, written.outputs), written.outputs)
    returns = dict(written.outputs)
    names = _names(statements, written)
    lines, last = [], ""
    for statement in statements:
        comment = _comment(statement)
        text = f"{_named(statement.target, names)} = {_named(_layers(code, statement.text), names)}"
        lines.append(Line(text, comment if comment != last else ""))
        last = comment
    results = [_named(text, names) for text in returns.values()]
    if len(results) == 1 and lines and lines[-1].text.startswith(f"{results[0]} = "):
        only = lines.pop()
        lines.append(Line(f"return {only.text.partition(' = ')[2]}", only.comment))
    else:
        lines.append(Line(f"return {', '.join(results)}", ""))
    return lines


def _tokens(text: str) -> list[int]:
    return [int(number) for number in TOKEN.findall(text)]


def _live(statements: list[Statement], outputs: dict[str, str]) -> list[Statement]:
    """The statements that an output needs; parts of patterns that nobody reads become `_`."""
    needed = {number for text in outputs.values() for number in _tokens(text)}
    kept = []
    for statement in reversed(statements):
        if any(tensor.number in needed for tensor in statement.makes):
            needed.update(_tokens(statement.text))
            kept.append(statement)
    for statement in kept:
        for tensor in statement.makes:
            if tensor.number not in needed:
                statement.target = statement.target.replace(tensor.token, "_")
        if nothing_carried := re.fullmatch(r"[(_, )]+, (§\d+§)", statement.target):
            statement.target = nothing_carried[1]
            statement.text = statement.text.replace(", return_carry=True", "")
    return kept[::-1]


def _folded(statements: list[Statement], outputs: dict[str, str]) -> list[Statement]:
    """Expressions read once put into the line that reads them, where that stays easy to read."""
    uses = Counter(number for statement in statements for number in _tokens(statement.text))
    in_outputs = Counter(number for text in outputs.values() for number in _tokens(text))
    kept: dict[int, Statement] = {}
    for statement in statements:
        for number in reversed(_tokens(statement.text)):
            before = kept.get(number)
            if before is None or uses[number] != 1 or in_outputs[number]:
                continue
            if len(before.makes) == 1 and _reads_well(before.text, statement.text):
                statement.text = _inside(statement.text, before.makes[0].token, before.text)
                del kept[number]
        kept[statement.makes[0].number] = statement
    return list(kept.values())


def _reads_well(inner: str, outer: str) -> bool:
    item = re.fullmatch(r"§\d+§\[\d+\]", inner)
    short = len(inner) + len(outer) <= (WIDTH if item else FOLDED)
    wraps = ACTIVATIONS.match(outer) and inner.count("(") <= 2
    square = inner.startswith("jnp.square(") and inner.count("(") == 1 and "self." not in outer
    residual = re.fullmatch(r"§\d+§ [+*] §\d+§", outer) and LAYER.match(inner) and inner.count("(") == 1
    moves = MOVES.match(inner) and not ("(" in inner and "self." not in outer and outer.count("(") > 1)
    after = MOVES.match(outer) and inner.count("(") <= 1 and not MOVES.match(inner) and ATOMIC.match(inner)
    return bool(short and (wraps or square or residual or moves or after))


def _inside(outer: str, token: str, inner: str) -> str:
    """`outer` with `inner` in the place of a token, in parentheses where something could bind tighter."""
    at = outer.index(token)
    before, after = outer[:at].rstrip()[-1:], outer[at + len(token) :].lstrip()[:1]
    bare = ATOMIC.match(inner) or (before in ("(", ",", "", "=") and after in (")", ",", ""))
    return outer.replace(token, inner if bare else f"({inner})", 1)


def _names(statements: list[Statement], written: Written) -> dict[int, str]:
    """A name for each tensor: what it would like, or `x`, where nobody alive has it."""
    last: dict[int, int] = {}
    for at, statement in enumerate(statements):
        last |= dict.fromkeys(_tokens(statement.text), at)
    last |= dict.fromkeys((n for text in written.outputs.values() for n in _tokens(text)), len(statements))
    names: dict[int, str] = {}
    for tensor in written.inputs.values():
        names[tensor.number] = free_name(tensor.hint, {"self", *names.values()})
    arguments = set(names.values())
    for at, statement in enumerate(statements):
        for tensor in statement.makes:
            alive = {names[n] for n, end in last.items() if n in names and end > at}
            made = {names[each.number] for each in statement.makes if each.number in names}
            names[tensor.number] = free_name(tensor.hint, alive | arguments | made | {"self"})
    return names


def free_name(wanted: str, taken: set[str]) -> str:
    """`wanted`, or the nearest name to it that Python allows and nobody has."""
    wanted = f"{wanted}_" if wanted in IMPORTED else wanted or "value"
    if wanted not in taken:
        return wanted
    return next(name for count in range(2, 10**6) if (name := f"{wanted}{count}") not in taken)


def _named(text: str, names: dict[int, str]) -> str:
    return TOKEN.sub(lambda match: names[int(match[1])], text)


def _layers(code: Code, text: str) -> str:
    by_identity = {str(id(layer)): layer.name for layer in code.layers.values()}
    return LAYER.sub(lambda match: f"self.{by_identity[match[1]]}", text)


def _comment(statement: Statement) -> str:
    """The shape of what a statement makes: of a layer with states, of its outputs."""
    return shape_comment(statement.makes[-1] if len(statement.makes) == 1 else statement.makes[0])


def shape_comment(tensor: Tensor) -> str:
    """`# [batch, time, 400]`, nothing where the shape is not known."""
    if tensor.dims is None:
        return ""
    dtype = "" if tensor.dtype == np.float32 else f"{'int32' if tensor.dtype.kind == 'i' else tensor.dtype.name}"
    return f"# {dtype}{sizes_text(tensor.dims)}"


def sizes_text(dims: Dims) -> str:
    """Sizes in brackets, nothing where not even the rank is known."""
    return "" if dims is None else f"[{', '.join(map(str, dims))}]"


def fitted(line: str, indent: int, comment: str = "") -> str:
    """One statement within WIDTH columns, split at its last brackets as ruff would; the comment where it fits.

    >>> fitted("x = f(a, b)", 4, "# [2]")
    '    x = f(a, b)  # [2]'
    """
    space = " " * indent
    if len(space + line) <= WIDTH:
        whole = f"{space}{line}{'  ' if comment else ''}{comment}"
        return whole if len(whole) <= WIDTH else f"{space}{line}"
    if line.startswith("return "):
        line = f"return ({line.removeprefix('return ')})"
    start, end = _last_brackets(line)
    head, inner, tail = line[: start + 1], line[start + 1 : end], line[end:]
    inner = inner.removesuffix(",")
    is_call = (head[-2:-1].isalnum() or head[-2:-1] in "_])") and not line.startswith("return (")
    if is_call and len(space) + 4 + len(inner) <= WIDTH:
        return f"{space}{head}\n{space}    {inner}\n{space}{tail}"
    parts = "".join(f"{fitted(f'{part},', indent + 4)}\n" for part in _arguments(inner))
    return f"{space}{head}\n{parts}{space}{tail}"


def _last_brackets(line: str) -> tuple[int, int]:
    """Where the last outermost pair of brackets opens and closes."""
    depth, start, found = 0, 0, (0, len(line))
    for at, letter in enumerate(line):
        if letter in "([{":
            start = at if depth == 0 else start
            depth += 1
        elif letter in ")]}":
            depth -= 1
            found = (start, at) if depth == 0 else found
    return found


def _arguments(inner: str) -> list[str]:
    depth, parts = 0, [""]
    for letter in inner:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]
