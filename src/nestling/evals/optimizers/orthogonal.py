"""Orthogonal tasks in sequence (arXiv 2512.24695, section 4.3): does an optimiser with a longer memory forget less?

The inputs of task `t` live in a subspace of their own and, for a share `s` of their energy, in one that all tasks share:

    z ~ N(0, I)      x = z (sqrt(1 - s) O_t + sqrt(s) S)      y = z A_t          O_t, S orthonormal and orthogonal to each other

One linear map solves all tasks at once (`O_t -> A_t / sqrt(1 - s)`, `S -> 0`), so that nothing has to be forgotten. With `s = 0` and no
hidden layer the gradients of two tasks are orthogonal at every weight; with `s > 0` they share `S`; with a hidden layer those
of the first weight stay orthogonal, and the second one is shared. The basis is a random rotation, so that no optimiser
that works coordinate by coordinate finds the subspaces by accident.

A loss is the mean square error as a share of the targets' variance: 1 is to know nothing, 0 everything.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nestling import optim
from nestling.optim import Retained

Optimizer = torch.optim.Optimizer
HELD_OUT = 256


@dataclass(frozen=True)
class Problem:
    """tasks: how many, each of `steps` batches of `batch` examples. own: dimensions of a task. shared: `s` in [0, 1).
    hidden: width of a hidden layer (GELU), or None for a linear model.
    """

    tasks: int = 5
    own: int = 8
    shared: float = 0.5
    outputs: int = 8
    hidden: int | None = None
    steps: int = 100
    batch: int = 16

    @property
    def width(self) -> int:
        """Of the inputs: one subspace a task, and the shared one."""
        return self.own * (self.tasks + 1)


@dataclass(frozen=True)
class Task:
    """place `[own, width]`: from codes to inputs. teacher `[own, outputs]`: from codes to targets."""

    place: Tensor
    teacher: Tensor

    def examples(self, count: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """Inputs `[count, width]` and targets `[count, outputs]`."""
        z = torch.randn(count, len(self.place), generator=random)
        return z @ self.place, z @ self.teacher


def make_tasks(problem: Problem, random: torch.Generator) -> list[Task]:
    """The tasks of one seed."""
    basis, _ = torch.linalg.qr(torch.randn(problem.width, problem.width, generator=random))
    common, *owned = basis.split(problem.own)
    places = [math.sqrt(1 - problem.shared) * own + math.sqrt(problem.shared) * common for own in owned]
    shape = (problem.own, problem.outputs)
    return [Task(place, torch.randn(shape, generator=random) / math.sqrt(problem.own)) for place in places]


def make_model(problem: Problem, seed: int) -> nn.Module:
    """A linear map, or a network with one hidden layer; without biases, so that every parameter is a matrix."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if problem.hidden is None:
            return nn.Linear(problem.width, problem.outputs, bias=False)
        first = nn.Linear(problem.width, problem.hidden, bias=False)
        return nn.Sequential(first, nn.GELU(), nn.Linear(problem.hidden, problem.outputs, bias=False))


@dataclass(frozen=True)
class Outcome:
    """losses[s][t]: held-out loss of task `t` after task `s` was learnt; nan where the run diverged."""

    losses: list[list[float]]

    @property
    def learning(self) -> float:
        """Mean loss of a task when it has just been learnt."""
        return fmean(row[s] for s, row in enumerate(self.losses))

    @property
    def forgetting(self) -> float:
        """Mean rise of the earlier tasks' losses, from when they had just been learnt to the end."""
        return fmean(self.losses[-1][t] - self.losses[t][t] for t in range(len(self.losses) - 1))

    @property
    def final(self) -> float:
        """Mean loss of all tasks at the end: what learning and forgetting together come to."""
        return fmean(self.losses[-1])


def run(problem: Problem, make: Callable[[nn.Module], Optimizer], seed: int) -> Outcome:
    """Learn the tasks one after the other with one optimiser, which is never told where a task ends."""
    random = torch.Generator().manual_seed(seed)
    tasks, model = make_tasks(problem, random), make_model(problem, seed)
    held_out = [task.examples(HELD_OUT, random) for task in tasks]
    optimizer, losses = make(model), []
    for task in tasks:
        for _ in range(problem.steps):
            x, y = task.examples(problem.batch, random)
            optimizer.zero_grad()
            F.mse_loss(model(x), y).backward()
            optimizer.step()
        with torch.no_grad():
            losses.append([(F.mse_loss(model(x), y) / y.square().mean()).item() for x, y in held_out])
    return Outcome(losses)


