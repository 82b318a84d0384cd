"""Deep momentum: a network that learns the rows of the gradients online, and is read for the step (Eq. 50-52)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nestling.memory import L2
from nestling.memory.objective import Objective
from nestling.memory.part import Part, called, remembered
from nestling.optim.preconditioned_momentum import as_matrix, by_shape
from nestling.optim.shell import Shell, State, at_least_zero, below_one

Map = Callable[[Tensor], Tensor]


class DeepMomentum(Shell):
    """DMGD, deep momentum gradient descent (arXiv 2512.24695, Eq. 50-52): the momentum is a network `m`.

        m <- alpha m - rate grad_m L(m; x, I)       x = phi(G), [out, in]       W <- W - lr sigma(m(x))

    What is the memory's key, what its value, and how is it read? The paper writes plain momentum as
    `argmin -<m G^T, I> + ..`: the keys are the rows of the gradient, the value of row j is `e_j`, row j of the identity,
    and the memory maps `[in]` to `[out]`. Regression to the same values is its delta momentum. A linear memory is read as
    its matrix `m`, `[out, in]`: at any key, that is the derivative of its answers, `m = d <m(x_j), e_j> / d x_j` in
    row j. That is what is left to read when the memory is deep, and depends on the key then:

        read_j = d <m(x_j), e_j> / d x_j = J_m(x_j)^T e_j

    the direction in which a row becomes more like what its memory knows as this row. If only the last layer learnt by the
    dot product, this would be `sum_i alpha^(t-i) d K(x_ij, x_j) / d x_j` with the kernel `K` of its hidden units: earlier
    gradients, each in proportion to its likeness to the present one (for a linear kernel: each alike, momentum). The
    network is the paper's residual MLP (Eq. 89), its residual a matrix since in and out differ:

        m(x) = x A + silu(x U) D / sqrt(hidden)

    all of which is learnt. `A` and `D` start at zero, `U` is normal, from `seed` and the shape alone. `alpha` draws
    the weights to that start (to zero, as printed, `U` would fade and take the network with it). The objective is a mean
    over rows and the reading is of their number times that, so that `rate` suits any height.

        hidden=0, objective=DotProduct(), features=raw, rate=1      torch.optim.SGD(momentum=alpha)
        the same, sigma=newton_schulz                               torch.optim.Muon (its coefficients, its factor for shape)
        hidden=0, objective=L2(), features=unit                     DeltaMomentum(lr * rate, delta=rate) of unit(G)

    With `DotProduct` a memory has no optimum, and grows until `alpha` stops it: keep the `rate` of a deep one at or below
    `1 - alpha`. With `L2` it is bounded for `rate` up to 0.5; at 1 a deep one can diverge. With `unit`, the default,
    gradients have no scale, and rates are those of Adam or Muon rather than SGD's. Parameters of more than two dimensions
    are taken as `[out, rest]`, a vector as one row.

    The memory needs `in out + hidden (2 in + out)` numbers. On small problems it does not beat what it generalises: use
    `DeltaMomentum` or `M3`, unless it is the memory that you want to study.

    Args:
        params: parameters or groups.
        lr: learning rate.
        momentum: `alpha`, in [0, 1).
        rate: of the inner gradient descent, at least 0.
        hidden: width of the hidden layer; 0 is a linear memory.
        nesterov: read a memory that has learnt the gradient twice, and keep the one that has learnt it once.
        seed: of `U`.
        objective: `DotProduct()`, `L2()` (None), or any object with their two methods.
        features: `phi`, from `[.., out, in]` to the same shape: `raw`, `unit` or `Polynomial` (Eq. 51) of this file,
            or your own.
        sigma: on what was read, `[.., out, in]`, such as `ops.newton_schulz` (Eq. 52). None is the identity.
        weight_decay, maximize, capturable: as in `Shell`.

    Raises:
        ValueError: a setting out of range; in a step, `features` or `sigma` that change the shape.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        momentum: float = 0.9,
        rate: float = 0.5,
        hidden: int = 64,
        nesterov: bool = False,
        seed: int = 0,
        objective: Objective | None = None,
        features: Map | None = None,
        sigma: Map | None = None,
        weight_decay: float = 0.0,
        maximize: bool = False,
        capturable: bool = False,
    ) -> None:
        self.objective = objective or L2()
        self.features, self.sigma = features or unit, sigma or raw
        memory = {"momentum": momentum, "rate": rate, "hidden": hidden, "nesterov": nesterov, "seed": seed}
        super().__init__(params, lr, weight_decay, maximize, capturable, **memory)

    def __getstate__(self) -> dict[str, Any]:
        parts = ("objective", "features", "sigma")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in parts}}

    def check(self, group: dict[str, Any]) -> None:
        super().check(group)
        below_one(momentum=group["momentum"])
        at_least_zero(rate=group["rate"])
        if group["hidden"] < 0 or group["hidden"] != int(group["hidden"]):
            raise ValueError(f"hidden={group['hidden']} must be a whole number of units; 0 is a linear memory")

    def parts(self, group: dict[str, Any]) -> tuple[Part, ...]:
        objective, alpha = called(self.objective), group["momentum"]
        rule = f"m <- {alpha:g} m - {group['rate']:g} grad L(m; G, I)"
        return (remembered("deep momentum", ("linear", "up", "down", "start"), alpha, objective, rule),)

    def rule(self, group: dict[str, Any]) -> str:
        return "W <- W - lr sigma(m(G))"

    def initial_state(self, parameter: Tensor, group: dict[str, Any]) -> State:
        rows, columns = as_matrix(parameter).shape
        generator = torch.Generator().manual_seed(group["seed"])
        up = torch.randn(columns, group["hidden"], generator=generator, dtype=torch.float64).to(parameter)
        linear, down = parameter.new_zeros(columns, rows), parameter.new_zeros(group["hidden"], rows)
        return {"linear": linear, "up": up, "down": down, "start": up.clone()}

    def directions(
        self, parameters: list[Tensor], gradients: list[Tensor], states: list[State], group: dict[str, Any]
    ) -> list[Tensor]:
        def one_shape(gradient: Tensor, start: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
            x = shaped("features", self.features, gradient)
            learn = partial(
                learnt, start=start, x=x, objective=self.objective, alpha=group["momentum"], rate=group["rate"]
            )
            memory = learn(Memory(*weights))
            seen = read(learn(memory) if group["nesterov"] else memory, x)
            return *memory, shaped("sigma", self.sigma, seen)

        columns = [[state[name] for state in states] for name in ("start", *Memory._fields)]
        moved = by_shape(one_shape, [as_matrix(g) for g in gradients], *columns)
        for state, (*memory, _) in zip(states, moved, strict=True):
            torch._foreach_copy_([state[name] for name in Memory._fields], memory)
        return [direction.view_as(p) for (*_, direction), p in zip(moved, parameters, strict=True)]


class Memory(NamedTuple):
    """The weights of a memory from `[in]` to `[out]`: `[.., in, out]`, `[.., in, hidden]`, `[.., hidden, out]`."""

    linear: Tensor
    up: Tensor
    down: Tensor

    def hidden(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`silu(z) / sqrt(hidden)` and its derivative at `z = x U`, `[.., rows, hidden]` for `x [.., rows, in]`."""
        z = x @ self.up
        gate = torch.sigmoid(z)
        scale = max(1, z.shape[-1]) ** -0.5
        return scale * z * gate, scale * gate * (1 + z * (1 - gate))


def learnt(memory: Memory, start: Tensor, x: Tensor, objective: Objective, alpha: float, rate: float) -> Memory:
    """`alpha m - rate grad_m mean_j L(m(x_j), e_j)`, where `U` decays to `start` instead of zero."""
    a, slope = memory.hidden(x)
    answers = x @ memory.linear + a @ memory.down
    identity = torch.eye(x.shape[-2], dtype=x.dtype, device=x.device).expand_as(answers)
    delta = objective.surprise(answers, identity) / x.shape[-2]
    delta_z = (delta @ memory.down.mT) * slope
    gradients = (x.mT @ delta, x.mT @ delta_z, a.mT @ delta)
    linear, up, down = (alpha * w - rate * g for w, g in zip(memory, gradients, strict=True))
    return Memory(linear, up + (1 - alpha) * start, down)


def read(memory: Memory, x: Tensor) -> Tensor:
    """`J_m(x_j)^T e_j` in row j, times the number of rows."""
    _, slope = memory.hidden(x)
    return x.shape[-2] * (memory.linear.mT + (memory.down.mT * slope) @ memory.up.mT)


def shaped(name: str, function: Map, x: Tensor) -> Tensor:
    """`function(x)`, which has the shape of `x`."""
    y = function(x)
    if y.shape != x.shape:
        raise ValueError(f"{name} made {list(y.shape)} of {list(x.shape)}; it must keep the shape")
    return y


def raw(x: Tensor) -> Tensor:
    """As it is."""
    return x


def unit(x: Tensor) -> Tensor:
    """Every `[out, in]` over the root mean square norm of its rows; zeros stay."""
    tiny = torch.finfo(x.dtype).tiny
    x = x / x.abs().amax((-2, -1), keepdim=True).clamp_min(tiny)  # first, or squares could underflow
    return x * (x.shape[-2] ** 0.5 / x.square().sum((-2, -1), keepdim=True).sqrt().clamp_min(tiny))


@dataclass(frozen=True)
class Polynomial:
    """`c_1 x + c_3 x^3 + c_5 x^5 + ..` of the elements of `x = unit(G)`: higher-order features (Eq. 51).

    Odd, so that opposite gradients stay opposite. With a linear memory, `m <- alpha m + phi(G)`.
    """

    coefficients: tuple[float, ...] = (1.0, 0.1)

    def __call__(self, x: Tensor) -> Tensor:
        x = unit(x)
        total = torch.zeros_like(x)
        for coefficient in reversed(self.coefficients):
            total = total * x.square() + coefficient
        return total * x
