"""Every primitive that is carried, and its rule."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Final

from bridge.frameworks.flax_whole import elementwise, gathers, loops, norms, products, recurrence, reductions, shapes
from bridge.frameworks.flax_whole.walk import Rule

FAMILIES: Final = (elementwise.RULES, shapes.RULES, products.RULES, reductions.RULES, gathers.RULES, recurrence.RULES,
                   norms.RULES)  # fmt: skip


def rules() -> Mapping[str, Rule]:
    """The table. Rules of loops lower their bodies by the same table."""
    table: dict[str, Rule] = {}
    for family in FAMILIES:
        table.update(family)
    for name, rule in loops.CONTROL.items():
        table[name] = partial(rule, rules=table)
    return MappingProxyType(table)
