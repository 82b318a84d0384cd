"""What a memory is made of: a network whose weights are data, given from outside.

A network is called as `network(x, products)`, where `products[i](x)` multiplies by its i-th weight. So one definition
serves reading fixed weights, and reading weights that change at every token (the product is then a scan).
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nestling.ops.silu import silu_and_slope

Product = Callable[[Tensor], Tensor]


class Write(NamedTuple):
    """What one weight sees of a token: its input `[.., L, in]`, its output and the loss's gradient there `[.., L, out]`."""

    input: Tensor
    output: Tensor
    surprise: Tensor


class Network(nn.Module, abc.ABC):
    """A network with a closed-form backward pass. Its parameters are the meta-learned initial weights.

    Every weight is `[*heads, in, out]`: `heads` may be empty, a number, or a shape (memories x heads).

    dim_key, dim_value: widths of its input and output. linear: whether the output is `inputs(x)` times the one weight.
    """

    dim_key: int
    dim_value: int
    linear: bool = False

    def __init__(self, heads: int | Sequence[int] = ()) -> None:
        super().__init__()
        self.heads = (heads,) if isinstance(heads, int) else tuple(heads)

    @abc.abstractmethod
    def weights(self) -> tuple[Tensor, ...]:
        """The initial weights."""

    @abc.abstractmethod
    def forward(self, x: Tensor, products: Sequence[Product]) -> Tensor:
        """The network's output `[.., L, dv]` for `x [.., L, dk]`."""

    @abc.abstractmethod
    def writes(self, k: Tensor, weights: Sequence[Tensor], surprise: Callable[[Tensor], Tensor]) -> tuple[Write, ...]:
        """The local backward pass: for each weight its input, its output, and the surprise there.

        `surprise` maps the network's output to the loss's gradient there.
        """

    def inputs(self, x: Tensor) -> Tensor:
        """What the first weight is multiplied with, `[.., L, in]`."""
        return x

    def read(self, x: Tensor, weights: Sequence[Tensor]) -> Tensor:
        """The output for weights that stand still."""
        return self(x, [lambda a, w=w: a @ w for w in weights])


class Matrix(Network):
    """A linear memory, `M(x) = x W`, that starts at zero (`dim_key` to `dim_value`)."""

    linear = True

    def __init__(self, dim_key: int, dim_value: int, heads: int | Sequence[int] = ()) -> None:
        super().__init__(heads)
        self.dim_key, self.dim_value = dim_key, dim_value
        self.weight = nn.Parameter(torch.zeros(*self.heads, dim_key, dim_value))

    def weights(self) -> tuple[Tensor, ...]:
        return (self.weight,)

    def forward(self, x: Tensor, products: Sequence[Product]) -> Tensor:
        return products[0](x)

    def writes(self, k: Tensor, weights: Sequence[Tensor], surprise: Callable[[Tensor], Tensor]) -> tuple[Write, ...]:
        o = k @ weights[0]
        return (Write(k, o, surprise(o)),)


class MLP(Network):
    """The residual memory of the paper (Eq. 89, 91): `M(x) = x + silu(x W_up) W_down`, `dim -> hidden -> dim`."""

    up: Tensor
    down: Tensor

    def __init__(self, dim: int, hidden: int, heads: int | Sequence[int] = ()) -> None:
        super().__init__(heads)
        self.dim, self.hidden = dim, hidden
        self.dim_key = self.dim_value = dim
        for name, value in self.initial_values().items():
            self.register_parameter(name, nn.Parameter(value))

    def initial_values(self) -> dict[str, Tensor]:
        """Fresh parameters, for inputs and outputs of norm 1: hidden units of order 1 each."""
        up = torch.randn(*self.heads, self.dim, self.hidden)
        return {"up": up, "down": torch.randn(*self.heads, self.hidden, self.dim) * (self.dim * self.hidden) ** -0.5}

    def weights(self) -> tuple[Tensor, ...]:
        return self.up, self.down

    def forward(self, x: Tensor, products: Sequence[Product]) -> Tensor:
        up, down = products
        return x + down(F.silu(up(x)))

    def writes(self, k: Tensor, weights: Sequence[Tensor], surprise: Callable[[Tensor], Tensor]) -> tuple[Write, ...]:
        up, down = weights
        z = k @ up
        a, slope = silu_and_slope(z)
        o = a @ down
        at_output = surprise(k + o)
        at_hidden = (at_output @ down.mT) * slope
        return Write(k, z, at_hidden), Write(a, o, at_output)
