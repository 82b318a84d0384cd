"""The table of all optimisers, one row each, and the small things that their tests step. A new optimiser is a new row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nestling.memory import RetainSeen
from nestling.optim import (
    DGD,
    M3,
    AdEMAMix,
    DeepMomentum,
    DeltaMomentum,
    GeneralisedMomentum,
    Kronecker,
    PreconditionedMomentum,
    Retained,
    Rows,
)
from nestling.optim.shell import Shell, State, below_one

Optimizer = torch.optim.Optimizer


class Momentum(Shell):
    """Heavy-ball momentum, `m <- beta m + g`: the least that a Shell can hold."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 0.01,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        maximize: bool = False,
        capturable: bool = False,
    ) -> None:
        super().__init__(params, lr, weight_decay, maximize, capturable, momentum=momentum)

    def check(self, group: dict[str, Any]) -> None:
        super().check(group)
        below_one(momentum=group["momentum"])

    def initial_state(self, parameter: Tensor, group: dict[str, Any]) -> State:
        return {"momentum": torch.zeros_like(parameter)}

    def directions(
        self, parameters: list[Tensor], gradients: list[Tensor], states: list[State], group: dict[str, Any]
    ) -> list[Tensor]:
        momenta = [state["momentum"] for state in states]
        torch._foreach_mul_(momenta, group["momentum"])
        torch._foreach_add_(momenta, gradients)
        return momenta


class Normalised(Momentum):
    """The gradient by its root mean square, corrected for its start: a Shell that needs the count of steps."""

    def directions(
        self, parameters: list[Tensor], gradients: list[Tensor], states: list[State], group: dict[str, Any]
    ) -> list[Tensor]:
        beta, out = group["momentum"], []
        for g, state in zip(gradients, states, strict=True):
            state["momentum"].lerp_(g * g, 1 - beta)
            mean = state["momentum"] / (1 - beta ** state["step"].to(g.device))
            out.append(g / (mean.sqrt() + 1e-8))
        return out


def only(cls: type[Optimizer], **settings: Any) -> Callable[..., Optimizer]:
    """How to build an optimiser that needs nothing but its parameters, as torch's do."""
    return lambda module, params, **more: cls(params, **{**settings, **more})


