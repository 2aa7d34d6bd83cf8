"""The nnx module that streams an imported model."""

from __future__ import annotations

from typing import Any

from flax import nnx

from bridge.frameworks.flax_stream import Plan


class NnxStream(nnx.Module):  # type: ignore[misc]
    """`net` over chunks, as bridge.flax_stream says; `net` holds the parameters."""

    def __init__(self, net: nnx.Module, plan: Plan) -> None:
        self.net, self.plan = net, plan

    def __call__(self, /, *args: Any, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Chunks [chunks, ...] and initial states by name -> (stacked outputs, final states by input name)."""
        return self.plan.run(self.net, *self.plan.start(args, kwargs))
