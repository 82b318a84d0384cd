"""What a memory is made of: a network whose weights are data, given from outside.

A network is called as `network(x, products)`, where `products[i](x)` multiplies by its i-th weight. So one definition
serves reading fixed weights, and reading weights that change at every token (the product is then a scan).
"""

from __future__ import annotations

import abc
import operator
from collections.abc import Callable, Sequence
from functools import reduce
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nestling.ops.silu import silu_and_slope

Product = Callable[[Tensor], Tensor]
T = TypeVar("T")

SILU_POWER = 0.3557755  # mean of silu(z)^2 for a standard normal z


class Write(NamedTuple):
    """What one weight sees of a token: its input `[.., L, in]`, its output and the loss's gradient there `[.., L, out]`."""

    input: Tensor
    output: Tensor
    surprise: Tensor


class Network(nn.Module, abc.ABC):
    """A network with a closed-form backward pass. Its parameters are the meta-learned initial weights.

    Every weight is `[*heads, in, out]`: `heads` may be empty, a number, or a shape (memories x heads). The first weight takes
    the input, the last one makes the output. A parameter that is not among `weights()` is learnt with the rest of the model
    and stands still for the memory (`ResidualNorm` has such ones).

    dim_key, dim_value: widths of its input, where it is known, and output. linear: whether the output is `inputs(x)` times the one weight.
    """

    dim_key: int | None
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
    """A linear memory, `M(x) = x W`, that starts at zero (`dim_key` to `dim_value`).

    learnt: the initial weight is a parameter. False: it stays zero, as in the classics, and is not among the parameters.

    Raises:
        ValueError: a dimension is below 1.
    """

    linear = True
    weight: Tensor

    def __init__(self, dim_key: int, dim_value: int, heads: int | Sequence[int] = (), learnt: bool = True) -> None:
        super().__init__(heads)
        at_least_one(dim_key=dim_key, dim_value=dim_value)
        self.dim_key, self.dim_value, self.shape = dim_key, dim_value, (dim_key, dim_value)
        weight = self.initial_values()["weight"]
        if learnt:
            self.weight = nn.Parameter(weight)
        else:
            self.register_buffer("weight", weight, persistent=False)

    def initial_values(self) -> dict[str, Tensor]:
        """Zero."""
        return {"weight": torch.zeros(*self.heads, *self.shape)}

    def weights(self) -> tuple[Tensor, ...]:
        return (self.weight,)

    def forward(self, x: Tensor, products: Sequence[Product]) -> Tensor:
        return products[0](x)

    def writes(self, k: Tensor, weights: Sequence[Tensor], surprise: Callable[[Tensor], Tensor]) -> tuple[Write, ...]:
        o = k @ weights[0]
        return (Write(k, o, surprise(o)),)


