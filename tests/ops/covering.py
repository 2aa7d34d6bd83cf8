"""A small set of cases in which every choice of values of every two (or three) factors occurs, where it can.

Unlike tests.pairs it knows factors that only mean something beside certain values of another one.
"""

from __future__ import annotations

from itertools import combinations, product
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

Row = dict[str, Any]
Choice = tuple[tuple[str, Any], ...]
Factors: TypeAlias = "Mapping[str, Sequence[Any]]"
"""Values are hashable and never None."""
Needs: TypeAlias = "Mapping[str, Callable[[Any], Mapping[str, Sequence[Any]]]]"
"""By factor: from its value to the values that other factors must have for it to mean anything."""

CANDIDATES = 12
"""Random completions of an uncovered choice, of which the one that covers most is kept."""


def cover(factors: Factors, needs: Needs, strength: int, rng: np.random.Generator) -> list[Row]:
    """Rows that hold every possible choice of `strength` values; a factor that means nothing in a row is None."""
    missing = choices(factors, needs, strength)
    rows = []
    while missing:
        seed = next(iter(missing))
        candidates = [_completed(dict(seed), factors, needs, rng) for _ in range(CANDIDATES)]
        new = [[choice for choice in held(row, strength) if choice in missing] for row in candidates]
        best = max(range(CANDIDATES), key=lambda at: len(new[at]))
        for choice in new[best]:
            del missing[choice]
        rows.append({name: candidates[best].get(name) for name in factors})
    return rows


def choices(factors: Factors, needs: Needs, strength: int) -> dict[Choice, None]:
    """Every choice of values that one row can hold, in a fixed order."""
    every: dict[Choice, None] = {}
    for names in combinations(factors, strength):
        for values in product(*(factors[name] for name in names)):
            choice = tuple(zip(names, values, strict=True))
            if _allowed(dict(choice), factors, needs) is not None:
                every[choice] = None
    return every


def held(row: Mapping[str, Any], strength: int) -> list[Choice]:
    """The choices of a row, whose factors stand in their order."""
    return list(combinations([item for item in row.items() if item[1] is not None], strength))


def _allowed(row: Mapping[str, Any], factors: Factors, needs: Needs) -> dict[str, Sequence[Any]] | None:
    """The values that are left to every factor beside those of `row`; None where one has none left."""
    left = {name: (row[name],) if name in row else values for name, values in factors.items()}
    for name, value in row.items():
        for other, wanted in needs[name](value).items() if name in needs else ():
            left[other] = tuple(each for each in left[other] if each in wanted)
    return left if all(left.values()) else None


def _completed(row: Row, factors: Factors, needs: Needs, rng: np.random.Generator) -> Row:
    """`row` with a random value of every other factor, those left out that mean nothing; in the order of `factors`."""
    for name in (str(each) for each in rng.permutation([name for name in factors if name not in row])):
        possible = [value for value in (_allowed(row, factors, needs) or {})[name]
                    if _allowed({**row, name: value}, factors, needs) is not None]  # fmt: skip
        if possible:
            row[name] = possible[int(rng.integers(len(possible)))]
    return {name: row[name] for name in factors if name in row}
