"""How answers are judged. `found` and `targets` are `[B, L]` int64; a target of IGNORED does not count."""

from __future__ import annotations

import torch
from torch import Tensor

from nestling.evals.exams.task import IGNORED


def accuracy(found: Tensor, targets: Tensor) -> float:
    """The share of the asked symbols that are right (zoology's)."""
    asked = targets != IGNORED
    return (found == targets)[asked].double().mean().item()


def macro_accuracy(found: Tensor, targets: Tensor) -> float:
    """The mean over symbols of the share of each that is found (mad-lab's, torchmetrics' default).

    The mean is over all symbols that are a target or an answer anywhere: one that is only ever answered, and never right,
    counts as 0. Taken over all examples at once, where mad-lab has a mean over batches of 128.
    """
    asked = targets != IGNORED
    found, targets = found[asked], targets[asked]
    size = 1 + int(torch.cat([found, targets]).max())
    right = torch.bincount(targets[found == targets], minlength=size)
    there, said = torch.bincount(targets, minlength=size), torch.bincount(found, minlength=size)
    return (right / there.clamp(min=1))[(there + said) > 0].double().mean().item()


def by_order(found: Tensor, targets: Tensor) -> list[float]:
    """Of what is asked first, second and so on in an example, the share that is right: how a context is used as it grows.

    Of as many places as half of the examples have.
    """
    asked = targets != IGNORED
    order, right = asked.cumsum(1)[asked], (found == targets)[asked]
    count = int(asked.sum(1).double().quantile(0.5))
    return [right[order == place].double().mean().item() for place in range(1, count + 1)]


def exact(found: Tensor, targets: Tensor) -> float:
    """The mean over examples of the share of their answers that are right in every symbol; neighbouring targets are one answer.

    What a model says given the right symbols before is, if all of it is right, what it says by itself.
    """
    shares = []
    for row, wanted in zip((found == targets).tolist(), (targets != IGNORED).tolist(), strict=True):
        answers: list[bool] = []
        for at, (fine, asked) in enumerate(zip(row, wanted, strict=True)):
            if asked and (at == 0 or not wanted[at - 1]):
                answers.append(fine)
            elif asked:
                answers[-1] = answers[-1] and fine
        shares.append(sum(answers) / len(answers))
    return sum(shares) / len(shares)
