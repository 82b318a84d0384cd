"""What optimisers remember (arXiv 2512.24695, section 4): their state, before the first step or after, as memories of gradients."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from nestling.levels.description.component import Size
from nestling.memory.part import Context, Part, remembered
from nestling.optim import Retained, Shell

State = Mapping[str, Any]


@dataclass(frozen=True)
class Mover:
    """What moves a parameter.

    label: the optimiser's, with a number where there are several of one class or with several settings. rule: the parameter's own.
    context: how many gradients stay in it. memories: of its gradients, with the size of each.
    """

    label: str
    rule: str
    context: Context
    memories: tuple[tuple[Part, Size], ...]


def movers(optimizers: Iterable[torch.optim.Optimizer]) -> dict[Tensor, Mover]:
    """By parameter what moves it. One that takes no gradient is moved by nothing.

    Raises:
        ValueError: two of the optimisers move one parameter, or the state of one cannot be told before its first step.
    """
    found: dict[Tensor, Mover] = {}
    optimizers = list(optimizers)
    for optimizer, name in zip(optimizers, _names(optimizers), strict=True):
        inner = optimizer.optimizer if isinstance(optimizer, Retained) else optimizer
        states = _states(inner)
        kinds = [(_parts(inner, group, states), _rule(inner, group)) for group in inner.param_groups]
        for group, (parts, rule) in zip(inner.param_groups, kinds, strict=True):
            label = name if len(set(kinds)) == 1 else f"{name}, group {kinds.index((parts, rule)) + 1}"
            context = _context(inner, group)
            for parameter in group["params"]:
                if not parameter.requires_grad:
                    continue
                if parameter in found:
                    raise ValueError(
                        f"a parameter of shape {list(parameter.shape)} is moved by {found[parameter].label} and by {label}; give each "
                        "parameter to one optimiser"
                    )
                found[parameter] = Mover(label, rule, context, tuple(sizes(states[parameter], parts)))
        if isinstance(optimizer, Retained):
            _hold_back(found, optimizer)
    return found


def _names(optimizers: list[torch.optim.Optimizer]) -> list[str]:
    """The classes, with a number from the second of a class on."""
    kinds = [type(o.optimizer if isinstance(o, Retained) else o).__name__ for o in optimizers]
    return [kind if not (before := kinds[:i].count(kind)) else f"{kind} {before + 1}" for i, kind in enumerate(kinds)]


def sizes(state: State, parts: Iterable[Part]) -> Iterator[tuple[Part, Size]]:
    """Every part of a state that is there, with its size; what no part names is a part of its own.

    Single numbers, such as the count of steps, are counted with the first part.
    """
    tensors = {key: found for key, value in state.items() if (found := list(_tensors(value)))}
    parts = [part for part in parts if any(key in tensors for key in part.keys)]
    named = {key for part in parts for key in part.keys}
    single = [k for k, v in tensors.items() if k not in named and (k == "step" or all(not t.dim() for t in v))]
    parts += [_unknown(key) for key in tensors if key not in named and key not in single]
    if single and not parts:
        parts = [Part("count of steps", "none", "n <- n + 1", context=Context("gradients"))]
    for i, part in enumerate(parts):
        keys = [*part.keys, *(single if i == 0 else ())]
        yield part, Size.of(tensor for key in keys for tensor in tensors.get(key, ()))


def _tensors(value: Any) -> Iterator[Tensor]:
    """Tensors and numbers of an entry of a state."""
    if isinstance(value, Tensor):
        yield value  # as_tensor would move it to a default device, for which one without memory has no data
    elif isinstance(value, float | int):
        yield torch.as_tensor(value)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def _unknown(key: str) -> Part:
    """What an optimiser keeps without saying what it is."""
    return Part(key, "not known", "not known", context=Context("gradients", None), keys=(key,))


def _parts(optimizer: torch.optim.Optimizer, group: dict[str, Any], states: dict[Tensor, State]) -> tuple[Part, ...]:
    if isinstance(optimizer, Shell):
        return optimizer.parts(group)
    keys = dict.fromkeys(key for p in group["params"] for key in states.get(p, {}))
    return tuple(TORCH[key](group) for key in keys if key in TORCH)


def _rule(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> str:
    if isinstance(optimizer, Shell):
        return optimizer.rule(group)
    plain = type(optimizer) is torch.optim.SGD and not group["momentum"]
    return "W <- W - lr G" if plain else RULES.get(type(optimizer), f"the step of {type(optimizer).__name__}")


def _context(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> Context:
    """Of the parameters themselves: decoupled weight decay is what they forget by."""
    decoupled = isinstance(optimizer, Shell | torch.optim.Muon) or group.get("decoupled_weight_decay", False)
    decay = float(group["lr"]) * float(group["weight_decay"]) if decoupled else 0.0
    return Context.fading(1 - min(decay, 1.0), "gradients")


def _states(optimizer: torch.optim.Optimizer) -> dict[Tensor, State]:
    """Of every parameter that it moves the state: as it is, or as the first step will make it.

    An optimiser of torch has its state from its first step on: a parameter without one then is one that has had no gradient, or,
    in LBFGS, one whose state is kept with the first. A `Shell` may have some before.
    """
    parameters = [(p, group) for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
    states: dict[Tensor, State] = {p: optimizer.state[p] for p, _ in parameters if optimizer.state.get(p)}
    if isinstance(optimizer, Shell):
        new = {p: optimizer.beginning(p.detach().to("meta"), group) for p, group in parameters if p not in states}
        return {**states, **new}
    return {p: states.get(p, {}) for p, _ in parameters} if states else _after_a_step(optimizer)


def _after_a_step(optimizer: torch.optim.Optimizer) -> dict[Tensor, State]:
    """States after the first step of a copy whose parameters have no memory."""
    twins = {
        p: nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad)
        for group in optimizer.param_groups
        for p in group["params"]
    }
    try:
        trial = copy.deepcopy(optimizer, {id(p): twin for p, twin in twins.items()})
        trial.state.clear()
        for twin in twins.values():
            twin.grad = torch.empty_like(twin) if twin.requires_grad else None
        with torch.device("cpu"):  # counts of steps have data, whatever the default device is
            trial.step()
    except Exception as error:  # whatever an optimiser of anyone's raises
        raise ValueError(
            f"{type(optimizer).__name__} makes its state in its first step, which could not be tried without data "
            f"({str(error).splitlines()[0]}); make a step with lr=0 before it is described"
        ) from None
    return {p: dict(trial.state[twin]) for p, twin in twins.items()}


def _hold_back(found: dict[Tensor, Mover], optimizer: Retained) -> None:
    """The parameters whose steps a retention holds back need what it has seen."""
    protected = {parameter for part in optimizer.parts() for parameter in part.parameters if parameter in found}
    for part in optimizer.parts():
        for parameter in part.parameters[:1]:  # a layer's inputs are one memory, whatever it protects
            if parameter in found:
                mover = found[parameter]
                found[parameter] = replace(mover, memories=(*mover.memories, (part, Size.of(part.state or ()))))
    for parameter in protected:
        found[parameter] = replace(found[parameter], rule=f"{found[parameter].rule}, the step times a A^-1")


def _momentum(group: dict[str, Any]) -> Part:
    decay, damp = group["momentum"], group.get("dampening", 0) or ("ns_steps" in group and group["momentum"])
    new = "G" if not damp else f"{1 - damp:.4g} G"
    return remembered("momentum", ("momentum_buffer",), decay, "-<m, G>", f"m <- {decay:g} m + {new}")


def _mean(name: str, key: str, decay: float, what: str, needs: tuple[str, ...] = ()) -> Part:
    objective = "-<m, G>" if what == "G" else f"1/2 |v - {what}|^2"
    letter = "m" if what == "G" else "v"
    return remembered(name, (key,), decay, objective, f"{letter} <- {decay:g} {letter} + {1 - decay:.4g} {what}", needs)


TORCH: dict[str, Callable[[dict[str, Any]], Part]] = {
    "momentum_buffer": _momentum,
    "exp_avg": lambda g: _mean("first moment", "exp_avg", g["betas"][0], "G"),
    "exp_avg_sq": lambda g: _mean("second moment", "exp_avg_sq", g["betas"][1], "G^2"),
    "max_exp_avg_sq": lambda g: remembered(
        "largest second moment", ("max_exp_avg_sq",), 1.0, "max v", "u <- max(u, v)", ("second moment",)
    ),
    "exp_inf": lambda g: remembered(
        "largest gradient", ("exp_inf",), g["betas"][1], "max |G|", f"u <- max({g['betas'][1]:g} u, |G|)"
    ),
    "square_avg": lambda g: _mean("second moment", "square_avg", g["alpha"] if "alpha" in g else g["rho"], "G^2"),
    "grad_avg": lambda g: _mean("first moment", "grad_avg", g["alpha"], "G"),
    "acc_delta": lambda g: _mean("second moment of the steps", "acc_delta", g["rho"], "dW^2", ("second moment",)),
    "sum": lambda g: remembered("sum of squares", ("sum",), 1.0, "-<v, G^2>", "v <- v + G^2"),
}
RULES: dict[type, str] = {
    torch.optim.SGD: "W <- W - lr m",
    torch.optim.Adam: "W <- W - lr m / (sqrt(v) + eps)",
    torch.optim.AdamW: "W <- W - lr m / (sqrt(v) + eps)",
    torch.optim.Muon: "W <- W - lr NS(m)",
    torch.optim.RMSprop: "W <- W - lr G / (sqrt(v) + eps)",
    torch.optim.Adagrad: "W <- W - lr G / (sqrt(v) + eps)",
}
