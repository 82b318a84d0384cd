"""What a method of online adaptation is."""

from __future__ import annotations

from typing import Protocol, TypeVar

from torch import Tensor, nn
from torch.nn import functional as F

from nestling.models import HopeForCausalLM

S = TypeVar("S")


class Method(Protocol[S]):
    """How a model's weights follow a stream. A method is a value; what changes is the model and a state `S`."""

    def prepare(self, model: HopeForCausalLM, old: Tensor) -> S:
        """The state before the first chunk, from a sample `old [N]` of what the model knows (`[0]`: there is none).

        It may add weights to the model, as long as the model computes what it did.
        """
        ...

    def step(self, model: HopeForCausalLM, state: S, chunk: Tensor, loss: Tensor) -> S:
        """Move the model by the mean `loss` (with its graph) of `chunk [P + 1]`: P inputs, and the last one's label."""
        ...

    def own(self, model: HopeForCausalLM, state: S) -> list[Tensor]:
        """What has to be kept for each user; what all users share (starting weights, the old sample) is not in it."""
        ...


def moving(model: nn.Module) -> list[nn.Parameter]:
    """The weights that are not frozen."""
    return [weight for weight in model.parameters() if weight.requires_grad]


def apart(model: HopeForCausalLM, chunk: Tensor) -> Tensor:
    """Mean loss in nats of `chunk [P + 1]`, read as a context of its own."""
    return F.cross_entropy(model(chunk[None, :-1]).logits[0], chunk[1:])
