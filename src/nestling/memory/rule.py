"""How a memory moves: a rule turns a learning rate and a weight's input into an erasure and a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Rule(Protocol):
    """A learning rule of a memory that is written token by token."""

    @property
    def momentum(self) -> bool:
        """Whether a running mean of the writes is added instead of each."""
        ...

    def factors(self, eta: Tensor, x: Tensor) -> tuple[Tensor | None, Tensor]:
        """`eps` (None: nothing is erased) and the step on the surprise, `[.., L]`, for `eta [.., L]`, `x [.., L, in]`."""
        ...


@dataclass(frozen=True)
class GradientDescent:
    """`W <- alpha W - eta x^T delta`.

    momentum: what is added is `S <- theta S - (1 - theta) eta x^T delta`, a running mean of the writes: as large as a
        write whatever `theta` is. The printed sum (Eq. 88) is the same with the rate `eta / (1 - theta)`.
    """

    momentum: bool = False

    def factors(self, eta: Tensor, x: Tensor) -> tuple[Tensor | None, Tensor]:
        return None, eta


@dataclass(frozen=True)
class DeltaGradientDescent:
    """Delta gradient descent (Eq. 57, 88): a step that also erases what the weight holds in the direction of its input.

    exact: the proximal step `beta = eta / (1 + eta |x|^2)` (Eq. 56 solved without approximation, Appendix C), whose
        erasure is a contraction for every `eta >= 0`. False is the printed form, `beta = eta`, which is not.
    momentum: a running mean of the writes, as of `GradientDescent`; the erasure acts at once.

    It is a rule of memories, written token by token, and of levels (`nestling.Level`), which move once for many tokens.
    """

    exact: bool = True
    momentum: bool = False

    def factors(self, eta: Tensor, x: Tensor) -> tuple[Tensor | None, Tensor]:
        step = eta / (1 + eta * x.square().sum(-1)) if self.exact else eta.expand(x.shape[:-1])
        return step, step

    def direction(self, gradient: Tensor, weight: Tensor, moment: Tensor, rate: float) -> Tensor:
        """`(G + W C) (I + rate C)^-1`, the step of many tokens at once before `-rate`, `[.., out, in]`.

        gradient: `G`, the mean of `u x^T [.., out, in]`. weight: `W [.., out, in]`. moment: `C`, the mean of `x x^T [.., in, in]`.

        Eq. 56 with the mean of the tokens' objectives is quadratic, and the tokens are in it by `G` and `C` alone:

            argmin_V  E[1/2 |V x + u|^2] + 1/(2 rate) |V - W|^2  =  (W - rate G) (I + rate C)^-1

        For one token it is Eq. 57. The erasure, `(I + rate C)^-1`, is a contraction for every `rate >= 0`. (The average of the
        tokens' own steps, which `nestling.optim.DGD` takes, is another step beyond first order in the rate.) With
        `exact=False` it is `G + W C`, the mean of the printed steps, which expands where `rate C` has an eigenvalue above 2.
        """
        slope = gradient + weight @ moment
        if not self.exact:
            return slope
        system = torch.eye(moment.shape[-1], dtype=moment.dtype, device=moment.device) + rate * moment
        return torch.linalg.solve_ex(system, slope.mT)[0].mT  # no check: what is not finite is refused later


@dataclass(frozen=True)
class RetainSeen:
    """Retention over what was seen: a step that changes least what the weight did with its past inputs.

    The instance of generalised gradient descent (Def. 5) whose retention is `1/2 tr(dW A dW^T)`, with
    `A = a I + E[x x^T]` over the inputs the weight has seen, scaled to unit mean square. The step becomes `a G A^-1`:
    whole in directions never used, small in well-trodden ones. Relatives: recursive least squares, OWM
    (Zeng et al. 2019), K-FAC's input factor, online Laplace (Ritter et al. 2018).

    It is a rule of levels (`nestling.Level`), which gather a gradient over many tokens before they move.

    damping: `a > 0`. Large is plastic (plain descent in the limit), small is persistent.
    forgetting: in (0, 1], the factor on what was seen at each update of the level; 1 never forgets.
    """

    damping: float = 1e-2
    forgetting: float = 1.0

    def __post_init__(self) -> None:
        if not self.damping > 0:
            raise ValueError(f"damping={self.damping} must be above 0: it is the least curvature of any direction")
        if not 0 < self.forgetting <= 1:
            raise ValueError(f"forgetting={self.forgetting} must be in (0, 1]; 1.0 never forgets")

    def direction(self, gradient: Tensor, seen: Tensor, count: Tensor) -> Tensor:
        """`a G A^-1`, `[.., out, in]`.

        gradient: `[.., out, in]`. seen: `[.., in, in]`, the sum of `x x^T`; count: `[..]`, its number of tokens.
        Where nothing was seen yet the gradient comes back unchanged.
        """
        width = seen.shape[-1]
        mean = seen / count.clamp_min(1.0)[..., None, None]
        scale = mean.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
        unit = mean / scale.clamp_min(torch.finfo(seen.dtype).tiny)
        system = unit + self.damping * torch.eye(width, dtype=seen.dtype, device=seen.device)
        return self.damping * torch.linalg.solve(system, gradient.mT).mT
