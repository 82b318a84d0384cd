"""The step of an optimiser as the rule of a level: any error term may replace the plain gradient (arXiv 2512.24695, Eq. 71).

`B` rows, each with weights, gradients and a memory of its own: to the optimiser, every row of every weight is a parameter.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from nestling.memory import L2, DotProduct, RetainSeen
from nestling.memory.part import Part
from nestling.optim import M3, AdEMAMix, DeepMomentum, DeltaMomentum, GeneralisedMomentum, PreconditionedMomentum, Shell
from nestling.optim.deep_momentum import Polynomial
from nestling.optim.generalised_momentum import Elementwise, Rows
from nestling.optim.preconditioned_momentum import Diagonal, Identity, Kronecker

Memory = dict[str, Tensor]  # what an optimiser remembers of one weight's gradients, `[B, ..]` by name

CLASSES = (AdEMAMix, DeepMomentum, DeltaMomentum, GeneralisedMomentum, M3, PreconditionedMomentum)
OPTIMIZERS: dict[str, type[Shell]] = {c.__name__: c for c in CLASSES}
NEED_INPUTS = ("DGD", "Retained")
PARTS = {
    c.__name__: c for c in (L2, DotProduct, RetainSeen, Identity, Diagonal, Kronecker, Elementwise, Rows, Polynomial)
}
OF_THE_LEVEL = ("lr", "weight_decay", "maximize", "capturable")


@dataclasses.dataclass(frozen=True, init=False, repr=False)
class StepOf:
    """A level that moves as an optimiser of `nestling.optim` does; an update of the level is one of its steps.

        Level(period=512, lr=1e-3, clip=1.0, rule=StepOf("M3", momentum=0.9, periods=(8,)))

    The optimiser gets the mean gradient of the period, after the level's clip, and says which way to go; how far is the
    level's `lr`. What it remembers is part of the level's state, for each row apart: saved, restored and reordered with the
    rest, kept as it was where a step is refused, begun anew where the level resets. It makes the state of each sequence larger:
    by one matrix `[out, in]` a weight for a momentum, by three for `M3` with one slow memory.

    Periods and warm-ups of the optimiser count updates of the level. Do not use it where a level resets after a few
    updates: its memory would have nothing to remember.

    optimizer: `AdEMAMix`, `DeepMomentum`, `DeltaMomentum`, `GeneralisedMomentum` (as it comes, Adam), `M3` or
        `PreconditionedMomentum`, by name.
    settings: the optimiser's: plain data, or the parts it is composed of (`Kronecker()`, `L2()`, ..). `lr`, `weight_decay`
        and the like are none of them: a level has `lr` and `reset`.

    Raises:
        ValueError: no such optimiser, one that needs more than gradients, or a setting out of range.
    """

    optimizer: str
    settings: tuple[tuple[str, Any], ...]

    def __init__(self, optimizer: str, **settings: Any) -> None:
        if optimizer in NEED_INPUTS:
            raise ValueError(
                f"{optimizer} needs what goes into a layer, and a level has gradients only; for retention over what was seen "
                "use rule=RetainSeen()"
            )
        if optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer={optimizer!r} does not move a level; choose {', '.join(OPTIMIZERS)}")
        if given := [name for name in OF_THE_LEVEL if name in settings]:
            raise ValueError(f"{', '.join(given)}: a level has its own lr and reset, and goes downhill; leave it out")
        object.__setattr__(self, "optimizer", optimizer)
        object.__setattr__(self, "settings", tuple((name, _object(value)) for name, value in sorted(settings.items())))
        self._make(torch.zeros(1, 1))

    def __repr__(self) -> str:
        settings = [f"{name}={value!r}" for name, value in self.settings]
        return f"StepOf({', '.join([repr(self.optimizer), *settings])})"

    def to_dict(self) -> dict[str, Any]:
        """Plain data: the arguments that make it again. A part that is none of `PARTS` raises ValueError."""
        return {"optimizer": self.optimizer, **{name: _data(value) for name, value in self.settings}}

    def parts(self) -> tuple[Part, ...]:
        """What the optimiser remembers of a weight; its periods count updates of the level."""
        shell = self._make(torch.zeros(1, 1))
        return shell.parts(shell.param_groups[0])

    def initial(self, weight: Tensor, rows: int) -> Memory:
        """What is remembered before the first gradient of a weight `[out, in]`, float32 or float64."""
        shell = self._make(weight)
        state = shell.beginning(weight, shell.param_groups[0])
        return {name: value.expand(rows, *value.shape).clone() for name, value in state.items()}

    @torch.no_grad()
    def directions(
        self, weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor], memories: Mapping[str, Memory]
    ) -> tuple[dict[str, Tensor], dict[str, Memory]]:
        """The step of every row before `-lr`, `[B, out, in]` by name of the weight, and what is remembered after it."""
        after = {name: {key: value.clone() for key, value in memories[name].items()} for name in gradients}
        for memory in after.values():
            memory["step"] += 1
        rows = range(len(next(iter(gradients.values()))))
        states = [{key: value[b] for key, value in memory.items()} for memory in after.values() for b in rows]  # views
        parameters, slopes = ([x for name in gradients for x in by[name].unbind()] for by in (weights, gradients))
        shell = self._make(parameters[0])
        moves = iter(shell.directions(parameters, slopes, states, shell.param_groups[0]))
        return {name: torch.stack([next(moves) for _ in rows]) for name in gradients}, after

    def _make(self, parameter: Tensor) -> Shell:
        """The optimiser, around a parameter that it will not move."""
        return OPTIMIZERS[self.optimizer]([parameter], **dict(self.settings))


def _object(value: Any) -> Any:
    """A setting from plain data: a list becomes a tuple, and a dictionary the part that its name says."""
    if isinstance(value, list | tuple):
        return tuple(_object(item) for item in value)
    if not isinstance(value, dict):
        return value
    settings = {key: _object(item) for key, item in value.items()}
    name = settings.pop("name", None)
    if name not in PARTS:
        raise ValueError(f"unknown part {name!r} of an optimiser; choose {', '.join(PARTS)}")
    return PARTS[name](**settings)


def _data(value: Any) -> Any:
    """The inverse of `_object`."""
    if isinstance(value, tuple):
        return [_data(item) for item in value]
    if isinstance(value, tuple(PARTS.values())):
        fields = {field.name: _data(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"name": type(value).__name__, **fields}
    if value is None or isinstance(value, str | int | float):
        return value
    raise ValueError(f"{value!r} cannot be written to a file; use plain data, or one of {', '.join(PARTS)}")
