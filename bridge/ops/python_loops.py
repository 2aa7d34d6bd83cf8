"""A scan and a while loop in Python, for backends that run eagerly."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bridge.ops.backend import Array, Values


def python_scan(
    body: Callable[[Values, Values], tuple[Values, Values]],
    carry: Values,
    xs: Values,
    reverse: bool,
    stack: Callable[[Sequence[Array]], Array],
) -> tuple[Values, Values]:
    """Run `body(carry, x) -> (carry, y)` over axis 0 of `xs`; `stack` joins the ys, in the order of xs."""
    steps = int(xs[0].shape[0])
    rows = []
    for at in range(steps - 1, -1, -1) if reverse else range(steps):
        carry, row = body(carry, tuple(x[at] for x in xs))
        rows.append(row)
    rows = rows[::-1] if reverse else rows
    return carry, tuple(stack(column) for column in zip(*rows, strict=True))


def python_while(holds: Callable[[Values], Array], step: Callable[[Values], Values], carry: Values) -> Values:
    """Run `step` on `carry` as long as it `holds`."""
    while bool(holds(carry)):
        carry = step(carry)
    return carry
