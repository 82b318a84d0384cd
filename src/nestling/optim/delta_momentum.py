"""Delta momentum: a memory of gradients that makes room, in the direction of a gradient, before it stores it (Eq. 49)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from nestling.optim.preconditioned_momentum import MomentumOf, Preconditioner, as_matrix, by_shape
from nestling.optim.shell import at_least_zero

FORMS = ("matrix", "vector")


class DeltaMomentum(MomentumOf):
    """Momentum trained by regression instead of the dot product (arXiv 2512.24695, Eq. 49):

        m <- m (alpha I - c G^T G) + P G        c = delta / (damping + |G|^2)        W <- W - lr m

    From `1/2 |m G^T - P/c|^2`, one step of rate `c`: the memory's keys are the rows of `G`, and what it already answers to
    them is erased before the new is stored. So old momentum along the gradient dies away faster than `alpha` has it, and
    momentum across it is kept: in a narrow valley the gradient points across, which is where momentum swings. The printed
    equation has `c = 1`, and diverges where gradients keep a direction and `|G|^2 > 1 + alpha`; here every singular value
    of what multiplies `m` is at most `max(alpha, |alpha - delta|)`, whatever `G` is. `delta=0` is
    `torch.optim.SGD(momentum=alpha)`.

    `form`, with `|G|` the Frobenius norm in both:
        "matrix"    as printed: erases in the space of the gradient's rows. Parameters of more than two dimensions are taken
                    as `[out, rest]`, a vector as one row. The erasure is shared: its trace is `delta`, so that each of
                    `r` equal singular values has `delta / r` of it.
        "vector"    `m <- alpha m - c <m, G> G + P G`: erases the component of `m` along `G` as a whole, for any
                    shape, at the cost of two dot products. For a vector it is the matrix form.

    `damping` says from which gradients on the erasure works. At 0 it is the same for all, and a scale of the loss is one of
    `lr`, as in SGD; but where gradients keep their direction momentum is also less long: they add up to
    `1 / (1 - alpha + delta)` instead of `1 / (1 - alpha)`. Above 0 gradients much smaller than its root are not erased for:
    those on a long way downhill gather speed as usual, and the wall of a valley takes it away. `delta=1, damping=1/eta`
    erases as much as the exact proximal step of rate `eta` does (for one row; Eq. 56-57).

    Use `torch.optim.SGD` where gradients are mostly noise: noise has no direction worth to make room in.

    Args:
        params: parameters or groups.
        lr: learning rate.
        momentum: `alpha`, in [0, 1).
        delta: in [0, 1], how much of the answer is erased.
        damping: at least 0, in units of the squared norm of a gradient.
        form: "matrix" or "vector".
        preconditioner: `P`, as in `PreconditionedMomentum`.
        weight_decay, maximize, capturable: as in `Shell`.

    Raises:
        ValueError: a setting out of range, or a form that is unknown.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        momentum: float = 0.9,
        delta: float = 0.1,
        damping: float = 0.0,
        form: str = "matrix",
        preconditioner: Preconditioner | None = None,
        weight_decay: float = 0.0,
        maximize: bool = False,
        capturable: bool = False,
    ) -> None:
        shell = {"weight_decay": weight_decay, "maximize": maximize, "capturable": capturable}
        settings = {"momentum": momentum, "delta": delta, "damping": damping, "form": form}
        super().__init__(params, lr, preconditioner, **shell, **settings)

    def check(self, group: dict[str, Any]) -> None:
        super().check(group)
        at_least_zero(damping=group["damping"])
        if not 0 <= group["delta"] <= 1:
            raise ValueError(f"delta={group['delta']} must be in [0, 1]; 1 erases the whole answer to a gradient")
        if group["form"] not in FORMS:
            raise ValueError(f"form={group['form']!r} is unknown; choose one of {', '.join(FORMS)}")

    stored = "1/2 |m G^T - P / c|^2"

    def kept(self, group: dict[str, Any]) -> str:
        return f"m ({group['momentum']:g} I - c G^T G)"

    def forget(self, momenta: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> None:
        settings = (group["momentum"], group["delta"], group["damping"])
        if group["form"] == "vector":
            for m, g in zip(momenta, gradients, strict=True):
                erase_whole_(m, g, *settings)
        else:
            matrices = [[as_matrix(x) for x in column] for column in (momenta, gradients)]
            erased = by_shape(lambda m, g: (erase_rows(m, g, *settings),), *matrices)
            torch._foreach_copy_(momenta, [x.view_as(m) for (x,), m in zip(erased, momenta, strict=True)])


def erase_whole_(m: Tensor, g: Tensor, alpha: float, delta: float, damping: float) -> None:
    """`m <- alpha m - c <m, G> G`, in place, for one momentum and gradient of any shape."""
    flat = g.flatten()
    answer = torch.dot(m.flatten(), flat) * rate(torch.dot(flat, flat), delta, damping)
    m.mul_(alpha).addcmul_(g, answer, value=-1)


def erase_rows(m: Tensor, g: Tensor, alpha: float, delta: float, damping: float) -> Tensor:
    """`m (alpha I - c G^T G)` of every `m, G [.., out, in]`."""
    answers = (m @ g.mT) @ g if g.shape[-2] <= g.shape[-1] else m @ (g.mT @ g)
    return alpha * m - rate(g.square().sum((-2, -1), keepdim=True), delta, damping) * answers


def rate(square: Tensor, delta: float, damping: float) -> Tensor:
    """`c = delta / (damping + |G|^2)`, for a squared norm; finite for one of zero, where there is nothing to erase for."""
    return delta / (square + damping).clamp_min(torch.finfo(square.dtype).tiny)