@dataclass(frozen=True)
class Family:
    """One optimiser with memories of several lengths.

    memory: what the length is a length of. make: `(model, length, lr) -> optimiser`. rates: tried for each length.
    """

    name: str
    memory: str
    lengths: Sequence[float]
    make: Callable[[nn.Module, float, float], Optimizer]
    rates: Sequence[float]


def decay(length: float) -> float:
    """The factor of an exponential mean over `length` steps: `1 - 1 / length`."""
    return 1 - 1 / length


def momentum(model: nn.Module, length: float, lr: float) -> Optimizer:
    """SGD; `lr` is that of the sum of all steps which one gradient causes."""
    return torch.optim.SGD(model.parameters(), lr / length, momentum=decay(length))


def ademamix(model: nn.Module, length: float, lr: float) -> Optimizer:
    """AdEMAMix, whose second mean of gradients is long."""
    return optim.AdEMAMix(model.parameters(), lr, betas=(0.9, 0.999, decay(length)), alpha=5.0)


def m3(model: nn.Module, length: float, lr: float) -> Optimizer:
    """M3, whose slow momentum takes in the gradients every `length` steps."""
    return optim.M3(model.parameters(), lr, periods=(int(length),))


def retention(model: nn.Module, length: float, lr: float) -> Optimizer:
    """Plain SGD behind retention over what was seen in the last `length` steps."""
    return Retained(torch.optim.SGD(model.parameters(), lr), model, damping=1e-2, forgetting=decay(length))


def retention_damped(model: nn.Module, length: float, lr: float) -> Optimizer:
    """The same, never forgetting, with a damping of `1 / length`."""
    return Retained(torch.optim.SGD(model.parameters(), lr), model, damping=1 / length)


SLOW = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)  # rates of optimisers whose steps have a size of their own
FAMILIES = (
    Family("SGD momentum", "mean of gradients, steps", (1, 10, 100, 1000), momentum, (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)),
    Family("AdEMAMix", "long mean of gradients, steps", (10, 100, 1000), ademamix, SLOW),
    Family("M3", "slow period, steps", (1, 10, 100), m3, SLOW),
    Family(
        "retention", "inputs seen, steps", (2, 10, 100, 1000, math.inf), retention, (1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
    ),
    Family("retention", "1 / damping", (0.1, 1, 10, 100), retention_damped, (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)),
)


@dataclass(frozen=True)
class Row:
    """One family at one length and its best rate: the scores of each seed."""

    family: str
    memory: str
    length: float
    lr: float
    learning: list[float]
    forgetting: list[float]
    final: list[float]


def sweep(
    problem: Problem, family: Family, seeds: Sequence[int] = (0, 1, 2), tuning: Sequence[int] = (100, 101)
) -> list[Row]:
    """A row for each length of memory, its rate chosen on the seeds `tuning` by the final loss over all tasks."""
    if len(seeds) < 2 or set(seeds) & set(tuning):
        raise ValueError(f"seeds={list(seeds)} must be at least two, and none of those that tune ({list(tuning)})")
    rows = []
    for length in family.lengths:

        def outcomes(lr: float, at: Iterable[int], length: float = length) -> list[Outcome]:
            return [run(problem, lambda model: family.make(model, length, lr), seed) for seed in at]

        lr = min(family.rates, key=lambda lr: _finite(fmean(o.final for o in outcomes(lr, tuning))))
        found = outcomes(lr, seeds)
        scores = [[getattr(o, name) for o in found] for name in ("learning", "forgetting", "final")]
        rows.append(Row(family.name, family.memory, length, lr, *scores))
    return rows


def _finite(value: float) -> float:
    """What diverged is the worst."""
    return value if math.isfinite(value) else math.inf


PROBLEMS = {"a linear map": Problem(), "a hidden layer of 64": Problem(hidden=64)}


def study(say: Callable[[str], None]) -> dict[str, Any]:
    """All families, by problem; a length of None is forever."""
    found: dict[str, Any] = {}
    for title, problem in PROBLEMS.items():
        found[title] = []
        for family in FAMILIES:
            rows = [asdict(row) for row in sweep(problem, family)]
            found[title] += [row | {"length": row["length"] if math.isfinite(row["length"]) else None} for row in rows]
            say(f"orthogonal tasks, {title}: {family.name} ({family.memory})")
    return found
