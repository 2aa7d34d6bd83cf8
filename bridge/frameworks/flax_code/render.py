"""From what was written to the text of model.py: names, folded expressions, shape comments, lines that fit."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from bridge.frameworks.flax_code.code import TOKEN, Code, Function, Statement, jax_name
from bridge.frameworks.flax_code.helpers import HELPERS
from bridge.frameworks.flax_code.operands import Dims, Tensor
from bridge.frameworks.flax_code.walking import Written

WIDTH: Final = 120
"""Columns."""

FOLDED: Final = 88
"""An expression is folded into the one line that reads it up to this width."""

IMPORTED: Final = frozenset({"jax", "jnp", "nnx", *HELPERS})
"""Names that the code of a call uses."""

ACTIVATIONS: Final = re.compile(r"^(-|~|jax\.nn\.\w+\(|jnp\.(tanh|abs|exp|log|sqrt|clip|maximum|minimum)\()§\d+§")
"""Expressions that read well around the call that makes their input."""

MOVES: Final = re.compile(r"^§\d+§(\.(transpose|reshape|squeeze|astype)\([^§]*\)|\[[^§]*\])+$")
"""Expressions that only arrange one tensor: they may stand inside or around others."""

ATOMIC: Final = re.compile(r"^[\w.§<>]+(\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)|\[[^\[\]]*\]|\.\w+)*$")
"""Expressions that need no parentheses."""

CALLED: Final = re.compile(r"[\w\])].$")
"""What stands before a bracket that calls or indexes, and the bracket."""

LAYER: Final = re.compile(r"self\.<(\d+)>")


@dataclass(frozen=True, slots=True)
class Line:
    """One statement with names, or an empty line."""

    text: str
    comment: str = ""
    indent: int = 0
    """Columns from the statements of the call."""


def body(written: Written) -> list[Line]:
    """The lines of `__call__`, with the return at the end."""
    results = tuple(written.outputs.values())
    statements = _folded(_live(written.code.blocks[0], results), results)
    names: dict[int, str] = {}
    for tensor in written.inputs.values():
        names[tensor.number] = free_name(tensor.hint, {"self", *names.values()})
    _name(statements, results, names, {"self", *names.values()})
    return _lines(written.code, statements, results, names, 0)


def _lines(code: Code, statements: list[Statement], results: Sequence[str], names: dict[int, str],
           indent: int) -> list[Line]:  # fmt: skip
    lines: list[Line] = []
    last = ""
    for statement in statements:
        target, comment = _named(statement.target, names), _comment(statement)
        if isinstance(statement, Function):
            parameters = ", ".join(names[tensor.number] for tensor in statement.parameters)
            lines += [Line("")] if lines and lines[-1].text else []
            lines += [Line(f"def {target}({parameters}):", "", indent)]
            lines += [*_lines(code, statement.statements, statement.results, names, indent + 4), Line("")]
            last = ""
            continue
        text = f"{target} = {_named(_layers(code, statement.text), names)}"
        lines.append(Line(text, comment if comment != last else "", indent))
        last = comment
    returned = [_named(_layers(code, text), names) for text in results]
    if len(returned) == 1 and lines and lines[-1].text.startswith(f"{returned[0]} = "):
        only = lines.pop()
        lines.append(Line(f"return {only.text.partition(' = ')[2]}", only.comment, indent))
    else:
        lines.append(Line(f"return {', '.join(returned)}", "", indent))
    return lines


def _tokens(*texts: str) -> list[int]:
    return [int(number) for text in texts for number in TOKEN.findall(text)]


def _read(statement: Statement) -> list[int]:
    """The tensors that a statement reads, in its text or in the body of a function."""
    if not isinstance(statement, Function):
        return _tokens(statement.text)
    inside = [number for each in statement.statements for number in _read(each)] + _tokens(*statement.results)
    made = (*statement.parameters, *(tensor for each in statement.statements for tensor in each.makes))
    own = {tensor.number for tensor in made}
    return [number for number in inside if number not in own]


def _live(statements: list[Statement], results: Sequence[str]) -> list[Statement]:
    """The statements that a result needs; parts of patterns that nobody reads become `_`."""
    needed = set(_tokens(*results))
    kept = []
    for statement in reversed(statements):
        if any(tensor.number in needed for tensor in statement.makes):
            if isinstance(statement, Function):
                statement.statements = _live(statement.statements, statement.results)
            needed.update(_read(statement))
            kept.append(statement)
    for statement in kept:
        for tensor in statement.makes:
            if tensor.number not in needed:
                statement.target = statement.target.replace(tensor.token, "_")
        nothing_carried = re.fullmatch(r"[(_, )]+, (§\d+§)", statement.target)
        if nothing_carried and statement.text.endswith(", return_carry=True)"):
            statement.target = nothing_carried[1]
            statement.text = statement.text.replace(", return_carry=True", "")
    return kept[::-1]


def _folded(statements: list[Statement], results: Sequence[str]) -> list[Statement]:
    """Expressions read once put into the line that reads them, where that stays easy to read."""
    uses = Counter(number for statement in statements for number in _read(statement))
    elsewhere = Counter(_tokens(*results))  # in a result, or in a function, which would compute it in every step
    for function in (each for each in statements if isinstance(each, Function)):
        elsewhere.update(_read(function))
        function.statements = _folded(function.statements, function.results)
    kept: dict[int, Statement] = {}
    for statement in statements:
        for number in reversed(_tokens(statement.text)):
            before = kept.get(number)
            if before is None or uses[number] != 1 or elsewhere[number]:
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


def _name(statements: list[Statement], results: Sequence[str], names: dict[int, str], taken: set[str]) -> None:
    """Put a name for each tensor into `names`: what it would like, or one near it, where nobody alive has it.

    Args:
        statements: of the call, or of one function in it.
        results: what they give back.
        names: those that are given already.
        taken: names that stay what they are.
    """
    last: dict[int, int] = {}
    functions = {each.makes[0].number: _read(each) for each in statements if isinstance(each, Function)}
    for at, statement in enumerate(statements):
        for number in _read(statement):
            last |= dict.fromkeys([number, *functions.get(number, ())], at)
    last |= dict.fromkeys(_tokens(*results), len(statements))
    for at, statement in enumerate(statements):
        for tensor in statement.makes:
            alive = {names[n] for n, end in last.items() if n in names and end > at}
            made = {names[each.number] for each in statement.makes if each.number in names}
            names[tensor.number] = free_name(tensor.hint, alive | taken | made)
        if isinstance(statement, Function):
            _name_function(statement, names)


def _name_function(function: Function, names: dict[int, str]) -> None:
    """Names inside a function: none of them is one that it reads from outside."""
    outer = {"self", *(names[number] for number in _read(function))}
    for tensor in function.parameters:
        given = {names[each.number] for each in function.parameters if each.number in names}
        names[tensor.number] = free_name(tensor.hint, outer | given)
    _name(function.statements, function.results, names, outer)


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
    dtype = "" if tensor.dtype == np.float32 else jax_name(tensor.dtype).rstrip("_")
    return f"# {dtype}{sizes_text(tensor.dims)}"


def sizes_text(dims: Dims) -> str:
    """Sizes in brackets, `?` for one that a value of the code holds, nothing where not even the rank is known."""
    return "" if dims is None else f"[{', '.join('?' if TOKEN.search(str(dim)) else str(dim) for dim in dims)}]"


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
    is_call = bool(CALLED.search(head)) and not line.startswith("return (")
    parts = _arguments(inner)
    # A comma behind the only thing in parentheses that call nothing would make a tuple of it.
    comma = "" if head[-1] == "(" and not is_call and len(parts) == 1 and not inner.endswith(",") else ","
    inner = inner.removesuffix(",")
    if is_call and len(space) + 4 + len(inner) <= WIDTH:
        return f"{space}{head}\n{space}    {inner}\n{space}{tail}"
    lines = "".join(f"{fitted(f'{part}{comma}', indent + 4)}\n" for part in parts)
    return f"{space}{head}\n{lines}{space}{tail}"


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
    """What stands between the commas that are in no further brackets and in no string.

    >>> _arguments('"ab,bc->ac", f(x, y)')
    ['"ab,bc->ac"', 'f(x, y)']
    """
    depth, quoted, parts = 0, False, [""]
    for letter in inner:
        quoted ^= letter == '"'
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0 and not quoted:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]
