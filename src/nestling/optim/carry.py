"""The state of an optimiser is knowledge: it goes with the weights, by their names, into the next phase."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nestling.optim.shell import Shell, State

Place = tuple[Tensor, dict[str, Any]]  # a parameter and its group


@dataclass(frozen=True)
class Carried:
    """What `carry` moved, and what it did not.

    names: parameters whose state moved, or a part of it.
    left: what of a parameter's old state did not move, where that is anything.
    missing: what of a parameter's new state did not come from the old one, where that is anything; it starts afresh.
    fresh: parameters of the new optimiser for which the old one has no state.
    gone: parameters of the old optimiser that have a state, and that the new one does not have.
    """

    names: tuple[str, ...]
    left: dict[str, tuple[str, ...]]
    missing: dict[str, tuple[str, ...]]
    fresh: tuple[str, ...]
    gone: tuple[str, ...]


@torch.no_grad()
def carry(old: torch.optim.Optimizer, new: torch.optim.Optimizer) -> Carried:
    """Copy the state of each parameter of `old` to the parameter of the same name in `new`, another model's perhaps.

        old = M3(model.named_parameters());    ...    new = M3(grown.named_parameters());    carry(old, new)

    Between optimisers of one class and setting the whole state moves, and the next step is the one that `old` would have
    made. Otherwise what has the same name and shape moves, and the count of steps only if nothing is missing: corrections
    for the start of a memory take for granted that it saw so many gradients (with a thousand counted and none seen, Adam's
    first step is 25 times too long; with none counted and its first moment full, 10 times).

    Settings (rates, decays, groups) are those of `new`. Any `torch.optim.Optimizer` will do, except that one of another
    class must be a `nestling.optim` one or have stepped, as others make their state in their first step.

    Do not use it to read a checkpoint into the same model: that is `load_state_dict`, which takes the settings too.

    Raises:
        ValueError: an optimiser made without names, or with one name twice; a wrapper around one, which may know more than
            the state shows; no name in common, or no part of a state; a parameter whose shape differs; an `old` that has
            not stepped. Nothing has moved then.
    """
    before, after = by_name(old), by_name(new)
    learnt = {name: old.state[p] for name, (p, _) in before.items() if old.state.get(p)}
    _refuse(before, after, learnt)
    both = [name for name in after if name in learnt]
    wanted = {name: _wanted(learnt[name], type(old), new, *after[name]) for name in both}
    fits = {name: _fitting(learnt[name], wanted[name]) for name in both}
    if not any(fits.values()):
        raise ValueError(
            f"no part of the state of {type(old).__name__} ({_some(learnt[both[0]])}) has a place in that of "
            f"{type(new).__name__} ({_some(wanted[both[0]])}); there is nothing to carry between them"
        )
    moved = {name: {key: learnt[name][key] for key in fits[name]} for name in both}
    _put(new, {after[name][0]: {**wanted[name], **moved[name]} for name in both})
    return Carried(
        names=tuple(name for name in both if fits[name]),
        left={name: rest for name in both if (rest := tuple(k for k in learnt[name] if k not in fits[name]))},
        missing={name: rest for name in both if (rest := tuple(k for k in wanted[name] if k not in fits[name]))},
        fresh=tuple(name for name in after if name not in learnt),
        gone=tuple(name for name in learnt if name not in after),
    )


def by_name(optimizer: torch.optim.Optimizer) -> dict[str, Place]:
    """Each parameter of an optimiser and its group, by the name it was given with.

    Raises:
        ValueError: it was made without names, one name stands for two parameters, or it stands around another optimiser.
    """
    found: dict[str, Place] = {}
    for name, place in _named(optimizer):
        if name in found:
            raise ValueError(f"{name!r} names two parameters of {type(optimizer).__name__}; give each its own name")
        found[name] = place
    return found


def _named(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Place]]:
    if "param_groups" not in vars(optimizer):
        raise ValueError(
            f"{type(optimizer).__name__} stands around another optimiser, whose groups it shows; carry between the ones inside"
        )
    for group in optimizer.param_groups:
        if "param_names" not in group:
            raise ValueError(
                f"{type(optimizer).__name__} was made without names of its parameters; make it with "
                'model.named_parameters(), or groups {"params": [(name, parameter), ...]}, instead of model.parameters()'
            )
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            yield name, (parameter, group)


def _refuse(before: dict[str, Place], after: dict[str, Place], learnt: dict[str, Any]) -> None:
    """Raise where nothing, or not everything that should, could move."""
    common = [name for name in before if name in after]
    if not common:
        raise ValueError(
            f"no parameter has the same name: the old optimiser has {_some(before)}, the new one {_some(after)}; "
            "name the parameters of both from the same module (a wrapper puts its own name in front)"
        )
    shapes = {name: (tuple(before[name][0].shape), tuple(after[name][0].shape)) for name in common}
    if unlike := [f"{name} {old} and {new}" for name, (old, new) in shapes.items() if old != new]:
        raise ValueError(
            f"shapes differ: {', '.join(unlike)} (old and new); leave these out of one of the optimisers, or rename them"
        )
    if not any(name in learnt for name in common):
        raise ValueError("the old optimiser has made no step with these parameters, so there is nothing to carry")


def _some(names: Iterable[str]) -> str:
    """A few names, for a message."""
    names = list(names)
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _wanted(
    learnt: State, old_class: type, new: torch.optim.Optimizer, parameter: Tensor, group: dict[str, Any]
) -> State:
    """The state that a parameter of the new optimiser has, begins with, or will have."""
    if state := new.state.get(parameter):
        return state
    if isinstance(new, Shell):
        return new.beginning(parameter, group)
    if type(new) is old_class:
        return learnt
    raise ValueError(
        f"{type(new).__name__} makes its state in its first step, and has made none; take one with lr=0 first"
    )


def _fitting(old: State, new: State) -> set[str]:
    """Keys of what can move: of equal name and shape; the count of steps only with everything else."""
    fits = {key for key in new if key in old and _shape(old[key]) == _shape(new[key])}
    return fits if len(fits) == len(new) else fits - {"step"}


def _shape(value: Any) -> Any:
    return value.shape if isinstance(value, Tensor) else ()


def _put(new: torch.optim.Optimizer, states: dict[Tensor, State]) -> None:
    """Set states by loading them, which brings each to the device and precision that the optimiser keeps it in."""
    groups, saved = list(new.param_groups), new.state_dict()
    index = {p: i for i, p in enumerate(p for group in groups for p in group["params"])}
    moved = {index[p]: copy.deepcopy(state) for p, state in states.items()}
    new.load_state_dict({**saved, "state": {**saved["state"], **moved}})
    new.param_groups[:] = groups  # the same objects as before: schedulers and graphs may hold on to them
