"""One weight's scan over the tokens of a block, and its gradient. See `nestling.memory.fused` for the equations.

G matrices side by side, of which S differ where memories share keys and gates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from nestling.memory.fused.flat import below, dots, flat, shared, spread
from nestling.memory.fused.memo import Memo
from nestling.ops.triangular import unit_lower_inverse

Leads = tuple[Sequence[int], Sequence[int]]  # rows, memories and heads of the S matrices, and of all G


class Gates(NamedTuple):
    """eta, alpha, and what is left of the start before each token, `A_{t-1}`: `[S, n, 1]`; after the last: `[S, 1, 1]`."""

    eta: Tensor
    alpha: Tensor
    before: Tensor
    end: Tensor

    @classmethod
    def of(cls, eta: Tensor, alpha: Tensor, lead: Sequence[int]) -> Gates:
        """Of gates `[.., n]`, for all of `lead`."""
        eta, alpha = (flat(x[..., None], lead) for x in (eta, alpha))
        log = alpha.log()
        after = log.cumsum(-2)
        return cls(eta, alpha, (after - log).exp(), after[:, -1:].exp())

    def spread(self, few: Sequence[int], many: Sequence[int]) -> Gates:
        """For each of those that share them."""
        return Gates(*(spread(x, few, many) for x in self))


class Steps(NamedTuple):
    """Numbers a token, `[S, n, 1]`."""

    damped: Tensor  # 1 / (1 + eta |x|^2)
    beta: Tensor  # eta damped
    erasure: Tensor  # beta / alpha
    step: Tensor  # -erasure / before

    @classmethod
    def of(cls, gates: Gates, gram: Tensor) -> Steps:
        damped = (gates.eta * gram.diagonal(dim1=-2, dim2=-1)[..., None]).add_(1).reciprocal_()
        beta = gates.eta * damped
        erasure = beta / gates.alpha
        return cls(damped, beta, erasure, (erasure / gates.before).neg_())


class Scan(NamedTuple):
    """Inputs `x [S, n, d]`, and what follows of them; `write [G, n, d]` of the weights."""

    x: Tensor
    gates: Gates
    gram: Tensor  # x x^T
    steps: Steps
    inverse: Tensor  # of I + strictly_lower(erasure x x^T)
    write: Tensor  # inverse step (surprise + before found)


def scan(x: Tensor, gates: Gates, leads: Leads, mixture: Callable[[], Tensor], memo: Memo) -> Scan:
    """mixture: surprise + before found, `[G, n, d]`, what the weights held for x being `found = x W_0`."""
    gram = memo.cheap(lambda: torch.bmm(x, x.mT))
    steps = memo.few(Steps, lambda: Steps.of(gates, gram))
    inverse = memo(lambda: unit_lower_inverse(steps.erasure * gram))
    write = memo.cheap(lambda: torch.bmm(spread(inverse * steps.step.mT, *leads), mixture()))
    return Scan(x, gates, gram, steps, inverse, write)


class AtScan(NamedTuple):
    """Gradients: at x as a matrix to multiply it with, at the mixture, and at the gates; `before` and `log` alpha as logarithms."""

    x: Tensor  # [S, n, n]
    mixture: Tensor  # [G, n, d]
    eta: Tensor  # [S, n, 1]
    before: Tensor  # [S, n, 1]
    log: Tensor  # [S, n, 1]


def scan_backward(scan: Scan, at_write: Tensor, surprise: Tensor, found: Tensor, leads: Leads) -> AtScan:
    """surprise, found: the mixture's parts, `[G, n, d]`."""
    (x, gates, gram, (damped, beta, erasure, step), inverse, write), (few, many) = scan, leads
    at_mixed = torch.bmm(spread(inverse, few, many).mT, at_write)  # what the inverse is multiplied with
    at_system = shared(torch.bmm(at_mixed, write.mT), many, few).mul_(below(x.shape[-2], x, -1.0))
    felt = shared(dots(at_mixed, surprise), many, few)
    missed = torch.addcdiv(shared(dots(at_mixed, found), many, few), felt, gates.before)
    at_erasure = (at_system * gram).sum(-1, keepdim=True).sub_(missed)
    at_log = (at_erasure * erasure).neg_()
    one_sided = at_system.mul_(erasure)
    at_x = one_sided + one_sided.mT  # x stands on both sides of the Gram matrix, and on its diagonal in the damping
    at_x.diagonal(dim1=-2, dim2=-1).copy_((at_log * beta).mul_(2).squeeze(-1))
    at_mixture = at_mixed.mul_(spread(step, few, many))
    at_eta = at_erasure * damped.square() / gates.alpha
    return AtScan(at_x, at_mixture, at_eta, (step * felt).neg_(), at_log)