def as_given(module: nn.Module, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Groups for an optimiser that takes any parameter in any group."""
    return groups


def apart(takes: Callable[[nn.Module, Tensor], bool], **settings: Any) -> Callable[..., list[dict[str, Any]]]:
    """Groups for an optimiser that takes some parameters only, and the others in groups of their own with `settings`."""

    def split(module: nn.Module, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        out = []
        for group in groups:
            params = [group["params"]] if isinstance(group["params"], Tensor) else list(group["params"])
            taken = [takes(module, p[1] if isinstance(p, tuple) else p) for p in params]
            for wanted, own in ((True, {}), (False, settings)):
                part = [p for p, its in zip(params, taken, strict=True) if its == wanted]
                out += [{**group, **own, "params": part}] if part else []
        return out

    return split


def a_layers_weight(module: nn.Module, parameter: Tensor) -> bool:
    """Whether a parameter is the weight of a linear or embedding layer."""
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear | nn.Embedding)]
    return any(layer.weight is parameter for layer in layers)


@dataclass(frozen=True)
class Row:
    """How an optimiser is made, the settings that it must refuse, and rates that suit it.

    build: called with a module, parameters or groups of them, and settings.
    lr: on the quadratic. curve_lr: on Rosenbrock's curve.
    bad: settings out of range, one a dictionary; the message must have the first one's name.
    groups: makes any groups ones that it takes.
    watches: it has hooks in the module, without which it makes no step.
    capturable: in a CUDA graph.
    """

    build: Callable[..., Optimizer]
    lr: float
    curve_lr: float
    bad: tuple[dict[str, Any], ...]
    groups: Callable[[nn.Module, list[dict[str, Any]]], list[dict[str, Any]]] = as_given
    watches: bool = False
    capturable: bool = True


OPTIMIZERS = {
    "Momentum": Row(only(Momentum), 0.02, 2e-3, ({"momentum": 1.0}, {"momentum": -0.1})),
    "Normalised": Row(only(Normalised), 0.1, 0.05, ({"momentum": 1.0},)),
    "M3": Row(
        only(M3, periods=(3,)),
        *(0.2, 1.0, ({"periods": (0,)}, {"momentum": 1.5}, {"steps": 0})),
        groups=apart(lambda module, p: p.ndim == 2, adamw=True),
    ),
    # what belongs to no layer is moved by its other rule; a layer's weight has another fixed point than the loss has
    "DGD": Row(
        lambda module, params, **settings: DGD(params, module, **{"momentum": 0.9, **settings}),
        *(0.02, 2e-3, ({"momentum": 1.0}, {"erasure": -1.0})),
        groups=apart(a_layers_weight, rule="sgd"),
        watches=True,
        capturable=False,
    ),
    "Delta, matrix": Row(
        only(DeltaMomentum), 0.02, 1e-3, ({"delta": 1.5}, {"damping": -1.0}, {"form": "row"}, {"momentum": 1.0})
    ),
    "Delta, vector": Row(only(DeltaMomentum, form="vector", damping=0.1, delta=1.0), 0.02, 2e-3, ({"delta": -0.5},)),
    "Kronecker": Row(
        only(PreconditionedMomentum, preconditioner=Kronecker(period=3)),
        *(0.03, 0.01, ({"momentum": 1.5},)),
        capturable=False,
    ),
    "Deep": Row(only(DeepMomentum, hidden=8), 0.03, 2e-2, ({"hidden": 1.5}, {"rate": -1.0}, {"momentum": 1.0})),
    "Generalised": Row(only(GeneralisedMomentum), 0.3, 0.3, ({"momentum": 1.5},)),
    # damped, as an inverse root of what is almost singular makes much of rounding
    "Generalised, rows": Row(
        only(GeneralisedMomentum, memory=Rows(), retention=RetainSeen(damping=0.01, forgetting=0.99)),
        *(0.3, 0.2, ({"momentum": 1.5},)),
        capturable=False,
    ),
    "AdEMAMix": Row(
        only(AdEMAMix, betas=(0.9, 0.999, 0.99), alpha_warmup=50, beta3_warmup=50),
        *(0.3, 0.03, ({"betas": (0.9, 0.9, 1.5)}, {"alpha": -1.0}, {"eps": -1.0})),
    ),
}
# What stands around an optimiser, moves a model's layers only, and does not promise all that the others do.
AROUND = {
    "Retained": Row(
        lambda module, params, **settings: Retained(Momentum(params, **settings), module, damping=0.1),
        *(0.02, 2e-3, ()),
        watches=True,
        capturable=False,
    ),
}
ALL = {**OPTIMIZERS, **AROUND}


def make(name: str, module: nn.Module, params: Any = None, **settings: Any) -> Optimizer:
    """An optimiser over a module's parameters, with their names unless `params` says otherwise."""
    row = ALL[name]
    if isinstance(params, Tensor):  # a mistake that is to be refused
        return row.build(module, params, **settings)
    params = list(module.named_parameters() if params is None else params)
    groups = params if isinstance(params[0], dict) else [{"params": params}]
    return row.build(module, row.groups(module, groups), **settings)


def add(name: str, module: nn.Module, optimizer: Optimizer, group: dict[str, Any]) -> None:
    """One more group."""
    for part in ALL[name].groups(module, [group]):
        optimizer.add_param_group(part)


def network(dtype: torch.dtype = torch.float64) -> nn.Module:
    """Layers of several shapes, two of one shape, vectors among them; the same weights at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(
            *(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 2)),
        ).to(dtype)


def loose(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float64) -> nn.ParameterList:
    """Parameters that belong to no layer."""
    return nn.ParameterList([torch.randn(shape, dtype=dtype) for shape in shapes])


def loss_of(module: nn.Module, index: int) -> Tensor:
    """Mean squared error on the batch of a number; the same batch for every model."""
    dtype = next(module.parameters()).dtype
    with torch.random.fork_rng():
        torch.manual_seed(100 + index)
        x, y = torch.randn(7, 3).to(dtype), torch.randn(7, 2).to(dtype)
    return (module(x) - y).square().mean()


def learn(module: nn.Module, optimizer: Optimizer, steps: Iterable[int], sign: float = 1.0) -> None:
    """A step on each batch, down the loss times `sign`."""
    for index in steps:
        optimizer.zero_grad()
        (sign * loss_of(module, index)).backward()
        optimizer.step()


def trained(build: Callable[[list[nn.Parameter]], Optimizer], steps: int = 8) -> dict[str, Tensor]:
    """The network's parameters after some steps of an optimiser."""
    module = network()
    learn(module, build(list(module.parameters())), range(steps))
    return values(module)


def path(build: Callable[[list[nn.Parameter]], Optimizer], start: Tensor, gradients: Sequence[Tensor]) -> Tensor:
    """One parameter after a step on each of the gradients."""
    parameter = nn.Parameter(start.clone())
    optimizer = build([parameter])
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter.detach()


def give(module: nn.Module, seed: int) -> None:
    """Random gradients, the same for every model of one architecture, whatever its precision."""
    generator = torch.Generator().manual_seed(seed)
    for p in module.parameters():
        p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p)


def values(module: nn.Module) -> dict[str, Tensor]:
    """Copies of the parameters, by name."""
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def state_of(optimizer: Optimizer) -> dict[str, Tensor]:
    """Copies of the tensors of the state, by index of the parameter and name."""
    packed = optimizer.state_dict()["state"]
    return {f"{i}.{k}": v.detach().clone() for i, state in sorted(packed.items()) for k, v in sorted(state.items())}
