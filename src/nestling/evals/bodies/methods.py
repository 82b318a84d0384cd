"""The methods, and the settings that each is tried at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from nestling.continual.bodies import Body, Descent, ElasticWeights, Joint, Levelled, OnlineLaplace, Perceptron, Replay
from nestling.evals.continual.contenders import grid
from nestling.levels import Level
from nestling.memory import RetainPredictions

Setting = dict[str, Any]
BATCH = 32
MOMENTUM = 0.9


@dataclass(frozen=True)
class Problem:
    """widths: of the network, from pixels to classes. seed: of its weights and of what is drawn."""

    widths: tuple[int, ...]
    seed: int

    def network(self) -> Perceptron:
        """As it is before the stream; the same for every method."""
        return Perceptron(self.widths, self.seed)

    def bytes_of_ours(self) -> int:
        """What one retaining level keeps in all, weights included, once it has stepped: moments and their inverses."""
        layers = [(width + 1, out) for width, out in pairwise(self.widths)]
        return 4 * sum(width * out + 2 * (width**2 + out**2) for width, out in layers)


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


def retaining(p: Problem, s: Setting) -> Body:
    """One level that retains what was predicted."""
    rule = RetainPredictions(s["damping"], s["damping"], refresh=0.05, prior=s["prior"])
    return Levelled(p.network(), [Level(BATCH, lr=s["lr"], rule=rule)])


def replaying(logits: bool, **swept: tuple[Any, ...]) -> Method:
    """Replay, or DER++, of as many bytes as ours."""

    def make(p: Problem, s: Setting) -> Body:
        size, weight = p.bytes_of_ours(), s["distilled"] if logits else 0.0
        return Replay(p.network(), s["lr"], size, MOMENTUM, s["replays"], weight, p.seed)

    return Method(make, grid(**swept))


METHODS: dict[str, Method] = {
    "SGD": Method(lambda p, s: Descent(p.network(), s["lr"]), grid(lr=(0.003, 0.01, 0.03, 0.1, 0.3))),
    "SGD, momentum": Method(
        lambda p, s: Descent(p.network(), s["lr"], MOMENTUM), grid(lr=(0.0003, 0.001, 0.003, 0.01, 0.03))
    ),
    "EWC": Method(
        lambda p, s: ElasticWeights(p.network(), s["lr"], s["strength"], MOMENTUM),
        grid(lr=(0.01, 0.03), strength=(100.0, 300.0, 1000.0)),
    ),
    "online Laplace": Method(
        lambda p, s: OnlineLaplace(p.network(), s["lr"], s["strength"], MOMENTUM),
        grid(lr=(0.003, 0.01, 0.03), strength=(30.0, 100.0, 300.0)),
    ),
    "replay, equal bytes": replaying(False, lr=(0.01, 0.03), replays=(1, 4)),
    "DER++, equal bytes": replaying(True, lr=(0.01, 0.03), replays=(1,), distilled=(0.1, 0.3, 1.0)),
    "retention": Method(retaining, grid(lr=(0.5, 1.0), damping=(0.5, 1.0), prior=(10_000.0, 30_000.0)), ours=True),
    "joint, 3 passes": Method(
        lambda p, s: Joint(p.network(), s["lr"], MOMENTUM, 3, seed=p.seed), grid(lr=(0.01, 0.03)), upper=True
    ),
}
