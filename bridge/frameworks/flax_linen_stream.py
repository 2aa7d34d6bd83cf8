"""The linen module that streams an imported model."""

from __future__ import annotations

from typing import Any

from flax import linen as nn

from bridge.frameworks.flax_stream import Plan


class LinenStream(nn.Module):  # type: ignore[misc]
    """`net` over chunks, as bridge.flax_stream says; its variables are those of `net`."""

    net: nn.Module
    plan: Plan

    def setup(self) -> None:
        """Give the variables of `net` no level of their own."""
        nn.share_scope(self, self.net)

    def __call__(self, /, *args: Any, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Chunks [chunks, ...] and initial states by name -> (stacked outputs, final states by input name)."""
        chunks, carry = self.plan.start(args, kwargs)
        if self.is_initializing():
            # Outside of the scan, where linen can draw parameters.
            self.net(**{name: value[0] for name, value in chunks.items()}, **carry)
        module, variables = self.net.unbind()
        return self.plan.run(lambda **feeds: module.apply(variables, **feeds), chunks, carry)
