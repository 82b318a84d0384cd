"""The methods, and the settings that each is tried at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod
from typing import Any

from nestling.continual.bodies import Body, Descent, ElasticWeights, Joint, Levelled, OnlineLaplace, Perceptron, Replay
from nestling.evals.continual.contenders import grid
from nestling.evals.tuning import Setting
from nestling.levels import Level
from nestling.memory import RetainPredictions
from nestling.memory.moments import shape

BATCH = 32
MOMENTUM = 0.9
BLOCK = 256  # neighbours over which our levels keep moments


@dataclass(frozen=True)
class Problem:
    """widths: of the network, from pixels to classes. examples: in the stream. seed: of the weights and of what is drawn."""

    widths: tuple[int, ...]
    examples: int
    seed: int

    def network(self) -> Perceptron:
        """As it is before the stream; the same for every method."""
        return Perceptron(self.widths, self.seed)

    def bytes_of_ours(self) -> int:
        """What one retaining level keeps in all: weights, the gradient of a period that is not over, moments and their inverses."""
        layers = [(width + 1, out) for width, out in pairwise(self.widths)]
        moments = [prod(shape(width, BLOCK)) for layer in layers for width in layer]
        return 8 * (sum(width * out for width, out in layers) + sum(moments))


@dataclass(frozen=True)
class Method:
    """make: a learner for a problem at a setting. settings: those that are tried on the validation stream. ours: whether it is
    made of this library's levels. levels: how many, where that is the question. upper: whether it goes over everything again, and is
    judged at the end alone.
    """

    make: Callable[[Problem, Setting], Body]
    settings: tuple[Setting, ...]
    ours: bool = False
    levels: int | None = None
    upper: bool = False


def base(p: Problem, s: Setting) -> Level:
    """A level that retains what was predicted, the more firmly the more it has seen: the prior is worth a fifth of the stream."""
    rule = RetainPredictions(s["damping"], s["damping"], refresh=0.1, block=BLOCK, prior=p.examples / 5)
    return Level(BATCH, lr=s["lr"], rule=rule)


def levelled(*more: Callable[[Problem, Setting], Level]) -> Callable[[Problem, Setting], Body]:
    """The base, and other levels that move the same weights, in the order of their periods."""

    def make(p: Problem, s: Setting) -> Body:
        levels = [base(p, s), *(one(p, s) for one in more)]
        return Levelled(p.network(), sorted(levels, key=lambda level: (level.period, level.reset is None)))

    return make


def fast(p: Problem, s: Setting) -> Level:
    """More plastic than the base, and what it adds decays: by half in 70 batches."""
    return Level(
        BATCH, lr=s["fast"], rule=replace(base(p, s).rule, damping=4.0, output_damping=4.0, prior=None), reset=0.99
    )


def slow(batches: int) -> Callable[[Problem, Setting], Level]:
    """The base's rule at a longer period, on the mean gradient of some batches."""
    return lambda p, s: replace(base(p, s), period=batches * BATCH, lr=s["slow"])


def replaying(logits: bool, tried: tuple[Setting, ...]) -> Method:
    """Replay, or DER++, of as many bytes as ours."""

    def make(p: Problem, s: Setting) -> Body:
        size, weight = p.bytes_of_ours(), s["distilled"] if logits else 0.0
        return Replay(p.network(), s["lr"], size, MOMENTUM, s["replays"], weight, p.seed)

    return Method(make, tried)


def listed(names: tuple[str, ...], *values: tuple[Any, ...]) -> tuple[Setting, ...]:
    """Settings, each by its values."""
    return tuple(dict(zip(names, some, strict=True)) for some in values)


BASE = {"lr": (0.5,), "damping": (1.0,)}
STRENGTHS = listed(("lr", "strength"), (0.01, 100.0), (0.01, 300.0), (0.03, 100.0))
# three trials each, around what a first look at other streams found; joint training has two
METHODS: dict[str, Method] = {
    "SGD": Method(
        lambda p, s: Descent(p.network(), s["lr"], s["momentum"]),
        listed(("lr", "momentum"), (0.003, 0.9), (0.01, 0.9), (0.03, 0.0)),
    ),
    "EWC": Method(lambda p, s: ElasticWeights(p.network(), s["lr"], s["strength"], MOMENTUM), STRENGTHS),
    "online Laplace": Method(lambda p, s: OnlineLaplace(p.network(), s["lr"], s["strength"], MOMENTUM), STRENGTHS),
    "replay, equal bytes": replaying(False, listed(("lr", "replays"), (0.03, 1), (0.03, 2), (0.01, 2))),
    "DER++, equal bytes": replaying(
        True, listed(("lr", "replays", "distilled"), (0.03, 1, 0.3), (0.03, 1, 1.0), (0.01, 1, 1.0))
    ),
    "retention": Method(levelled(), listed(("lr", "damping"), (0.5, 0.7), (0.5, 1.0), (0.7, 1.0)), ours=True, levels=1),
    "retention, 2 levels": Method(levelled(fast), grid(**BASE, fast=(0.03, 0.1)), ours=True, levels=2),
    "retention, 3 levels": Method(
        levelled(fast, slow(8)), grid(**BASE, fast=(0.03,), slow=(0.3, 1.0)), ours=True, levels=3
    ),
    "retention, 4 levels": Method(
        levelled(fast, slow(8), slow(64)), grid(**BASE, fast=(0.03,), slow=(0.3, 1.0)), ours=True, levels=4
    ),
    "joint, 3 passes": Method(
        lambda p, s: Joint(p.network(), s["lr"], MOMENTUM, 3, seed=p.seed), grid(lr=(0.01, 0.03)), upper=True
    ),
}
