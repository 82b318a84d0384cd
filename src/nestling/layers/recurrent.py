"""Self-modifying Titans with chunks of one token: the recurrence itself (Eq. 83-88), one function of tensors a token.

Five memories stand side by side and rows of the batch come last in every tensor: a product with a matrix of a few
numbers is then a sum of products of contiguous vectors, and a weight changes by one outer product.

M memories (k, v, eta, alpha, and the one that answers), B batch, L length, H heads, d head width, h hidden width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from nestling.layers.gates import rates
from nestling.memory.objective import Objective
from nestling.memory.rule import Rule
from nestling.ops.silu import silu_and_slope
from nestling.ops.unit import unit

KEY, VALUE, RATE, DECAY, ANSWER = range(5)  # the memories
Weights = tuple[Tensor, Tensor]
TokenStep = Callable[..., tuple[Tensor, Weights]]


def token_step(
    looks: Tensor,
    weights: Weights,
    rest: Weights | None,
    direction: Tensor,
    bias: Tensor,
    objective: Objective,
    rule: Rule,
) -> tuple[Tensor, Weights]:
    """Read all memories and rewrite them: one token, no branch on data, nothing that waits for a device.

    Args:
        looks: `[M, H, d, B]`, unit norm: what each memory is read at.
        weights: `[M, H, d, h, B]` and `[M, H, h, d, B]`, up and down of every memory.
        rest: what the weights fade to, `[M, H, in, out, 1]` each; None is zero.
        direction, bias: of the gates, `[2, H, d]` and `[2, H]`.
        objective, rule: of every memory's writing; a rule without momentum.

    Returns:
        The answer `[H, d, B]` and the new weights.
    """
    up, down = weights
    answers = looks + times(F.silu(times(looks, up)), down)
    k, v, rate, decay = unit(answers[:ANSWER].mT).mT.unbind(0)
    eta, alpha = rates(rate.mT, decay.mT, direction, bias)
    target = unit((v + times(F.silu(times(v, up)), down)).mT)  # every memory's own, a constant to what follows
    z = times(k, up)
    a, slope = silu_and_slope(z)
    o = times(a, down)
    at_output = objective.surprise((k + o).mT, target).mT
    at_hidden = times(at_output, down.transpose(-3, -2)) * slope
    rest_up, rest_down = rest or (None, None)
    up = faded(up, rest_up, alpha) - write(k, z, at_hidden, eta, rule)
    down = faded(down, rest_down, alpha) - write(a, o, at_output, eta, rule)
    return answers[ANSWER], (up, down)


def times(x: Tensor, weight: Tensor) -> Tensor:
    """`[.., in, B]` times `[M, H, in, out, B]`: `[M, H, out, B]`."""
    return (x.unsqueeze(-2) * weight).sum(-3)


def faded(weight: Tensor, rest: Tensor | None, alpha: Tensor) -> Tensor:
    """What a token retains of a weight, `alpha [H, B]`."""
    alpha = alpha[:, None, None]
    return alpha * weight if rest is None else rest + alpha * (weight - rest)


def write(x: Tensor, output: Tensor, surprise: Tensor, eta: Tensor, rule: Rule) -> Tensor:
    """What a token takes from a weight with input `x` and `output = x W`: `x^T (eps x W + step surprise)`."""
    eps, step = rule.factors(eta, x.mT)
    change = step.unsqueeze(-2) * surprise
    if eps is not None:
        change = change + eps.unsqueeze(-2) * output
    return x.unsqueeze(-2) * change.unsqueeze(-3)


def token_by_token(
    step: Callable[[Tensor, Weights], tuple[Tensor, Weights]], looks: Tensor, weights: Weights, mask: Tensor | None
) -> tuple[Tensor, Weights]:
    """A whole call: `looks [B, M, H, L, d]`, `weights [B, M, H, in, out]`, `mask [B, L]` of real tokens (None: all).
    `step` is `token_step` with all but looks and weights given.

    Returns:
        The answers `[B, H, L, d]`, zero at padding, and the weights after each row's last real token.
    """
    tokens = looks.permute(3, 1, 2, 4, 0).contiguous().unbind(0)
    up, down = (w.movedim(0, -1).contiguous() for w in weights)
    answers = []
    for t, token in enumerate(tokens):
        answer, moved = step(token, (up, down))
        if mask is not None:
            real = mask[:, t]
            answer = torch.where(real, answer, 0.0)
            moved = torch.where(real, moved[0], up), torch.where(real, moved[1], down)
        up, down = moved
        answers.append(answer)
    return torch.stack(answers).permute(3, 1, 0, 2), (up.movedim(-1, 0), down.movedim(-1, 0))
