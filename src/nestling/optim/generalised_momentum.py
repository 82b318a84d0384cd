"""Generalised momentum: the memory of the gradients that is best, for an objective and a retention (Def. 5, Eq. 101-105)."""

from __future__ import annotations

import abc
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nestling.memory import L2, RetainSeen
from nestling.memory.objective import Objective
from nestling.memory.part import Part, called, remembered
from nestling.optim.preconditioned_momentum import as_matrix, decomposable, eigh
from nestling.optim.shell import Shell, State, below_one


class GeneralisedMomentum(Shell):
    """The linear memory `m` that answers all past gradients best, found anew in every step (arXiv 2512.24695, Def. 5):

        m* = argmin_m  sum_i L~(m(g_i), P)  +  Ret(m)           W <- W - lr m*

    with an objective `L~` of `nestling.memory`, a target `P` that stands for what gradients are like, and a retention of
    `nestling.memory`: its `forgetting` is the factor on what was seen at each step, its `damping` the ridge `Ret`. If the
    objective's surprise is `a output - target` (`a` is 1 for `L2`, 0 for `DotProduct`), the minimum is (Eq. 102)

        m* = M P (a H + ridge)^-1           M = mean of g_i,   H = mean of g_i^2,   P = H^power,   ridge = damping P

    element by element (`Elementwise`), or with `H = mean of G_i^T G_i`, a matrix (`Rows`). Approximations, all the paper's,
    by which Eq. 101-105 become Adam:
        - `M` may forget at another rate (`momentum`) than `H` (the retention's `forgetting`). The minimum of one sum has
          the same weights in both.
        - `P`, though made of the gradients, is taken as a constant of the minimisation.
        - the ridge is in proportion to `P`, which puts `damping` where Adam has `eps`.
    Adam's bias correction is none: weights that sum to one, `f^(t-i) (1 - f) / (1 - f^t)`, are what a mean has.

        objective    momentum  retention                  memory       it is
        L2()         beta1     RetainSeen(eps, beta2)     Elementwise  torch.optim.Adam(betas=(beta1, beta2), eps=eps)
        L2()         0         RetainSeen(tiny, 1.0)      Elementwise  torch.optim.Adagrad, with lr / sqrt(t)
        L2()         0         RetainSeen(tiny, 1.0)      Rows         AdaGrad's matrix form, one-sided Shampoo
        L2()         0         RetainSeen(a s, f)         Rows(0.0)    RetainSeen.direction / (a s) over the gradients' rows,
                                                                       which are scaled there: s = mean of H's diagonal
        DotProduct() alpha     RetainSeen(1.0)            either       momentum, as a mean; lr (1 - alpha^t) / (1 - alpha)
                                                                       makes it torch.optim.SGD(momentum=alpha)

    Use `torch.optim` for those that it has. The objective, the retention and the kind of memory are not part of
    `state_dict`, only what they gathered: load into an optimiser made with the same.

    Args:
        params: parameters or groups.
        lr: learning rate.
        momentum: the factor on the gradients of the past in `M`, in [0, 1); 0 is the last gradient alone.
        objective: `L2()`, `DotProduct()`, or one whose surprise is `a output - target`, element by element.
        retention: `RetainSeen`: forgetting in (0, 1], damping above 0.
        memory: `Elementwise()` or `Rows()`.
        weight_decay, maximize, capturable: as in `Shell`.

    Raises:
        ValueError: a setting out of range, or an objective of another form.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        momentum: float = 0.9,
        objective: Objective | None = None,
        retention: RetainSeen | None = None,
        memory: LinearMemory | None = None,
        weight_decay: float = 0.0,
        maximize: bool = False,
        capturable: bool = False,
    ) -> None:
        self.objective = objective or L2()
        self.retention = retention or RetainSeen(damping=1e-8, forgetting=0.999)
        self.memory = memory or Elementwise()
        self.curvature = curvature(self.objective)
        super().__init__(params, lr, weight_decay, maximize, capturable, momentum=momentum)

    def __getstate__(self) -> dict[str, Any]:
        parts = ("objective", "retention", "memory", "curvature")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in parts}}

    def check(self, group: dict[str, Any]) -> None:
        super().check(group)
        below_one(momentum=group["momentum"])
        for parameter in group["params"]:
            self.memory.check(parameter, group)

    def parts(self, group: dict[str, Any]) -> tuple[Part, ...]:
        decay, kept, objective = group["momentum"], self.retention.forgetting, called(self.objective)
        return (
            remembered("gradients", ("momentum",), decay, objective, f"M <- {decay:g} M + G"),
            remembered("squares", ("seen",), kept, objective, f"H <- {kept:g} H + G^2"),
        )

    def rule(self, group: dict[str, Any]) -> str:
        return "W <- W - lr M P (a H + ridge)^-1"

    def initial_state(self, parameter: Tensor, group: dict[str, Any]) -> State:
        return {"momentum": torch.zeros_like(parameter), "seen": torch.zeros_like(self.memory.square(parameter))}

    def directions(
        self, parameters: list[Tensor], gradients: list[Tensor], states: list[State], group: dict[str, Any]
    ) -> list[Tensor]:
        first, second = group["momentum"], self.retention.forgetting
        momenta, seen = ([state[name] for state in states] for name in ("momentum", "seen"))
        torch._foreach_mul_(momenta, first)
        torch._foreach_add_(momenta, gradients)
        torch._foreach_mul_(seen, second)
        torch._foreach_add_(seen, [self.memory.square(g) for g in gradients])
        steps = [state["step"] for state in states]
        means = torch._foreach_div(momenta, [weight(first, t) for t in steps])
        squares = torch._foreach_div(seen, [weight(second, t) for t in steps])
        pairs = zip(means, squares, strict=True)
        return [self.memory.optimum(m, h, self.curvature, self.retention.damping) for m, h in pairs]


class LinearMemory(abc.ABC):
    """What a linear memory of gradients can relate: its optimum `M P (a H + damping P)^-1`, with `P = H^power`."""

    def check(self, parameter: Tensor, group: dict[str, Any]) -> None:  # noqa: B027 - most take any parameter
        """Raise ValueError if there is no such memory for a parameter, or not with such settings of its group."""

    @abc.abstractmethod
    def square(self, gradient: Tensor) -> Tensor:
        """What is seen of one gradient, to be summed to `H`."""

    @abc.abstractmethod
    def optimum(self, mean: Tensor, square: Tensor, curvature: float, damping: float) -> Tensor:
        """`M (a H^(1 - power) + damping)^-1`, of the shape of `mean`."""


@dataclass(frozen=True)
class Elementwise(LinearMemory):
    """`m * g`, each element for itself. `power=0.5` has the root mean square as the target (Adam), 0 has 1."""

    power: float = 0.5

    def square(self, gradient: Tensor) -> Tensor:
        return gradient.square()

    def optimum(self, mean: Tensor, square: Tensor, curvature: float, damping: float) -> Tensor:
        return mean / (curvature * square ** (1 - self.power) + damping)


@dataclass(frozen=True)
class Rows(LinearMemory):
    """`m G^T`: all elements of a row together, `[out, rest]`; a vector is one row. `power` as in `Elementwise`.

    Each gradient's part of the loss is `1/2 |m G^T|^2 - <m, G P>`, that of the elements with products of matrices.

    An eigendecomposition of side `rest` in every step: for small layers, and to compare with. Until as many directions
    were seen as there are, `H` is singular, and with little damping the inverse root makes a thousandfold of rounding
    in float32.
    """

    power: float = 0.5

    def check(self, parameter: Tensor, group: dict[str, Any]) -> None:
        decomposable(group, parameter, as_matrix(parameter).shape[1])

    def square(self, gradient: Tensor) -> Tensor:
        rows = as_matrix(gradient)
        return rows.mT @ rows

    def optimum(self, mean: Tensor, square: Tensor, curvature: float, damping: float) -> Tensor:
        values, vectors = eigh(square)
        rounding = len(values) * torch.finfo(values.dtype).eps * values[-1].clamp_min(0)  # what is below it is noise
        inverse = 1 / (curvature * values.clamp_min(rounding) ** (1 - self.power) + damping)
        return (as_matrix(mean) @ (vectors * inverse) @ vectors.mT).view_as(mean)


def weight(forgetting: float, step: Tensor) -> Tensor:
    """`sum of f^(t - i)` over the steps `i = 1 .. t`: what a sum with this forgetting is divided by to be a mean."""
    return step if forgetting == 1 else (1 - forgetting**step) / (1 - forgetting)


def curvature(objective: Objective) -> float:
    """The `a` of an objective whose surprise is `a output - target`.

    Raises:
        ValueError: it has another surprise.
    """
    output, target = torch.tensor([[0.0], [1.0], [-2.0], [0.0]]), torch.tensor([[0.0], [0.0], [0.0], [1.0]])
    zero, one, two, value = objective.surprise(output, target).flatten().tolist()
    if (zero, two, value) != (0.0, -2 * one, -1.0):
        raise ValueError(
            f"{objective} has no closed form: its surprise is not `a output - target`; use L2() or DotProduct(), or a "
            "memory that is trained step by step, DeepMomentum"
        )
    return one
