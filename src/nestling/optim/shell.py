"""What a torch optimiser owes its users, once: the optimisers here are pure update functions in this shell."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from nestling.memory.part import Part

State = dict[str, Tensor]
COUNT = torch.float64  # of steps: `1 - 0.999^t` would have three digits in float32, and counting would end at 2^24


class Shell(torch.optim.Optimizer, abc.ABC):
    """An optimiser that says which way a parameter goes; the shell takes it there: `p <- (1 - lr wd) p - lr direction`.

    It brings closures, groups, decoupled weight decay, `maximize`, `state_dict` round trips, parameters in low precision
    with their state in float32, rates that are tensors, and capture in CUDA graphs. Every step works on lists of tensors
    (torch's `foreach`); `fused` is not offered, and neither is `differentiable`: a step leaves no graph behind.

    A subclass implements `initial_state` and `directions`, hands its own settings to the constructor, and extends `check`
    (and `ready`, if more can be wrong). Settings are plain data, numbers, strings, tuples of them: they are part of
    `state_dict`.

    Raises:
        ValueError: a setting out of range, or a parameter or gradient that is sparse or complex. Nothing has moved then.
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
        common = {"lr": lr, "weight_decay": weight_decay, "maximize": maximize, "capturable": capturable}
        super().__init__(params, {**common, **settings})

    @abc.abstractmethod
    def initial_state(self, parameter: Tensor, group: dict[str, Any]) -> State:
        """The state before the first gradient, in the dtype of `parameter`, which is float32 or float64."""

    @abc.abstractmethod
    def directions(
        self, parameters: list[Tensor], gradients: list[Tensor], states: list[State], group: dict[str, Any]
    ) -> list[Tensor]:
        """The step of each parameter, before `-lr`; states move on in place. The steps are read only, so they may be
        tensors of the state.

        All tensors of a call are on one device, and in float32 or in float64; none is empty. Parameters and gradients
        may be read, not written, nor kept in the state. `states[i]["step"]` counts from 1, each parameter for itself.
        """

    def parts(self, group: dict[str, Any]) -> tuple[Part, ...]:
        """What the state of a parameter in a group remembers, for `nestling.levels.describe`; what is left out is listed by its key."""
        return ()

    def rule(self, group: dict[str, Any]) -> str:
        """How a parameter of a group moves, in one line."""
        return f"W <- W - lr {type(self).__name__}(G)"

    def check(self, group: dict[str, Any]) -> None:
        """Raise ValueError if a group cannot be worked with. Every group comes by, its settings complete."""
        one_element(lr=group["lr"])
        at_least_zero(lr=group["lr"], weight_decay=group["weight_decay"])
        for name in ("differentiable", "fused"):
            if group.get(name):
                raise ValueError(f"{name}=True is not offered by {type(self).__name__}; leave it out")
        for parameter in group["params"]:
            usable(parameter, "parameter")

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's; the group's own settings are checked like the constructor's."""
        super().add_param_group(param_group)
        try:
            self.check(self.param_groups[-1])
        except ValueError:
            self.param_groups.pop()
            raise

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; returns what the closure returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self.ready(moving(group), group)
        for group in self.param_groups:
            self._init_group(group)
            for alike in _by_kind(moving(group)):
                self._step(alike, group)
        return loss

    def ready(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """Raise ValueError if a step cannot be made with the gradients of a group. Nothing has moved yet, in any group."""
        for parameter in parameters:
            checked(parameter)
        if not group["capturable"] and _capturing():
            raise ValueError("capturable=False, and step() is being captured in a CUDA graph; use capturable=True")

    def _init_group(self, group: dict[str, Any]) -> None:
        """State where there is none yet. torch.compile knows this name: it runs the method, and traces the rest."""
        for parameter in moving(group):
            self._state(parameter, group)

    def _state(self, parameter: Tensor, group: dict[str, Any]) -> State:
        if not self.state.get(parameter):
            self.state[parameter] = self.beginning(parameter, group)
        return self.state[parameter]

    def beginning(self, parameter: Tensor, group: dict[str, Any]) -> State:
        """All of a parameter's state before its first step."""
        device = parameter.device if group["capturable"] else "cpu"
        step = torch.zeros((), dtype=COUNT, device=device)
        return {"step": step, **self.initial_state(exact(parameter.detach()), group)}

    def _step(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        values = [exact(p) for p in parameters]
        gradients = [exact(checked(p), value.dtype) for p, value in zip(parameters, values, strict=True)]
        if group["maximize"]:
            gradients = list(torch._foreach_neg(gradients))
        states = [self.state[p] for p in parameters]
        torch._foreach_add_([state["step"] for state in states], 1.0)
        moves = self.directions(values, gradients, states, group)
        lr = group["lr"]
        if isinstance(lr, Tensor):
            lr = lr.squeeze().to(values[0].device)
        if group["weight_decay"]:
            torch._foreach_mul_(values, 1 - lr * group["weight_decay"])
        if isinstance(lr, Tensor):
            torch._foreach_sub_(values, torch._foreach_mul(moves, lr))
        else:
            torch._foreach_add_(values, moves, alpha=-lr)
        for p, value in zip(parameters, values, strict=True):
            if value is not p:  # low precision
                p.copy_(value)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, with three differences: the state keeps its precision, where torch would cast it to a parameter's
        (bfloat16, say); it is copied, where torch would share it; a setting that is not in the dictionary stays as it is.
        """
        last = self.register_load_state_dict_pre_hook(_packed)  # after the user's own
        try:
            super().load_state_dict(state_dict)
        finally:
            last.remove()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            for parameter in group["params"]:
                for name, value in self.state.get(parameter, {}).items():
                    if isinstance(value, _Packed):
                        self.state[parameter][name] = _placed(name, value.value, parameter, group)


class _Packed:
    """A value of a state that torch carries over without a look at it."""

    def __init__(self, value: Any) -> None:
        self.value = value


def _packed(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
    """A state dictionary with its state packed, and with this optimiser's settings where it has none."""
    state = {
        key: {name: _Packed(value) for name, value in values.items()} if isinstance(values, dict) else values
        for key, values in saved["state"].items()
    }
    settings = [{name: group[name] for name in optimizer.defaults if name in group} for group in optimizer.param_groups]
    settings += [{}] * (len(saved["param_groups"]) - len(settings))  # torch says what is wrong then
    groups = [{**mine, **theirs} for mine, theirs in zip(settings, saved["param_groups"], strict=False)]
    return {**saved, "state": state, "param_groups": groups}


def _placed(name: str, value: Any, parameter: Tensor, group: dict[str, Any]) -> Tensor:
    """A copy of a loaded value, on the device and in the dtype in which a parameter's state lives."""
    if name == "step":  # older checkpoints of torch have it as a number
        device = parameter.device if group["capturable"] else "cpu"
        return torch.as_tensor(value).to(device, COUNT, copy=True)
    follows = value.is_floating_point() and value.dim() > 0  # single numbers mix with any precision
    return value.to(parameter.device, exact_dtype(parameter) if follows else value.dtype, copy=True)


def exact_dtype(x: Tensor) -> torch.dtype:
    """Of computations on x and of its state: float32, or float64 if x has it."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def exact(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """In float32 or better, or in a dtype; x itself if it is."""
    dtype = dtype or exact_dtype(x)
    return x if x.dtype == dtype else x.to(dtype)


def moving(group: dict[str, Any]) -> list[Tensor]:
    """The parameters that have a gradient. An empty one has nowhere to go."""
    return [p for p in group["params"] if p.grad is not None and p.numel()]


def _by_kind(parameters: list[Tensor]) -> Iterable[list[Tensor]]:
    """Lists of parameters that compute in one dtype on one device."""
    kinds: dict[Any, list[Tensor]] = {}
    for p in parameters:
        kinds.setdefault((exact_dtype(p), p.device), []).append(p)
    return kinds.values()


def usable(x: Tensor, what: str) -> None:
    """Raise unless a parameter or gradient is dense and real."""
    if x.layout != torch.strided:
        raise ValueError(
            f"a {what} is sparse ({x.layout}); use sparse=False in the embedding, or torch.optim.SparseAdam for it"
        )
    if x.is_complex():
        raise ValueError(f"a {what} is complex; give its real view (torch.view_as_real) to the optimiser")


def checked(parameter: Tensor) -> Tensor:
    """The gradient, if it is one that these optimisers can use."""
    gradient = parameter.grad
    assert gradient is not None
    usable(gradient, "gradient")
    return gradient


def _capturing() -> bool:
    """Whether a CUDA graph is being made of what runs now. Without `capturable` its replays would count no steps."""
    if torch.compiler.is_compiling():  # which knows what it can capture
        return False
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def one_element(**settings: Any) -> None:
    """Raise if a setting is a tensor of several elements, or of none."""
    for name, value in settings.items():
        if isinstance(value, Tensor) and value.numel() != 1:
            raise ValueError(f"Tensor {name} must be 1-element; it has shape {tuple(value.shape)}")


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
