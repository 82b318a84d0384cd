"""Mean squared gradients on a sample of the old domain: how much it cares about each weight."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from nestling.continual.baselines.method import moving
from nestling.models import HopeForCausalLM

Labels = Callable[[Tensor, Tensor], Tensor]  # from logits [P, V] and the next tokens [P]


def of_the_text(logits: Tensor, following: Tensor) -> Tensor:
    """The tokens that follow: squares of the training loss's gradients."""
    return following


def of_the_model(seed: int) -> Labels:
    """Drawn from the model's own predictions: squares whose mean is the diagonal of the Fisher information.

    Drawn apart for each token, so that the gradients of two tokens are uncorrelated, and the square of a chunk's
    gradient has the sum of the tokens' squares as its mean.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(logits: Tensor, following: Tensor) -> Tensor:
        return torch.multinomial(logits.softmax(-1).cpu(), 1, generator=generator)[:, 0].to(following.device)

    return draw


def mean_squares(model: HopeForCausalLM, old: Tensor, length: int, labels: Labels) -> list[Tensor]:
    """For each weight that moves the mean over chunks of `length` tokens of `old [N]` of the loss's squared gradient.

    Raises:
        ValueError: the sample has no whole chunk.
    """
    count = len(old) // length
    if count < 1:
        raise ValueError(f"the sample of the old domain has {len(old)} tokens; give at least {length}, one chunk")
    weights = moving(model)
    sums = [torch.zeros_like(weight) for weight in weights]
    for chunk in old[: count * length].view(count, length):
        logits = model(chunk[None, :-1]).logits[0]
        loss = F.cross_entropy(logits, labels(logits.detach(), chunk[1:]))
        found = torch.autograd.grad(loss, weights, allow_unused=True)
        for total, gradient in zip(sums, found, strict=True):
            if gradient is not None:
                total.addcmul_(gradient, gradient, value=1 / count)
    return sums


def mean(tensors: list[Tensor]) -> Tensor:
    """Over all their entries."""
    return torch.stack([tensor.sum() for tensor in tensors]).sum() / sum(tensor.numel() for tensor in tensors)
