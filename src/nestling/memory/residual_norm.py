"""The normalised residual around a network that test-time training uses."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from nestling.memory.network import Network, Product, Write

EPSILON = 1e-6  # added to the variance


class ResidualNorm(Network):
    """`M(x) = x + LayerNorm(network(x))`, as TTT-Linear and TTT-MLP have it (Sun et al., arXiv 2407.04620, section 2.7).

    The norm's `scale` and `shift`, `[*heads, d]`, are learnt with the rest of the model and stand still for the memory, which
    learns through the norm: its surprises are in closed form.

    Do not put it around a network that answers zero at the start, as a fresh `Matrix` does: the norm has a slope of 1000 there,
    so the first write is huge and leaves no room for others. TTT-Linear is `ResidualNorm(MLP(d, d, depth=1, residual=False))`,
    which starts at random.

    Args:
        network: of as many outputs as inputs, usually without a residual of its own.

    Raises:
        ValueError: when called, if inputs and outputs are not equally wide.
    """

    def __init__(self, network: Network) -> None:
        super().__init__(network.heads)
        self.network, self.dim = network, network.dim_value
        self.dim_key = self.dim_value = network.dim_value
        self.scale, self.shift = map(nn.Parameter, self.initial_values().values())

    def initial_values(self) -> dict[str, Tensor]:
        """Fresh parameters: those of the norm alone."""
        return {"scale": torch.ones(*self.heads, self.dim), "shift": torch.zeros(*self.heads, self.dim)}

    def weights(self) -> tuple[Tensor, ...]:
        return self.network.weights()

    def forward(self, x: Tensor, products: Sequence[Product]) -> Tensor:
        return self._output(x, _normalised(self.network(x, products))[0])

    def writes(self, k: Tensor, weights: Sequence[Tensor], surprise: Callable[[Tensor], Tensor]) -> tuple[Write, ...]:
        def before_the_norm(o: Tensor) -> Tensor:
            n, inverse = _normalised(o)
            at_n = surprise(self._output(k, n)) * _beside(self.scale, o)
            # the norm takes no notice of o's mean and of its length
            return inverse * (at_n - at_n.mean(-1, keepdim=True) - n * (at_n * n).mean(-1, keepdim=True))

        return self.network.writes(k, weights, before_the_norm)

    def _output(self, x: Tensor, n: Tensor) -> Tensor:
        if x.shape[-1] != n.shape[-1]:
            raise ValueError(
                f"ResidualNorm adds its input to the network's output: it needs equal widths, got {x.shape[-1]} and "
                f"{n.shape[-1]}; give it keys as wide as the values"
            )
        return x + _beside(self.scale, n) * n + _beside(self.shift, n)


def _normalised(o: Tensor) -> tuple[Tensor, Tensor]:
    """`o` at mean 0 and variance 1 over the last dimension, and what it was multiplied with."""
    centred = o - o.mean(-1, keepdim=True)
    inverse = (centred.square().mean(-1, keepdim=True) + EPSILON).rsqrt()
    return centred * inverse, inverse


def _beside(parameter: Tensor, o: Tensor) -> Tensor:
    """A parameter `[*heads, d]` beside outputs `[.., *heads, L, d]`, which may be of the last memories (of the heads' first
    dimension) alone.
    """
    if parameter.dim() == 1:
        return parameter
    return parameter[-o.shape[-parameter.dim() - 1] :].unsqueeze(-2)
