"""Every network x objective x rule, at equal state size: how many numbers a memory stores.

A matrix of width d has `d^2` weights. At size 1 all networks have as many, at size 3 three times that (which a matrix alone
cannot have: it is as wide as keys and values are). What a rule carries beside the weights is counted apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from nestling.memory import (
    KL,
    L2,
    MLP,
    AssociativeMemory,
    DeltaGradientDescent,
    DeltaRule,
    DotProduct,
    EluPlusOne,
    Features,
    GradientDescent,
    Huber,
    LeastSquares,
    Lp,
    Lq,
    Matrix,
    Network,
    Oja,
    Omega,
    Orthogonal,
    Polynomial,
    RandomFeatures,
    ResidualNorm,
)
from nestling.ops.state import named_tensors

THETA = 0.9  # of every momentum
WHOLE = 48  # chunk of rules that do not depend on it

OBJECTIVES = {"dot product": DotProduct(), "L2": L2(), "L3": Lp(3), "Huber": Huber(0.5)}


class Projected(nn.Module):
    """`n` random projections of inputs, or of their polynomial features, by orthogonal directions that keep the mean of products.

    Inputs of norm 1 give outputs of norm 1 on average: `phi(x) . phi(x)` of a degree is 2 to its power.
    """

    directions: Tensor

    def __init__(self, n: int, dim: int, features: Polynomial | None = None) -> None:
        super().__init__()
        wide = features.width(dim) if features else dim
        norm = 2.0 ** (features.degree / 2) if features else 1.0
        directions = torch.linalg.qr(torch.randn(wide, n))[0] * (wide / n) ** 0.5 / norm
        self.features = features
        self.register_buffer("directions", directions)

    def forward(self, x: Tensor) -> Tensor:
        """`[.., dim] -> [.., n]`."""
        return (self.features(x) if self.features else x) @ self.directions


def _features(make: Callable[[int, int], Any]) -> Callable[[int, int], Network]:
    def network(dim: int, size: int) -> Network:
        return Features(make(size * dim, dim), Matrix(size * dim, dim), dim)

    return network


def _mlp(weights: int, **options: Any) -> Callable[[int, int], Network]:
    """weights: matrices of dim x hidden numbers."""
    return lambda dim, size: MLP(dim, round(size * dim / weights), **options)


def _deeper(dim: int, size: int) -> Network:
    hidden = round(dim * (math.sqrt(1 + size) - 1))  # hidden^2 + 2 dim hidden = size dim^2
    return MLP(dim, hidden, depth=3, residual=False)


def _normed(network: Callable[[int, int], Network]) -> Callable[[int, int], Network]:
    def normed(dim: int, size: int) -> Network:
        out = ResidualNorm(network(dim, size))
        nn.init.constant_(out.scale, dim**-0.5)  # for values of norm 1, as a model would learn
        return out

    return normed


def _alone(dim: int, size: int) -> Network:
    return Matrix(dim, dim)


LINEAR: dict[str, Callable[[int, int], Network]] = {
    "Matrix": _alone,
    "elu + 1, Matrix": _features(lambda n, dim: EluPlusOne()),
    "random features, Matrix": _features(RandomFeatures),
    "polynomial, Matrix": _features(lambda n, dim: Projected(n, dim, Polynomial(2))),
}
DEEP: dict[str, Callable[[int, int], Network]] = {
    "MLP": _mlp(2, residual=False),
    "MLP, residual": _mlp(2),
    "MLP, gated": _mlp(3, residual=False, gate=True),
    "MLP, 3 layers": _deeper,
    "normed linear (TTT)": _normed(lambda dim, size: MLP(dim, dim, depth=1, residual=False)),
    "normed MLP (TTT)": _normed(_mlp(2, residual=False)),
    "polynomial, MLP": lambda dim, size: Features(
        Projected(dim, dim, Polynomial(2)), MLP(dim, round(size * dim / 2), residual=False), dim
    ),
}


@dataclass(frozen=True)
class Choice:
    """A memory by the names of its parts; `size` times the weights of a matrix.

    powers: of 2 (of 10 with `decades`): rates that are tried, in units of the one at which a single write is read whole.
    """

    network: str
    objective: str
    rule: str
    make: Callable[[int], Network]
    parts: tuple[Any, ...]  # objective, rule, retention
    powers: Sequence[float]
    chunk: int = 1
    size: int = 1
    decades: bool = False

    def __str__(self) -> str:
        return ", ".join((self.network, self.objective, self.rule, f"size {self.size}"))

    @property
    def kind(self) -> str:
        """ "matrix", "features" (fixed ones, before a matrix), "normed" (a matrix within a norm) or "deep"."""
        if "Matrix" in self.network:
            return "matrix" if self.network.startswith("Matrix") else "features"
        return "normed" if self.network == "normed linear (TTT)" else "deep"

    @property
    def momentum(self) -> bool:
        """Whether calls have a theta."""
        return self.parts[1].momentum

    def memory(self, network: Network, backend: str = "auto") -> AssociativeMemory:
        """A memory of this kind around a network of its kind."""
        objective, rule, retention = self.parts
        return AssociativeMemory(network, objective, rule, self.chunk, "token", backend=backend, retention=retention)

    def rates(self, network: Network, keys: Tensor) -> list[float]:
        """The rates that are tried."""
        power = float(network.inputs(keys).square().sum(-1).mean())  # 1, but for features
        unit = power**-0.5 if isinstance(self.parts[1], Orthogonal) else 1 / power
        return [unit * (10.0 if self.decades else 2.0) ** i for i in self.powers]

    def numbers(self, dim: int) -> tuple[int, int]:
        """How many weights, and how many numbers the rule carries beside them."""
        memory = self.memory(self.make(dim))
        state = memory.init_state(1, 1)
        carried = [t.numel() for t in named_tensors((state.momentum, state.carried)).values() if t.is_floating_point()]
        return sum(w.numel() for w in state.weights), sum(carried)


# of each a rule, its chunk, and the powers of 2 from and to which rates are tried, for L2
RULES: dict[str, tuple[Any, int, tuple[int, int]]] = {
    "plain": (GradientDescent(), 1, (-8, 2)),
    "plain, chunk 16": (GradientDescent(), 16, (-8, 2)),
    "momentum": (GradientDescent(momentum=True), 1, (-8, 5)),
    "DGD": (DeltaGradientDescent(), 1, (-7, 5)),
    "Omega(16)": (Omega(16), 1, (-7, 6)),
    "orthogonal": (Orthogonal(), 1, (-9, 2)),
}
OF_MATRICES: dict[str, tuple[str, Any]] = {
    "delta rule": ("L2", DeltaRule()),
    "Oja": ("dot product", Oja()),
    "least squares": ("L2", LeastSquares()),
}
# of those powers for others, whose gradients are smaller
SHIFT = {"dot product": 0, "L2": 0, "L3": 2, "Huber": 1, "normed linear (TTT)": 3, "normed MLP (TTT)": 2}
DECADES: dict[str, Any] = {"powers": range(-3, 7), "decades": True}  # of a ridge of 1
AT_3 = ("plain", "Omega(16)", "orthogonal", "delta rule", "least squares")


def choices() -> Iterator[Choice]:
    """All of them: what combines at size 1, some retentions, two of a matrix at the literature's rate, and some at size 3."""
    networks = LINEAR | DEEP
    for name in networks:
        yield from _of(name)
    for name in ("Matrix", "MLP"):
        yield _plain(name, "KL", "L2", KL(), range(-3, 8))
    yield _plain("MLP", "Lq(4)", "L3", Lq(4), range(-6, 4))
    yield _projected()
    for one in _of("Matrix"):
        if (one.objective, one.rule) in (("dot product", "plain"), ("L2", "delta rule")):
            yield replace(one, network="Matrix, rate 1", powers=(0,))
    for name in networks:
        if name not in ("Matrix", "elu + 1, Matrix", "normed linear (TTT)"):  # which are as wide as keys are
            yield from (one for one in _of(name, 3) if one.objective == "L2" and one.rule in AT_3)


