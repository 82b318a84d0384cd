"""Momentum whose memory has values: preconditioned gradients are what it stores (Eq. 47)."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from nestling.memory.part import Part, remembered
from nestling.optim.adamw import square
from nestling.optim.shell import Shell, State, at_least_zero, below_one

LARGEST = 8192  # side of a matrix whose eigenvalues are taken: a minute, and 256 MB in float32


class Preconditioner(abc.ABC):
    """The `P` of `P G`. What it keeps of a parameter's gradients is in that parameter's state; it has none of its own."""

    def check(self, parameter: Tensor, group: dict[str, Any]) -> None:  # noqa: B027 - most take any parameter
        """Raise ValueError if there is no `P` for such a parameter, or not with such settings of its group."""

    def parts(self) -> tuple[Part, ...]:
        """What it remembers, for `nestling.levels.describe`; what is left out is listed by its key."""
        return ()

    @abc.abstractmethod
    def initial_state(self, parameter: Tensor) -> State:
        """The state before the first gradient, of the dtype of `parameter`."""

    @abc.abstractmethod
    def __call__(self, gradients: list[Tensor], states: list[State]) -> list[Tensor]:
        """`P G` of every gradient, which may be the gradient itself; states move on in place."""


class MomentumOf(Shell):
    """A momentum of preconditioned gradients; what it forgets is its own: `m <- forget(m)`, then `m <- m + P G`.

    stored: the objective by which it stores, for `parts`.
    """

    stored = "-<m, P G>"

    def __init__(
        self, params: Iterable[Any], lr: float | Tensor, preconditioner: Preconditioner | None, **settings: Any
    ) -> None:
        self.preconditioner = preconditioner or Identity()
        super().__init__(params, lr, **settings)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "preconditioner": self.preconditioner}

    def check(self, group: dict[str, Any]) -> None:
        super().check(group)
        below_one(momentum=group["momentum"])
        for parameter in group["params"]:
            self.preconditioner.check(parameter, group)

    def parts(self, group: dict[str, Any]) -> tuple[Part, ...]:
        inside, alpha = self.preconditioner.parts(), group["momentum"]
        needs = tuple(part.name for part in inside)
        rule = f"m <- {self.kept(group)} + P G"
        return (remembered("momentum", ("momentum",), alpha, self.stored, rule, needs), *inside)

    def rule(self, group: dict[str, Any]) -> str:
        return "W <- W - lr m"

    def kept(self, group: dict[str, Any]) -> str:
        """What is left of a momentum, in one line."""
        return f"{group['momentum']:g} m"

    def initial_state(self, parameter: Tensor, group: dict[str, Any]) -> State:
        return {"momentum": torch.zeros_like(parameter), **self.preconditioner.initial_state(parameter)}

    def directions(
        self, parameters: list[Tensor], gradients: list[Tensor], states: list[State], group: dict[str, Any]
    ) -> list[Tensor]:
        momenta = [state["momentum"] for state in states]
        self.forget(momenta, gradients, group)
        torch._foreach_add_(momenta, self.preconditioner(gradients, states))
        return momenta

    @abc.abstractmethod
    def forget(self, momenta: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> None:
        """What the memories lose before they store what is new, in place."""


class PreconditionedMomentum(MomentumOf):
    """Momentum of preconditioned gradients (arXiv 2512.24695, Eq. 47):

        m <- alpha m + P G        W <- W - lr m

    A momentum is a memory, trained on the dot product, of which value goes with which gradient; plain momentum stores
    the identity, this one `P`. The paper's `eta` is in `lr`, as in `torch.optim.SGD`.

        P = Identity()      torch.optim.SGD(momentum=alpha)
        P = Diagonal()      torch.optim.RMSprop(momentum=alpha)
        P = Kronecker()     Shampoo, with its momentum after the preconditioner

    Use `torch.optim`'s own, which are fused, where one of the first two is all you want. The preconditioner is not part
    of `state_dict`, only what it keeps is: load into an optimiser made with the same one.

    Args:
        params: parameters or groups.
        lr: learning rate.
        momentum: `alpha`, in [0, 1).
        preconditioner: any `Preconditioner`; None is `Identity()`.
        weight_decay, maximize, capturable: as in `Shell`.

    Raises:
        ValueError: a setting out of range, or a parameter that the preconditioner cannot take.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        momentum: float = 0.9,
        preconditioner: Preconditioner | None = None,
        weight_decay: float = 0.0,
        maximize: bool = False,
        capturable: bool = False,
    ) -> None:
        shell = {"weight_decay": weight_decay, "maximize": maximize, "capturable": capturable}
        super().__init__(params, lr, preconditioner, **shell, momentum=momentum)

    def forget(self, momenta: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> None:
        torch._foreach_mul_(momenta, group["momentum"])


@dataclass(frozen=True)
class Identity(Preconditioner):
    """`P = I`."""

    def initial_state(self, parameter: Tensor) -> State:
        return {}

    def __call__(self, gradients: list[Tensor], states: list[State]) -> list[Tensor]:
        return gradients


@dataclass(frozen=True)
class Diagonal(Preconditioner):
    """`P G = G / (sqrt(v) + eps)`, `v <- decay v + (1 - decay) G^2`: that of RMSprop (Tieleman and Hinton 2012).

    `v` starts at zero and is not corrected for it, as in `torch.optim.RMSprop`: the first steps are up to
    `1 / sqrt(1 - decay)` times as long as later ones.
    """

    decay: float = 0.99
    eps: float = 1e-8

    def __post_init__(self) -> None:
        below_one(decay=self.decay)
        at_least_zero(eps=self.eps)

    def parts(self) -> tuple[Part, ...]:
        return (square("second moment", "square", self.decay),)

    def initial_state(self, parameter: Tensor) -> State:
        return {"square": torch.zeros_like(parameter)}

    def __call__(self, gradients: list[Tensor], states: list[State]) -> list[Tensor]:
        squares = [state["square"] for state in states]
        torch._foreach_mul_(squares, self.decay)
        torch._foreach_addcmul_(squares, gradients, gradients, value=1 - self.decay)
        roots = torch._foreach_sqrt(squares)
        torch._foreach_add_(roots, self.eps)
        return list(torch._foreach_div(gradients, roots))


@dataclass(frozen=True)
class Kronecker(Preconditioner):
    """`P G = L^-p G R^-p`, with `L` and `R` the second moments of a gradient's columns and rows: Shampoo (Gupta et al. 2018).

        L <- decay L + (1 - decay) G G^T        R <- decay R + (1 - decay) G^T G

    The inverse roots are taken every `period` steps, from the first on, and kept between. To every eigenvalue `damping`
    times their mean is added, so that neither the scale of `L` nor that of the loss matters; a factor of zeros has a root
    of zeros, and the parameter rests until the next roots.

    Parameters of more than two dimensions are taken as `[out, rest]`, a vector as one row. A refresh costs two
    eigendecompositions, `O(out^3 + in^3)`: it is for hidden layers. Give embeddings, heads and long vectors to another
    optimiser.

    decay: in [0, 1). damping: above 0. period: steps between refreshes, at least 1.
    exponent: `p`. 1/4 is Shampoo's for a matrix (1/2 over the number of its two factors): both together undo the
        gradient's scale, as Adam does. 1/2 is the Kronecker product nearest to the full matrix of second moments, inverted
        to the 1/2 (Morwani et al. 2024), and shortens steps along large gradients.
    """

    decay: float = 0.95
    damping: float = 1e-4
    period: int = 10
    exponent: float = 0.25

    def __post_init__(self) -> None:
        below_one(decay=self.decay)
        if not 0 < self.damping < float("inf"):
            raise ValueError(f"damping={self.damping} must be above 0: it is the least curvature of any direction")
        if self.period < 1 or self.period != int(self.period):
            raise ValueError(f"period={self.period} must be a whole number of steps, at least 1")
        if not 0 < self.exponent <= 1:
            raise ValueError(f"exponent={self.exponent} must be in (0, 1]; 0.25 is Shampoo's")

    def check(self, parameter: Tensor, group: dict[str, Any]) -> None:
        decomposable(group, parameter, max(as_matrix(parameter).shape))

    def parts(self) -> tuple[Part, ...]:
        objective, names = "1/2 |L - G G^T|^2", ("second moments of rows and columns", "inverse roots")
        rule = f"L <- {self.decay:g} L + {1 - self.decay:.4g} G G^T, R alike"
        factors = remembered(names[0], ("left", "right"), self.decay, objective, rule)
        roots = Part(names[1], "1/2 |P^-1 - L^p|^2", "P <- L^-p, R^-p", self.period, factors.context, names[:1])
        return factors, replace(roots, keys=("left_root", "right_root"))

    def initial_state(self, parameter: Tensor) -> State:
        sides = dict(zip(("left", "right"), as_matrix(parameter).shape, strict=True))
        square = {name: parameter.new_zeros(side, side) for name, side in sides.items()}
        return {**square, **{f"{name}_root": torch.zeros_like(x) for name, x in square.items()}}

    def __call__(self, gradients: list[Tensor], states: list[State]) -> list[Tensor]:
        matrices = [as_matrix(g) for g in gradients]
        for name, views in (("left", matrices), ("right", [g.mT for g in matrices])):
            factors = [state[name] for state in states]
            torch._foreach_mul_(factors, self.decay)
            torch._foreach_add_(factors, [g @ g.mT for g in views], alpha=1 - self.decay)
            self._refresh(name, states)
        moved = [state["left_root"] @ g @ state["right_root"] for g, state in zip(matrices, states, strict=True)]
        return [x.view_as(g) for x, g in zip(moved, gradients, strict=True)]

    @torch.compiler.disable()
    def _refresh(self, name: str, states: list[State]) -> None:
        """The roots whose period begins."""
        due = [state for state in states if (int(state["step"]) - 1) % self.period == 0]
        corrected = [state[name] / (1 - self.decay ** state["step"]) for state in due]
        roots = by_shape(lambda factors: (inverse_root(factors, self.exponent, self.damping),), corrected)
        for state, (root,) in zip(due, roots, strict=True):
            state[f"{name}_root"].copy_(root)


def inverse_root(factors: Tensor, exponent: float, damping: float) -> Tensor:
    """`(F + damping mean(eigenvalues of F) I)^-exponent` of every `F [.., n, n]`, symmetric; zeros give zeros."""
    values, vectors = eigh(factors)
    damped = values.clamp_min(0) + damping * values.mean(-1, keepdim=True)
    powers = torch.where(damped == 0, 0.0, damped ** (-exponent))
    return (vectors * powers[..., None, :]) @ vectors.mT


def eigh(factors: Tensor) -> tuple[Tensor, Tensor]:
    """`torch.linalg.eigh`, but nan for what is not finite: LAPACK would fail, or never return."""
    finite = factors.isfinite().all(-1).all(-1)[..., None, None]
    values, vectors = torch.linalg.eigh(factors.where(finite, 0.0))
    return values.where(finite[..., 0], torch.nan), vectors


def decomposable(group: dict[str, Any], parameter: Tensor, side: int) -> None:
    """Raise unless a square matrix of a parameter can be decomposed: not in a CUDA graph, nor beyond all memory."""
    if group["capturable"]:
        raise ValueError("capturable=True, but an eigendecomposition cannot be captured; use capturable=False")
    if side > LARGEST:
        raise ValueError(
            f"a parameter of shape {list(parameter.shape)} needs a square matrix of side {side}, and {LARGEST} is the "
            "largest; give it to another optimiser, such as AdamW"
        )


def as_matrix(x: Tensor) -> Tensor:
    """`x` as `[out, rest]`; a vector or a number is one row."""
    return x.flatten(1) if x.dim() > 1 else x.reshape(1, -1)


def by_shape(function: Callable[..., tuple[Tensor, ...]], *columns: list[Tensor]) -> list[tuple[Tensor, ...]]:
    """`function(a, b, ..)` for each `a, b, ..` of the columns, called once, on stacks, for all that have equal shapes."""
    kinds: dict[tuple, list[int]] = {}
    for i, row in enumerate(zip(*columns, strict=True)):
        kinds.setdefault(tuple(x.shape for x in row), []).append(i)
    found: dict[int, tuple[Tensor, ...]] = {}
    for indices in kinds.values():
        results = function(*(torch.stack([column[i] for i in indices]) for column in columns))
        found |= dict(zip(indices, zip(*(x.unbind() for x in results), strict=True), strict=True))
    return [found[i] for i in range(len(found))]
