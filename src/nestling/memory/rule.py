"""How a memory moves: a rule turns a learning rate and a weight's input into an erasure and a step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from nestling.memory import moments
from nestling.ops.state import where_rows


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
        mean = seen / count.clamp_min(1.0)[..., None, None]
        return self.damping * torch.linalg.solve(damped(mean, self.damping), gradient.mT).mT


@dataclass(frozen=True)
class RetainPredictions:
    """Retention over what was predicted: a step that changes least what the model said about its past.

    `RetainSeen` protects what a weight did with its past inputs, whether or not that mattered to the prediction. Here
    the retention (Def. 5) is the change of the predictions themselves: to second order their divergence is
    `1/2 tr(B dW A dW^T)`, with `A = a I + E[x x^T]` over the weight's inputs and `B = b I + E[g g^T]` over the gradients of
    the token losses with respect to its outputs, each scaled to unit mean square: the two factors of K-FAC (Martens and
    Grosse, arXiv 1503.05671), kept over the old domain as in online Laplace (Ritter et al., arXiv 1805.07810). The step
    becomes `a b B^-1 G A^-1`: whole where neither the input nor the output was ever used.

    It is a rule of levels, which gather both moments while they read; both are kept for each sequence or user, with their
    damped inverses, in `2 in^2 + 2 out^2` numbers a weight. Do not use it where that is more than a user may cost: `RetainSeen`
    has `in^2`.

    damping, output_damping: `a` and `b`, above 0. Large is plastic, small is persistent; both at infinity is plain descent.
    forgetting: in (0, 1], the factor on both moments at each update of the level; 1 never forgets.
    refresh: the inverses are made anew when the tokens read since are this share of all that the moments hold.
    block: None, or of the matrices only the blocks along the diagonal are kept, over at most so many neighbouring inputs or
        outputs (`nestling.memory.moments`): as if what is further apart had nothing to do with each other.
    prior: None, or how many tokens it takes until evidence outweighs the prior: after n of them the dampings are `a` and `b` times
        `(1 + n / prior)^(-1/2)`. Then `A (x) B` is, to a factor, the precision of a Laplace approximation, a sum over what was seen
        plus a constant, and not a mean: what was seen longest is protected most. None keeps the dampings as they are, so that a
        level stays as plastic as it was.
    """

    damping: float = 0.5
    output_damping: float = 0.5
    forgetting: float = 1.0
    refresh: float = 0.1
    block: int | None = None
    prior: float | None = None

    def __post_init__(self) -> None:
        RetainSeen(self.damping, self.forgetting)
        RetainSeen(self.output_damping)
        if not self.refresh >= 0:
            raise ValueError(f"refresh={self.refresh} must be 0 (at every update) or above")
        if self.block is not None and self.block < 1:
            raise ValueError(f"block={self.block} must be at least 1, or None for whole matrices")
        if self.prior is not None and not self.prior > 0:
            raise ValueError(
                f"prior={self.prior} must be above 0 tokens, or None, which keeps the dampings as they are"
            )

    def initial(self, weight: Tensor) -> dict[str, Tensor]:
        """What is remembered of differences `[B, out, in]` before their first update: no inverses yet.

        inputs, outputs: `a A^-1` and `b B^-1`. since: tokens read since they were made. count: of tokens at the last update.
        """
        rows, out, inside = weight.shape
        return {
            "inputs": weight.new_zeros(rows, *moments.shape(inside, self.block)),
            "outputs": weight.new_zeros(rows, *moments.shape(out, self.block)),
            "since": weight.new_full((rows,), torch.inf, dtype=torch.float64),
            "count": weight.new_zeros(rows, dtype=torch.float64),
        }

    def dampings(self, count: Tensor) -> tuple[float | Tensor, float | Tensor]:
        """`a` and `b` after `count [B]` tokens: as they were given, or `[B]` where there is a prior."""
        if self.prior is None:
            return self.damping, self.output_damping
        share = (1 + count / self.prior).rsqrt()
        return self.damping * share, self.output_damping * share

    def renewed(
        self,
        memory: dict[str, Tensor],
        seen: Tensor,
        felt: Tensor,
        count: Tensor,
        inverse: Callable[[Tensor, float | Tensor], Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """The memory at an update, with inverses that are young enough.

        seen: `[B, in, in]`, or its blocks, the sum of `x x^T`. felt: as much of `[B, out, out]`, the sum of `g g^T`.
        count: `[B]`, of tokens in `seen`. inverse: `damped_inverse`, or what gives the same.
        """
        inverse = inverse or damped_inverse
        since = memory["since"] + count - memory["count"]
        old = since >= self.refresh * count
        memory = {**memory, "since": torch.where(old, 0.0, since), "count": self.forgetting * count}
        if not bool(old.any()):
            return memory
        inputs, outputs = self.dampings(count)
        new = {"inputs": inverse(seen, inputs), "outputs": inverse(felt, outputs)}
        if bool(old.all()):
            return memory | new
        return memory | {name: where_rows(old, value, memory[name]) for name, value in new.items()}

    def direction(self, gradient: Tensor, memory: dict[str, Tensor]) -> Tensor:
        """`a b B^-1 G A^-1`, `[B, out, in]`, of a gradient of that shape."""
        return moments.right(moments.left(memory["outputs"], gradient), memory["inputs"])


def damped(moment: Tensor, damping: float) -> Tensor:
    """A second moment `[.., n, n]` scaled to a mean eigenvalue of 1, plus `damping` times the identity."""
    return _damped(moment, damping, moment.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None])


def _damped(moment: Tensor, damping: float | Tensor, scale: Tensor) -> Tensor:
    unit = moment / scale.clamp_min(torch.finfo(moment.dtype).tiny)
    unit.diagonal(dim1=-2, dim2=-1).add_(damping)
    return unit


def damped_inverse(moment: Tensor, damping: float | Tensor) -> Tensor:
    """`a A^-1` of `A = damped(moment, a)`, `[B, n, n]` or its blocks, which share one scale; nan where that is no inverse.

    damping: `a`, one for all or `[B]`.
    """
    if isinstance(damping, Tensor):
        damping = damping.to(moment.dtype).view(-1, *[1] * (moment.dim() - 2))
    scale = moment.diagonal(dim1=-2, dim2=-1).flatten(1).mean(1).view(-1, *[1] * (moment.dim() - 1))
    factor, failed = torch.linalg.cholesky_ex(_damped(moment, damping, scale))
    inverse = torch.cholesky_inverse(factor) * (damping[..., None] if isinstance(damping, Tensor) else damping)
    return inverse if not bool(failed.any()) else inverse.masked_fill(failed[..., None, None] > 0, torch.nan)
