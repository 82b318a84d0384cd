"""A multilayer perceptron."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Perceptron(nn.Module):
    """Linear maps with rectifiers between them, `[B, in] -> [B, out]`.

    A bias is the weight of an input that is always 1, so that what a rule does with a layer's inputs it does with the bias, too.
    Inputs are scaled, each example by itself, to a root mean square of 1/2, about that of pixels in [0, 1].

    widths: of the input, the hidden layers and the output. seed: of the initial weights (He et al., arXiv 1502.01852; half of that
    for the output).
    """

    def __init__(self, widths: Sequence[int], seed: int = 0) -> None:
        super().__init__()
        draws = torch.Generator().manual_seed(seed)
        pairs = list(pairwise(widths))
        self.layers = nn.ModuleList(nn.Linear(width + 1, out, bias=False) for width, out in pairs)
        with torch.no_grad():
            for layer, (width, out) in zip(self.linear(), pairs, strict=True):
                drawn = torch.randn(out, width, generator=draws) * (2 / width) ** 0.5
                layer.weight.copy_(F.pad(drawn, (0, 1)))
            self.linear()[-1].weight.mul_(0.5)

    def linear(self) -> list[nn.Linear]:
        """The maps, from the input on."""
        return [layer for layer in self.layers if isinstance(layer, nn.Linear)]

    @property
    def outputs(self) -> int:
        """Width of the output."""
        return self.linear()[-1].out_features

    def forward(self, x: Tensor) -> Tensor:
        x = F.normalize(x, dim=-1) * (0.5 * x.shape[-1] ** 0.5)
        first, *others = self.layers
        x = first(with_one(x))
        for layer in others:
            x = layer(with_one(torch.relu(x)))
        return x


def with_one(x: Tensor) -> Tensor:
    """`[B, n + 1]`, a 1 after each row."""
    return F.pad(x, (0, 1), value=1.0)
