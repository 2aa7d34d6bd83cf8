"""A small set of cases in which every pair of values of every two factors occurs."""

from __future__ import annotations

from itertools import combinations, product
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Pair = tuple[str, int, str, int]


def all_pairs(factors: Mapping[str, Sequence[Any]], rng: np.random.Generator) -> list[dict[str, Any]]:
    """Greedy pairwise covering: each case is grown from an uncovered pair, factor by factor, covering what it can."""
    missing = pairs_of(factors)
    cases = []
    while missing:
        a, i, b, j = min(missing)
        case = {a: i, b: j}
        rest = [name for name in factors if name not in case]
        for name in rng.permutation(rest):
            gains = [len(_pairs({**case, str(name): at}, str(name)) & missing) for at in range(len(factors[name]))]
            best = np.flatnonzero(np.array(gains) == max(gains))
            case[str(name)] = int(rng.choice(best))
        missing -= {pair for name in case for pair in _pairs(case, name)}
        cases.append({name: factors[name][case[name]] for name in factors})
    return cases


def pairs_of(factors: Mapping[str, Sequence[Any]]) -> set[Pair]:
    """Every pair of values, as (factor, index, factor, index)."""
    return {
        (a, i, b, j)
        for a, b in combinations(sorted(factors), 2)
        for i, j in product(range(len(factors[a])), range(len(factors[b])))
    }


def _pairs(case: Mapping[str, int], name: str) -> set[Pair]:
    other = ((name, case[name], b, case[b]) if name < b else (b, case[b], name, case[name]) for b in case if b != name)
    return set(other)
