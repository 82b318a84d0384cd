"""Knowledge editing: other answers to some inputs, in the directions that a model has not used for what it must keep."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nestling.optim.retain import Retained


@dataclass(frozen=True)
class Edit:
    """How an edit went. losses: before each step and after the last. reached: the last one is low enough."""

    losses: list[float]
    reached: bool

    @property
    def steps(self) -> int:
        """How many steps it took."""
        return len(self.losses) - 1


def edit(
    model: nn.Module,
    inputs: Any,
    targets: Any,
    optimizer: torch.optim.Optimizer,
    loss: Callable[[Any, Any], Tensor] = F.cross_entropy,
    until: float = 0.1,
    steps: int = 100,
) -> Edit:
    """Take steps until `loss(model(inputs), targets)` is at most `until`, or `steps` are over.

        optimizer = Retained(torch.optim.SGD(model.parameters(), lr=0.1), model, damping=1e-3)
        with optimizer.observe():
            model(sample_of_what_to_keep)
        edit(model, inputs, targets, optimizer)

    With `Retained` this is knowledge editing in the directions that the sample does not use (AlphaEdit's null space, Fang et
    al. 2025, with all layers and in proportion); with a bare optimiser it is fine-tuning, the baseline. The model is in `eval`
    mode meanwhile. The edited facts are not remembered; to keep them in a later edit, observe them afterwards.

    Do not use it without a sample of what is to be kept, nor where that sample uses every direction of every layer (more
    independent inputs than a layer is wide): then there is nowhere to write.

    Raises:
        ValueError: settings out of range, a `Retained` that has seen nothing, or a loss that is not finite; the model then is
            what it was before.
    """
    if steps < 1 or not until >= 0:
        raise ValueError(f"steps={steps} must be at least 1, and until={until} at least 0")
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with optimizer.pause() if isinstance(optimizer, Retained) else nullcontext():
            return _descend(lambda: loss(model(inputs), targets), optimizer, until, steps)
    except ValueError:
        model.load_state_dict(weights)
        raise
    finally:
        optimizer.zero_grad()
        for module, mode in modes.items():
            module.training = mode


def _descend(loss: Callable[[], Tensor], optimizer: torch.optim.Optimizer, until: float, steps: int) -> Edit:
    losses: list[float] = []
    while True:
        optimizer.zero_grad()
        found = loss()
        if not found.isfinite():
            raise ValueError(f"the loss is {found.item()} after {len(losses)} steps; use a smaller learning rate")
        losses.append(found.item())
        if losses[-1] <= until or len(losses) > steps:
            return Edit(losses, losses[-1] <= until)
        found.backward()
        optimizer.step()
