"""What a torch optimiser owes its users, once: the optimisers here are pure update functions in this shell."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any

import torch
from torch import Tensor

State = dict[str, Tensor]


class Shell(torch.optim.Optimizer, abc.ABC):
    """An optimiser that says which way a parameter goes; the shell takes it there: `p <- (1 - lr wd) p - lr direction`.

    It brings closures, groups, decoupled weight decay, `maximize`, `state_dict` round trips, parameters in low precision
    with their state in float32, rates that are tensors, and capture in CUDA graphs.

    A subclass implements `initial_state` and `directions`, and passes its own settings as `defaults`.

    Raises:
        ValueError: a setting out of range, or a gradient that is sparse or complex.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor,
        weight_decay: float = 0.0,
        maximize: bool = False,
        capturable: bool = False,
        **settings: Any,
    ) -> None:
        if isinstance(lr, Tensor) and lr.numel() != 1:
            raise ValueError(f"lr has shape {tuple(lr.shape)}; a tensor must have one element")
        at_least_zero(lr=lr, weight_decay=weight_decay)
        common = {"lr": lr, "weight_decay": weight_decay, "maximize": maximize, "capturable": capturable}
        super().__init__(params, {**common, **settings})

    @abc.abstractmethod
    def initial_state(self, parameter: Tensor, group: dict[str, Any]) -> State:
        """The state before the first gradient. `parameter` has the dtype of the state: float32 or float64."""

    @abc.abstractmethod
    def directions(
        self, parameters: list[Tensor], gradients: list[Tensor], states: list[State], group: dict[str, Any]
    ) -> list[Tensor]:
        """The step of each parameter, before `-lr`; states move on in place.

        Everything is in float32 or float64. Parameters may be read, not written. `states[i]["step"]` counts from 1.
        """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; returns what the closure returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                self._step(parameters, group)
        return loss

    def _step(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        gradients = [_exact(checked(p)) for p in parameters]
        if group["maximize"]:
            gradients = torch._foreach_neg(gradients)
        states = [self._state(p, group) for p in parameters]
        torch._foreach_add_([state["step"] for state in states], 1.0)
        exact = [_exact(p) for p in parameters]
        moves = list(self.directions(exact, list(gradients), states, group))
        lr = group["lr"]
        if group["weight_decay"]:
            torch._foreach_mul_(exact, 1 - lr * group["weight_decay"])
        if isinstance(lr, Tensor):
            torch._foreach_sub_(exact, torch._foreach_mul(moves, lr))
        else:
            torch._foreach_add_(exact, moves, alpha=-lr)
        for p, new in zip(parameters, exact, strict=True):
            if new is not p:  # low precision
                p.copy_(new)

    def _state(self, parameter: Tensor, group: dict[str, Any]) -> State:
        state = self.state[parameter]
        if not state:
            device = parameter.device if group["capturable"] else "cpu"
            state["step"] = torch.zeros((), dtype=torch.float32, device=device)
            state.update(self.initial_state(_exact(parameter), group))
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, but the state keeps its own precision, where torch would cast it to the parameter's."""
        super().load_state_dict(state_dict)
        saved = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        mine = chain.from_iterable(group["params"] for group in self.param_groups)
        for index, parameter in zip(saved, mine, strict=True):
            for name, value in state_dict["state"].get(index, {}).items():
                if name != "step":
                    self.state[parameter][name] = value.to(parameter.device, copy=True)


def _exact(x: Tensor) -> Tensor:
    """In float32 or better."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def checked(parameter: Tensor) -> Tensor:
    """The gradient, if it is one that these optimisers can use."""
    gradient = parameter.grad
    assert gradient is not None
    if gradient.is_sparse:
        raise ValueError("a gradient is sparse; use sparse=False in the embedding, or torch.optim.SparseAdam for it")
    if gradient.is_complex():
        raise ValueError("a parameter is complex; give its real view (torch.view_as_real) to the optimiser")
    return gradient


def at_least_zero(**settings: Any) -> None:
    """Raise unless every setting is a finite number of at least 0."""
    for name, value in settings.items():
        if not 0.0 <= float(value) < float("inf"):
            raise ValueError(f"{name}={float(value)} must be a finite number of at least 0")


def below_one(**settings: float) -> None:
    """Raise unless every setting is in [0, 1)."""
    for name, value in settings.items():
        if not 0.0 <= value < 1.0:
            raise ValueError(f"{name}={value} must be at least 0 and below 1")
