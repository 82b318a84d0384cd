"""No adaptation: what every method is measured against."""

from __future__ import annotations

from torch import Tensor

from nestling.models import HopeForCausalLM


class Frozen:
    """Reads, and moves nothing."""

    def prepare(self, model: HopeForCausalLM, old: Tensor) -> None:
        """Freeze the weights, so that no step prepares a gradient."""
        model.requires_grad_(False)

    def step(self, model: HopeForCausalLM, state: None, chunk: Tensor, loss: Tensor) -> None:
        """Nothing."""

    def own(self, model: HopeForCausalLM, state: None) -> list[Tensor]:
        """Nothing."""
        return []