class MLP(Network):
    """An MLP of any depth, residual or not, with an optional gate: `dim -> hidden -> .. -> hidden -> dim_value`.

    The default is the memory of the paper (Eq. 89, 91), `M(x) = x + silu(x W_up) W_down`.

    Args:
        dim: width of inputs and outputs. hidden: units of each hidden layer.
        heads: a number or a shape of networks side by side.
        depth: weight matrices from input to output, gates not counted: 2 is the paper's, 1 is linear (`x + x W_down`; there
            `hidden` says nothing), every further one a hidden layer more, `W_up2 [hidden, hidden]` and so on.
        residual: whether the input is added to the output.
        dim_value: width of outputs, if it is another one; that needs residual=False.
        gate: `silu(x W_gate) * (x W_up)` in place of `silu(x W_up)` in each hidden layer (SwiGLU, Shazeer, arXiv 2002.05202).

    Raises:
        ValueError: a size or `depth` is below 1, a gate without a hidden layer, a residual between other widths.
    """

    up: Tensor  # with a depth of at least 2
    down: Tensor

    def __init__(
        self,
        dim: int,
        hidden: int,
        heads: int | Sequence[int] = (),
        depth: int = 2,
        residual: bool = True,
        gate: bool = False,
        dim_value: int | None = None,
    ) -> None:
        super().__init__(heads)
        at_least_one(dim=dim, hidden=hidden, depth=depth, dim_value=dim if dim_value is None else dim_value)
        if residual and dim_value not in (None, dim):
            raise ValueError(f"dim_value={dim_value} is not dim={dim}, which a residual needs; use residual=False")
        if gate and depth < 2:
            raise ValueError(
                f"gate=True needs a hidden layer; got depth={depth}: use a depth of at least 2, or no gate"
            )
        self.dim, self.hidden, self.depth, self.residual, self.gated = dim, hidden, depth, residual, gate
        self.dim_key, self.dim_value = dim, dim if dim_value is None else dim_value
        values = self.initial_values()
        self.names = tuple(values)
        for name, value in values.items():
            self.register_parameter(name, nn.Parameter(value))

    def initial_values(self) -> dict[str, Tensor]:
        """Fresh parameters, for inputs and outputs of norm 1: hidden units of order 1 each.

        So at any depth without gates. A gated layer squares what it is given: beyond depth 4 or so units of fresh ones run off.
        """
        values, width, scale = {}, self.dim, 1.0
        for layer in range(1, self.depth):
            for name in ("up", "gate") if self.gated else ("up",):
                name = name if layer == 1 else f"{name}{layer}"
                values[name] = scale * torch.randn(*self.heads, width, self.hidden)
            width, scale = self.hidden, (SILU_POWER * self.hidden) ** -0.5
        down, out = torch.randn(*self.heads, width, self.dim_value), self.dim_value
        return values | {"down": down * (out**-0.5 if self.depth == 1 else (out * self.hidden) ** -0.5)}

    def weights(self) -> tuple[Tensor, ...]:
        return tuple(getattr(self, name) for name in self.names)

    def forward(self, x: Tensor, products: Sequence[Product]) -> Tensor:
        layers, down = self._layers(products)
        h = x
        for up, *gate in layers:
            h = F.silu(gate[0](h)) * up(h) if gate else F.silu(up(h))
        return x + down(h) if self.residual else down(h)

    def writes(self, k: Tensor, weights: Sequence[Tensor], surprise: Callable[[Tensor], Tensor]) -> tuple[Write, ...]:
        layers, down = self._layers(weights)
        x, passed = k, []
        for layer in layers:
            outputs = [x @ weight for weight in layer]
            h, slopes = _hidden(*outputs)
            passed.append((layer, x, outputs, slopes))
            x = h
        o = x @ down
        at_output = surprise(k + o if self.residual else o)
        found, above = [Write(x, o, at_output)], [(at_output, down)]
        for layer, x, outputs, slopes in reversed(passed):
            at_hidden = reduce(operator.add, (at @ weight.mT for at, weight in above))
            local = [Write(x, z, at_hidden * slope) for z, slope in zip(outputs, slopes, strict=True)]
            found, above = [*local, *found], [(w.surprise, weight) for w, weight in zip(local, layer, strict=True)]
        return tuple(found)

    def _layers(self, each: Sequence[T]) -> tuple[list[Sequence[T]], T]:
        """What there is for each weight, by hidden layers, up before gate, and that of the last weight."""
        size = 2 if self.gated else 1
        return [each[i : i + size] for i in range(0, len(each) - 1, size)], each[-1]


def _hidden(z: Tensor, gate: Tensor | None = None) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Hidden units, and their slopes in `z` and in `gate`."""
    if gate is None:
        a, slope = silu_and_slope(z)
        return a, (slope,)
    a, slope = silu_and_slope(gate)
    return a * z, (a, slope * z)


def at_least_one(**sizes: int) -> None:
    """Raise a ValueError that names the first size below 1."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name}={size} must be at least 1")
