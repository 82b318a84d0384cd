"""Kernel feature maps in front of a network: a linear memory of `phi(k)` is one of the kernel `phi(k) . phi(q)`."""

from __future__ import annotations

import itertools
import math
import operator
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nestling.memory.network import Network, Product, Write, at_least_one


class Features(Network):
    """`M(x) = network(phi(x))`: keys and queries pass the same map, which stands still while the memory learns.

    Args:
        feature_map: `Polynomial`, `RandomFeatures`, `EluPlusOne`, or any function `[.., d] -> [.., n]`, the same for all heads
            (an `nn.Module` is learnt with the rest of the model).
        network: of `n` inputs, as `Matrix(feature_map.width(d), dim_value)`.
        dim_key: `d`, which only a rule that carries tokens (`Omega`) needs to know.

    Raises:
        ValueError: when called, if the map makes more or fewer features than the network takes.
    """

    def __init__(self, feature_map: Callable[[Tensor], Tensor], network: Network, dim_key: int | None = None) -> None:
        super().__init__(network.heads)
        self.feature_map, self.network, self.linear = feature_map, network, network.linear
        self.dim_key, self.dim_value = dim_key, network.dim_value

    def extra_repr(self) -> str:
        return "" if isinstance(self.feature_map, nn.Module) else f"(feature_map): {self.feature_map}"

    def weights(self) -> tuple[Tensor, ...]:
        return self.network.weights()

    def forward(self, x: Tensor, products: Sequence[Product]) -> Tensor:
        return self.network(self.inputs(x), products)

    def writes(self, k: Tensor, weights: Sequence[Tensor], surprise: Callable[[Tensor], Tensor]) -> tuple[Write, ...]:
        return self.network.writes(self.inputs(k), weights, surprise)

    def inputs(self, x: Tensor) -> Tensor:
        """The features `[.., L, n]`."""
        features, taken = self.feature_map(x), self.weights()[0].shape[-2]
        if features.shape[-1] != taken:
            raise ValueError(
                f"{self.feature_map} makes {features.shape[-1]} features of {x.shape[-1]} inputs, but the network takes "
                f"{taken}: give it feature_map.width({x.shape[-1]}) inputs"
            )
        return features


@dataclass(frozen=True)
class Polynomial:
    """All monomials up to a degree, weighted so that `phi(x) . phi(y) = (1 + x . y)^degree`.

    They are `(dim + degree)! / (dim! degree!)`, the first of them 1: 45 for 8 inputs and degree 2, 47,905 for 64 and 3.

    Raises:
        ValueError: the degree is below 1.
    """

    degree: int

    def __post_init__(self) -> None:
        at_least_one(degree=self.degree)

    def width(self, dim: int) -> int:
        """How many features there are of `dim` inputs."""
        return math.comb(dim + self.degree, self.degree)

    def __call__(self, x: Tensor) -> Tensor:
        """`[.., d] -> [.., width(d)]`."""
        factors, weight = _monomials(x.shape[-1], self.degree)
        x = torch.cat([torch.ones_like(x[..., :1]), x], dim=-1)
        chosen = (x.index_select(-1, torch.from_numpy(one).to(x.device)) for one in factors)
        return reduce(operator.mul, chosen) * torch.from_numpy(weight).to(x)


@lru_cache
def _monomials(dim: int, degree: int) -> tuple[np.ndarray, np.ndarray]:
    """The factors of every monomial `[degree, n]` among `(1, x_1, .., x_dim)`, and the root of its count in the power `[n]`.

    Arrays, not tensors: those would belong to the mode (inference, a transform) in which they were made first.
    """
    chosen = list(itertools.combinations_with_replacement(range(dim + 1), degree))
    orders = [math.factorial(degree) / math.prod(map(math.factorial, Counter(c).values())) for c in chosen]
    return np.array(chosen).T.copy(), np.sqrt(orders)


class RandomFeatures(nn.Module):
    """Positive orthogonal random features of the softmax kernel: `E[phi(x) . phi(y)] = exp(x . y)`.

    `phi_i(x) = exp(w_i . x - |x|^2 / 2) / sqrt(n)` with `w_i` standard normal, and orthogonal to each other in every run of `dim`
    (FAVOR+ of the Performer, Choromanski et al., arXiv 2009.14794, Lemma 1). They are drawn once, are the same for all
    heads, are not learnt, and are saved with the model.

    The relative variance grows as `exp(|x + y|^2) / n`: keep inputs at norms of about 1. For the attention `exp(q . k / sqrt(d))`
    scale queries and keys by `d^(-1/4)`.

    Args:
        n: features. dim: inputs.

    Raises:
        ValueError: `n` or `dim` is below 1; or, when called, inputs are not `dim` wide.
    """

    directions: Tensor

    def __init__(self, n: int, dim: int) -> None:
        super().__init__()
        at_least_one(n=n, dim=dim)
        self.n, self.dim = n, dim
        self.register_buffer("directions", self.initial_values()["directions"])

    def initial_values(self) -> dict[str, Tensor]:
        """Fresh directions `[dim, n]`."""
        runs = math.ceil(self.n / self.dim)
        normal, other = torch.randn(2, runs, self.dim, self.dim, dtype=torch.float32)
        q, r = torch.linalg.qr(normal)
        # uniform only with these signs, or they are the algorithm's
        q = q * r.diagonal(dim1=-2, dim2=-1).sign()[:, None]
        directions = q * torch.linalg.vector_norm(other, dim=-2, keepdim=True)  # as long as independent ones
        return {"directions": directions.mT.reshape(-1, self.dim)[: self.n].mT.contiguous()}

    def extra_repr(self) -> str:
        return f"n={self.n}, dim={self.dim}"

    def width(self, dim: int) -> int:
        """`n`; `dim` must be that of the directions."""
        if dim != self.dim:
            raise ValueError(f"dim={dim} does not fit: these features were drawn for {self.dim} inputs")
        return self.n

    def forward(self, x: Tensor) -> Tensor:
        """`[.., dim] -> [.., n]`, all above 0."""
        scale = self.width(x.shape[-1]) ** -0.5
        return scale * torch.exp(x @ self.directions.to(x.dtype) - 0.5 * x.square().sum(-1, keepdim=True))


@dataclass(frozen=True)
class EluPlusOne:
    """`elu(x) + 1`, component by component: positive features (linear transformers, Katharopoulos et al., arXiv 2006.16236)."""

    def width(self, dim: int) -> int:
        """As many features as inputs."""
        return dim

    def __call__(self, x: Tensor) -> Tensor:
        """`[.., d] -> [.., d]`."""
        return F.elu(x) + 1
