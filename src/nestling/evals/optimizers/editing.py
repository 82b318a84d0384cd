"""Knowledge editing: what does it cost the other facts of a network to change the answers to a few?

A network knows random facts, key to answer. The answers to the first few become others, by `optim.edit`, until every one is
right; then the facts that should have stayed are asked. Of those a part was shown beforehand (`observed`), where the method
can use that, and a part was not.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nestling.optim import Retained, edit

FACTS, CHANGED, OBSERVED, WIDTH, ANSWERS = 80, 6, 60, 32, 8

Optimizer = torch.optim.Optimizer


@dataclass(frozen=True)
class Knowledge:
    """A network, the keys it knows `[FACTS, WIDTH]`, their answers `[FACTS]`, and other ones to the first few `[CHANGED]`."""

    model: nn.Module
    keys: Tensor
    answers: Tensor
    new: Tensor


@dataclass(frozen=True)
class Outcome:
    """changed: share of the edited facts that have their new answers. lost: share of the kept ones that lost theirs, and by
    how many nats they got worse, each for those that were shown before and for the others.
    """

    changed: float
    lost: float
    worse: float
    lost_unseen: float
    worse_unseen: float


def learnt(seed: int) -> Knowledge:
    """A network that knows its facts."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        keys, answers = torch.randn(FACTS, WIDTH), torch.randint(ANSWERS, (FACTS,))
        layers = (nn.Linear(WIDTH, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, ANSWERS))
        model = nn.Sequential(*layers)
        new = (answers[:CHANGED] + 1 + torch.randint(ANSWERS - 1, (CHANGED,))) % ANSWERS
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        F.cross_entropy(model(keys), answers).backward()
        optimizer.step()
    return Knowledge(model, keys, answers, new)


def run(known: Knowledge, make: Callable[[nn.Module], Optimizer]) -> Outcome:
    """Edit a copy of the network, and ask all facts."""
    model, shown = copy.deepcopy(known.model), known.keys[CHANGED:OBSERVED]
    optimizer = make(model)
    if isinstance(optimizer, Retained):
        with optimizer.observe():
            model(shown)
    before = _losses(model, known)
    with suppress(ValueError):  # a rate that diverges leaves the network as it was: nothing changed
        edit(model, known.keys[:CHANGED], known.new, optimizer, until=0.1, steps=300)
    with torch.no_grad():
        found = model(known.keys).argmax(-1)
    worse, lost = _losses(model, known) - before, (found != known.answers).float()
    costs = [
        part.mean().item() for at in (slice(CHANGED, OBSERVED), slice(OBSERVED, None)) for part in (lost[at], worse[at])
    ]
    return Outcome((found[:CHANGED] == known.new).float().mean().item(), *costs)


def _losses(model: nn.Module, known: Knowledge) -> Tensor:
    with torch.no_grad():
        return F.cross_entropy(model(known.keys), known.answers, reduction="none")


def protected(damping: float) -> Callable[[nn.Module, float], Optimizer]:
    """SGD behind retention over what was shown."""
    return lambda model, lr: Retained(torch.optim.SGD(model.parameters(), lr), model, damping)


METHODS: dict[str, tuple[Callable[[nn.Module, float], Optimizer], Sequence[float]]] = {
    "SGD": (lambda model, lr: torch.optim.SGD(model.parameters(), lr), (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)),
    "Adam": (lambda model, lr: torch.optim.Adam(model.parameters(), lr), (3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)),
    "SGD, retention 0.1": (protected(0.1), (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)),
    "SGD, retention 0.01": (protected(0.01), (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)),
    "SGD, retention 0.001": (protected(0.001), (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)),
}


def study(
    say: Callable[[str], None], seeds: Sequence[int] = (0, 1, 2), tuning: Sequence[int] = (100, 101)
) -> list[dict[str, Any]]:
    """A row for each method: the rate which, on seeds of its own, changes all facts at the least cost; then scores by seed."""
    rows = []
    for name, (make, rates) in METHODS.items():

        def outcomes(lr: float, at: Sequence[int], make: Callable = make) -> list[Outcome]:
            return [run(learnt(seed), lambda model: make(model, lr)) for seed in at]

        lr = min(rates, key=lambda lr: _cost(outcomes(lr, tuning)))
        found = [asdict(outcome) for outcome in outcomes(lr, seeds)]
        rows.append({"name": name, "lr": lr, **{key: [outcome[key] for outcome in found] for key in found[0]}})
        say(f"editing, {name}: {100 * fmean(rows[-1]['lost']):.1f}% of the facts shown lost")
    return rows


def _cost(outcomes: Sequence[Outcome]) -> tuple[float, float]:
    """Facts not changed first, then what the facts that were shown lost."""
    return -fmean(outcome.changed for outcome in outcomes), fmean(outcome.worse for outcome in outcomes)
