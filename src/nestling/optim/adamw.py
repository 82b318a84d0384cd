"""Adam's direction, for what a matrix optimiser leaves over: embeddings, norms, biases and heads."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nestling.memory.part import Part, remembered


def adamw(
    gradients: list[Tensor],
    means: list[Tensor],
    squares: list[Tensor],
    steps: Sequence[float | Tensor],
    betas: tuple[float, float],
    eps: float,
) -> list[Tensor]:
    """`mhat / (sqrt(vhat) + eps)` of every gradient; `means` and `squares` move on in place.

        m <- beta1 m + (1 - beta1) g        mhat = m / (1 - beta1^t)
        v <- beta2 v + (1 - beta2) g^2      vhat = v / (1 - beta2^t)

    Kingma and Ba 2015; with the shell's decoupled weight decay, AdamW (Loshchilov and Hutter 2019).

    gradients, means, squares: float32 or float64, of equal shapes in turn. steps: each one's `t`, counted from 1.
    For a whole model without matrices, `torch.optim.AdamW(fused=True)` is quicker.
    """
    torch._foreach_lerp_(means, gradients, 1 - betas[0])
    directions = torch._foreach_div(means, root_mean_square(squares, gradients, steps, betas[1], eps))
    torch._foreach_div_(directions, [1 - betas[0] ** t for t in steps])
    return list(directions)


def moments(betas: tuple[float, float]) -> tuple[Part, Part]:
    """The two memories of Adam, which do not need each other."""
    return mean("first moment", "exp_avg", betas[0]), square("second moment", "exp_avg_sq", betas[1])


def mean(name: str, key: str, beta: float) -> Part:
    """An exponential mean of the gradients."""
    return remembered(name, (key,), beta, "-<m, G>", f"m <- {beta:g} m + {1 - beta:.4g} G")


def square(name: str, key: str, beta: float) -> Part:
    """An exponential mean of their squares, or with `beta = 1` the sum."""
    new = f"{1 - beta:.4g} G^2" if beta < 1 else "G^2"
    return remembered(name, (key,), beta, "1/2 |v - G^2|^2", f"v <- {beta:g} v + {new}")


def root_mean_square(
    squares: list[Tensor], gradients: list[Tensor], steps: Sequence[float | Tensor], beta: float, eps: float
) -> list[Tensor]:
    """`sqrt(vhat) + eps` of every gradient. With `beta = 1`, `v <- v + g^2`: the root of the sum, nothing forgotten."""
    torch._foreach_mul_(squares, beta)
    torch._foreach_addcmul_(squares, gradients, gradients, value=1 - beta if beta < 1 else 1.0)
    roots = torch._foreach_sqrt(squares)
    if beta < 1:
        torch._foreach_div_(roots, [(1 - beta**t) ** 0.5 for t in steps])
    torch._foreach_add_(roots, eps)
    return list(roots)
