"""What reduces the outputs of the memories of eta and alpha to a learning rate and a retention.

B batch, L length, H heads, d head width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# A token leaves of a memory at least and, so that all it holds fades, at most (docs/stability.md).
RETENTION_FLOOR, RETENTION_CEILING = 0.5, 1 - 2**-16


class Gates(nn.Module):
    """Reduce what the memories of eta and alpha say to one learning rate and one retention per head and token.

    eta = softplus(w . M_eta(x) + b) > 0 and alpha, falling with w . M_alpha(x) + b from 1 - 2^-16 to 1/2 as a sigmoid, for unit outputs
    of the memories: what a direction `w` can make of them is bounded. Heads start with memories of different length: a
    retention strictly between `1 - 1/16` and `1 - 1/1024` a token, or what else `horizons` (above 2) says.
    """

    direction: Tensor
    bias: Tensor

    def __init__(self, heads: int, width: int, horizons: tuple[float, float] = (16, 1024)) -> None:
        super().__init__()
        low, high = 1 / (1 - RETENTION_FLOOR), 1 / (1 - RETENTION_CEILING)
        if not low < min(horizons) <= max(horizons) < high:
            raise ValueError(f"horizons={horizons} must be above {low:g} and below {high:,.0f} tokens")
        self.heads, self.width, self.horizons = heads, width, horizons
        for name, value in self.initial_values().items():
            self.register_parameter(name, nn.Parameter(value))

    def initial_values(self) -> dict[str, Tensor]:
        """Fresh parameters: a rate of 0.2, and horizons spread over the heads."""
        shortest, longest = self.horizons
        decay = torch.logspace(-math.log10(shortest), -math.log10(longest), self.heads + 2)[1:-1]
        rate = torch.full((self.heads,), 0.2).expm1().log()  # the inverse of softplus
        return {
            "direction": torch.randn(2, self.heads, self.width),
            "bias": torch.stack(
                [rate, ((decay + RETENTION_CEILING - 1) / (RETENTION_CEILING - RETENTION_FLOOR)).logit()]
            ),
        }

    def forward(self, rate: Tensor, decay: Tensor) -> tuple[Tensor, Tensor]:
        """`eta, alpha [B, H, n]` from the memories' outputs `[B, H, n, d]`."""
        return rates(rate, decay, self.direction.to(rate.dtype), self.bias.to(rate.dtype))


def rates(rate: Tensor, decay: Tensor, direction: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """`Gates` as a function of tensors: `rate, decay [.., H, n, d]`, `direction [2, H, d]`, `bias [2, H]`."""
    # one `unbind` each, whose gradient is one `stack`; sums, since a product with one column copies what it is given
    (to_rate, to_decay), (of_rate, of_decay) = direction.unsqueeze(-2).unbind(0), bias.unsqueeze(-1).unbind(0)
    eta = (rate * to_rate).sum(-1) + of_rate
    alpha = (decay * to_decay).sum(-1) + of_decay
    return F.softplus(eta), RETENTION_CEILING - (RETENTION_CEILING - RETENTION_FLOOR) * torch.sigmoid(alpha)