def _of(name: str, size: int = 1) -> Iterator[Choice]:
    """A network with all objectives and rules."""
    linear, network = name in LINEAR, _at(name, size)
    for objective, loss in OBJECTIVES.items():
        for rule, (step, chunk, (low, high)) in RULES.items():
            shift = (
                0 if rule == "orthogonal" else SHIFT[objective] + SHIFT.get(name, 0)
            )  # of which that takes no notice
            powers = _halves(low + shift, high + shift) if linear else range(low + shift, high + shift)
            yield Choice(name, objective, rule, network, (loss, step, None), powers, chunk, size)
    for rule, (objective, step) in OF_MATRICES.items() if linear else ():
        tried: dict[str, Any] = DECADES if rule == "least squares" else {"powers": _halves(-8, 2)}
        yield Choice(
            name, objective, rule, network, (OBJECTIVES[objective], step, None), **tried, chunk=WHOLE, size=size
        )


def _at(name: str, size: int) -> Callable[[int], Network]:
    make = (LINEAR | DEEP)[name]
    return lambda dim: make(dim, size)


def _halves(low: int, high: int) -> list[float]:
    return [power / 2 for power in range(2 * low, 2 * high)]


def _plain(name: str, retention: str, objective: str, kind: Any, powers: Sequence[float]) -> Choice:
    """Plain descent under a retention that maps what is stored."""
    parts = OBJECTIVES[objective], GradientDescent(), kind
    return Choice(f"{name}, {retention}", objective, "plain", _at(name, 1), parts, powers)


def _projected() -> Choice:
    """Least squares with as many numbers in all as a matrix has: m features, `m d` weights and `m^2` of the inverse."""

    def network(dim: int) -> Network:
        m = int((math.sqrt(5) - 1) / 2 * dim)
        return Features(Projected(m, dim), Matrix(m, dim), dim)

    parts = OBJECTIVES["L2"], LeastSquares(), None
    return Choice("projected, Matrix", "L2", "least squares", network, parts, **DECADES, chunk=WHOLE)
